from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from strop.errors import ConfigError, EstimateError, SubnetError
from strop.estimators.counting import count
from strop.estimators.space_estimator import RESOURCES, SpaceEstimator
from strop.mutables import InputChoice, LayerChoice, Repeat, ValueChoice, Weights, bind, extract, maximum, space_of

SHAPE = (2, 4, 6, 6)


def conv(kernel: int, inplace: bool = False) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, kernel, padding=kernel // 2), nn.BatchNorm2d(4), nn.ReLU(inplace=inplace))


class Shuffle(nn.Module):
    """Leaves its output in another memory layout than a convolution does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(2, 3)


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def agrees_everywhere(model: nn.Module, shape: tuple[int, ...] = SHAPE, most: int = 200) -> SpaceEstimator:
    estimator = SpaceEstimator(model, input_shape=shape, checks=0)
    assert estimator.mode == 'analytic', estimator.reason
    subnets = list(estimator.space.grid())[:most]
    many = estimator.estimate_many(subnets)
    for index, subnet in enumerate(subnets):
        plain = extract(model, subnet)
        resources = count(plain, input_shape=shape)
        assert {name: int(many[name][index]) for name in RESOURCES} == {name: getattr(resources, name) for name in RESOURCES}, (
            subnet
        )
        assert many['params'][index] == sum(p.numel() for p in plain.parameters())
    for name in ('macs', 'params'):
        if len(subnets) == estimator.space.count():
            assert estimator.smallest(name).value == many[name].min()
            assert estimator.largest(name).value == many[name].max()
            assert estimator.estimate(estimator.smallest(name).subnet)[name] == many[name].min()
            assert estimator.estimate(estimator.largest(name).subnet)[name] == many[name].max()
    return estimator


def test_by_hand():
    model = nn.Sequential(LayerChoice({'skip': nn.Identity(), 'conv': nn.Conv2d(4, 4, 3, padding=1)}, key='op'))
    estimator = SpaceEstimator(model, input_shape=(1, 4, 5, 5))
    assert estimator.estimate({'op': 'skip'}) == {'macs': 0, 'params': 0, 'activation_bytes': 4 * 25 * 4}
    assert estimator.estimate({'op': 'conv'}) == {
        'macs': 25 * 16 * 9,
        'params': 4 * 4 * 9 + 4,
        'activation_bytes': 2 * 4 * 25 * 4,
    }
    assert estimator.alternatives() == {'op': {'skip': (0, 0), 'conv': (3600, 148)}}


def test_identities_in_a_row_keep_the_first_storage_alive():
    layers = [LayerChoice([nn.Identity(), conv(3, inplace=True), nn.Conv2d(4, 4, 1)]) for _ in range(4)]
    agrees_everywhere(nn.Sequential(*layers))


def test_residual_and_nested_choices():
    inner = LayerChoice([nn.Identity(), conv(1)], key='inner')
    model = nn.Sequential(
        Residual(LayerChoice([conv(3), nn.Sequential(inner, conv(5)), nn.Identity()], key='outer')),
        LayerChoice([conv(1), Residual(LayerChoice([conv(3), nn.Identity()], key='deep'))], key='other'),
    )
    agrees_everywhere(model)


def test_repeat_with_a_depth_and_choices_inside():
    depth = ValueChoice([0, 1, 3], key='depth')
    model = nn.Sequential(conv(3), Repeat(lambda i: LayerChoice([conv(3), Residual(conv(1))], key=f'op{i}'), depth), conv(1))
    estimator = agrees_everywhere(model)
    assert estimator.space.count() == 1 + 2 + 8


def test_repeat_over_an_expression_and_a_fixed_repeat():
    first, second = ValueChoice([1, 2], key='first'), ValueChoice([0, 3], key='second')
    model = nn.Sequential(Repeat(lambda _: conv(1), maximum(first, second)), Repeat([conv(1), conv(3)], 1))
    agrees_everywhere(model)


class Skips(nn.Module):
    def __init__(self, n_chosen: int, reduction: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(kernel) for kernel in (1, 3, 5))
        self.choice = InputChoice(n_candidates=3, n_chosen=n_chosen, reduction=reduction, key='in')
        self.head = nn.Conv2d(4 * (n_chosen if reduction == 'concat' else 1), 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.choice([layer(x) for layer in self.layers]))


@pytest.mark.parametrize('reduction', ['sum', 'mean', 'concat'])
@pytest.mark.parametrize('n_chosen', [1, 2, 3])
def test_input_choice(n_chosen: int, reduction: str):
    agrees_everywhere(Skips(n_chosen, reduction))


def test_one_key_twice_is_one_decision_and_shared_parameters_count_once():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(
        LayerChoice([shared, nn.Conv2d(4, 4, 1)], key='op'),
        LayerChoice([shared, nn.Identity()], key='op'),
        LayerChoice([shared, conv(1)], key='free'),
    )
    agrees_everywhere(model)
    tied = nn.Linear(6, 6)
    other = nn.Linear(6, 6)
    other.weight = tied.weight
    agrees_everywhere(nn.Sequential(LayerChoice([tied, nn.Identity()]), LayerChoice([nn.Identity(), other])))


def test_one_module_called_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.op = LayerChoice([conv(1), conv(3), nn.Identity()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.op(self.op(x) + 1)

    agrees_everywhere(Twice())


def test_outputs_that_are_structures():
    class Pair(nn.Module):
        def __init__(self, kernel: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, kernel, padding=kernel // 2)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {'x': x, 'y': self.conv(x).relu()}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = LayerChoice([Pair(1), Pair(3)])

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            pair = self.pair(x)
            return pair['x'] * 2, pair['y']

    agrees_everywhere(Net())


BLOCKS = st.recursive(
    st.sampled_from(['id', 'conv1', 'conv3', 'inplace', 'pool', 'depthwise']),
    lambda inner: st.one_of(
        st.tuples(st.just('seq'), inner, inner),
        st.tuples(st.just('res'), inner),
        st.tuples(st.just('choice'), inner, inner),
        st.tuples(st.just('choice'), inner, inner, inner),
        st.tuples(st.just('repeat'), inner),
    ),
    max_leaves=7,
)


def build(tree: object) -> nn.Module:
    simple = {
        'id': nn.Identity,
        'conv1': lambda: nn.Conv2d(4, 4, 1),
        'conv3': lambda: conv(3),
        'inplace': lambda: conv(1, inplace=True),
        'pool': lambda: nn.MaxPool2d(3, 1, 1),
        'depthwise': lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    }
    if isinstance(tree, str):
        return simple[tree]()
    kind, *parts = tree  # type: ignore[misc]
    if kind == 'repeat':
        return Repeat([build(parts[0]), build(parts[0])], ValueChoice([0, 1, 2]))
    modules = [build(part) for part in parts]
    return {'seq': lambda: nn.Sequential(*modules), 'res': lambda: Residual(*modules), 'choice': lambda: LayerChoice(modules)}[
        kind
    ]()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(BLOCKS, min_size=1, max_size=3))
def test_every_subnet_of_random_nested_spaces(trees: list[object]):
    model = nn.Sequential(*map(build, trees))
    if len(space_of(model)):
        agrees_everywhere(model, (1, 4, 3, 3), most=24)


# -- when one trace is not enough -------------------------------------------------------------------------


def test_unequal_outputs_are_run_and_said(caplog: pytest.LogCaptureFixture):
    model = nn.Sequential(
        LayerChoice([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, stride=2, padding=1)], key='op'), nn.Conv2d(4, 2, 1)
    )
    estimator = SpaceEstimator(model, input_shape=SHAPE)
    assert estimator.mode == 'run'
    assert estimator.measured == {'macs', 'activation_bytes'}
    assert 'different outputs: (2, 4, 6, 6) float32 and (2, 4, 3, 3) float32' in (estimator.reason or '')
    for subnet in estimator.space.grid():
        expected = count(extract(model, subnet), input_shape=SHAPE)
        assert estimator.estimate(subnet) == {name: getattr(expected, name) for name in RESOURCES}
    assert estimator.smallest('macs').value == min(estimator.estimate(s)['macs'] for s in estimator.space.grid())
    assert estimator.smallest('macs').exact


def test_the_reason_is_logged(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr('strop.estimators.space_estimator.print_log', lambda text, **_: said.append(text))
    SpaceEstimator(nn.Sequential(LayerChoice([nn.Identity(), nn.MaxPool2d(2)], key='op')), input_shape=SHAPE)
    assert len(said) == 1
    assert "alternatives 0 and 1 of 'op' return different outputs" in said[0]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = ValueChoice([1, 4], key='width')
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)[:, : self.width()]


def test_values_used_inside_a_forward_are_run():
    estimator = SpaceEstimator(nn.Sequential(Scaled()), input_shape=SHAPE)
    assert estimator.mode == 'run'
    assert "the value 'width' is used inside a forward" in (estimator.reason or '')
    assert estimator.estimate({'width': 4})['macs'] == 2 * 36 * 16


def test_any_number_of_inputs_is_run():
    model = Skips(1, 'sum')
    model.choice = InputChoice(n_candidates=3, n_chosen=None, key='in')
    model.head = nn.Identity()  # type: ignore[assignment]
    estimator = SpaceEstimator(model, input_shape=SHAPE)
    assert 'any number of alternatives' in (estimator.reason or '')
    assert estimator.estimate({'in': [0, 2]})['macs'] == 2 * 36 * 16 * (1 + 9 + 25)


class Flattened(nn.Module):
    """`reshape` copies a transposed tensor and takes a contiguous one as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.op = LayerChoice([nn.Conv2d(4, 4, 1), Shuffle()], key='op')

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x).reshape(x.shape[0], -1) + 1


def test_layouts_that_change_what_follows_are_run():
    model = Flattened()
    estimator = SpaceEstimator(model, input_shape=SHAPE)
    assert 'memory layout' in (estimator.reason or '')
    for subnet in estimator.space.grid():
        assert (
            estimator.estimate(subnet)['activation_bytes'] == count(extract(model, subnet), input_shape=SHAPE).activation_bytes
        )


def test_layouts_that_change_nothing_stay_analytic():
    agrees_everywhere(nn.Sequential(LayerChoice([nn.Conv2d(4, 4, 1), Shuffle()]), nn.Conv2d(4, 4, 1)))


class LooksAtADecision(nn.Module):
    """Does more work when the choice before it is 1, behind the back of every trace."""

    def __init__(self) -> None:
        super().__init__()
        self.op = LayerChoice([nn.ReLU(), nn.Sigmoid()], key='op')
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heavy = isinstance(self.op, nn.Sigmoid) or (isinstance(self.op, LayerChoice) and self.op.decision == (1,))
        x = self.op(x)
        return self.conv(self.conv(x)) if heavy else self.conv(x)


def test_a_mismatch_is_found_when_built():
    model = LooksAtADecision()
    estimator = SpaceEstimator(model, input_shape=SHAPE, checks=8)
    assert 'macs' in estimator.measured
    assert 'instead of' in (estimator.reason or '')
    assert estimator.estimate({'op': 1})['macs'] == 2 * estimator.estimate({'op': 0})['macs']


def test_runs_are_cached(monkeypatch: pytest.MonkeyPatch):
    estimator = SpaceEstimator(nn.Sequential(Scaled()), input_shape=SHAPE)
    first = estimator.estimate({'width': 4})
    monkeypatch.setattr('strop.estimators.space_estimator.extract', lambda *_: pytest.fail('ran again'))
    assert estimator.estimate({'width': 4}) == first


# -- weights, groups, the model itself --------------------------------------------------------------------


def test_weighted_subnets_count_every_candidate_in_use():
    ops = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 5, padding=2)]
    model = nn.Sequential(LayerChoice(ops, key='op'), LayerChoice([nn.Identity(), conv(1)], key='next'))
    estimator = SpaceEstimator(model, input_shape=SHAPE)
    plain = {'op': 2, 'next': 1}
    mixed = {'op': Weights([0.25, 0.75, 0.0]), 'next': 0}
    many = estimator.estimate_many([plain, mixed, plain])
    assert many['macs'].tolist() == [72 * 16 * 26, 72 * 16 * 10, 72 * 16 * 26]
    for index, subnet in enumerate([plain, mixed]):
        expected = count(extract(model, subnet), input_shape=SHAPE)
        assert {name: many[name][index] for name in RESOURCES} == {name: getattr(expected, name) for name in RESOURCES}


def test_groups_are_one_decision():
    model = nn.Sequential(LayerChoice([conv(1), conv(3)]), LayerChoice([conv(1), conv(3)]))
    binding = bind(model, groups=[['0', '1']])
    estimator = SpaceEstimator(model, input_shape=SHAPE, binding=binding)
    assert estimator.mode == 'analytic'
    assert len(estimator.space) == 1
    assert estimator.estimate({'0': 1})['macs'] == 2 * 72 * 16 * 9


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(
        LayerChoice([conv(1), conv(3)], key='op'), Repeat(lambda _: conv(1), ValueChoice([1, 2], key='depth'))
    )
    model.train()
    model[0].decide(1)
    parameters = [id(p) for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    estimator = SpaceEstimator(model, input_shape=SHAPE)
    estimator.estimate({'op': 0, 'depth': 2})
    assert model[0].decision == (1,)
    assert model[1].depth.decision is None
    assert 'forward' not in vars(model[1])
    assert model.training
    assert model[0][1].training
    assert [id(p) for p in model.parameters()] == parameters
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_many_equals_one_by_one_over_chunks():
    model = nn.Sequential(*(LayerChoice([nn.Identity(), conv(1), conv(3)]) for _ in range(5)))
    estimator = SpaceEstimator(model, input_shape=SHAPE, checks=0)
    rng = np.random.default_rng(0)
    subnets = [estimator.space.sample(rng) for _ in range(1100)]
    many = estimator.estimate_many(subnets)
    for index in (0, 511, 512, 1023, 1024, 1099):
        assert estimator.estimate(subnets[index]) == {name: many[name][index] for name in RESOURCES}
    assert estimator.estimate_many([], ['macs'])['macs'].shape == (0,)
    assert estimator.estimate_many([])['activation_bytes'].shape == (0,)


def test_extremes_of_a_large_nested_space_are_exact_and_quick():
    def block(i: int) -> nn.Module:
        return LayerChoice([conv(1), conv(3), conv(5)], key=f'op{i}')

    depths = [ValueChoice([2, 3, 4], key=f'depth{stage}') for stage in range(4)]
    model = nn.Sequential(*(Repeat(lambda i, s=s: block(10 * s + i), depth) for s, depth in enumerate(depths)))
    estimator = SpaceEstimator(model, input_shape=SHAPE, checks=1)
    assert estimator.space.count() == (9 + 27 + 81) ** 4
    assert estimator.smallest('macs').value == 4 * 2 * 72 * 16
    assert estimator.largest('macs').value == 4 * 4 * 72 * 16 * 25
    assert estimator.largest('macs').exact
    assert estimator.largest('activation_bytes').value >= estimator.smallest('activation_bytes').value


# -- wrong input ------------------------------------------------------------------------------------------


def test_wrong_input():
    model = nn.Sequential(LayerChoice([conv(1), conv(3)], key='op'))
    with pytest.raises(ConfigError, match='either `inputs` or `input_shape`'):
        SpaceEstimator(model)
    with pytest.raises(EstimateError, match='cannot be estimated'):
        SpaceEstimator(model, input_shape=(1, 3, 6, 6))
    estimator = SpaceEstimator(model, input_shape=SHAPE)
    with pytest.raises(ConfigError, match="Did you mean 'macs'"):
        estimator.estimate({'op': 0}, ['mac'])
    with pytest.raises(SubnetError):
        estimator.estimate({'op': 7})
    with pytest.raises(SubnetError):
        estimator.estimate({})
