"""Distillation with the runner: training on digits, validation of student and teachers, and when it stops."""

import pytest
import torch
from mmengine.hooks import Hook

from strop.engine import build_runner
from strop.errors import ConfigError
from strop.registry import MODELS

from .tiny import loader, preprocessor, supernet, train_config

FIXED = dict.fromkeys(('backbone.layers.0.0', 'backbone.layers.0.1', 'backbone.layers.1.0'), 'shuffle_3x3')
NET = dict(type='sub_model', cfg=supernet, fix_subnet=FIXED)
LOGITS = dict(fc=dict(type='ModuleOutputs', source='head.fc'))
KD = dict(
    type='ConfigurableDistiller',
    student_recorders=LOGITS,
    teacher_recorders=LOGITS,
    distill_losses=dict(loss_kl=dict(type='KLDivergence', tau=4, loss_weight=16)),
    loss_forward_mappings=dict(
        loss_kl=dict(preds_S=dict(from_student=True, recorder='fc'), preds_T=dict(from_student=False, recorder='fc'))
    ),
)


def model(kind='SingleTeacherDistill', **changes):
    config = dict(type=kind, architecture=NET, teacher=NET, distiller=KD, data_preprocessor=preprocessor)
    return {name: value for name, value in {**config, **changes}.items() if value is not None}


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(1)
    teacher = MODELS.build(NET)
    torch.save(teacher.state_dict(), tmp_path / 'teacher.pth')
    return tmp_path / 'teacher.pth'


def run(config, tmp_path):
    return build_runner(config, work_dir=tmp_path / 'work')


def accuracy(network, algorithm, images):
    network.eval()
    inputs = torch.stack([item['inputs'] for item in images]).float()
    labels = torch.tensor([int(label) for label in images.labels])
    with torch.no_grad():
        data = algorithm.data_preprocessor({'inputs': inputs}, False)
        return 100 * (network(data['inputs']).argmax(1) == labels).double().mean().item()


def test_student_and_teacher_are_validated_on_the_same_data(tmp_path, checkpoint):
    config = train_config(
        model=model(teacher_ckpt=str(checkpoint)),
        val_cfg=dict(type='mmrazor.SingleTeacherDistillValLoop'),
        test_cfg=dict(type='SingleTeacherDistillValLoop'),
    )
    runner = run(config, tmp_path)
    runner.train()
    algorithm = runner.model
    algorithm.train()
    metrics = runner.val_loop.run()
    assert set(metrics) == {'accuracy/top1', 'teacher.accuracy/top1'}
    assert algorithm.training
    assert not algorithm.teacher.training
    images = runner.val_dataloader.dataset
    assert metrics['accuracy/top1'] == pytest.approx(accuracy(algorithm.student, algorithm, images))
    assert metrics['teacher.accuracy/top1'] == pytest.approx(accuracy(algorithm.teacher, algorithm, images))
    saved = torch.load(checkpoint)
    assert all(torch.equal(value, algorithm.teacher.state_dict()[name]) for name, value in saved.items())
    assert set(runner.test()) == set(metrics)


def test_a_test_alone_needs_no_validation(tmp_path, checkpoint):
    config = train_config(model=model(teacher_ckpt=str(checkpoint)), test_cfg=dict(type='SingleTeacherDistillValLoop'))
    stages = []

    class Listening(Hook):
        def after_val_iter(self, runner, **rest):
            stages.append('val')

        def after_test_iter(self, runner, **rest):
            stages.append('test')

    runner = build_runner(config, task='test', work_dir=tmp_path)
    runner.register_hook(Listening())
    assert set(runner.test()) == {'accuracy/top1', 'teacher.accuracy/top1'}
    assert set(stages) == {'test'}


def test_each_of_several_teachers_is_validated(tmp_path, checkpoint):
    distiller = dict(KD, teacher_recorders=dict(fc=dict(type='ModuleOutputs', source='b.head.fc')))
    config = train_config(
        model=model(teacher=dict(a=NET, b=NET), teacher_ckpt=dict(b=str(checkpoint)), distiller=distiller),
        val_cfg=dict(type='SingleTeacherDistillValLoop', fp16=True),
    )
    metrics = run(config, tmp_path).val_loop.run()
    assert set(metrics) == {'accuracy/top1', 'teacher.a.accuracy/top1', 'teacher.b.accuracy/top1'}


def test_an_algorithm_without_teacher(tmp_path):
    config = train_config(val_cfg=dict(type='SingleTeacherDistillValLoop'))
    with pytest.raises(ConfigError, match='SPOS has none'):
        run(config, tmp_path).val_loop.run()


BYOT = dict(
    type='mmrazor.BYOTDistiller',
    student_recorders=dict(early=dict(type='ModuleOutputs', source='backbone.layers.0')),
    teacher_recorders=dict(late=dict(type='ModuleOutputs', source='neck'), fc=dict(type='ModuleOutputs', source='head.fc')),
    connectors=dict(pooled=dict(type='BYOTConnector', in_channel=16, out_channel=32, num_classes=10, expansion=1, pool_size=2)),
    distill_losses=dict(
        loss_feature=dict(type='L2Loss', normalize=False, loss_weight=0.03),
        loss_soft=dict(type='KDSoftCELoss', tau=3, loss_weight=0.3),
    ),
    loss_forward_mappings=dict(
        loss_feature=dict(
            s_feature=dict(from_student=True, recorder='early', connector='pooled', connector_idx=0),
            t_feature=dict(from_student=False, recorder='late', data_idx=0),
        ),
        loss_soft=dict(
            preds_S=dict(from_student=True, recorder='early', connector='pooled', connector_idx=1),
            preds_T=dict(from_student=False, recorder='fc'),
        ),
    ),
)


def test_a_network_that_teaches_itself_trains_and_is_validated(tmp_path):
    config = train_config(
        model=model('mmrazor.SelfDistill', teacher=None, distiller=BYOT),
        val_cfg=dict(type='mmrazor.SelfDistillValLoop'),
    )
    runner = run(config, tmp_path)
    runner.train()
    metrics = runner.val_loop.run()
    assert set(metrics) == {'student.accuracy/top1'}
    algorithm = runner.model
    expected = accuracy(algorithm.student, algorithm, runner.val_dataloader.dataset)
    assert metrics['student.accuracy/top1'] == pytest.approx(expected)


# -- the hook that stops -------------------------------------------------------------------------


class Watch(Hook):
    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append((runner.epoch, sorted(outputs)))


def test_distillation_stops_at_the_epoch_and_stays_so_when_resumed(tmp_path, checkpoint):
    config = train_config(
        model=model(teacher_ckpt=str(checkpoint)),
        train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=100),
        custom_hooks=[dict(type='mmrazor.StopDistillHook', stop_epoch=1)],
        train_dataloader=loader('train', 32),
    )
    runner = run(config, tmp_path)
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    assert [('distill.loss_kl' in names) for _, names in watch.seen] == [True, False, False]
    config.resume = True
    config.train_cfg.max_epochs = 4
    again = run(config, tmp_path)
    watch = Watch()
    again.register_hook(watch)
    again.train()
    assert watch.seen[0][0] == 3
    assert 'distill.loss_kl' not in watch.seen[0][1]
    assert again.model.distillation_stopped


def test_stopping_what_does_not_distil(tmp_path):
    config = train_config(custom_hooks=[dict(type='StopDistillHook', stop_epoch=1)])
    with pytest.raises(ConfigError, match='SPOS does none'):
        run(config, tmp_path).train()
    for epoch in (-1, 1.5, True):
        with pytest.raises(ConfigError, match='`stop_epoch` must be a whole number'):
            run(train_config(custom_hooks=[dict(type='StopDistillHook', stop_epoch=epoch)]), tmp_path)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(model=model(calculate_student_loss=False)), 'nothing would be left'),
        (dict(train_cfg=dict(by_epoch=False, max_iters=4)), 'counts epochs.*EpochBasedTrainLoop'),
    ],
)
def test_what_could_not_be_stopped_is_refused_before_training(tmp_path, changes, words):
    config = train_config(**{'model': model(), **changes}, custom_hooks=[dict(type='StopDistillHook', stop_epoch=1)])
    runner = run(config, tmp_path)
    watch = Watch()
    runner.register_hook(watch)
    with pytest.raises(ConfigError, match=words):
        runner.train()
    assert not watch.seen
