from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import strop
from strop.errors import BudgetError, ConfigError, MissingDependencyError, VerificationError
from strop.pruning import prune_transformer
from tests.scripts import run_script

transformers = pytest.importorskip('transformers')
from transformers.utils import logging  # noqa: E402

logging.set_verbosity_error()
logging.disable_progress_bar()

WIDTHS = {'hidden_size': 32, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'intermediate_size': 48, 'vocab_size': 50}


def text(batch: int = 2, length: int = 7) -> dict[str, Tensor]:
    ids = torch.randint(1, 50, (batch, length), generator=torch.Generator().manual_seed(0))
    return {'input_ids': ids, 'attention_mask': torch.ones_like(ids)}


def made(name: str, config: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**options)).eval()


def bert(**options: Any) -> nn.Module:
    return made('BertModel', 'BertConfig', **{**WIDTHS, 'max_position_embeddings': 16, **options})


def llama(groups: int = 2, **options: Any) -> nn.Module:
    options = {**WIDTHS, 'num_key_value_heads': groups, 'tie_word_embeddings': True, **options}
    return made('LlamaForCausalLM', 'LlamaConfig', **options)


def t5() -> nn.Module:
    sizes = dict(d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=48, vocab_size=50)
    return made('T5ForConditionalGeneration', 'T5Config', **sizes)


def gpt2() -> nn.Module:
    return made('GPT2LMHeadModel', 'GPT2Config', n_embd=32, n_layer=3, n_head=4, n_inner=64, vocab_size=50, n_positions=16)


def qwen3() -> nn.Module:
    kinds = ['full_attention', 'sliding_attention', 'full_attention']
    options = dict(num_key_value_heads=2, head_dim=8, layer_types=kinds, use_sliding_window=True, sliding_window=4)
    return made('Qwen3ForCausalLM', 'Qwen3Config', **WIDTHS, **options)


def vit() -> nn.Module:
    sizes = {name: value for name, value in WIDTHS.items() if name != 'vocab_size'}
    return made('ViTModel', 'ViTConfig', **sizes, image_size=16, patch_size=8)


def distilbert() -> nn.Module:
    sizes = dict(dim=32, n_layers=3, n_heads=4, hidden_dim=64, vocab_size=50, max_position_embeddings=16)
    return made('DistilBertForSequenceClassification', 'DistilBertConfig', **sizes)


def images() -> dict[str, Tensor]:
    return {'pixel_values': torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def pairs() -> dict[str, Tensor]:
    return {**text(), 'decoder_input_ids': text()['input_ids']}


CASES: dict[str, tuple[Any, Any, dict[str, int], str]] = {
    'bert ffn': (bert, text, dict(intermediate_size=20), 'AutoModel'),
    'bert everything': (
        bert,
        text,
        dict(hidden_size=24, num_attention_heads=3, intermediate_size=20, num_hidden_layers=2),
        'AutoModel',
    ),
    'llama ffn and depth': (llama, text, dict(intermediate_size=20, num_hidden_layers=2), 'AutoModelForCausalLM'),
    'llama grouped heads and hidden': (
        llama,
        text,
        dict(num_attention_heads=2, num_key_value_heads=1, hidden_size=28),
        'AutoModelForCausalLM',
    ),
    'llama heads without groups': (
        lambda: llama(4),
        text,
        dict(num_attention_heads=2, num_key_value_heads=2),
        'AutoModelForCausalLM',
    ),
    'qwen3 depth with kinds of layers': (qwen3, text, dict(num_hidden_layers=2, hidden_size=24), 'AutoModelForCausalLM'),
    't5 heads, ffn and depth of the encoder': (t5, pairs, dict(num_heads=3, d_ff=32, num_layers=1), 'AutoModelForSeq2SeqLM'),
    'gpt2 by its own names': (gpt2, text, dict(n_embd=24, n_head=3, n_inner=40, n_layer=2), 'AutoModelForCausalLM'),
    'vit': (vit, images, dict(hidden_size=16, num_attention_heads=2, num_hidden_layers=2), 'AutoModel'),
    'distilbert with a head': (
        distilbert,
        text,
        dict(dim=24, n_heads=3, hidden_dim=40),
        'AutoModelForSequenceClassification',
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_what_is_saved_is_read_by_plain_from_pretrained(case: str, tmp_path: Path) -> None:
    make, example, sizes, auto = CASES[case]
    model, inputs = make(), example()
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    slim, record = prune_transformer(model, inputs, sizes)
    slim.save_pretrained(tmp_path)
    again = getattr(transformers, auto).from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert all(getattr(again.config, name) == value for name, value in sizes.items())
    with torch.no_grad():
        assert torch.equal(again(**inputs)[0], slim(**inputs)[0])
    assert sum(p.numel() for p in again.parameters()) == record.params[1] < record.params[0]
    assert record.macs[1] < record.macs[0]
    assert record.steps[0].error is None or record.steps[0].error < 1e-5
    # The original stays as it is.
    assert model.config.to_dict() == config
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_is_read_where_strop_is_not_installed(tmp_path: Path) -> None:
    inputs = text()
    slim, _ = prune_transformer(llama(), inputs, dict(intermediate_size=20, num_hidden_layers=1))
    slim.save_pretrained(tmp_path / 'slim')
    with torch.no_grad():
        torch.save([inputs['input_ids'], slim(**inputs).logits], tmp_path / 'wanted.pt')
    code = (
        "import sys, torch; sys.modules['strop'] = None\n"
        'from transformers import AutoModelForCausalLM\n'
        f"model = AutoModelForCausalLM.from_pretrained(r'{tmp_path / 'slim'}').eval()\n"
        f"ids, wanted = torch.load(r'{tmp_path / 'wanted.pt'}', weights_only=True)\n"
        'with torch.no_grad():\n'
        '    assert torch.equal(model(input_ids=ids).logits, wanted)\n'
    )
    done = run_script(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_it_computes_what_the_original_does_with_neurons_and_heads_masked_by_hand() -> None:
    model, inputs = llama(4).double(), text()
    sizes = dict(intermediate_size=20, num_attention_heads=2, num_key_value_heads=2)
    slim, record = prune_transformer(model, inputs, sizes)
    assert next(slim.parameters()).dtype == torch.float64
    kept = record.steps[0].kept
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for number, layer in enumerate(masked.model.layers):
            path = f'model.layers.{number}'
            neurons = torch.ones(48)
            neurons[list(kept[f'{path}.mlp.gate_proj'])] = 0
            layer.mlp.down_proj.weight[:, neurons.bool()] = 0
            heads = torch.ones(4, 8)
            heads[list(kept[next(unit.name for unit in record.units if unit.role == 'heads' and path in unit.name)])] = 0
            layer.self_attn.o_proj.weight[:, heads.flatten().bool()] = 0
        assert torch.allclose(masked(**inputs).logits, slim(**inputs).logits, atol=1e-12)
        assert not torch.allclose(model(**inputs).logits, slim(**inputs).logits, atol=1e-3)


def test_layers_are_those_that_are_named_in_their_order() -> None:
    model, inputs = bert(), text()
    slim, record = prune_transformer(model, inputs, dict(num_hidden_layers=2), layers=[0, 2])
    assert record.removed == ('encoder.layer.1',)
    for place, old in enumerate((0, 2)):
        for name, value in slim.encoder.layer[place].state_dict().items():
            assert torch.equal(value, model.encoder.layer[old].state_dict()[name])


def test_kinds_of_layers_in_the_config_follow_the_layers_that_stay() -> None:
    slim, _ = prune_transformer(qwen3(), text(), dict(num_hidden_layers=2), layers=[1, 2])
    assert slim.config.layer_types == ['sliding_attention', 'full_attention']
    slim, _ = prune_transformer(qwen3(), text(), dict(num_hidden_layers=2), layers=[0, 2])
    assert slim.config.layer_types == ['full_attention', 'full_attention']


def test_a_pruned_decoder_generates_with_its_cache() -> None:
    model, inputs = llama(), text()
    slim, _ = prune_transformer(model, inputs, dict(num_hidden_layers=2, hidden_size=24), layers=[1, 2])
    assert slim.config.use_cache is True
    assert [layer.self_attn.layer_idx for layer in slim.model.layers] == [0, 1]
    options = dict(max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(slim.generate(**inputs, **options), slim.generate(**inputs, **options, use_cache=False))


def test_data_and_a_loss_rank_the_indices() -> None:
    model, inputs = llama(), text()

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(**batch, labels=batch['input_ids']).loss

    kept = []
    for options in ({'importance': 'taylor', 'data': [inputs], 'loss': loss}, {'importance': 'l1'}):
        slim, record = prune_transformer(model, inputs, dict(intermediate_size=20, hidden_size=24), **options)
        kept.append(record.steps[0].kept)
        assert record.importance == options['importance']
        assert torch.isfinite(loss(slim, inputs))
    assert kept[0].keys() == kept[1].keys()
    assert kept[0] != kept[1]
    weights = model.model.layers[0].mlp
    scores = sum(
        layer.weight.abs().mean(1) for layer in (weights.gate_proj, weights.up_proj)
    ) + weights.down_proj.weight.abs().mean(0)
    assert len(set(kept[1]['model.layers.0.mlp.gate_proj']) & set(scores.topk(20).indices.tolist())) >= 17


@pytest.mark.parametrize(
    ('make', 'budget', 'over'),
    [
        (bert, dict(params=0.5), ('hidden_size', 'num_attention_heads', 'intermediate_size')),
        (bert, dict(macs=0.6), ('hidden_size', 'intermediate_size')),
        (llama, dict(params=0.7), ('intermediate_size',)),
        (llama, dict(params=0.5), ('hidden_size', 'intermediate_size', 'num_attention_heads', 'num_key_value_heads')),
    ],
)
def test_a_budget_makes_all_layers_equally_smaller(make: Any, budget: dict[str, float], over: tuple[str, ...]) -> None:
    slim, record = prune_transformer(make(), text(), budget=budget, over=over)
    (resource, share), (before, after) = next(iter(budget.items())), getattr(record, next(iter(budget)))
    assert 0.55 * share <= after / before <= share, resource
    assert {unit.after for unit in record.units if 'intermediate' in unit.name or 'gate_proj' in unit.name} == {
        slim.config.intermediate_size
    }


def test_layers_first_and_the_rest_by_a_budget() -> None:
    slim, record = prune_transformer(llama(), text(), dict(num_hidden_layers=2), budget=dict(params=0.5), round_to=4)
    assert len(slim.model.layers) == 2
    assert record.params[1] <= 0.5 * record.params[0]
    assert slim.config.intermediate_size % 4 == 0


@pytest.mark.parametrize(
    ('make', 'sizes', 'told'),
    [
        (bert, dict(num_attention_heads=3), r'not a multiple.*Prune both together.*hidden_size=n \* 8'),
        (bert, dict(num_attention_heads=2), r'every head 16 channels wide, and it has 8.*no number for the width of a head'),
        (bert, dict(num_attention_head=2), r"no size 'num_attention_head'. Did you mean 'num_attention_heads'"),
        (bert, dict(hidden_size=24), r'scaling is computed from the config.*keep its width: prune heads and the hidden width'),
        (gpt2, dict(n_embd=24), r'computed from the config'),
        (bert, dict(vocab_size=20), r"no size 'vocab_size'"),
        (bert, dict(hidden_size=64), 'from 1 to 32'),
        (bert, dict(hidden_size=16.0), 'whole number'),
        (bert, dict(hidden_size=32), 'Nothing is to be pruned'),
        (bert, ['hidden_size'], 'maps names of the config to numbers'),
        (llama, dict(head_dim=4), 'inv_freq.*Rotary embeddings need head_dim as it is'),
        (llama, dict(num_attention_heads=2), 'multiple of num_key_value_heads, twice as many'),
    ],
)
def test_what_a_config_cannot_express_is_refused(make: Any, sizes: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        prune_transformer(make(), text(), sizes)


def test_a_scale_that_the_config_computes_is_found_by_numbers() -> None:
    # T5 with tied embeddings scales its output by d_model ** -0.5, which masking does not change.
    with pytest.raises(VerificationError, match='Built from its config'):
        prune_transformer(t5(), pairs(), dict(d_model=24))


def test_other_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r'must be a PreTrainedModel.*Linear.*strop\.pruning\.prune'):
        prune_transformer(nn.Linear(3, 3), torch.rand(2, 3), dict(hidden_size=2))
    with pytest.raises(ConfigError, match='Say how small'):
        prune_transformer(bert(), text())
    with pytest.raises(ConfigError, match="'ffn', which is no size"):
        prune_transformer(bert(), text(), budget=dict(params=0.5), over='ffn')
    with pytest.raises(ConfigError, match='of macs or params'):
        prune_transformer(bert(), text(), budget=dict(latency=0.5))
    with pytest.raises(BudgetError, match=r'cannot be met by .intermediate_size.'):
        prune_transformer(bert(), text(), budget=dict(params=0.1))
    with pytest.raises(ConfigError, match='the 2 layers that stay, numbers from 0 to 2'):
        prune_transformer(bert(), text(), dict(num_hidden_layers=2), layers=[0, 3])
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'strop\[transformers\]'"):
        prune_transformer(bert(), text(), dict(hidden_size=16))


def test_a_note_about_packed_weights_goes_where_they_are_floats_and_is_refused_where_they_are_not(tmp_path: Path) -> None:
    model = bert()
    model.config.quantization_config = {'quant_method': 'gguf', 'dequantize': True}
    slim, _ = prune_transformer(model, text(), dict(intermediate_size=20))
    assert getattr(slim.config, 'quantization_config', None) is None
    assert model.config.quantization_config is not None
    slim.save_pretrained(tmp_path)
    assert transformers.AutoModel.from_pretrained(tmp_path).config.intermediate_size == 20
    packed = model.encoder.layer[0].intermediate.dense
    packed.weight = nn.Parameter(packed.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r'are quantized .*dense\.weight.*prune it first'):
        prune_transformer(model, text(), dict(intermediate_size=20))


def test_a_teacher_of_the_original_size_trains_the_pruned_model() -> None:
    model, inputs = llama(), {**text(), 'use_cache': False}
    slim, _ = prune_transformer(model, text(), dict(hidden_size=24, intermediate_size=24))
    features = {f'model.layers.{n}': f'model.layers.{n}' for n in range(3)}
    distiller = strop.distiller_for(slim, model, inputs, features=features, temperature=1.0)
    optimizer = torch.optim.Adam([*slim.parameters(), *distiller.parameters()], lr=0.01)
    losses = []
    for _ in range(8):
        with distiller.record(model, slim):
            with torch.no_grad():
                model(**inputs)
            slim(**inputs)
        loss = distiller.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
