import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from strop.engine import AmpOptimWrapper, build_runner
from strop.errors import ConfigError
from strop.registry import OPTIM_WRAPPERS

from .tiny import train_config


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', None])
def test_amp_trains_on_the_cpu_through_the_config(tmp_path, dtype):
    wrapper = dict(type='AmpOptimWrapper', optimizer=dict(type='SGD', lr=0.05))
    if dtype is not None:
        wrapper['dtype'] = dtype
    config = train_config(optim_wrapper=wrapper)
    config.train_cfg.max_epochs = 3
    runner = build_runner(config, work_dir=tmp_path)
    seen, losses = set(), []
    runner.model.architecture.backbone.conv1.conv.register_forward_hook(
        lambda module, _, output: seen.add(output.dtype) if module.training else None
    )
    step = runner.model.train_step
    runner.model.train_step = lambda *args, **kwargs: losses.append(step(*args, **kwargs)) or losses[-1]
    runner.train()
    assert type(runner.optim_wrapper) is AmpOptimWrapper
    assert seen == {torch.float16 if dtype == 'float16' else torch.bfloat16}
    assert all(parameter.dtype is torch.float32 for parameter in runner.model.parameters())
    losses = [float(log['loss']) for log in losses]
    assert sum(losses[-3:]) < sum(losses[:3])
    config.train_cfg.max_epochs = 4
    again = build_runner(config, work_dir=tmp_path, resume=True)
    again.train()
    assert again.iter == 12


def test_names_reach_this_class():
    assert OPTIM_WRAPPERS.get('mmrazor.AmpOptimWrapper') is OPTIM_WRAPPERS.get('AmpOptimWrapper') is AmpOptimWrapper


def test_fp16_step_equals_a_plain_one_where_half_precision_is_exact():
    layers = [nn.Linear(2, 1, bias=False) for _ in range(2)]
    for layer in layers:
        layer.weight.data = torch.tensor([[1.0, -2.0]])
    plain = torch.optim.SGD(layers[0].parameters(), lr=0.5)
    amp = AmpOptimWrapper(optimizer=torch.optim.SGD(layers[1].parameters(), lr=0.5), dtype='float16', loss_scale=8.0)
    inputs = torch.tensor([[1.0, 0.5]])
    layers[0](inputs).sum().backward()
    plain.step()
    with amp.optim_context(layers[1]):
        loss = layers[1](inputs).sum()
    assert loss.dtype is torch.float16
    amp.update_params(loss)
    assert layers[1].weight.tolist() == layers[0].weight.tolist() == [[0.5, -2.25]]
    assert amp.loss_scaler.get_scale() == 8.0


def test_overflow_skips_the_step_and_lowers_the_scale():
    layer = nn.Linear(1, 1, bias=False)
    before = layer.weight.clone()
    amp = AmpOptimWrapper(
        optimizer=torch.optim.SGD(layer.parameters(), lr=0.5), dtype='float16', loss_scale=dict(init_scale=4.0)
    )
    amp.update_params(layer(torch.tensor([[float('inf')]])).sum())
    assert torch.equal(layer.weight, before)
    assert amp.loss_scaler.get_scale() == 2.0


def test_gradients_are_clipped_after_unscaling():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    amp = AmpOptimWrapper(
        optimizer=torch.optim.SGD(layer.parameters(), lr=1.0), dtype='float16', loss_scale=64.0, clip_grad=dict(max_norm=0.5)
    )
    amp.update_params(layer(torch.tensor([[4.0]])).sum())
    assert layer.weight.item() == pytest.approx(-0.5, abs=1e-5)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_accumulation_sums_the_parts_of_a_batch(dtype):
    first = nn.Linear(2, 1, bias=False)
    first.weight.data = torch.tensor([[1.0, -2.0]])
    second = copy.deepcopy(first)
    whole = AmpOptimWrapper(optimizer=torch.optim.SGD(first.parameters(), lr=0.5), dtype=dtype, loss_scale=4.0)
    parts = AmpOptimWrapper(
        optimizer=torch.optim.SGD(second.parameters(), lr=0.5), dtype=dtype, loss_scale=4.0, accumulative_counts=2
    )
    parts.initialize_count_status(second, 0, 4)
    inputs = torch.tensor([[1.0, 0.5], [0.25, 2.0]])
    with whole.optim_context(first):
        loss = first(inputs).mean()
    whole.update_params(loss)
    for row in inputs:
        before = second.weight.clone()
        with parts.optim_context(second):
            loss = second(row[None]).mean()
        parts.update_params(loss)
    assert not torch.equal(before, second.weight)
    assert torch.allclose(first.weight, second.weight)


def test_accumulation_through_the_runner_updates_every_second_step(tmp_path):
    wrapper = dict(optimizer=dict(type='SGD', lr=0.05), accumulative_counts=2)
    runner = build_runner(train_config(optim_wrapper=wrapper), work_dir=tmp_path)
    weight = runner.model.architecture.head.fc.weight
    values = []
    step = runner.model.train_step

    def train_step(*args, **kwargs):
        log = step(*args, **kwargs)
        values.append(weight.detach().clone())
        return log

    runner.model.train_step = train_step
    runner.train()
    changed = [not torch.equal(first, second) for first, second in pairwise(values)]
    assert changed == [True, False, True, False, True]


@pytest.mark.parametrize(('options', 'words'), [(dict(dtype='float8'), 'float16'), (dict(loss_scale='static'), 'loss_scale')])
def test_bad_options(options, words):
    with pytest.raises(ConfigError, match=words):
        AmpOptimWrapper(optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), **options)
