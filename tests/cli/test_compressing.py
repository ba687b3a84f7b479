"""`strop compress`: recipes and targets on the command line, plans, lines for programs, exit codes, kills, a full disk."""

from __future__ import annotations

import json
import os
import signal
import textwrap
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from safetensors.torch import load_file

from strop.compression.recipe import recipe_schema

from .running import one_error, run, start, strop

DIGITS = Path(__file__).parents[2] / 'configs' / 'compress' / 'digits.yaml'

NETS = """
import os, resource
import torch
from torch import nn

def make():
    if os.environ.get('LIMIT'):
        size = int(os.environ['LIMIT'])
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )
"""
RECIPE: dict[str, Any] = {
    'model': 'killed_net:make',
    'data': {'source': 'digits', 'batch_size': 32, 'limit': 200},
    'stages': [
        {'finetune': {'epochs': 3, 'lr': 0.1}},
        {'prune': {'ratio': 0.5}},
        {'distill': {'epochs': 3}},
        {'export': {'formats': 'pt2'}},
    ],
    'threads': 1,
    'runtimes': ['eager'],
    'batches': [1],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / 'killed_net.py').write_text(textwrap.dedent(NETS))
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(RECIPE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _weights(folder: Path) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in load_file(folder / 'model' / 'model.safetensors').items()}


def test_a_dry_run_prints_the_plan_and_writes_nothing(here: Path) -> None:
    done = run('compress', 'recipe.yaml', '--trust', '--dry-run', '--output', 'out', '--target', 'accuracy_drop=2')
    assert done.exit_code == 0, done.stderr
    assert 'the plan; nothing was run' in done.stdout
    assert '50% of the channels' in done.stdout
    assert 'at most 2 points lost' in done.stdout
    assert sorted(path.name for path in here.iterdir() if path.name != '__pycache__') == ['killed_net.py', 'recipe.yaml']


def test_the_plan_as_json_has_the_steps_of_each_stage(here: Path) -> None:
    done = run('compress', 'recipe.yaml', '--trust', '--dry-run', '--json-lines')
    plan = json.loads(done.stdout)['plan']
    assert plan['parts'] == {'train': 144, 'calibration': 144, 'validation': 16, 'test': 40}
    assert {stage['name']: stage['steps'] for stage in plan['stages']} == {
        'finetune': 12,
        'prune': 0,
        'distill': 12,
        'export': 0,
    }
    assert plan['macs'] == 64 * 9 * 16 + 9 * 9 * 16 * 32 + 320
    assert plan['seconds'] > 0


def test_the_shipped_recipe_has_a_plan_from_training_to_the_files(here: Path) -> None:
    content = yaml.safe_load(DIGITS.read_text())
    jsonschema.validate(content, recipe_schema())
    done = run('compress', str(DIGITS), '--dry-run', '--json-lines')
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)['plan']
    assert [stage['name'] for stage in plan['stages']] == ['finetune', 'prune', 'distill', 'quantize', 'export']
    assert plan['parts']['test'] == 359


def test_it_ends_with_the_stages_the_figures_before_and_after_and_where_everything_is(here: Path) -> None:
    done = run('compress', 'recipe.yaml', '--trust', '--output', 'out', '--quiet')
    assert done.exit_code == 0, done.stderr
    rows = {cells[0]: cells for line in done.stdout.splitlines() if (cells := [cell.strip() for cell in line.split('│')[1:-1]])}
    result = json.loads((here / 'out' / 'result.json').read_text())
    before, after = (next(s for s in result['stages'] if s['name'] == name)['resources'] for name in ('finetune', 'distill'))
    assert rows['MACs'][1:3] == [f'{before["macs"] / 1e3:.1f} k', f'{after["macs"] / 1e3:.1f} k']
    assert {'accuracy', 'parameters', 'size', 'latency', 'finetune', 'prune', 'distill', 'export'} <= set(rows)
    assert str(here / 'out' / 'report.html') in done.stdout
    assert (here / 'out' / 'report.html').is_file()


def test_a_recipe_of_a_stranger_runs_no_code_without_leave(here: Path) -> None:
    done = run('compress', 'recipe.yaml', '--output', 'out')
    assert done.exit_code == 1
    assert '--trust on the command line' in one_error(done)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--model', 'timm:resnet10t'], 'Give a recipe, or --model and --data'),
        (['--model', 'timm:resnet10tt', '--data', 'digits', '--target', 'macs=0.5'], 'resnet10t'),
        (['--model', 'timm:resnet10t', '--data', 'digits', '--target', 'macs'], 'must be NAME=VALUE'),
        (['--model', 'timm:resnet10t', '--data', 'digits', '--target', 'mcs=0.5'], "Did you mean 'macs'"),
        (['--model', 'timm:resnet10t', '--data', 'digits'], 'names its `stages`, or says by `budget`'),
        (['recipe.yaml', '--weights', 'x.pth'], '--weights belongs to --model'),
        (['recipe.yaml', '--quiet', '--json-lines'], 'not both'),
        (['recipe.yml'], 'There is no recipe'),
        (['recipe.yaml', '--trust', '--from', 'prun'], "Did you mean 'prune'"),
    ],
)
def test_mistakes_are_one_line(here: Path, arguments: list[str], message: str) -> None:
    done = run('compress', *arguments)
    assert done.exit_code in (1, 2)
    assert message in one_error(done)
    assert not (here / 'compressed').exists()


def test_a_budget_that_is_not_met_is_exit_code_3_with_the_nearest_in_the_folder(here: Path) -> None:
    recipe = {**RECIPE, 'stages': ['prune'], 'budget': {'params': 0.001}}
    (here / 'recipe.yaml').write_text(yaml.safe_dump(recipe))
    done = run('compress', 'recipe.yaml', '--trust', '--output', 'out', '--quiet')
    assert done.exit_code == 3, done.stderr
    assert 'NOT met' in done.stdout
    assert 'smallest model that can be reached' in done.stdout
    assert (here / 'out' / 'artefact.json').exists()


def _killed(here: Path, stage: str, **extra: str) -> None:
    """Run, and send SIGKILL as soon as a stage is under way."""
    command = start('compress', 'recipe.yaml', '--trust', '--output', 'out', '--json-lines', cwd=here, **extra)
    output = Path(command.streams[0])
    end = time.monotonic() + 120
    while time.monotonic() < end and command.poll() is None:
        lines = output.read_text().splitlines() if output.exists() else []
        events = [json.loads(line) for line in lines if line.endswith('}')]
        if any(event.get('stage') == stage and event['event'] in ('begin', 'advance') for event in events):
            os.kill(command.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    command.process.join(30)
    assert command.poll() == -signal.SIGKILL, Path(command.streams[1]).read_text()


def _ends_like_an_unbroken_run(here: Path, stages: list[str]) -> None:
    whole = strop('compress', 'recipe.yaml', '--trust', '--output', 'whole', '--quiet', cwd=here)
    assert whole.returncode == 0, whole.stderr
    for stage in stages:
        _killed(here, stage)
        assert not (here / 'out' / 'artefact.json').exists()
    done = strop('compress', 'recipe.yaml', '--trust', '--output', 'out', '--quiet', cwd=here)
    assert done.returncode == 0, done.stderr
    assert _weights(here / 'out') == _weights(here / 'whole')
    scores = [
        [
            (stage['name'], stage['scores'], stage['curve'])
            for stage in json.loads((here / name / 'result.json').read_text())['stages']
        ]
        for name in ('out', 'whole')
    ]
    assert scores[0] == scores[1]


def test_a_run_that_is_killed_in_its_stages_ends_like_one_that_is_not(here: Path) -> None:
    _ends_like_an_unbroken_run(here, ['finetune', 'distill', 'export'])


@pytest.mark.slow
def test_a_run_that_is_killed_in_every_stage_ends_like_one_that_is_not(here: Path) -> None:
    stages = [*RECIPE['stages'][:3], {'quantize': {'backend': 'onnxruntime'}}, 'export']
    (here / 'recipe.yaml').write_text(yaml.safe_dump({**RECIPE, 'stages': stages}))
    _ends_like_an_unbroken_run(here, ['source', 'finetune', 'prune', 'distill', 'quantize', 'export', 'measure'])


def test_a_disk_without_room_is_told_by_the_file_and_the_run_goes_on_with_room(here: Path) -> None:
    done = strop('compress', 'recipe.yaml', '--trust', '--output', 'out', '--quiet', cwd=here, LIMIT='6000')
    assert done.returncode == 1
    assert 'File too large' in one_error(done)
    assert str(here / 'out') in one_error(done)
    assert not (here / 'out' / 'artefact.json').exists()
    again = strop('compress', 'recipe.yaml', '--trust', '--output', 'out', '--quiet', cwd=here)
    assert again.returncode == 0, again.stderr
