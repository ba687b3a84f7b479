"""The models that the benchmarks run over: named, built without any download, in eval mode, with example inputs.

Three suites: the smallest model of each of timm's model files; torchvision's classification, segmentation and detection
models; families of transformers from small configurations with random weights. The list of timm's smallest is kept here,
so that a run doesn't depend on what is found smallest; it was made by `smallest_of_timm`:

    python benchmarks/model_zoo.py                  # names, one a line
    python benchmarks/model_zoo.py --check --suite torchvision
    python benchmarks/model_zoo.py --smallest
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Inputs = Any  # a tensor, a tuple of positional arguments or a dictionary of keyword arguments

# timm 1.0.31: model file -> its smallest model by parameters; timm's own `test_*` miniatures are left out.
TIMM = {
    'beit': 'beit_base_patch16_224',
    'byoanet': 'halonet_h1',
    'byobnet': 'mobileone_s1',
    'cait': 'cait_xxs24_224',
    'coat': 'coat_tiny',
    'convit': 'convit_tiny',
    'convmixer': 'convmixer_768_32',
    'convnext': 'convnext_zepto_rms',
    'cpubone': 'cpubone_nano',
    'crossvit': 'crossvit_tiny_240',
    'csatv2': 'csatv2',
    'cspnet': 'cs3darknet_focus_s',
    'cspnext': 'cspnext_tiny',
    'davit': 'davit_tiny',
    'deepseek_vit': 'deepseek_vit_412m',
    'deit': 'deit_tiny_patch16_224',
    'densenet': 'densenet121',
    'dla': 'dla46x_c',
    'dpn': 'dpn48b',
    'edgenext': 'edgenext_xx_small',
    'efficientformer': 'efficientformer_l1',
    'efficientformer_v2': 'efficientformerv2_s0',
    'efficientnet': 'mobilenetv2_035',
    'efficientvim': 'efficientvim_m1',
    'efficientvit_mit': 'efficientvit_b0',
    'efficientvit_msra': 'efficientvit_m0',
    'eva': 'vit_tiny_patch16_dinov3_qkvb',
    'fasternet': 'fasternet_t0',
    'fastvit': 'fastvit_t8',
    'focalnet': 'focalnet_tiny_srf',
    'gcvit': 'gcvit_xxtiny',
    'gemma4_vit': 'gemma4_vit_167m',
    'ghostnet': 'ghostnet_050',
    'hardcorenas': 'hardcorenas_b',
    'hgnet': 'hgnetv2_b0',
    'hiera': 'hiera_tiny_224',
    'hieradet_sam2': 'sam2_hiera_tiny',
    'hrnet': 'hrnet_w18_small',
    'iformer': 'iformer_t',
    'inception_next': 'inception_next_atto',
    'inception_resnet_v2': 'inception_resnet_v2',
    'inception_v3': 'inception_v3',
    'inception_v4': 'inception_v4',
    'lcnetv2': 'lcnetv2_small',
    'levit': 'levit_128s',
    'lowformer': 'lowformer_b0',
    'mambaout': 'mambaout_femto',
    'maxxvit': 'maxvit_pico_rw_256',
    'metaformer': 'poolformerv2_s12',
    'mlp_mixer': 'gmlp_ti16_224',
    'mobilenetv3': 'mobilenetv3_small_050',
    'mobilenetv5': 'mobilenetv5_base',
    'mobilevit': 'mobilevit_xxs',
    'mvitv2': 'mvitv2_tiny',
    'naflexvit': 'naflexvit_base_patch16_parfac_gap',
    'nasnet': 'nasnetalarge',
    'nest': 'nest_tiny',
    'nextvit': 'nextvit_small',
    'nfnet': 'nf_regnet_b0',
    'pit': 'pit_ti_224',
    'pnasnet': 'pnasnet5large',
    'pvt_v2': 'pvt_v2_b0',
    'qwen3_vit': 'qwen3_vit_88m',
    'rdnet': 'rdnet_tiny',
    'regnet': 'regnetx_002',
    'repghost': 'repghostnet_050',
    'repvit': 'repvit_m1',
    'res2net': 'res2next50',
    'resnest': 'resnest14d',
    'resnet': 'resnet10t',
    'resnetv2': 'resnetv2_18',
    'rexnet': 'rexnet_100',
    'selecsls': 'selecsls42',
    'senet': 'legacy_seresnet18',
    'sequencer': 'sequencer2d_s',
    'shvit': 'shvit_s1',
    'sknet': 'skresnet18',
    'starnet': 'starnet_s050',
    'swiftformer': 'swiftformer_xs',
    'swin_transformer': 'swin_tiny_patch4_window7_224',
    'swin_transformer_v2': 'swinv2_tiny_window8_256',
    'swin_transformer_v2_cr': 'swinv2_cr_tiny_224',
    'tiny_vit': 'tiny_vit_5m_224',
    'tnt': 'tnt_s_legacy_patch16_224',
    'tresnet': 'tresnet_m',
    'twins': 'twins_svt_small',
    'vgg': 'vgg11',
    'visformer': 'visformer_tiny',
    'vision_transformer': 'vit_tiny_patch16_224',
    'vision_transformer_hybrid': 'vit_tiny_r_s16_p8_224',
    'vision_transformer_relpos': 'vit_srelpos_small_patch16_224',
    'vision_transformer_sam': 'samvit_base_patch16_224',
    'vitamin': 'vitamin_small_224',
    'volo': 'volo_d1_224',
    'vovnet': 'ese_vovnet19b_slim_dw',
    'xception': 'xception',
    'xception_aligned': 'xception41p',
    'xcit': 'xcit_nano_12_p8_224',
}
# Without a head by default: they get the one that the others have, so that every model has a task.
HEADLESS = ('deepseek_vit_412m', 'gemma4_vit_167m', 'qwen3_vit_88m', 'sam2_hiera_tiny', 'vit_tiny_patch16_dinov3_qkvb')
# Made for 512 to 896 pixels: their channels are the same at fewer.
TIMM_SIZES = {'deepseek_vit_412m': 224, 'gemma4_vit_167m': 192, 'qwen3_vit_88m': 224, 'sam2_hiera_tiny': 224, 'csatv2': 256}

# The smallest of each family; `--full` takes every registered name.
TORCHVISION = (
    'alexnet',
    'convnext_tiny',
    'densenet121',
    'efficientnet_b0',
    'efficientnet_v2_s',
    'googlenet',
    'inception_v3',
    'maxvit_t',
    'mnasnet0_5',
    'mobilenet_v2',
    'mobilenet_v3_large',
    'mobilenet_v3_small',
    'regnet_x_400mf',
    'regnet_y_400mf',
    'resnet18',
    'resnet50',
    'resnext50_32x4d',
    'shufflenet_v2_x0_5',
    'shufflenet_v2_x1_0',
    'squeezenet1_1',
    'swin_t',
    'swin_v2_t',
    'vgg11',
    'vgg11_bn',
    'vit_b_32',
    'wide_resnet50_2',
)
SUITES = ('timm', 'torchvision', 'transformers')
HIDDEN, LAYERS, HEADS, WORDS, TOKENS = 64, 2, 4, 256, 12


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Args:
        name: Its name in its suite.
        suite: 'timm', 'torchvision' or 'transformers'.
        build: Makes the model in eval mode and its example inputs.
        family: The model file or the task.
        classes: How many outputs the task's head has, 0 where it has none: peers have to be told.
    """

    name: str
    suite: str
    build: Callable[[], tuple[nn.Module, Inputs]]
    family: str = ''
    classes: int = 0
    tags: tuple[str, ...] = field(default=())

    @property
    def key(self) -> str:
        """The name with its suite."""
        return f'{self.suite}/{self.name}'

    def make(self, seed: int = 0) -> tuple[nn.Module, Inputs]:
        """Build the model and its inputs from one seed, in eval mode."""
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            model, inputs = self.build()
        return model.eval(), inputs


class Task(nn.Module):
    """A model of transformers of which the task reads one output.

    Encoder states and embeddings, which these models return beside it, would be outputs too: their width could not change.
    """

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = getattr(self.model(**inputs), self.output)
        return found


def timm_entry(name: str, family: str = '') -> Entry:
    def build() -> tuple[nn.Module, Inputs]:
        import timm

        options: dict[str, Any] = {'num_classes': 1000} if name in HEADLESS else {}
        if name == 'deepseek_vit_412m':
            options['img_size'] = TIMM_SIZES[name]
        model = timm.create_model(name, **options)
        channels, height, width = model.default_cfg['input_size']
        height, width = (TIMM_SIZES[name], TIMM_SIZES[name]) if name in TIMM_SIZES else (height, width)
        return model, torch.randn(1, channels, height, width)

    return Entry(name, 'timm', build, family, classes=1000)


def classification_entry(name: str) -> Entry:
    def build() -> tuple[nn.Module, Inputs]:
        from torchvision import models

        options: dict[str, Any] = {'weights': None}
        if name in ('googlenet', 'inception_v3'):  # the auxiliary heads only serve training
            options |= {'aux_logits': False, 'init_weights': False}
        size = 299 if name == 'inception_v3' else 224
        return models.get_model(name, **options), torch.randn(1, 3, size, size)

    return Entry(name, 'torchvision', build, 'classification', classes=1000)


def segmentation_entry(name: str) -> Entry:
    def build() -> tuple[nn.Module, Inputs]:
        from torchvision import models

        options = {} if name.startswith('lraspp') else {'aux_loss': False}
        model = models.get_model(name, weights=None, weights_backbone=None, **options)
        return model, torch.randn(2, 3, 128, 128)

    return Entry(name, 'torchvision', build, 'segmentation', classes=21)


def detection_entry(name: str) -> Entry:
    def build() -> tuple[nn.Module, Inputs]:
        from torchvision import models

        # Random weights score every box near 1/91: no threshold, so that there are boxes to compare.
        options: dict[str, Any] = {'weights': None, 'weights_backbone': None}
        if 'rcnn' in name:
            options |= {'min_size': 128, 'max_size': 128, 'box_score_thresh': 0.0, 'box_detections_per_img': 10}
        elif name.startswith('ssd'):
            options |= {'score_thresh': 0.0, 'detections_per_img': 10}
        else:
            options |= {'min_size': 128, 'max_size': 128, 'score_thresh': 0.0, 'detections_per_img': 10}
        size = 320 if name.startswith('ssd') else 128  # these resize to 300 and 320 by themselves
        model = models.get_model(name, **options)
        if name.startswith('ssd'):  # else all boxes of a random network score the same but for rounding
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        return model, ([torch.rand(3, size, size)],)

    return Entry(name, 'torchvision', build, 'detection', classes=91)


def words(batch: int = 2, tokens: int = TOKENS) -> dict[str, torch.Tensor]:
    """Token ids with a mask that hides the end of the second sequence."""
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[-1, -3:] = 0
    return {'input_ids': torch.randint(3, WORDS, (batch, tokens)), 'attention_mask': mask}


def pixels(size: int = 32) -> dict[str, torch.Tensor]:
    return {'pixel_values': torch.randn(2, 3, size, size)}


def encoder_options(**more: Any) -> dict[str, Any]:
    return {
        'vocab_size': WORDS,
        'hidden_size': HIDDEN,
        'num_hidden_layers': LAYERS,
        'num_attention_heads': HEADS,
        'intermediate_size': 2 * HIDDEN,
        'max_position_embeddings': 64,
        **more,
    }


def llama_options(**more: Any) -> dict[str, Any]:
    grouped = {'num_key_value_heads': 2, 'use_cache': False, 'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2}
    return encoder_options(**grouped, **more)


def image_options(**more: Any) -> dict[str, Any]:
    return {
        'hidden_size': HIDDEN,
        'num_hidden_layers': LAYERS,
        'num_attention_heads': HEADS,
        'intermediate_size': 2 * HIDDEN,
        'image_size': 32,
        'patch_size': 8,
        **more,
    }


def _simple(
    name: str, options: Callable[[], dict[str, Any]], inputs: Callable[[], dict[str, torch.Tensor]], **known: Any
) -> Entry:
    """Make an entry from the names of a model's class and its configuration's class, parted by a colon."""
    family, model_class, config_class = name.split(':')

    def build() -> tuple[nn.Module, Inputs]:
        import transformers

        config = getattr(transformers, config_class)(**options())
        model = getattr(transformers, model_class)(config)
        return Task(model, 'logits_per_image' if family in ('clip', 'siglip') else 'logits'), inputs()

    return Entry(family, 'transformers', build, family, **known)


def _t5_inputs() -> dict[str, torch.Tensor]:
    return {**words(), 'decoder_input_ids': torch.randint(3, WORDS, (2, 5))}


def _clip_options() -> dict[str, Any]:
    text = encoder_options(bos_token_id=1, eos_token_id=2)
    return {'text_config': text, 'vision_config': image_options(), 'projection_dim': 48}


def _whisper_options() -> dict[str, Any]:
    sides = {
        f'{side}_{what}': value for side in ('encoder', 'decoder') for what, value in (('layers', LAYERS), ('ffn_dim', 128))
    }
    heads = {'encoder_attention_heads': HEADS, 'decoder_attention_heads': HEADS}
    tokens = {'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2, 'decoder_start_token_id': 1, 'suppress_tokens': None}
    sizes = {'d_model': HIDDEN, 'num_mel_bins': 16, 'max_source_positions': 20, 'max_target_positions': 32, 'vocab_size': WORDS}
    return {**sides, **heads, **tokens, **sizes, 'use_cache': False}


def _whisper_inputs() -> dict[str, torch.Tensor]:
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[-1, 32:] = 0
    return {
        'input_features': torch.randn(2, 16, 40),
        'attention_mask': mask,
        'decoder_input_ids': torch.randint(3, WORDS, (2, 6)),
    }


def _bart_options() -> dict[str, Any]:
    left_out = ('num_mel_bins', 'max_source_positions', 'max_target_positions', 'suppress_tokens')
    shared = {key: value for key, value in _whisper_options().items() if key not in left_out}
    return {**shared, 'max_position_embeddings': 64, 'forced_eos_token_id': 2}


def _segformer_options() -> dict[str, Any]:
    return {
        'hidden_sizes': [16, 32, 48, 64],
        'depths': [1, 1, 1, 1],
        'num_attention_heads': [1, 2, 3, 4],
        'sr_ratios': [4, 2, 2, 1],
        'decoder_hidden_size': HIDDEN,
        'num_labels': 7,
    }


def _swin_options() -> dict[str, Any]:
    return {
        'image_size': 32,
        'patch_size': 2,
        'embed_dim': 24,
        'depths': [2, 2],
        'num_heads': [2, 4],
        'window_size': 4,
        'num_labels': 7,
    }


def _wav2vec_options() -> dict[str, Any]:
    convolutions = {'conv_dim': [32, 32, 32], 'conv_stride': [5, 2, 2], 'conv_kernel': [10, 3, 3]}
    return encoder_options(num_labels=7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, **convolutions)


def _siglip_options() -> dict[str, Any]:
    return {'text_config': encoder_options(), 'vision_config': image_options()}


def transformers_entries() -> list[Entry]:
    """Return the families of transformers; encoders have a task's head, decoders a (often tied) language head."""
    labels = {'num_labels': 7}

    def encoder(**more: Any) -> Callable[[], dict[str, Any]]:
        return lambda: encoder_options(**labels, **more)

    def llama(**more: Any) -> Callable[[], dict[str, Any]]:
        return lambda: llama_options(**more)

    def image(**more: Any) -> Callable[[], dict[str, Any]]:
        return lambda: image_options(**labels, **more)

    gpt2 = {'vocab_size': WORDS, 'n_embd': HIDDEN, 'n_layer': LAYERS, 'n_head': HEADS, 'n_positions': 64, 'use_cache': False}
    t5 = {
        'vocab_size': WORDS,
        'd_model': HIDDEN,
        'd_kv': 16,
        'd_ff': 128,
        'num_layers': LAYERS,
        'num_heads': HEADS,
        'use_cache': False,
    }
    opt = {
        'vocab_size': WORDS,
        'hidden_size': HIDDEN,
        'num_hidden_layers': LAYERS,
        'num_attention_heads': HEADS,
        'ffn_dim': 128,
    }
    distilbert = {'vocab_size': WORDS, 'dim': HIDDEN, 'n_layers': LAYERS, 'n_heads': HEADS, 'hidden_dim': 128, **labels}
    deberta = {'relative_attention': True, 'pos_att_type': ['p2c', 'c2p'], 'max_relative_positions': 16}
    version2 = {**deberta, 'position_buckets': 8, 'norm_rel_ebd': 'layer_norm', 'share_att_key': True}
    experts = {'num_local_experts': 4, 'num_experts_per_tok': 2}
    head_dim = {'head_dim': 16}
    sequence = {'classes': 7}
    language = {'classes': WORDS}

    def clip_inputs() -> dict[str, torch.Tensor]:
        return {**words(), **pixels()}

    return [
        _simple('bert:BertForSequenceClassification:BertConfig', encoder(), words, **sequence),
        _simple('roberta:RobertaForSequenceClassification:RobertaConfig', encoder(), words, **sequence),
        _simple('deberta:DebertaForSequenceClassification:DebertaConfig', encoder(**deberta), words, **sequence),
        _simple('deberta_v2:DebertaV2ForSequenceClassification:DebertaV2Config', encoder(**version2), words, **sequence),
        _simple('vit:ViTForImageClassification:ViTConfig', image(), pixels, **sequence),
        _simple('swin:SwinForImageClassification:SwinConfig', _swin_options, pixels, **sequence),
        _simple('t5:T5ForConditionalGeneration:T5Config', lambda: t5, _t5_inputs, **language),
        _simple('gpt2:GPT2LMHeadModel:GPT2Config', lambda: gpt2, words, **language),
        _simple('llama:LlamaForCausalLM:LlamaConfig', llama(), words, **language),
        _simple('mistral:MistralForCausalLM:MistralConfig', llama(sliding_window=8), words, **language),
        _simple('qwen2:Qwen2ForCausalLM:Qwen2Config', llama(), words, **language),
        _simple('gemma:GemmaForCausalLM:GemmaConfig', llama(**head_dim), words, **language),
        _simple(
            'opt:OPTForCausalLM:OPTConfig',
            lambda: {**opt, 'max_position_embeddings': 64, 'use_cache': False},
            words,
            **language,
        ),
        _simple('clip:CLIPModel:CLIPConfig', _clip_options, clip_inputs),
        _simple('whisper:WhisperForConditionalGeneration:WhisperConfig', _whisper_options, _whisper_inputs, **language),
        _simple(
            'segformer:SegformerForSemanticSegmentation:SegformerConfig', _segformer_options, lambda: pixels(64), **sequence
        ),
        _simple('distilbert:DistilBertForSequenceClassification:DistilBertConfig', lambda: distilbert, words, **sequence),
        _simple('albert:AlbertForSequenceClassification:AlbertConfig', encoder(embedding_size=32), words, **sequence),
        _simple('electra:ElectraForSequenceClassification:ElectraConfig', encoder(embedding_size=32), words, **sequence),
        _simple('bart:BartForConditionalGeneration:BartConfig', _bart_options, _t5_inputs, **language),
        _simple('gemma2:Gemma2ForCausalLM:Gemma2Config', llama(**head_dim), words, **language),
        _simple('qwen3:Qwen3ForCausalLM:Qwen3Config', llama(**head_dim), words, **language),
        _simple('phi3:Phi3ForCausalLM:Phi3Config', llama(), words, **language),
        _simple('gpt_neox:GPTNeoXForCausalLM:GPTNeoXConfig', encoder(use_cache=False), words, **language),
        _simple('mixtral:MixtralForCausalLM:MixtralConfig', llama(**experts), words, **language),
        _simple('dinov2:Dinov2ForImageClassification:Dinov2Config', image(), pixels, **sequence),
        _simple('siglip:SiglipModel:SiglipConfig', _siglip_options, clip_inputs),
        _simple(
            'wav2vec2:Wav2Vec2ForSequenceClassification:Wav2Vec2Config',
            _wav2vec_options,
            lambda: {'input_values': torch.randn(2, 800)},
            **sequence,
        ),
    ]


def entries(suites: tuple[str, ...] = SUITES, full: bool = False) -> list[Entry]:
    """Return the zoo's entries in a fixed order.

    Args:
        suites: Which suites.
        full: Every registered torchvision classifier, rather than the smallest of each family.
    """
    found: list[Entry] = []
    if 'timm' in suites:
        found += [timm_entry(name, family) for family, name in TIMM.items()]
    if 'torchvision' in suites:
        from torchvision import models

        found += [classification_entry(name) for name in (models.list_models(module=models) if full else TORCHVISION)]
        found += [segmentation_entry(name) for name in models.list_models(module=models.segmentation)]
        found += [detection_entry(name) for name in models.list_models(module=models.detection)]
    if 'transformers' in suites:
        found += transformers_entries()
    return found


def entry(key: str) -> Entry:
    """Return the entry of a key such as 'timm/resnet10t'; any timm or torchvision name is accepted."""
    suite, _, name = key.partition('/')
    for candidate in entries((suite,), full=True):
        if candidate.name == name:
            return candidate
    if suite == 'timm':
        return timm_entry(name)
    raise SystemExit(f'there is no model {key!r} in the zoo')


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model on inputs of the zoo's three forms."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def smallest_of_timm() -> dict[str, str]:
    """Build every timm model on the meta device and return each model file's smallest."""
    import timm
    from timm.models._registry import _module_to_models

    found = {}
    for family in sorted(_module_to_models):
        sizes = {}
        for name in _module_to_models[family]:
            if name.startswith('test_'):
                continue
            try:
                try:
                    with torch.device('meta'):
                        model = timm.create_model(name)
                except (RuntimeError, NotImplementedError):  # some compute with values when built
                    model = timm.create_model(name)
            except RuntimeError:  # a registered name without a configuration
                continue
            sizes[name] = sum(parameter.numel() for parameter in model.parameters())
        found[family] = min(sizes, key=lambda name: (sizes[name], len(name), name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--suite', choices=SUITES, action='append', help='only this suite; may be given more than once')
    parser.add_argument('--full', action='store_true', help='every torchvision classifier')
    parser.add_argument('--only', nargs='*', default=(), help='names')
    parser.add_argument('--check', action='store_true', help='build and run each model once')
    parser.add_argument('--smallest', action='store_true', help="find the smallest of timm's model files again")
    options = parser.parse_args()
    if options.smallest:
        for family, name in smallest_of_timm().items():
            print(f'    {family!r}: {name!r},')
        return
    torch.set_num_threads(1)
    for item in entries(tuple(options.suite or SUITES), options.full):
        if options.only and item.name not in options.only:
            continue
        if not options.check:
            print(item.key)
            continue
        begin = time.perf_counter()
        try:
            model, inputs = item.make()
            with torch.no_grad():
                out = call(model, inputs)
            shapes = [tuple(leaf.shape) for leaf in torch.utils._pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
            count = sum(parameter.numel() for parameter in model.parameters())
            print(f'{item.key:50} {count / 1e6:8.2f} M {time.perf_counter() - begin:6.1f} s  {shapes[:3]}', flush=True)
        except Exception as error:
            print(f'{item.key:50} {type(error).__name__}: {str(error)[:160]}', flush=True)


if __name__ == '__main__':
    main()
