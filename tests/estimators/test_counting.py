from __future__ import annotations

import json
from collections import OrderedDict

import pytest
import torch
from rich.console import Console
from torch import nn

from strop.errors import ConfigError, EstimateError
from strop.estimators.counting import count, example_inputs, human, in_unit

torchvision = pytest.importorskip('torchvision')


@pytest.mark.parametrize(('name', 'giga'), [('resnet18', 1.8141), ('mobilenet_v2', 0.3008)])
def test_known_models(name: str, giga: float):
    model = getattr(torchvision.models, name)()
    resources = count(model, input_shape=(1, 3, 224, 224))
    assert round(resources.macs / 1e9, 4) == giga
    assert resources.params == sum(p.numel() for p in model.parameters())
    assert resources.uncounted == {}
    assert resources.note is None


def test_by_module_and_operator_add_up():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Flatten(), nn.Linear(16, 2))
    resources = count(model, input_shape=(1, 3, 4, 4))
    assert resources.macs == 4 * 4 * 27 + 32
    modules = resources.by_module()
    assert {path: (cost.macs, cost.params) for path, cost in modules.items()} == {
        '': (464, 112 + 8 + 34),
        '0': (432, 120),
        '0.0': (432, 112),
        '0.1': (0, 8),
        '1': (0, 0),
        '2': (32, 34),
    }
    assert list(resources.by_module(depth=1)) == ['', '0', '1', '2']
    assert list(resources.by_module(depth=0)) == ['']
    assert resources.by_operator() == {'aten.convolution': 432, 'aten.addmm': 32}
    assert json.loads(json.dumps(resources.to_dict()))['by_module']['0'] == {'macs': 432, 'params': 120}


def test_the_table_has_every_module_that_costs():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Flatten(), nn.Linear(16, 2))
    console = Console(width=100, record=True, file=open('/dev/null', 'w'))  # noqa: SIM115
    console.print(count(model, input_shape=(1, 3, 4, 4)).table(depth=None))
    text = console.export_text()
    for word in ('total', 'Conv2d', 'BatchNorm2d', 'Linear', '464', '93.1', '154', 'activations'):
        assert word in text
    assert 'Flatten' not in text


def test_shared_parameters_count_once():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    resources = count(nn.Sequential(first, second, first), input_shape=(1, 4))
    assert resources.params == 16 + 4 + 4
    assert resources.macs == 48


def test_inputs_of_many_forms():
    class Two(nn.Module):
        def forward(self, pair: tuple[torch.Tensor, torch.Tensor], *, scale: dict[str, torch.Tensor]) -> torch.Tensor:
            return (pair[0] @ pair[1]) * scale['by']

    pair = (torch.zeros(2, 3), torch.zeros(3, 4))
    assert count(Two(), pair, scale={'by': torch.ones(1)}).macs == 24
    assert count(nn.Linear(3, 4).double(), input_shape=[2, 3]).macs == 24
    assert example_inputs(nn.Linear(3, 4, device='meta'), (1, 3)).device.type == 'meta'


def test_wrong_input():
    with pytest.raises(ConfigError, match='inputs are needed'):
        count(nn.ReLU())
    with pytest.raises(ConfigError, match='got both'):
        count(nn.ReLU(), torch.zeros(1), input_shape=(1,))
    for shape in ((1, 0), 'abc', (1, 2.0), 5):
        with pytest.raises(ConfigError, match='positive integers'):
            count(nn.ReLU(), input_shape=shape)  # type: ignore[arg-type]
    with pytest.raises(EstimateError, match='forward of Linear failed'):
        count(nn.Linear(3, 4), input_shape=(1, 5))
    with pytest.raises(EstimateError, match=r"'0\.weight' has no shape before the first forward"):
        count(nn.Sequential(nn.LazyLinear(3)), input_shape=(1, 5))


def test_what_is_run_for_real_is_said(monkeypatch: pytest.MonkeyPatch):
    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu() if bool(x.sum() > 0) else x

    said: list[str] = []
    monkeypatch.setattr('strop.estimators.counting.print_log', lambda text, **_: said.append(text))
    resources = count(Looks(), input_shape=(1, 2))
    assert resources.note is not None
    assert len(said) == 1
    assert 'cannot be traced without values: DataDependentOutputException' in said[0]


def test_units():
    assert in_unit(3_000_000_000, 'G') == 3.0
    assert in_unit(2048, 'Ki') == 2.0
    with pytest.raises(ConfigError, match='unit'):
        in_unit(1, 'X')
    assert human(1536, binary=True) == '1.500 Ki'


def test_a_compiled_model_has_the_modules_of_what_was_compiled():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 3)), nn.Linear(3, 2))
    plain, compiled = count(model, torch.zeros(1, 4)), count(torch.compile(model), torch.zeros(1, 4))
    assert compiled.by_module() == plain.by_module()
    assert compiled.by_module()['0.0'].macs == 12


def test_a_shared_module_costs_where_it_is_called():
    shared = nn.Linear(64, 64)
    model = nn.Sequential(OrderedDict(
        encoder=nn.Sequential(shared, nn.ReLU()), decoder=nn.Sequential(shared, nn.Linear(64, 2)),
    ))  # fmt: skip
    modules = count(model, torch.zeros(1, 64)).by_module()
    assert modules[''].macs == 2 * 4096 + 128
    assert (modules['encoder'].macs, modules['decoder'].macs) == (4096, 4096 + 128)
    assert modules['encoder.0'].macs == 2 * 4096  # both of its calls


def test_lists_of_modules_cost_what_is_in_them():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Module()
            self.body.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x):
            for layer in self.body.layers:
                x = layer(x)
            return x

    modules = count(Listed(), torch.zeros(1, 4)).by_module()
    assert {path: cost.macs for path, cost in modules.items()} == {
        '': 32, 'body': 32, 'body.layers': 32, 'body.layers.0': 16, 'body.layers.1': 16,
    }  # fmt: skip


def test_a_module_inside_itself_costs_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, again=True):
            return self(self.layer(x), again=False) if again else self.layer(x)

    modules = count(Twice(), torch.zeros(1, 4)).by_module()
    assert (modules[''].macs, modules['layer'].macs) == (32, 32)
