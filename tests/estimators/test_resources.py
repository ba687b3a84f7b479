from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from strop.errors import ConfigError, NotDecidedError
from strop.estimators import resources
from strop.estimators.resources import BaseEstimator, ResourceEstimator
from strop.mutables import LayerChoice
from strop.registry import TASK_UTILS

SHAPE = (1, 3, 8, 8)


def net() -> nn.Module:
    model = nn.Sequential()
    model.add_module('body', nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1)))
    model.add_module('flat', nn.Flatten())
    model.add_module('head', nn.Linear(512, 10))
    return model


CONVS = 64 * 8 * 27 + 64 * 64
HEAD = 5120


@pytest.mark.parametrize('scope', ['', 'strop.', 'mmrazor.'])
def test_built_from_a_config(scope: str):
    estimator = TASK_UTILS.build({'type': f'{scope}ResourceEstimator', 'input_shape': SHAPE})
    assert isinstance(estimator, ResourceEstimator)
    assert isinstance(estimator, BaseEstimator)
    assert estimator.estimate(net()) == {'flops': (CONVS + HEAD) / 1e6, 'params': (224 + 72 + 5130) / 1e6, 'latency': 0.0}


def test_units_and_strings():
    estimator = ResourceEstimator(SHAPE, units={'flops': 'K', 'params': None}, as_strings=True)
    assert estimator.estimate(net()) == {'flops': '23.040 K', 'params': '5426.000', 'latency': '0.000 ms'}
    assert estimator.estimate(net(), {'as_strings': False, 'units': {'flops': ''}})['flops'] == CONVS + HEAD


def test_options_of_a_call_go_before_those_of_the_constructor():
    estimator = ResourceEstimator(units={'flops': ''}, flops_params_cfg={'input_shape': SHAPE})
    body = net().body
    assert estimator.estimate(body)['flops'] == CONVS
    assert estimator.estimate(body, {'input_shape': (2, 3, 8, 8)})['flops'] == 2 * CONVS


def test_latency_only_where_asked_for():
    estimator = ResourceEstimator(SHAPE)
    assert estimator.estimate(net())['latency'] == 0.0
    assert estimator.estimate(net(), latency_cfg={'max_iter': 3, 'num_warmup': 1})['latency'] > 0
    seconds = estimator.estimate(net(), latency_cfg={'max_iter': 3, 'num_warmup': 1, 'unit': 's'})['latency']
    assert 0 < seconds < 1


def test_times_alone_as_text():
    found = ResourceEstimator(SHAPE).estimate(net(), latency_cfg={'max_iter': 2, 'as_strings': True, 'unit': 'us'})
    assert isinstance(found['flops'], float)
    assert str(found['latency']).endswith(' us')
    found = ResourceEstimator(SHAPE, as_strings=True).estimate(net(), latency_cfg={'max_iter': 2, 'as_strings': False})
    assert isinstance(found['flops'], str)
    assert isinstance(found['latency'], float)


def test_latency_goes_through_the_one_protocol(monkeypatch: pytest.MonkeyPatch):
    asked = {}
    real = resources.measure
    monkeypatch.setattr(resources, 'measure', lambda entries, **options: asked.update(options) or real(entries, **options))
    ResourceEstimator(SHAPE, latency_cfg={'max_iter': 2, 'repeat_num': 3, 'num_warmup': 0, 'threads': 2}).estimate(net())
    assert asked == {'runs': 6, 'warmup': 0, 'threads': 2, 'runtime_name': 'eager'}


def test_modules_apart():
    estimator = ResourceEstimator(SHAPE, units={'flops': '', 'params': ''})
    options = {'spec_modules': ['body', 'body.2', 'head']}
    assert estimator.estimate_separation_modules(net(), options) == {
        'body': {'flops': CONVS, 'params': 296, 'latency': 0.0},
        'body.2': {'flops': 4096, 'params': 72, 'latency': 0.0},
        'head': {'flops': HEAD, 'params': 5130, 'latency': 0.0},
    }
    with pytest.raises(ConfigError, match='must be given'):
        estimator.estimate_separation_modules(net())
    with pytest.raises(ConfigError, match="Did you mean 'head'"):
        estimator.estimate_separation_modules(net(), {'spec_modules': ['haed']})


def test_some_modules_together():
    """By hand: what lies inside another one counts once, and types that are left out do not count."""
    estimator = ResourceEstimator(SHAPE, units={'flops': '', 'params': ''})

    def both(*paths: str, **options: Any) -> tuple[Any, Any]:
        found = estimator.estimate(net(), {'spec_modules': list(paths), **options})
        return found['flops'], found['params']

    assert both('body', 'body.2') == both('body.2', 'body') == (CONVS, 296)
    assert both('head', 'body') == (CONVS + HEAD, 296 + 5130)
    assert both('body', 'head', disabled_counters=['Conv2d']) == (HEAD, 296 + 5130)
    with pytest.raises(ConfigError, match="Did you mean 'head'"):
        both('haed')


def test_types_left_out():
    estimator = ResourceEstimator(SHAPE, units={'flops': ''})
    assert estimator.estimate(net(), {'disabled_counters': ['LinearCounter']})['flops'] == CONVS
    assert estimator.estimate(net(), {'disabled_counters': ['Conv2d', 'Linear']})['flops'] == 0
    assert estimator.estimate(net(), {'disabled_counters': ['Sequential']})['flops'] == 0


def test_inputs_by_a_constructor():
    class Named(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left @ right

    options = {
        'input_shape': (3, 4),
        'input_constructor': lambda shape: {'left': torch.zeros(shape), 'right': torch.zeros(4, 5)},
    }
    assert ResourceEstimator(units={'flops': ''}).estimate(Named(), options)['flops'] == 60
    assert ResourceEstimator().estimate(Named(), options, {'max_iter': 3})['latency'] > 0
    with pytest.raises(ConfigError, match='keyword arguments of the forward'):
        ResourceEstimator().estimate(Named(), {'input_constructor': lambda shape: torch.zeros(shape)})


def test_the_current_subnet_of_a_supernet_without_tracing_it_again(monkeypatch: pytest.MonkeyPatch):
    traced = []
    real = resources.SpaceEstimator
    monkeypatch.setattr(resources, 'SpaceEstimator', lambda *args, **options: traced.append(1) or real(*args, **options))
    model = nn.Sequential(LayerChoice([nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)], key='op'))
    estimator = ResourceEstimator(SHAPE, units={'flops': '', 'params': ''})
    with pytest.raises(NotDecidedError):
        estimator.estimate(model)
    model[0].decide(0)
    assert estimator.estimate(model) == {'flops': 64 * 24, 'params': 32, 'latency': 0.0}
    model[0].decide(1)
    assert estimator.estimate(model) == {'flops': 64 * 216, 'params': 224, 'latency': 0.0}
    assert len(traced) == 1
    assert estimator.estimate(model, {'input_shape': (2, 3, 8, 8)})['flops'] == 2 * 64 * 216
    assert estimator.estimate(model, latency_cfg={'max_iter': 2, 'num_warmup': 0})['latency'] > 0
    assert model[0].decision == (1,)


def test_wrong_options():
    for wrong in ({'flop': 'M'}, {'flops': 'X'}, {'latency': 'h'}):
        with pytest.raises(ConfigError):
            ResourceEstimator(units=wrong)
    with pytest.raises(ConfigError, match="Did you mean 'input_shape'"):
        ResourceEstimator(flops_params_cfg={'input_shap': SHAPE})
    with pytest.raises(ConfigError, match="Did you mean 'max_iter'"):
        ResourceEstimator(SHAPE).estimate(net(), latency_cfg={'maxiter': 3})
    with pytest.raises(ConfigError, match='estimate_separation_modules'):
        ResourceEstimator(SHAPE).estimate(net(), {'seperate_return': True})
    with pytest.raises(ConfigError, match='must be a mapping'):
        ResourceEstimator(latency_cfg=[1])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='units'):
        ResourceEstimator(units='M')  # type: ignore[arg-type]


def test_names_may_be_one_and_unknown_types_are_told(monkeypatch: pytest.MonkeyPatch):
    said = []
    monkeypatch.setattr(resources, 'print_log', lambda text, *args, **kwargs: said.append(text))
    estimator = ResourceEstimator(SHAPE, units={'flops': ''})
    assert estimator.estimate(net(), {'disabled_counters': 'Linear'})['flops'] == CONVS
    assert estimator.estimate(net(), {'spec_modules': 'head'})['flops'] == HEAD
    assert said == []
    assert estimator.estimate(net(), {'disabled_counters': ['Conv2D', 'Linear']})['flops'] == CONVS
    assert "'Conv2D', of which the model has none. Did you mean 'Conv2d'" in said[0]
    for options in ({'disabled_counters': 3}, {'spec_modules': [1]}):
        with pytest.raises(ConfigError, match='must be a list of names'):
            estimator.estimate(net(), options)


def test_a_shape_that_is_none_is_told():
    with pytest.raises(ConfigError, match=r'`input_shape` must be positive integers .* got 224'):
        ResourceEstimator(input_shape=224)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r'`input_shape` must be positive integers .* got 224'):
        ResourceEstimator(SHAPE).estimate(net(), {'input_shape': 224})


def test_modules_that_are_shared_count_where_they_run():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            shared = nn.Linear(64, 64)
            self.encoder, self.decoder = nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.Linear(64, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.decoder(self.encoder(x))

    estimator = ResourceEstimator((1, 64), units={'flops': ''})

    def flops(**options: object) -> object:
        return estimator.estimate(Two(), options)['flops']

    assert flops() == 2 * 4096 + 128
    assert flops(spec_modules=['encoder']) == 4096
    assert flops(spec_modules=['decoder']) == 4096 + 128
    assert flops(spec_modules=['decoder', 'encoder.0']) == 2 * 4096 + 128
    assert flops(spec_modules=['encoder'], disabled_counters=['Linear']) == 0
    assert flops(spec_modules=['decoder'], disabled_counters=['Linear']) == 0
    assert flops(spec_modules=['decoder'], disabled_counters=['Two']) == 4096 + 128, 'what is left out is further in'
