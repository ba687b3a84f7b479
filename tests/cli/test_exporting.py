from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from strop.export import load_recipe

from .running import one_error, run, strop


@pytest.fixture(scope='module')
def exported(project: Path, checkpoint: Path, searched: Path) -> Path:
    subnet = searched / 'best_fix_subnet.yaml'
    done = strop('export', 'search.py', '--subnet', subnet, '--checkpoint', checkpoint, '--out', 'runs/best', cwd=project)
    assert done.returncode == 0, done.stderr
    assert 'recalibrated on 16 training images' in done.stderr
    for name in ('recipe', 'pt2', 'onnx'):
        assert name in done.stdout
    return project / 'runs' / 'best'


def test_the_exported_model_scores_what_the_search_wrote_down(project: Path, exported: Path, searched: Path) -> None:
    import onnxruntime
    import yaml

    run('show', project / 'supernet.py')
    from patches_parts import Patches  # type: ignore[import-not-found]

    data = Patches(24, seed=1)
    images = torch.stack([data[index][0] for index in range(24)])
    choices = yaml.safe_load((searched / 'best_fix_subnet.yaml').read_text())['choices']
    trials = json.loads((searched / 'search.json').read_text())['trials']
    score = next(trial['values']['accuracy/top1'] for trial in trials if trial['choices'] == choices)
    session = onnxruntime.InferenceSession(exported / 'model.onnx')
    onnx = torch.tensor(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    program = torch.export.load(exported / 'model.pt2').module()(images)
    for outputs in (onnx, program):
        assert 100 * float((outputs.argmax(1) == data.labels).double().mean()) == pytest.approx(score)


def test_formats_and_single_files(project: Path, checkpoint: Path, searched: Path, tmp_path: Path) -> None:
    common = ['export', project / 'search.py', '--subnet', searched / 'best_fix_subnet.yaml', '--checkpoint', checkpoint]
    done = run(*common, '--calibrate', 0, '--out', tmp_path / 'net.pt2')
    assert done.exit_code == 0, done.stderr
    assert torch.export.load(tmp_path / 'net.pt2').module()(torch.zeros(3, 1, 8, 8)).shape == (3, 2)
    done = run(*common, '--format', 'onx', '--out', tmp_path / 'net')
    assert done.exit_code == 1
    assert "'onnx'" in one_error(done)
    assert not (tmp_path / 'net').exists()


def test_a_supernet_needs_a_subnet_and_a_plain_model_has_none(project: Path, tmp_path: Path, searched: Path) -> None:
    done = run('export', project / 'supernet.py', '--out', tmp_path / 'net')
    assert done.exit_code == 1
    assert '--subnet FILE' in one_error(done)
    run('show', project / 'supernet.py')
    plain = run('export', 'patches_parts:make_plain', '--input-shape', 1, 3, 8, 8, '--calibrate', 16, '--out', tmp_path / 'net')
    assert '--calibrate is for a --subnet of a config' in one_error(plain)
    subnet = searched / 'best_fix_subnet.yaml'
    done = run('export', 'patches_parts:make_plain', '--subnet', subnet, '--out', tmp_path / 'net')
    assert 'nothing to decide' in one_error(done)
    assert not (tmp_path / 'net').exists()


def test_a_factory(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    done = run('export', 'patches_parts:make_plain', '--input-shape', 2, 3, 8, 8, '--format', 'pt2', '--out', tmp_path / 'net')
    assert done.exit_code == 0, done.stderr
    assert 'the weights are those that' in done.stderr
    assert (tmp_path / 'net' / 'model.pt2').is_file()


def test_a_recipe_becomes_programs(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    shape = ('--input-shape', 1, 3, 8, 8)
    done = run('prune', 'patches_parts:make_plain', *shape, '--ratio', 0.5, '--out', tmp_path / 'slim')
    assert done.exit_code == 0, done.stderr
    assert '--allow PACKAGE' in one_error(run('export', tmp_path / 'slim', '--out', tmp_path / 'net'))
    allowed = ('export', tmp_path / 'slim', '--allow', 'patches_parts')
    assert 'is a recipe already' in one_error(run(*allowed, '--format', 'recipe', '--out', tmp_path / 'net'))
    done = run(*allowed, '--out', tmp_path / 'net')
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / 'net').glob('model.*')) == ['model.onnx', 'model.pt2']
    done = run(*allowed, '--out', tmp_path / 'net.pt2')
    assert done.exit_code == 0, done.stderr
    images = torch.rand(2, 3, 8, 8)
    wanted = load_recipe(tmp_path / 'slim', allow='patches_parts')(images)
    found = torch.export.load(tmp_path / 'net.pt2').module()(images)
    torch.testing.assert_close(found, wanted)


def test_a_recipe_of_a_model_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip('timm')
    done = run(
        'export', 'timm:mobilenetv3_small_050', '--input-shape', '1x3x32x32', '--format', 'recipe', '--out', tmp_path / 'net'
    )
    assert done.exit_code == 0, done.stderr
    loaded = load_recipe(tmp_path / 'net', allow='timm')
    assert isinstance(loaded, timm.models.MobileNetV3)
