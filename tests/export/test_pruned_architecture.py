from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from strop.algorithms import BaseAlgorithm
from strop.cli.main import main
from strop.errors import UnsafeFileError
from strop.export import RecipeArchitecture, load_recipe, save_slim
from strop.registry import MODELS

timm = pytest.importorskip('timm')


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('pruned') / 'slim'
    arguments = ['prune', 'timm:resnet10t', '--input-shape', '2x3x32x32', '--ratio', '0.5', '--out', str(out)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return out


def architecture(folder: Path) -> RecipeArchitecture:
    return MODELS.build(dict(type='RecipeArchitecture', folder=str(folder), allow='timm'))


def test_a_pruned_timm_model_is_fine_tuned_from_its_folder(folder: Path, tmp_path: Path) -> None:
    algorithm = BaseAlgorithm(architecture(folder))
    algorithm.init_weights()
    images, labels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    slim = load_recipe(folder, allow='timm')
    assert torch.equal(algorithm.eval()(images), slim(images))
    algorithm.train()
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.05)
    losses = [algorithm.train_step((images, labels), optimizer)['loss'].item() for _ in range(6)]
    assert losses[-1] < 0.7 * losses[0]
    tuned = algorithm.eval().architecture.module
    save_slim(tuned, tmp_path / 'tuned', factory='timm:create_model', factory_args={'model_name': 'resnet10t'})
    again = load_recipe(tmp_path / 'tuned', allow='timm')
    assert torch.equal(again(images), tuned(images))
    assert not torch.equal(again(images), slim(images))


def test_initialising_keeps_the_weights_of_the_folder(folder: Path) -> None:
    model = architecture(folder)
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_folder_that_calls_a_package_needs_consent(folder: Path) -> None:
    with pytest.raises(UnsafeFileError, match='allow'):
        RecipeArchitecture(folder)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MODELS.build(dict(type='RecipeArchitecture', folder=str(tmp_path / 'none')))
