from __future__ import annotations

import json
from pathlib import Path

import pytest

from .running import one_error, run

# A stem of 9 * 4 multiply-adds at 8 x 8 places; 16, 144 or 400 for a choice; a head of 4 * 2.
STEM, HEAD = 64 * 36, 8
COSTS = {'k1': 64 * 16, 'k3': 64 * 144, 'k5': 64 * 400}


@pytest.fixture
def subnet(tmp_path: Path) -> Path:
    file = tmp_path / 'subnet.yaml'
    file.write_text('module.first: k1\nmodule.second: k3\nmodule.third: k5\n')
    return file


def test_a_supernet_is_shown_by_its_range(project: Path) -> None:
    done = run('estimate', project / 'supernet.py', '--json')
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content['subnets'] == 27
    assert content['input_shape'] == [1, 1, 8, 8]
    assert content['range']['macs']['smallest'] == STEM + HEAD + 3 * COSTS['k1']
    assert content['range']['macs']['largest'] == STEM + HEAD + 3 * COSTS['k5']
    mean = STEM + HEAD + sum(COSTS.values())
    assert abs(content['range']['macs']['mean'] / mean - 1) < 0.05
    done = run('estimate', project / 'supernet.py', '--samples', 10)
    assert 'mean of 10 random' in done.stdout
    assert 'module.second' in done.stdout


def test_a_subnet_module_by_module(project: Path, subnet: Path) -> None:
    done = run('estimate', project / 'supernet.py', '--subnet', subnet, '--json')
    content = json.loads(done.stdout)
    assert content['macs'] == STEM + HEAD + sum(COSTS.values())
    assert content['by_module']['module.second']['macs'] == COSTS['k3']
    done = run('estimate', project / 'supernet.py', '--subnet', subnet, '--input-shape', 2, 1, 16, 16)
    assert done.exit_code == 0, done.stderr
    assert str(subnet) in done.stdout
    assert 'third' in done.stdout


def test_latency_on_two_runtimes(project: Path, subnet: Path) -> None:
    done = run('estimate', project / 'supernet.py', '--subnet', subnet, '--latency', 'eager', '--runs', 3, '--json')
    latency = json.loads(done.stdout)['latency']
    assert latency['latency']['eager']['median_ms'] > 0
    assert latency['protocol']['runs'] == 3
    done = run('estimate', project / 'supernet.py', '--latency', 'eager', '--runs', 3)
    assert 'smallest, eager' in done.stdout
    assert 'largest, eager' in done.stdout
    done = run('estimate', project / 'supernet.py', '--latency', 'eagr')
    assert done.exit_code == 1
    assert "Did you mean 'eager'?" in one_error(done)


def test_a_factory_and_its_errors(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    run('show', 'supernet.py')
    done = run('estimate', 'patches_parts:make_plain', '--input-shape', '1x3x8x8', '--json')
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)['macs'] == 64 * 27 * 8 + 8 * 2
    assert "Did you mean 'make_plain'" in one_error(run('estimate', 'patches_parts:make_plan'))
    assert "Did you mean 'patches_parts'" in one_error(run('estimate', 'patch_parts:make_plain'))
    assert 'gives str' in one_error(run('estimate', 'patches_parts:make_nothing'))
    assert 'change a config' in one_error(run('estimate', 'patches_parts:make_plain', '--cfg-options', 'a=1'))
    assert 'has none' in one_error(run('estimate', 'patches_parts:make_plain', '--subnet', 'supernet.py'))


def test_a_model_of_timm() -> None:
    timm = pytest.importorskip('timm')
    done = run('estimate', 'timm:mobilenetv3_small_050', '--json')
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content['input_shape'] == [1, 3, 224, 224]
    assert content['params'] == sum(p.numel() for p in timm.create_model('mobilenetv3_small_050').parameters())
    done = run('estimate', 'timm:mobilenetv3_smal_050')
    assert done.exit_code == 1
    assert 'mobilenetv3_small_050' in one_error(done)


def test_a_shape_that_does_not_fit(project: Path, subnet: Path) -> None:
    done = run('estimate', project / 'supernet.py', '--subnet', subnet, '--input-shape', 1, 3, 8, 8)
    assert done.exit_code == 1
    assert 'channels' in one_error(done)
    done = run('estimate', project / 'supernet.py', '--input-shape', 'a')
    assert done.exit_code == 2
