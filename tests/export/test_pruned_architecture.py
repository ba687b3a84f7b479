from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from torch import nn

from strop.algorithms import BaseAlgorithm
from strop.cli.main import main
from strop.errors import ConfigError, ModeError, UnsafeFileError
from strop.export import RecipeArchitecture, load_recipe, save_slim
from strop.pruning import prune
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


class Pair(BaseModel):
    """A model with the three modes, whose config is read by attributes."""

    def __init__(self, size, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.first, self.last = nn.Linear(4, size.hidden), nn.Linear(size.hidden, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        features = self.extract_feat(inputs)
        if mode == 'loss':
            return {'loss_pair': (self.last(features) - data_samples).square().mean()}
        return [self.last(features)] if mode == 'predict' else self.last(features)

    def extract_feat(self, inputs):
        return self.first(inputs).relu()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Path]:
    MODELS.register_module(module=Pair, name='PrunedPair')
    config = dict(type='PrunedPair', size=dict(hidden=8))
    x = torch.linspace(-1, 1, 12).reshape(3, 4)
    slim, _ = prune(MODELS.build(ConfigDict(config)), {'inputs': x, 'mode': 'predict'}, ratio=0.5)
    save_slim(slim, tmp_path / 'pair', factory=config, example_inputs={'inputs': x, 'mode': 'predict'})
    yield tmp_path / 'pair'
    MODELS._module_dict.pop('PrunedPair')


def test_a_model_with_modes_of_its_own_keeps_them(pair: Path) -> None:
    model = MODELS.build(dict(type='RecipeArchitecture', folder=str(pair)))
    algorithm = BaseAlgorithm(model)
    algorithm.init_weights()
    slim, x = load_recipe(pair), torch.ones(3, 4)
    assert slim.first.out_features == 4
    assert algorithm.data_preprocessor is model.module.data_preprocessor
    assert list(algorithm(x, torch.zeros(3, 2), mode='loss')) == ['loss_pair']
    assert torch.equal(algorithm(x, mode='predict')[0], slim(x))
    assert torch.equal(model.extract_feat(x), slim.extract_feat(x))
    with pytest.raises(ModeError):
        model(x, mode='eval')


def test_a_loss_for_a_model_that_computes_its_own(pair: Path) -> None:
    with pytest.raises(ConfigError, match='computes its own losses'):
        RecipeArchitecture(pair, loss=nn.MSELoss())
