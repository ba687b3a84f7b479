import cv2
import numpy as np
import pytest
import torch

from strop.engine import build_runner
from strop.engine.feature_maps import RazorVisualizationHook, draw_feature_map
from strop.errors import ConfigError, TrainingError

from .test_distill_validation import NET, model
from .tiny import loader, train_config

RED, BLUE = (128, 0, 0), (0, 0, 128)


def test_colours_are_blue_for_the_smallest_and_red_for_the_largest():
    picture = draw_feature_map(torch.tensor([[[0.0, 1.0]], [[0.0, -5.0]]]))
    assert picture.shape == (1, 2, 3)
    assert tuple(picture[0, 0]) == BLUE
    assert tuple(picture[0, 1]) == RED


@pytest.mark.parametrize(
    ('reduction', 'red'),
    [('pixel_wise_max', (0, 0)), ('squeeze_mean', (0, 1)), ('select_max', (1, 0))],
)
def test_reductions_of_channels(reduction, red):
    feature = torch.tensor([[[9.0, 6.0], [0.0, 0.0]], [[-9.0, 6.0], [-9.0, 0.0]], [[6.0, 0.0], [8.0, 6.0]]])
    picture = draw_feature_map(feature, channel_reduction=reduction)
    assert tuple(picture[red]) == RED
    assert sum(tuple(pixel) == RED for row in picture for pixel in row) == 1


def test_the_strongest_channels_side_by_side():
    feature = torch.stack([torch.zeros(2, 2), torch.full((2, 2), 3.0), torch.eye(2)])
    feature[0, 0, 0] = 9.0
    picture = draw_feature_map(feature, channel_reduction=None, topk=2, arrangement=(2, 2), resize_shape=(2, 2))
    assert picture.shape == (4, 4, 3)
    assert tuple(picture[0, 2]) == RED, 'the second strongest'
    assert not picture[2:].any(), 'places without a channel stay black'


def test_a_map_is_laid_over_the_image():
    image = np.full((4, 4, 3), 200, np.uint8)
    assert (draw_feature_map(torch.eye(2)[None], image, alpha=1.0) == 200).all()
    bare = draw_feature_map(torch.eye(2)[None], resize_shape=(4, 4))
    half = draw_feature_map(torch.eye(2)[None], image, alpha=0.5)
    assert np.abs(half.astype(int) - (bare.astype(int) + 200) / 2).max() <= 1


@pytest.mark.parametrize(
    ('feature', 'options', 'words'),
    [
        (torch.zeros(2, 2), {}, r'this one is \(2, 2\)'),
        (torch.zeros(2, 0, 2), {}, r'this one is \(2, 0, 2\)'),
        ('map', {}, 'this one is str'),
        (torch.zeros(1, 2, 2), dict(channel_reduction='max'), "one of 'pixel_wise_max'"),
        (torch.zeros(1, 2, 2), dict(channel_reduction=None, topk=9, arrangement=(2, 4)), '`topk` must be 1 to 8'),
    ],
)
def test_bad_maps_and_options(feature, options, words):
    with pytest.raises(ConfigError, match=words):
        draw_feature_map(feature, **options)


# -- the hook ------------------------------------------------------------------------------------


def hook(**changes):
    config = dict(
        type='mmrazor.RazorVisualizationHook',
        enabled=True,
        recorders=dict(
            mine=dict(type='ModuleOutputs', source='backbone.layers.0'),
            its=dict(type='ModuleOutputs', source='teacher.backbone.layers.0'),
        ),
        mappings=dict(student=dict(recorder='mine'), teacher=dict(recorder='its', record_idx=0)),
        data_idx=[0, 3],
        out_dir='maps',
        visualization_cfg=dict(channel_reduction='pixel_wise_max', resize_shape=(32, 32), alpha=0.5),
    )
    return {**config, **changes}


def run(tmp_path, **changes):
    config = train_config(model=model(teacher=NET), custom_hooks=[hook(**changes)], train_dataloader=loader('train', 32))
    runner = build_runner(config, work_dir=tmp_path / 'work')
    runner.train()
    return runner


def test_pictures_of_student_and_teacher_before_training_and_after_epochs(tmp_path):
    runner = run(tmp_path)
    names = {path.name for path in (tmp_path / 'work' / 'maps').iterdir()}
    assert names == {
        f'{side}_data_idx_{sample}_{step}.png' for side in ('student', 'teacher') for sample in (0, 3) for step in range(3)
    }
    pictures = {name: cv2.imread(str(tmp_path / 'work' / 'maps' / name)) for name in names}
    assert all(picture.shape == (32, 32, 3) for picture in pictures.values())
    assert (pictures['student_data_idx_0_0.png'] != pictures['student_data_idx_0_2.png']).any(), 'the student learns'
    assert (pictures['teacher_data_idx_0_0.png'] == pictures['teacher_data_idx_0_2.png']).all(), 'the teacher does not'
    assert list((tmp_path / 'work').rglob('vis_image/*student_data_idx_0*'))
    runner.model.train()
    next(item for item in runner.hooks if isinstance(item, RazorVisualizationHook)).before_train(runner)
    assert runner.model.training
    assert not runner.model.teacher.training
    assert not runner.model.student.backbone.layers[0]._forward_hooks


def test_nothing_is_done_unless_enabled(tmp_path):
    run(tmp_path, enabled=False, recorders=dict(mine=dict(type='ModuleOutputs', source='nowhere')), mappings={})
    assert not (tmp_path / 'work' / 'maps').exists()


def test_standardized_channels():
    from strop.engine.feature_maps import _standardized

    feature = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0)) * 4 + 7
    found = _standardized(feature)
    for channel in range(2):
        assert abs(found[:, channel].mean()) < 1e-5
        assert abs(found[:, channel].std() - 1) < 1e-4


def test_bad_hooks(tmp_path):
    with pytest.raises(
        ConfigError, match="Picture 'student': there is no recorder 'mein'. Did you mean 'mine'".replace('.', r'\.')
    ):
        run(tmp_path, mappings=dict(student=dict(recorder='mein')))
    with pytest.raises(ConfigError, match="unknown key 'data_index'"):
        run(tmp_path, mappings=dict(student=dict(recorder='mine', data_index=0)))
    with pytest.raises(ConfigError, match='visualization_cfg'):
        RazorVisualizationHook({}, {}, visualization_cfg=dict(topkk=3))
    with pytest.raises(ConfigError, match='nowhere'):
        run(tmp_path, recorders=dict(mine=dict(type='ModuleOutputs', source='nowhere')), mappings={})
    with pytest.raises(ConfigError, match=r'needs a feature map.*has \(1, 10\)'):
        run(
            tmp_path,
            recorders=dict(fc=dict(type='ModuleOutputs', source='head.fc')),
            mappings=dict(fc=dict(recorder='fc')),
        )
    with pytest.raises(TrainingError, match='recorded nothing'):
        run(
            tmp_path,
            recorders=dict(loss=dict(type='ModuleOutputs', source='head.loss_module')),
            mappings=dict(fc=dict(recorder='loss')),
        )
