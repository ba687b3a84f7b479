from __future__ import annotations

import pytest
import torch

from strop.errors import ConfigError
from strop.graph import channel_units
from strop.pruning.config_sizes import advice, built, check_sizes, configured, head_dim_of, layer_lists, lengths_for, sizes_of

transformers = pytest.importorskip('transformers')

BERT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24, vocab_size=20)


def test_sizes_are_the_whole_numbers_that_say_how_large_a_model_is() -> None:
    config = transformers.BertConfig(**BERT)
    assert sizes_of(config) == {'hidden_size': 16, 'num_attention_heads': 4, 'intermediate_size': 24}
    gpt2 = transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_inner=64)
    assert sizes_of(gpt2)['hidden_size'] == sizes_of(gpt2)['n_embd'] == 32
    assert 'hidden_size' not in sizes_of(gpt2, aliases=False)


def test_parts_of_a_config_are_named_with_a_dot() -> None:
    config = transformers.CLIPConfig()
    sizes = sizes_of(config)
    assert sizes['text_config.hidden_size'] == config.text_config.hidden_size
    smaller = configured(config, check_sizes(config, {'text_config.intermediate_size': 64}))
    assert smaller.text_config.intermediate_size == 64
    assert config.text_config.intermediate_size == sizes['text_config.intermediate_size'] != 64


def test_the_width_of_a_head_is_a_number_of_its_own_or_a_quotient() -> None:
    assert head_dim_of(transformers.BertConfig(**BERT)) == 4
    assert head_dim_of(transformers.LlamaConfig(hidden_size=32, num_attention_heads=4, head_dim=16)) == 16
    assert head_dim_of(transformers.T5Config(d_model=32, num_heads=4, d_kv=6)) == 6
    assert 'hidden_size / num_attention_heads, 4 now' in advice(transformers.BertConfig(**BERT))


def test_lists_with_one_entry_for_each_layer() -> None:
    config = transformers.Qwen3Config(num_hidden_layers=3, layer_types=['full_attention'] * 3)
    assert [name for _, name in layer_lists(config, 3)] == ['layer_types']
    assert layer_lists(config, 2) == []


def test_lengths_of_units_follow_from_the_shapes_of_the_smaller_model() -> None:
    model = transformers.BertModel(transformers.BertConfig(**BERT)).eval()
    graph = channel_units(model, {'input_ids': torch.ones(2, 3, dtype=torch.long)})
    target = configured(model.config, {'intermediate_size': 10})
    twin = built(model, target, meta=True)
    assert {parameter.device.type for parameter in twin.parameters()} == {'meta'}
    shapes = {name: tuple(value.shape) for name, value in twin.state_dict().items()}
    assert lengths_for(graph, shapes, model.config, target) == {'encoder.layer.0.intermediate.dense': 10}


def test_a_frozen_axis_is_named_with_what_keeps_it() -> None:
    model = transformers.BertModel(transformers.BertConfig(**BERT)).eval()
    graph = channel_units(model, {'input_ids': torch.ones(2, 3, dtype=torch.long)})
    target = configured(model.config, {'hidden_size': 8})
    shapes = {name: tuple(value.shape) for name, value in built(model, target, meta=True).state_dict().items()}
    with pytest.raises(ConfigError, match=r'asks for 8 at axis 1 of .*an axis of the output'):
        lengths_for(graph, shapes, model.config, target)
