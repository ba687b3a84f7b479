from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from strop.export import load_recipe, read_recipe

from .running import one_error, run

SHAPE = ('--input-shape', '2x3x8x8')


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def test_what_is_saved_is_what_is_printed(here: Path, tmp_path: Path) -> None:
    done = run('prune', 'patches_parts:make_plain', *SHAPE, '--ratio', 0.5, '--out', tmp_path / 'slim', '--units')
    assert done.exit_code == 0, done.stderr
    assert 'Checked against the masked original' in done.stdout
    assert 'outputs equal at batch 2' in done.stdout
    # 8 * 27 + 8 + 8 * 2 + 2 parameters, and with 4 channels 4 * 27 + 4 + 4 * 2 + 2.
    assert '242' in done.stdout
    assert '122' in done.stdout
    recipe = read_recipe(tmp_path / 'slim')
    assert recipe['supernet'] == {'factory': 'patches_parts:make_plain', 'args': {}}
    loaded = load_recipe(tmp_path / 'slim', allow='patches_parts')
    assert [module.out_channels for module in loaded if hasattr(module, 'out_channels')] == [4]
    assert sum(parameter.numel() for parameter in loaded.parameters()) == 122


@pytest.mark.parametrize(
    ('options', 'most'),
    [(['--macs', '0.5'], ('macs', 0.5)), (['--params', '150'], ('params', 150 / 242))],
)
def test_budgets(here: Path, options: list[str], most: tuple[str, float]) -> None:
    done = run('prune', 'patches_parts:make_plain', *SHAPE, *options, '--importance', 'l2', '--scope', 'global', '--json')
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    before, after = content[most[0]]
    assert before * most[1] * 0.7 < after <= before * most[1]
    assert content['records'][0]['importance'] == 'l2'
    assert content['files'] == {}


def test_a_budget_of_latency(here: Path) -> None:
    done = run('prune', 'patches_parts:make_plain', *SHAPE, '--latency', '10s', '--json')
    assert done.exit_code == 0, done.stderr
    share, milliseconds = json.loads(done.stdout)['records'][0]['latency']
    assert share > 0
    assert milliseconds < 10_000


def test_a_budget_that_cannot_be_met(here: Path) -> None:
    done = run('prune', 'patches_parts:make_plain', *SHAPE, '--params', '3')
    assert done.exit_code == 3
    assert 'the smallest that can be reached' in one_error(done)


def test_a_subnet_of_a_config_with_its_data(here: Path, tmp_path: Path, checkpoint: Path) -> None:
    subnet = tmp_path / 'subnet.yaml'
    subnet.write_text('module.first: k1\nmodule.second: k3\nmodule.third: k5\n')
    done = run(
        *('prune', 'supernet.py', '--subnet', subnet, '--checkpoint', checkpoint, '--ratio', 0.5, '--importance', 'taylor'),
        *('--batches', 2, '--calibrate', '--out', tmp_path / 'slim'),
    )
    assert done.exit_code == 0, done.stderr
    recipe = read_recipe(tmp_path / 'slim')
    assert recipe['supernet']['config'] == {'type': 'TinySupernet'}
    assert recipe['choices'] == {'first': 'k1', 'second': 'k3', 'third': 'k5'}
    loaded = load_recipe(tmp_path / 'slim', allow='patches_parts')
    assert loaded.stem[0].out_channels == 2
    assert loaded.first.kernel_size == (1, 1)
    # The statistics are those of the calibration: averages over two batches, each of which counts.
    assert int(loaded.norm.num_batches_tracked) == 2
    assert 'give the subnet' in one_error(run('prune', 'supernet.py', '--ratio', 0.5))


def test_batches_of_a_function(here: Path, tmp_path: Path) -> None:
    (here / 'patches_batches.py').write_text(
        'import torch\n\n\ndef batches():\n    return [(torch.rand(2, 3, 8, 8), torch.tensor([0, 1])) for _ in range(3)]\n\n\n'
        'number = 3\n'
    )
    common = ('prune', 'patches_parts:make_plain', *SHAPE, '--ratio', 0.5, '--importance', 'taylor')
    done = run(*common, '--data', 'patches_batches:batches', '--json')
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)['params'] == [242, 122]
    assert 'looks at data: give --data' in one_error(run(*common))
    assert 'but gives int' in one_error(run(*common, '--data', 'patches_batches:number'))
    assert "Did you mean 'batches'" in one_error(run(*common, '--data', 'patches_batches:batch'))
    assert 'MODULE:FUNCTION' in one_error(run(*common, '--data', 'patches_batches'))


def test_blocks_then_channels_of_a_model_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip('timm')
    done = run(
        *('prune', 'timm:resnet18', '--input-shape', '1x3x32x32', '--blocks', 1, '--ratio', 0.5, '--round-to', 8),
        *('--out', tmp_path / 'slim', '--seed', 1),
    )
    assert done.exit_code == 0, done.stderr
    assert 'Taken out: ' in done.stdout
    loaded = load_recipe(tmp_path / 'slim', allow='timm')
    assert isinstance(loaded, timm.models.ResNet)
    assert loaded.conv1.out_channels == 32
    assert len(read_recipe(tmp_path / 'slim')['cut']['removed']) == 1
    assert len(read_recipe(tmp_path / 'slim')['cut']['history']) == 2


def test_norms_are_calibrated_where_blocks_alone_go(here: Path, tmp_path: Path) -> None:
    pytest.importorskip('timm')
    (here / 'patches_images.py').write_text('import torch\n\n\ndef batches():\n    return [torch.rand(4, 3, 32, 32)] * 3\n')
    done = run(
        *('prune', 'timm:resnet10t', '--input-shape', '1x3x32x32', '--blocks', 1, '--data', 'patches_images:batches'),
        *('--batches', 3, '--calibrate', '--out', tmp_path / 'slim'),
    )
    assert done.exit_code == 0, done.stderr
    loaded = load_recipe(tmp_path / 'slim', allow='timm')
    assert {int(module.num_batches_tracked) for module in loaded.modules() if isinstance(module, nn.BatchNorm2d)} == {3}


def test_onnx_beside_the_recipe(here: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    done = run('prune', 'patches_parts:make_plain', *SHAPE, '--ratio', 0.5, '--out', tmp_path / 'slim', '--onnx')
    assert done.exit_code == 0, done.stderr
    inputs = torch.randn(3, 3, 8, 8)
    session = runtime.InferenceSession(str(tmp_path / 'slim' / 'model.onnx'))
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    with torch.no_grad():
        wanted = load_recipe(tmp_path / 'slim', allow='patches_parts')(inputs)
    assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-5)


def test_mistakes_are_one_line_and_write_nothing(here: Path, tmp_path: Path) -> None:
    common = ('prune', 'patches_parts:make_plain', *SHAPE)
    out = tmp_path / 'slim'
    for options, said in (
        ([], 'Say how far to prune'),
        (['--ratio', 0.5, '--macs', 0.5], 'not both'),
        (['--ratio', 1.5], 'ratio'),
        (['--ratio', 0.5, '--importance', 'tailor'], "Did you mean 'taylor'"),
        (['--ratio', 0.5, '--scope', 'globl'], "'global'"),
        (['--ratio', 0.5, '--ignored', 'hed'], 'hed'),
        (['--macs', '0.5q'], '0.5q'),
        (['--blocks', 1], 'no residual blocks'),
        (['--ratio', 0.5, '--calibrate'], '--data'),
    ):
        done = run(*common, *options, '--out', out)
        assert done.exit_code == 1, (options, done.output)
        assert said in one_error(done), options
    assert '--out FOLDER' in one_error(run(*common, '--ratio', 0.5, '--onnx'))
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'notes.txt').write_text('keep')
    assert 'notes.txt' in one_error(run(*common, '--ratio', 0.5, '--out', tmp_path / 'mine'))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['mine']
    done = run(*common, '--ratio', 'half')
    assert done.exit_code == 2


def test_a_finished_model_of_a_module_has_no_factory(here: Path, tmp_path: Path) -> None:
    (here / 'patches_ready.py').write_text('from patches_parts import make_plain\n\nnet = make_plain()\n')
    done = run('prune', 'patches_ready:net', *SHAPE, '--ratio', 0.5, '--out', tmp_path / 'slim')
    assert done.exit_code == 0, done.stderr
    assert 'supernet' not in read_recipe(tmp_path / 'slim')
    assert 'load_slim' in one_error(run('prune', tmp_path / 'slim', '--ratio', 0.5, '--out', tmp_path / 'slimmer'))


def test_what_was_saved_is_pruned_again(here: Path, tmp_path: Path) -> None:
    done = run('prune', 'patches_parts:make_plain', *SHAPE, '--ratio', 0.25, '--out', tmp_path / 'slim')
    assert done.exit_code == 0, done.stderr
    assert '--allow PACKAGE' in one_error(run('prune', tmp_path / 'slim', '--ratio', 0.5))
    allow = ('--allow', 'patches_parts')
    done = run('prune', tmp_path / 'slim', *allow, '--ratio', 0.5, '--out', tmp_path / 'slimmer', '--json')
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content['input_shape'] == [2, 3, 8, 8]
    # 6 channels and then 3, of 27 + 1 + 2 parameters each.
    assert content['params'] == [182, 92]
    recipe = read_recipe(tmp_path / 'slimmer')
    assert recipe['cut']['original']['0.weight'] == [8, 3, 3, 3]
    assert [entry['ratio'] for entry in recipe['cut']['history']] == [0.25, 0.5]
    assert load_recipe(tmp_path / 'slimmer', allow='patches_parts')[0].out_channels == 3
    done = run('estimate', tmp_path / 'slimmer', *allow, '--json')
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)['params'] == 92
    done = run('units', tmp_path / 'slimmer', *allow)
    assert '1 units, 3 channels, 92 parameters' in done.stdout
    assert 'is a recipe' in one_error(run('units', tmp_path / 'slimmer', *allow, '--cfg-options', 'a=1'))
