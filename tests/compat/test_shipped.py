"""Configs of MMRazor that Strop has under the same path, or alone under the same name."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from strop.cli.configs import load_config
from strop.compat.shipped import ROOT, near_shipped, shipped
from strop.errors import ConfigError
from strop.mutables import space_of
from strop.registry import MODELS

from .conftest import Workspace

HEAD = """
supernet = dict(
    type='mmrazor.ImageClassifier',
    backbone=_base_.nas_backbone,
    neck=dict(type='mmrazor.GlobalAveragePooling'),
    head=dict(type='mmrazor.LinearClsHead', num_classes=10, in_channels={channels}))
model = dict(type='mmrazor.{algorithm}', architecture=supernet, mutator=dict(type='mmrazor.NasMutator'))
"""


@pytest.mark.parametrize(
    ('base', 'algorithm', 'channels', 'choices'),
    [
        ('spos_shufflenet_supernet', 'SPOS', 1024, {'OneOf': 20}),
        ('spos_mobilenet_supernet', 'SPOS', 1728, {'OneOf': 22}),
        ('darts_supernet', 'Darts', 256, {'OneOf': 28, 'KOf': 8}),
    ],
)
def test_an_algorithm_on_a_backbone_of_mmrazors_bases(
    tmp_path: Path, base: str, algorithm: str, channels: int, choices: dict[str, int]
) -> None:
    text = f"_base_ = ['mmrazor::_base_/nas_backbones/{base}.py']\n" + HEAD.format(algorithm=algorithm, channels=channels)
    (tmp_path / 'supernet.py').write_text(text)
    model = MODELS.build(load_config(str(tmp_path / 'supernet.py')).model)
    space = space_of(model.architecture)
    assert len(space) == sum(choices.values())
    assert model.mutator.space == space


@pytest.mark.parametrize(
    ('name', 'batch', 'epochs'),
    [('imagenet_bs1024_spos', 1024, 300), ('imagenet_bs2048_autoslim', 2048, 50), ('imagenet_bs2048_autoslim_pil', 2048, 50)],
)
def test_settings_have_the_names_that_configs_read(tmp_path: Path, name: str, batch: int, epochs: int) -> None:
    (tmp_path / 'config.py').write_text(
        f"_base_ = ['mmrazor::_base_/settings/{name}.py']\nx = _base_.preprocess_cfg\nval = _base_.val_dataloader\n"
    )
    config = load_config(str(tmp_path / 'config.py'))
    assert set(config.x) >= {'mean', 'std', 'to_rgb'}
    assert config.train_dataloader.batch_size * 8 == batch
    assert config.train_cfg.max_epochs == config.param_scheduler.end == epochs
    assert config.val == config.test_dataloader
    assert config.train_dataloader.dataset.split == 'train'
    assert config.val_dataloader.dataset.split == 'val'


@pytest.mark.parametrize(('name', 'batch', 'epochs'), [('cifar10_darts_supernet', 64, 50), ('cifar10_darts_subnet', 96, 600)])
def test_settings_of_darts(tmp_path: Path, name: str, batch: int, epochs: int) -> None:
    (tmp_path / 'config.py').write_text(f"_base_ = ['mmrazor::_base_/settings/{name}.py']\nx = _base_.preprocess_cfg\n")
    config = load_config(str(tmp_path / 'config.py'))
    assert config.train_dataloader.batch_size == batch
    assert config.train_cfg.max_epochs == config.param_scheduler[0].end == epochs
    cutout = [step.type for step in config.train_dataloader.dataset.pipeline].count('mmcls.Cutout')
    if name == 'cifar10_darts_subnet':
        assert cutout == 1
        assert 'optimizer' in config.optim_wrapper
    else:
        halves = config.train_dataloader.dataset.indices, config.train_cfg.mutator_dataloader.dataset.indices
        assert cutout == 0
        assert halves == (-25000, 25000)
        assert set(config.optim_wrapper) == {'constructor', 'architecture', 'mutator'}


def test_a_base_is_found_in_a_process_that_has_imported_nothing_yet(workspace: Workspace) -> None:
    workspace.put('config.py', "_base_ = ['mmrazor::_base_/nas_backbones/spos_shufflenet_supernet.py']\n")
    out = workspace.run("""
        from strop.cli.configs import load_config
        print(load_config('config.py').nas_backbone.type)
    """)
    assert out.split() == ['mmrazor.SearchableShuffleNetV2']


def test_a_config_is_found_by_its_name_alone(tmp_path: Path) -> None:
    (tmp_path / 'config.py').write_text("_base_ = ['mmrazor::nas/mmcls/spos/spos_shufflenet_supernet_8xb128_in1k.py']\n")
    config = load_config(str(tmp_path / 'config.py'))
    whole = Config.fromfile(ROOT / 'spos' / 'spos_shufflenet_supernet_8xb128_in1k.py')
    assert config.train_cfg == whole.train_cfg
    assert shipped('x/../../../secret.py') is None


def test_a_config_that_is_not_shipped_is_told_of(tmp_path: Path) -> None:
    (tmp_path / 'config.py').write_text("_base_ = ['mmrazor::_base_/settings/imagenet_bs1024_spso.py']\n")
    with pytest.raises(ConfigError, match=r"Strop ships no config.*Did you mean 'imagenet_bs1024_spos\.py'.*`strop migrate`"):
        load_config(str(tmp_path / 'config.py'))
    assert near_shipped('zzz') == ''
