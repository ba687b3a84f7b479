"""The example of a loop of Accelerate runs, and goes on after it was stopped."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip('accelerate')
PATH = Path(__file__).resolve().parent.parent / 'examples' / 'accelerate_distillation.py'


@pytest.fixture(scope='module')
def example():
    spec = importlib.util.spec_from_file_location('accelerate_distillation', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def whole(example, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    return *example.main(['--cpu', '--epochs', '4', '--folder', str(folder)]), folder


def test_supernet_and_connectors_learn_from_labels_and_teacher(whole):
    model, step, scores, _ = whole
    assert step.count == 4 * 32
    assert scores['max'] > 0.5
    assert scores['min'] > 0.3
    assert not any(parameter.requires_grad for parameter in step.teacher.parameters())
    assert all(parameter.grad is not None for parameter in step.parameters())
    assert model is step.student


def test_a_run_that_was_stopped_ends_with_the_same_weights(example, whole, tmp_path):
    for number in (1, 2):
        shutil.copytree(whole[3] / f'epoch_{number}', tmp_path / f'epoch_{number}')
    model, step, _ = example.main(['--cpu', '--epochs', '4', '--folder', str(tmp_path)])
    expected = {**whole[0].state_dict(), **whole[1].state_dict()['distiller']}
    found = {**model.state_dict(), **step.state_dict()['distiller']}
    assert step.count == whole[1].count
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
