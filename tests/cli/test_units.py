from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from strop.cli.units import trees
from strop.graph import channel_units

from .running import one_error, run


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def test_what_can_be_pruned_and_what_cannot(here: Path) -> None:
    done = run('units', 'patches_parts:make_plain', '--input-shape', 1, 3, 8, 8)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == 'patches_parts:make_plain: 1 units, 8 channels, 242 parameters'
    assert lines[1].endswith('0: 8, in 3 tensors')
    assert any('what the model returns: 2 (4.weight[0], 4.bias[0])' in line for line in lines)
    done = run('units', 'patches_parts:make_plain', '--input-shape', 1, 3, 8, 8, '--frozen', '--placements')
    assert 'what the model returns: 2\n' in done.stdout
    for axis in ('0.weight[0]', '4.weight[1]', '4.bias[0] (2)', '0.weight[3] (3)'):
        assert axis in done.stdout


def test_json_on_stdout_and_in_a_file(here: Path, tmp_path: Path) -> None:
    done = run('units', 'patches_parts:make_plain', '--input-shape', '1x3x8x8', '--json', '--out', tmp_path / 'units.json')
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content == json.loads((tmp_path / 'units.json').read_text())
    assert content['params'] == 242
    assert content['input_shape'] == [1, 3, 8, 8]
    (unit,) = content['units']
    assert unit['placements'] == [['0.weight', 0], ['0.bias', 0], ['4.weight', 1]]
    assert {axis['kind'] for axis in content['frozen']} == {'input', 'kernel', 'output'}


def test_a_supernet_needs_a_subnet(here: Path, tmp_path: Path) -> None:
    subnet = tmp_path / 'subnet.yaml'
    subnet.write_text('module.first: k1\nmodule.second: k3\nmodule.third: k5\n')
    assert 'give the subnet' in one_error(run('units', 'supernet.py'))
    done = run('units', 'supernet.py', '--subnet', subnet, '--json')
    assert done.exit_code == 0, done.stderr
    # Of the stem, of the second choice, and of the sum that the first and the third choice, a norm and the head share.
    assert sorted(unit['size'] for unit in json.loads(done.stdout)['units']) == [4, 4, 4]
    assert 'has nothing to decide' in one_error(run('units', 'patches_parts:make_plain', '--subnet', subnet))


def test_ignored_and_mistakes(here: Path) -> None:
    shape = ('--input-shape', '1x3x8x8')
    done = run('units', 'patches_parts:make_plain', *shape, '--ignored', '0')
    assert 'nothing can be pruned' in done.stdout
    assert 'ignored: 3 (0.weight[0], 0.bias[0], 4.weight[1])' in done.stdout
    done = run('units', 'patches_parts:make_plain', *shape, '--ignored', 'hed')
    assert done.exit_code == 1
    assert 'matches no parameter or module' in one_error(done)
    done = run('units', 'patches_parts:make_plain', '--input-shape', '1x4x8x8')
    assert done.exit_code == 1
    assert 'channels' in one_error(done)


def test_a_model_of_timm_as_a_tree() -> None:
    pytest.importorskip('timm')
    done = run('units', 'timm:resnet18', '--input-shape', '1x3x32x32')
    assert done.exit_code == 0, done.stderr
    assert 'timm:resnet18: 12 units, 2,880 channels, 11.690 M parameters' in done.stdout
    lines = done.stdout.splitlines()
    assert any(line.endswith(' layer2.0') for line in lines)
    assert any(line.endswith(' layer2.0.conv1: 128, in 6 tensors') for line in lines)


def test_ties_and_notes_are_told() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.heads, self.leave = nn.Linear(4, 24), 3, nn.Linear(24, 2)
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            if x.sum().item() > 1e9:
                return x
            return self.leave(self.enter(x).view(-1, self.heads, 8).softmax(-1).flatten(1))

    parts = trees('odd', channel_units(Odd(), torch.randn(2, 4)))
    assert 'Not reached by the forward: unused.weight, unused.bias' in parts
    assert isinstance(parts[-1], str)
    assert 'real' in parts[-1] or 'value' in parts[-1]
