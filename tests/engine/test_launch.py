from urllib.error import URLError

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from strop.algorithms import BaseAlgorithm
from strop.engine import build_runner, prepare_config
from strop.engine.launch import without_inherited
from strop.errors import ConfigError

from .tiny import loader, train_config


def test_only_what_is_missing_is_filled_in():
    config = train_config()
    prepared = prepare_config(config)
    assert prepared.train_cfg.type == 'strop.EpochBasedTrainLoop'
    assert 'by_epoch' not in prepared.train_cfg
    assert prepared.model == config.model
    assert config.train_cfg.by_epoch is True  # the one that was given is left as it was
    own = prepare_config(train_config(default_scope='mmrazor', randomness=dict(seed=9)))
    assert own.default_scope == 'mmrazor'
    assert own.randomness.seed == 9
    bare = Config(dict(model=dict(type='X'), train_cfg=dict(type='MyLoop')))
    assert prepare_config(bare).train_cfg.type == 'MyLoop'
    assert prepare_config(bare).default_scope == 'strop'
    assert prepare_config(bare).randomness.seed == 0


def test_algorithm_is_read_as_model():
    config = Config(dict(algorithm=dict(type='SPOS'), train_cfg=dict(max_epochs=1)))
    assert prepare_config(config).model == dict(type='SPOS')


@pytest.mark.parametrize(
    ('config', 'task', 'words'),
    [
        (dict(train_cfg=dict()), 'train', 'needs `model'),
        (dict(model=dict(type='X')), 'train', '`train_cfg`'),
        (dict(model=dict(type='X')), 'search', 'To search'),
        (dict(model=dict(type='X')), 'test', '`test_dataloader`'),
        (dict(model=dict(type='X')), 'trian', "Did you mean 'train'"),
        (dict(model=dict(type='X'), train_cfg=dict(max_epochs=1), val_dataloader=dict()), 'train', '`val_evaluator`'),
    ],
)
def test_what_a_config_lacks(config, task, words):
    with pytest.raises(ConfigError, match=words):
        prepare_config(Config(config), task)


def test_validation_parts_without_data_are_left_out(tmp_path):
    config = train_config()
    config.val_dataloader = config.test_dataloader = None
    prepared = prepare_config(config)
    assert prepared.val_cfg is prepared.val_evaluator is prepared.test_cfg is None
    build_runner(config, work_dir=tmp_path).train()


def test_objects_are_used_as_they_are_and_configs_stay_printable(tmp_path):
    model = BaseAlgorithm(nn.Linear(2, 2), metric=lambda outputs, labels: 1.0)
    data = DataLoader(TensorDataset(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)))
    arrays = dict(
        type='ImageDataset', source=(np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])), split='all', form='samples'
    )
    config = dict(
        model=model,
        train_dataloader=data,
        val_dataloader=data,
        test_dataloader=dict(loader('test'), dataset=arrays),
        test_evaluator=dict(type='Accuracy'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        train_cfg=dict(max_epochs=1),
        log_level='WARNING',
    )
    before = model.architecture.module.bias.detach().clone()
    runner = build_runner(config, work_dir=tmp_path)
    assert runner.model is model
    assert runner._train_dataloader is data
    runner.train()
    assert not torch.equal(before, model.architecture.module.bias)
    (written,) = tmp_path.glob('*.py')
    read = Config.fromfile(written)
    assert read.model == '<BaseAlgorithm>'
    assert read.optim_wrapper == config['optim_wrapper']


def test_written_config_trains_again(tmp_path):
    build_runner(train_config(), work_dir=tmp_path / 'first').train()
    (written,) = (tmp_path / 'first').glob('*.py')
    again = build_runner(Config.fromfile(written), work_dir=tmp_path / 'second')
    again.train()
    first, second = (torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False) for name in ('first', 'second'))
    assert all(torch.equal(first['state_dict'][name], value) for name, value in second['state_dict'].items())


def test_two_runners_in_one_second_do_not_share_messages(tmp_path):
    first, second = (build_runner(train_config(), work_dir=tmp_path / name) for name in 'ab')
    assert first.message_hub is not second.message_hub
    assert first.visualizer is not second.visualizer
    named = build_runner(train_config(experiment_name='mine'), work_dir=tmp_path / 'c')
    assert named.experiment_name.startswith('mine_')


def test_resume_takes_the_furthest_checkpoint_or_begins(tmp_path):
    runner = build_runner(train_config(), work_dir=tmp_path, resume=True)
    assert runner._resume is False
    runner.train()
    again = build_runner(train_config(), work_dir=tmp_path, resume=True)
    assert again._resume is True
    assert again._load_from == str(tmp_path / 'epoch_2.pth')


def test_a_test_does_not_go_on_with_a_training(tmp_path):
    build_runner(train_config(), work_dir=tmp_path).train()
    config = train_config(load_from=str(tmp_path / 'epoch_1.pth'))
    tester = build_runner(config, task='test', work_dir=tmp_path, resume=True)
    assert (tester._resume, tester._load_from) == (False, str(tmp_path / 'epoch_1.pth'))
    tester.model.mutator.set_min_subnet()
    assert tester.test()


def test_the_store_that_a_config_names_is_the_one_that_a_search_resumes(tmp_path):
    loop = dict(type='EvolutionSearchLoop', resume_from=str(tmp_path / 'mine.journal'))
    config = train_config(train_cfg=loop)
    prepared = build_runner(config, task='search', work_dir=tmp_path / 'work', resume=True)
    assert prepared._train_loop['resume_from'] == str(tmp_path / 'mine.journal')


def test_testing_leaves_training_out(tmp_path):
    trainer = build_runner(train_config(), work_dir=tmp_path / 'a')
    trainer.train()
    trainer.model.mutator.set_min_subnet()
    config = train_config(load_from=str(tmp_path / 'a' / 'epoch_2.pth'))
    tester = build_runner(config, task='test', work_dir=tmp_path / 'b')
    assert tester.optim_wrapper is None
    tester.model.mutator.set_min_subnet()
    assert tester.test() == trainer.test()


@pytest.mark.parametrize('given', ['NaiveVisualizationHook', 'mmengine.NaiveVisualizationHook'])
def test_pictures_are_drawn_by_strop_in_every_scope(given):
    hooks = [dict(type=given, priority='LOWEST'), dict(type='EmptyCacheHook')]
    prepared = prepare_config(train_config(custom_hooks=hooks))
    assert [hook['type'] for hook in prepared.custom_hooks] == ['strop.NaiveVisualizationHook', 'EmptyCacheHook']
    assert hooks[0]['type'] == given


def test_what_a_base_left_beside_its_architecture_is_left_out(tmp_path):
    (tmp_path / 'net.py').write_text(
        "model = dict(type='Net', backbone=dict(type='VGG', depth=11), data_preprocessor=dict(mean=[0]))\n"
    )
    (tmp_path / 'algorithm.py').write_text(
        "_base_ = ['net.py']\nmodel = dict(type='BaseAlgorithm', architecture=_base_.model, init_cfg=dict(type='Own'))\n"
    )
    config = Config.fromfile(tmp_path / 'algorithm.py')
    config.model.architecture.backbone.depth = 16
    left = without_inherited(config.model)
    assert sorted(left) == ['architecture', 'init_cfg', 'type']
    assert left.architecture == dict(type='Net', backbone=dict(type='VGG', depth=16), data_preprocessor=dict(mean=[0]))
    # A data preprocessor of the algorithm's own is an argument that it takes.
    config.model.data_preprocessor = dict(mean=[1])
    assert without_inherited(config.model).data_preprocessor == dict(mean=[1])


def test_weights_that_cannot_be_fetched_say_where_to_put_them(tmp_path, monkeypatch):
    def offline(url, *args, **kwargs):
        raise URLError('no network')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(ConfigError, match=r'https://a\.b/c\.pth could not be fetched .*put the file at .*checkpoints/c\.pth'):
        load_checkpoint(nn.Linear(1, 1), 'https://a.b/c.pth')
