import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from strop.algorithms import SelfDistill
from strop.errors import ConfigError
from strop.registry import MODELS

DATA = (torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3))


def config(kind='BYOTDistiller', **changes):
    return dict(
        type=kind,
        student_recorders=dict(early=dict(type='ModuleOutputs', source='0')),
        teacher_recorders=dict(late=dict(type='ModuleOutputs', source='1')),
        distill_losses=dict(loss_feature=dict(type='torch.nn.MSELoss')),
        loss_forward_mappings=dict(
            loss_feature=dict(input=dict(from_student=True, recorder='early'), target=dict(from_student=False, recorder='late'))
        ),
        **changes,
    )


@pytest.mark.parametrize(('kind', 'detached'), [('BYOTDistiller', True), ('ConfigurableDistiller', False)])
def test_one_forward_serves_both_sides(kind, detached):
    algorithm = MODELS.build(dict(type='mmrazor.SelfDistill', architecture=net(), distiller=config(kind)))
    calls = []
    algorithm.student.module[0].register_forward_hook(lambda *_: calls.append(1))
    losses = algorithm(*DATA, mode='loss')
    assert len(calls) == 1
    by_hand = copy.deepcopy(algorithm.student.module)
    early = by_hand[0](DATA[0])
    late = by_hand[1](early)
    torch.testing.assert_close(losses['student.loss'], F.cross_entropy(by_hand[2](late), DATA[1]))
    expected = F.mse_loss(early, late.detach() if detached else late)
    torch.testing.assert_close(losses['distill.loss_feature'], expected)
    losses['distill.loss_feature'].backward()
    grads = algorithm.student.module[1].weight.grad
    assert (grads is None) == detached, 'what teaches is not pulled towards what learns'
    assert not algorithm.distiller.teacher_recorders.get_recorder('late').data_buffer


def test_it_can_be_stopped_and_needs_something_to_learn():
    algorithm = SelfDistill(config(), architecture=net())
    algorithm.stop_distillation()
    assert set(algorithm(*DATA, mode='loss')) == {'student.loss'}
    assert set(SelfDistill(config(), architecture=net(), calculate_student_loss=False)(*DATA, mode='loss')) == {
        'distill.loss_feature'
    }
    with pytest.raises(ConfigError, match='no parameter of the student'):
        SelfDistill(config(), architecture=net().requires_grad_(False))
    with pytest.raises(ConfigError, match="Recorder 'late'"):
        SelfDistill(dict(config(), teacher_recorders=dict(late=dict(type='ModuleOutputs', source='9'))), architecture=net())


def test_deliveries_need_another_model():
    noise = dict(noise=dict(type='FunctionOutputs', func_path='torch.randn', max_keep_data=1))
    with pytest.raises(ConfigError, match=r'one forward.*nobody to hand to'):
        SelfDistill(config(distill_deliveries=noise), architecture=net())


def test_the_whole_of_a_plain_module_is_told_from_its_losses():
    whole = dict(late=dict(type='ModuleOutputs', source=''))
    with pytest.raises(ConfigError, match="the Sequential itself gives is source='module'"):
        SelfDistill({**config(), 'teacher_recorders': whole}, architecture=net())
