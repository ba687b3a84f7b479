from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.visualization import Visualizer
from torch import nn

from strop.engine import SubnetVisualizationHook, build_runner
from strop.errors import BindingError, ConfigError
from strop.mutables import load_subnet
from strop.registry import HOOKS, VISUALIZERS

from .tiny import preprocessor, supernet, train_config

FIXED = dict.fromkeys(('backbone.layers.0.0', 'backbone.layers.0.1', 'backbone.layers.1.0'), 'shuffle_3x3')
BACKENDS = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]


def trained(tmp_path, *hooks, epochs=2, **changes):
    config = train_config(custom_hooks=list(hooks), **changes)
    config.train_cfg.max_epochs = epochs
    runner = build_runner(config, work_dir=tmp_path)
    runner.train()
    return runner


def names(folder):
    return sorted(path.name for path in folder.glob('subnet_*.yaml'))


# -- DumpSubnetHook -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        (dict(interval=1), ['subnet_epoch_1.yaml', 'subnet_epoch_2.yaml', 'subnet_epoch_3.yaml']),
        (dict(interval=2), ['subnet_epoch_2.yaml', 'subnet_epoch_3.yaml']),
        (dict(interval=2, save_last=False), ['subnet_epoch_2.yaml']),
        (dict(), ['subnet_epoch_3.yaml']),
        (dict(save_last=False), []),
        (dict(interval=1, max_keep_subnets=2), ['subnet_epoch_2.yaml', 'subnet_epoch_3.yaml']),
        (dict(interval=4, by_epoch=False), ['subnet_iter_4.yaml', 'subnet_iter_8.yaml', 'subnet_iter_9.yaml']),
        (dict(interval=1, by_epoch=False, max_keep_subnets=1), ['subnet_iter_9.yaml']),
    ],
)
def test_dumped_files(tmp_path, options, expected):
    trained(tmp_path, dict(type='DumpSubnetHook', **options), epochs=3)
    assert names(tmp_path) == expected


def test_dumped_subnet_is_the_current_one(tmp_path):
    runner = trained(tmp_path, dict(type='mmrazor.DumpSubnetHook', out_dir=str(tmp_path / 'subnets'), file_client_args=None))
    space = runner.model.mutator.space
    assert names(tmp_path / 'subnets') == ['subnet_epoch_2.yaml']
    assert load_subnet(tmp_path / 'subnets' / 'subnet_epoch_2.yaml', space) == runner.model.mutator.current_subnet()


def test_dumping_needs_subnets(tmp_path):
    model = dict(type='sub_model', cfg=dict(supernet, data_preprocessor=preprocessor), fix_subnet=FIXED)
    with pytest.raises(BindingError, match='has no mutator'):
        trained(tmp_path, dict(type='DumpSubnetHook'), model=model)


def test_interval_is_an_integer():
    with pytest.raises(ConfigError, match='`interval`'):
        HOOKS.build(dict(type='DumpSubnetHook', interval='2'))


# -- EstimateResourcesHook ------------------------------------------------------------------------------------


def test_resources_of_the_current_subnet_are_logged(tmp_path):
    runner = trained(
        tmp_path,
        dict(type='mmrazor.EstimateResourcesHook', interval=1, estimator_cfg=dict(input_shape=(1, 1, 8, 8))),
        log_level='INFO',
    )
    flops = runner.model.get_subnet_flops(runner.model.mutator.current_subnet(), (1, 1, 8, 8)) / 1e6
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert f'epoch 2: flops {flops:.4g} M, params' in log
    scalars = next(tmp_path.glob('*/vis_data/scalars.json')).read_text()
    assert scalars.count('subnet/flops') == 2


@pytest.mark.parametrize('kind', ['sub_model', 'BaseAlgorithm'])
def test_resources_of_a_model_without_decisions(tmp_path, kind):
    model = dict(type='sub_model', cfg=dict(supernet, data_preprocessor=preprocessor), fix_subnet=FIXED)
    if kind == 'BaseAlgorithm':
        model = dict(type='BaseAlgorithm', architecture=model)
    trained(tmp_path, dict(type='EstimateResourcesHook', interval=2, by_epoch=False), model=model, log_level='INFO')
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count(': flops ') == 3


# -- SubnetVisualizationHook ----------------------------------------------------------------------------------


def test_picture_shows_how_often_each_alternative_was_taken():
    hook = SubnetVisualizationHook(cell=2)
    hook.counts = {'a': np.array([1.0, 3.0]), 'b': np.array([0.0, 0.0, 5.0])}
    picture = hook.picture()
    assert picture.shape == (4, 6, 3)
    assert picture.dtype == np.uint8
    assert picture[::2, ::2, 0].tolist() == [[64, 191, 0], [0, 0, 255]]


def test_pictures_reach_local_and_tensorboard_backends(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(
        tmp_path, dict(type='SubnetVisualizationHook', interval=1), visualizer=dict(type='Visualizer', vis_backends=BACKENDS)
    )
    pictures = sorted(tmp_path.glob('*/vis_data/vis_image/sampled_choices_*.png'))
    assert [path.name for path in pictures] == ['sampled_choices_1.png', 'sampled_choices_2.png']
    values = cv2.imread(str(pictures[0]))[::12, ::12, 0]
    assert values.shape == (3, 3)
    # Three steps an epoch: each cell is a third of the row, as often as it was taken.
    assert set(values.flatten().tolist()) <= {0, 85, 170, 255}
    assert [int(row.sum()) for row in values] == [255] * 3
    (events,) = tmp_path.glob('*/vis_data/events.out.tfevents.*')
    accumulator = EventAccumulator(str(events)).Reload()
    assert 'sampled_choices' in accumulator.Tags()['images']
    assert 'loss' in accumulator.Tags()['scalars']


# -- NaiveVisualizationHook -----------------------------------------------------------------------------------


def test_naive_visualization_hook_draws_validation_and_test_images(tmp_path):
    runner = trained(tmp_path, dict(type='NaiveVisualizationHook', priority='LOWEST'))
    runner.test()
    pictures = sorted(tmp_path.glob('*/vis_data/vis_image/test_*.png'))
    assert len(pictures) == 60
    picture = cv2.imread(str(pictures[0]))
    assert picture.shape == (96, 96, 3)
    image = runner.test_dataloader.dataset[0]['inputs'].numpy()[0].repeat(12, 0).repeat(12, 1)
    written = (picture != image[..., None]).any(-1)
    assert 0 < written.mean() < 0.6  # the labels, in the upper left corner
    assert not written[60:].any()
    assert len(list(tmp_path.glob('*/vis_data/vis_image/val_*.png'))) == 60


def test_naive_visualization_hook_draws_every_so_many_batches(tmp_path):
    config = train_config(custom_hooks=[dict(type='NaiveVisualizationHook', interval=2, draw_gt=False)])
    config.test_dataloader.batch_size = 20
    runner = build_runner(config, task='test', work_dir=tmp_path)
    runner.model.mutator.set_min_subnet()
    runner.test()
    assert {path.name[:7] for path in tmp_path.glob('*/vis_data/vis_image/test_*.png')} == {'test_1_'}


def test_naive_visualization_hook_leaves_drawing_to_a_visualizer_that_can(tmp_path):
    seen = []

    @VISUALIZERS.register_module()
    class OfUsers(Visualizer):
        def add_datasample(self, name, image, data_sample, draw_gt=True, draw_pred=True, **kwargs):
            seen.append((name, image.shape, int(data_sample.gt_label), draw_gt, draw_pred))

    try:
        config = train_config(
            custom_hooks=[dict(type='NaiveVisualizationHook', draw_pred=False)], visualizer=dict(type='OfUsers')
        )
        runner = build_runner(config, task='test', work_dir=tmp_path)
        runner.model.mutator.set_min_subnet()
        runner.test()
    finally:
        del VISUALIZERS._module_dict['OfUsers']
    assert len(seen) == 60
    labels = runner.test_dataloader.dataset.labels
    assert seen[3] == ('test_0_3', (96, 96, 3), int(labels[3]), True, False)


def test_naive_visualization_hook_takes_pairs_of_tensors(tmp_path):
    class Runner:
        iter = 0
        visualizer = Visualizer(vis_backends=[dict(type='LocalVisBackend')], save_dir=str(tmp_path))

    hook = HOOKS.build(dict(type='NaiveVisualizationHook'))
    images = torch.rand(2, 3, 100, 120)
    outputs = [{'pred_score': torch.tensor([0.1, 0.9]), 'gt_label': torch.tensor(0)} for _ in range(2)]
    hook.after_test_iter(Runner, 0, (images, torch.zeros(2)), outputs)
    assert len(list(tmp_path.rglob('test_0_*.png'))) == 2


# -- dropped paths ------------------------------------------------------------------------------------------


class Droppable(nn.Module):
    def __init__(self):
        super().__init__()
        self.probs = []

    def set_drop_path(self, prob):
        self.probs.append(prob)


@pytest.mark.parametrize(('interval', 'expected'), [(-1, [0.0, 0.1]), (3, [0.0, 0.1]), (2, [0.0, 0.2 / 3, 0.4 / 3])])
@pytest.mark.parametrize('resumed', [0, 4])
def test_the_probability_of_dropped_paths_rises_to_its_end(interval, expected, resumed):
    part = Droppable()
    model = nn.Sequential(nn.Linear(1, 1), part)
    runner = SimpleNamespace(model=model, iter=resumed, max_iters=6, train_dataloader=range(3))
    hook = HOOKS.build(dict(type='mmrazor.DropPathProbHook', max_prob=0.2, interval=interval))
    hook.before_train(runner)
    # As a loop over iterations calls it, which has no epochs, or one over epochs.
    for iteration in range(resumed, 6):
        runner.iter = iteration
        hook.before_train_iter(runner, iteration)
    assert part.probs == pytest.approx(expected[-1:] if resumed else expected)


def test_dropping_paths_needs_a_model_that_can():
    hook = HOOKS.build(dict(type='DropPathProbHook', max_prob=0.2))
    with pytest.raises(ConfigError, match='DartsBackbone'):
        hook.before_train(SimpleNamespace(model=nn.Linear(1, 1)))
    with pytest.raises(ConfigError, match='max_prob'):
        HOOKS.build(dict(type='DropPathProbHook', max_prob=1.0))
