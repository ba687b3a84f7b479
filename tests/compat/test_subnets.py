from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from strop.compat.fronts import find_latest_checkpoint, parse_version_info, register_all_modules, setup_multi_processes
from strop.compat.subnets import DumpChosen, convert_fix_subnet, export_fix_subnet, load_fix_subnet
from strop.errors import ConfigError, NotDecidedError, SubnetError
from strop.mutables import LayerChoice, ValueChoice, space_of
from strop.mutators import RandomMutator

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.op = LayerChoice({'linear': nn.Linear(3, 3), 'id': nn.Identity()})
        self.act = LayerChoice([nn.ReLU(), nn.Tanh()])
        self.scale = ValueChoice([1, 2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.op(x)) * self.scale()


def decided() -> Net:
    torch.manual_seed(0)
    model = Net()
    for mutable, choice in ((model.op, 'linear'), (model.act, 1), (model.scale, 2)):
        mutable.decide(choice)
    return model


@pytest.mark.parametrize('mode', ['mutable', 'mutator'])
@pytest.mark.parametrize('suffix', ['yaml', 'json', ''])
def test_what_is_exported_makes_the_same_model_again(tmp_path: Path, mode: str, suffix: str) -> None:
    model = decided()
    subnet, plain = export_fix_subnet(model, mode, slice_weight=True)
    assert subnet['op'] == DumpChosen('linear', {'all_choices': ['linear', 'id']})
    assert plain is not None
    assert torch.equal(plain(X), model(X))
    assert isinstance(model.op, LayerChoice)  # the model itself is as it was
    given: object = subnet
    if suffix:
        path = tmp_path / f'subnet.{suffix}'
        path.write_text((yaml.safe_dump if suffix == 'yaml' else json.dumps)(convert_fix_subnet(subnet)))
        given = str(path)
    torch.manual_seed(0)
    other = Net()
    load_fix_subnet(other, given, mode)  # type: ignore[arg-type]
    assert not space_of(other)
    assert torch.equal(other(X), plain(X))
    assert export_fix_subnet(decided())[1] is None


def test_keys_may_have_a_prefix() -> None:
    model = nn.Sequential(decided())
    subnet = {f'architecture.{key}': value for key, value in convert_fix_subnet(export_fix_subnet(decided())[0]).items()}
    load_fix_subnet(model, subnet, prefix='0.')
    assert torch.equal(model(X), decided()(X))


def test_a_model_of_a_mutator_is_exported_as_it_is_sampled() -> None:
    model = Net()
    mutator = RandomMutator(model)
    mutator.reset()
    assert {key: value.chosen for key, value in export_fix_subnet(model)[0].items()} == dict(mutator.current_choices)


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'mutable'"):
        export_fix_subnet(decided(), 'mutabel')
    with pytest.raises(ConfigError, match="Did you mean 'mutator'"):
        load_fix_subnet(decided(), {}, 'mutater')
    with pytest.raises(NotDecidedError):
        export_fix_subnet(Net())
    with pytest.raises(SubnetError):
        load_fix_subnet(Net(), {'op': {'chosen': 'conv'}})
    with pytest.raises(ConfigError, match='cannot be replaced in place'):
        load_fix_subnet(LayerChoice([nn.ReLU(), nn.Tanh()]), {'': 0})


def test_the_set_up_of_training_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmengine.registry import DefaultScope

    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    DefaultScope._instance_dict.clear()
    register_all_modules(False)
    assert DefaultScope.get_current_instance() is None
    register_all_modules()
    current = DefaultScope.get_current_instance()
    assert current is not None
    assert current.scope_name == 'mmrazor'
    register_all_modules()
    assert DefaultScope.get_current_instance() is current
    setup_multi_processes({'env_cfg': {'mp_cfg': {'mp_start_method': 'fork'}}, 'omp_num_threads': 3})
    import os

    assert os.environ['OMP_NUM_THREADS'] == '3'
    assert parse_version_info('1.0.0rc2') == (1, 0, 0, 'rc2')
    assert find_latest_checkpoint(tmp_path) is None
    torch.save({'meta': {'iter': 7}, 'state_dict': {}}, tmp_path / 'epoch_2.pth')
    assert find_latest_checkpoint(tmp_path) == str(tmp_path / 'epoch_2.pth')
    with pytest.raises(ConfigError, match='pth'):
        find_latest_checkpoint(tmp_path, 'onnx')
