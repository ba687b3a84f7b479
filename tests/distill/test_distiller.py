import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from strop.distill import ConfigurableDistiller
from strop.errors import ComponentTypeError, ConfigError, TrainingError, UnknownTypeError
from strop.registry import MODELS

X = torch.arange(12.0).view(4, 3) / 12


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Linear(3, width)
        self.idle = nn.Linear(3, width)
        self.fc = nn.Linear(width, 2)

    def forward(self, x):
        return self.fc(F.relu(self.stem(x)))


@pytest.fixture
def teacher():
    torch.manual_seed(1)
    return Net(8).eval()


@pytest.fixture
def student():
    torch.manual_seed(2)
    return Net(4)


def outputs(**sources):
    return {name: dict(type='ModuleOutputs', source=source) for name, source in sources.items()}


def pair(name='fc', connector=None, **more):
    return dict(
        input=dict(from_student=True, recorder=name, **(dict(connector=connector) if connector else {}), **more),
        target=dict(from_student=False, recorder=name, **more),
    )


def make(**changes):
    config = dict(
        type='ConfigurableDistiller',
        student_recorders=outputs(fc='fc', stem='stem'),
        teacher_recorders=outputs(fc='fc', stem='stem'),
        connectors=dict(up=dict(type='torch.nn.Linear', in_features=4, out_features=8)),
        distill_losses=dict(loss_mse=dict(type='torch.nn.MSELoss'), loss_stem=dict(type='torch.nn.L1Loss')),
        loss_forward_mappings=dict(loss_mse=pair(), loss_stem=pair('stem', 'up')),
    )
    return MODELS.build({**config, **changes})


def one(recorders=None, **changes):
    """Return a distiller of one loss of the last layer."""
    recorders = recorders or outputs(fc='fc')
    config = dict(
        student_recorders=recorders,
        teacher_recorders=recorders,
        connectors=None,
        distill_losses=dict(loss_mse=dict(type='torch.nn.MSELoss')),
        loss_forward_mappings=dict(loss_mse=pair()),
    )
    return make(**{**config, **changes})


def run(distiller, teacher, student, x=X):
    with distiller.teacher_recorders, distiller.deliveries, torch.no_grad():
        teacher(x)
    with distiller.student_recorders, distiller.deliveries:
        student(x)
    return distiller.compute_distill_losses()


def prepared(distiller, teacher, student):
    distiller.prepare_from_teacher(teacher)
    distiller.prepare_from_student(student)
    return distiller


# -- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['ConfigurableDistiller', 'mmrazor.ConfigurableDistiller', 'strop.ConfigurableDistiller'])
def test_losses_are_those_of_the_outputs(teacher, student, name):
    distiller = prepared(make(type=name), teacher, student)
    losses = run(distiller, teacher, student)
    expected = F.mse_loss(student(X), teacher(X))
    feature = F.l1_loss(distiller.connectors['up'](student.stem(X)), teacher.stem(X))
    assert set(losses) == {'loss_mse', 'loss_stem'}
    torch.testing.assert_close(losses['loss_mse'], expected)
    torch.testing.assert_close(losses['loss_stem'], feature)


def test_gradients_reach_student_and_connector_and_not_the_teacher(teacher, student):
    distiller = prepared(make(), teacher, student)
    sum(run(distiller, teacher, student).values()).backward()
    assert all(student.get_parameter(f'{name}.weight').grad.any() for name in ('stem', 'fc'))
    assert distiller.connectors['up'].weight.grad.any()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_parameters_of_connectors_are_the_distillers_and_recorded_models_are_not(teacher, student):
    distiller = prepared(make(), teacher, student)
    assert set(distiller.state_dict()) == {'connectors.up.weight', 'connectors.up.bias'}


def test_indices_of_calls_parts_and_connectors(teacher, student):
    class Split(nn.Module):
        def forward(self, x):
            return x, 10 * x

    distiller = make(
        student_recorders=dict(relu=dict(type='FunctionInputs', source='torch.nn.functional.relu')),
        teacher_recorders=outputs(stem='stem'),
        connectors=dict(split=Split()),
        distill_losses=dict(loss=dict(type='torch.nn.MSELoss')),
        loss_forward_mappings=dict(
            loss=dict(
                input=dict(from_student=True, recorder='relu', record_idx=1, data_idx=0, connector='split', connector_idx=1),
                target=dict(from_student=False, recorder='stem', record_idx=-1),
            )
        ),
    )
    prepared(distiller, student, student)
    with distiller.teacher_recorders, torch.no_grad():
        student(X)
    with distiller.student_recorders:
        student(X)
        student(2 * X)
    loss = distiller.compute_distill_losses()['loss']
    torch.testing.assert_close(loss, F.mse_loss(10 * student.stem(2 * X), student.stem(X)))


def test_one_teacher_forward_serves_several_students(teacher, student):
    distiller = prepared(one(), teacher, student)
    with distiller.teacher_recorders, torch.no_grad():
        teacher(X)
    for scale in (1.0, 0.5):
        with torch.no_grad():
            student.fc.weight.mul_(scale)
        with distiller.student_recorders:
            student(X)
            losses = distiller.compute_distill_losses()
        torch.testing.assert_close(losses['loss_mse'], F.mse_loss(student(X), teacher(X)))


def test_the_students_records_are_forgotten_when_used_and_all_by_clear(teacher, student):
    distiller = prepared(one(), teacher, student)
    run(distiller, teacher, student)
    assert not distiller.student_recorders.get_recorder('fc').data_buffer
    assert distiller.teacher_recorders.get_recorder('fc').data_buffer
    with pytest.raises(TrainingError, match='used already'):
        distiller.compute_distill_losses()
    distiller.clear()
    assert not distiller.teacher_recorders.get_recorder('fc').data_buffer


def test_no_losses_are_no_losses(teacher, student):
    distiller = prepared(ConfigurableDistiller(), teacher, student)
    assert run(distiller, teacher, student) == {}


def test_losses_are_computed_without_gradients_where_nobody_wants_any(teacher, student):
    distiller = prepared(one(), teacher, student)
    with torch.no_grad():
        assert run(distiller, teacher, student)['loss_mse'] > 0


def test_copies_watch_their_own_models(teacher, student):
    holder = nn.ModuleDict(dict(teacher=teacher, student=student, distiller=prepared(one(), teacher, student)))
    copied = copy.deepcopy(holder)
    with torch.no_grad():
        copied['student'].fc.weight.zero_()
        copied['student'].fc.bias.zero_()
    losses = run(copied['distiller'], copied['teacher'], copied['student'])
    torch.testing.assert_close(losses['loss_mse'], teacher(X).square().mean())


def test_live_tensors_do_not_grow_over_steps(teacher, student):
    distiller = make()
    optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=0.01)

    def steps(count):
        for _ in range(count):
            with distiller.record(teacher, student):
                with torch.no_grad():
                    teacher(X)
                student(X)
            loss = distiller.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            del loss
        gc.collect()
        return sum(type(item) in (torch.Tensor, nn.Parameter) for item in gc.get_objects())

    assert steps(5) == steps(1000)


# -- the plain door ------------------------------------------------------------------------------


def test_record_and_loss_in_a_loop_of_ones_own(teacher, student):
    distiller = make()
    before = None
    optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=0.1)
    for _ in range(60):
        with distiller.record(teacher, student):
            with torch.no_grad():
                teacher(X)
            student(X)
        loss = distiller.loss()
        before = loss.item() if before is None else before
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < before / 3
    assert not distiller.teacher_recorders.get_recorder('fc').data_buffer


def test_functions_that_both_call_are_told_apart(teacher, student):
    recorders = dict(relu=dict(type='FunctionOutputs', source='torch.nn.functional.relu'))
    distiller = make(
        student_recorders=recorders,
        teacher_recorders=recorders,
        connectors=dict(up=dict(type='torch.nn.Linear', in_features=4, out_features=8)),
        distill_losses=dict(loss=dict(type='torch.nn.MSELoss')),
        loss_forward_mappings=dict(loss=pair('relu')),
    )
    distiller.loss_forward_mappings['loss']['input']['connector'] = 'up'
    with distiller.record(teacher, student):
        logits = student(X)
        with torch.no_grad():
            teacher(X)
        F.relu(logits)
        student(X + 1)
        assert len(distiller.student_recorders.get_recorder('relu').data_buffer) == 2
        assert len(distiller.teacher_recorders.get_recorder('relu').data_buffer) == 1
    up = distiller.connectors['up'](F.relu(student.stem(X)))
    torch.testing.assert_close(distiller.loss(), F.mse_loss(up, F.relu(teacher.stem(X))))
    assert not student._forward_pre_hooks
    assert not teacher._forward_hooks


def test_a_forward_that_fails_is_over(teacher, student):
    recorders = dict(relu=dict(type='FunctionOutputs', source='torch.nn.functional.relu'), **outputs(fc='fc'))
    distiller = make(
        student_recorders=recorders,
        teacher_recorders=recorders,
        distill_losses=dict(loss=dict(type='torch.nn.MSELoss')),
        connectors=None,
        loss_forward_mappings=dict(loss=pair('fc')),
    )
    with distiller.record(teacher, student):
        with pytest.raises(RuntimeError):
            teacher(torch.zeros(1, 7))
        F.relu(X)
        teacher(X)
        student(X)
    assert len(distiller.teacher_recorders.get_recorder('relu').data_buffer) == 1


def test_a_student_without_teacher_teaches_itself(student):
    distiller = one(
        student_recorders=outputs(stem='stem'),
        teacher_recorders=outputs(stem='idle'),
        loss_forward_mappings=dict(loss_mse=pair('stem')),
    )
    net = nn.Module()
    net.stem, net.idle = nn.Linear(3, 4), nn.Linear(3, 4)
    net.forward = lambda x: net.stem(x) + net.idle(x)
    with distiller.record(None, net):
        net(X)
    torch.testing.assert_close(distiller.loss(), F.mse_loss(net.stem(X), net.idle(X)))


def test_deliveries_need_a_teacher_of_its_own(student):
    noise = dict(noise=dict(type='FunctionOutputs', func_path='torch.randn', max_keep_data=1))
    distiller = one(distill_deliveries=noise)
    for taught_by in (None, student):
        with pytest.raises(ConfigError, match=r'hand.*set_deliveries_override'), distiller.record(taught_by, student):
            pass


def test_record_follows_other_models(teacher, student):
    distiller = one()
    for pupil in (student, copy.deepcopy(student)):
        with distiller.record(teacher, pupil):
            teacher(X)
            pupil(2 * X)
        torch.testing.assert_close(distiller.loss(), F.mse_loss(pupil(2 * X), teacher(X)))
    with pytest.raises(ConfigError, match='nothing to distil into'), distiller.record(teacher):
        pass


def test_autocast(teacher, student):
    distiller = make()
    with torch.autocast('cpu', dtype=torch.bfloat16), distiller.record(teacher, student):
        with torch.no_grad():
            teacher(X)
        student(X)
        loss = distiller.loss()
    loss.backward()
    assert loss.dtype == torch.float32
    assert student.fc.weight.grad.any()


# -- what goes wrong while training --------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_named(teacher, student):
    distiller = make()
    with torch.no_grad():
        distiller.connectors['up'].weight[0, 0] = float('nan')
    with distiller.record(teacher, student):
        teacher(X)
        student(X)
    with pytest.raises(TrainingError, match=r"loss 'loss_stem' is not finite \(loss_mse=0\.\d+, loss_stem=nan\)"):
        distiller.loss()


def test_a_frozen_student_is_refused(teacher, student):
    distiller = prepared(one(), teacher, student.requires_grad_(False))
    with pytest.raises(TrainingError, match='student is frozen'):
        run(distiller, teacher, student)


def test_a_frozen_student_with_connectors_that_learn_is_said_once(teacher, student, monkeypatch):
    said = []
    monkeypatch.setattr('strop.distill.distiller.print_log', lambda text, **_: said.append(text))
    distiller = make()
    student.requires_grad_(False)
    for _ in range(2):
        with distiller.record(teacher, student):
            with torch.no_grad():
                teacher(X)
            student(X)
        distiller.loss().backward()
    assert said == ['The student is frozen: at most the connectors can learn.']


def test_a_source_that_is_not_run_is_named(teacher, student):
    distiller = prepared(one(outputs(fc='idle')), teacher, student)
    with pytest.raises(TrainingError, match=r"'loss_mse', argument 'input', the student, 'idle'.*recorded nothing"):
        run(distiller, teacher, student)


def test_a_distiller_that_was_not_prepared_says_so(teacher, student):
    distiller = one()
    with pytest.raises(TrainingError, match='prepare_from_student'):
        run(distiller, teacher, student)


class Strict(nn.Module):
    def forward(self, preds_S, preds_T):
        return (preds_S @ preds_T.T).sum() * 0 + (preds_S - preds_T).sum()


def test_shapes_that_do_not_meet_name_both_and_the_connector(teacher, student):
    mapping = {
        'preds_S': dict(from_student=True, recorder='stem'),
        'preds_T': dict(from_student=False, recorder='stem'),
    }
    distiller = one(outputs(stem='stem'), distill_losses=dict(loss=Strict()), loss_forward_mappings=dict(loss=mapping))
    prepared(distiller, teacher, student)
    with pytest.raises(ConfigError) as caught:
        run(distiller, teacher, student)
    message = str(caught.value)
    assert "preds_S is (4, 4) from the student, 'stem'" in message
    assert "preds_T is (4, 8) from the teacher, 'stem'" in message
    assert "dict(type='TorchNNConnector', module_name='Linear', module_args=dict(in_features=4, out_features=8))" in message


@pytest.mark.parametrize('kind', ['MSELoss', 'L1Loss', 'SmoothL1Loss', 'HuberLoss', 'KLDivLoss'])
def test_losses_of_torch_do_not_stretch_one_side_over_the_other(teacher, kind):
    distiller = one(
        outputs(stem='stem'),
        distill_losses=dict(loss=dict(type=f'torch.nn.{kind}')),
        loss_forward_mappings=dict(loss=pair('stem')),
    )
    student = Net(1)
    with pytest.raises(ConfigError) as caught:
        run(prepared(distiller, teacher, student), teacher, student)
    message = str(caught.value)
    assert "input is (4, 1) from the student, 'stem', target is (4, 8) from the teacher, 'stem'" in message
    assert "module_name='Linear', module_args=dict(in_features=1, out_features=8))" in message
    assert 'stretch' in message


def test_losses_of_the_room_get_the_context_too(teacher, student):
    mapping = {
        'preds_S': dict(from_student=True, recorder='stem'),
        'preds_T': dict(from_student=False, recorder='stem'),
    }
    distiller = one(
        outputs(stem='stem'),
        distill_losses=dict(loss=dict(type='KLDivergence', tau=2)),
        loss_forward_mappings=dict(loss=mapping),
    )
    prepared(distiller, teacher, student)
    with pytest.raises(ConfigError, match=r"loss 'loss' \(preds_S is \(4, 4\) from the student, 'stem'"):
        run(distiller, teacher, student)


def test_a_connector_that_fails_is_named(teacher, student):
    distiller = make(connectors=dict(up=dict(type='torch.nn.Linear', in_features=5, out_features=8)))
    prepared(distiller, teacher, student)
    with pytest.raises(ConfigError, match=r"'loss_stem', argument 'input', the student, 'stem': the connector 'up' failed"):
        run(distiller, teacher, student)


def test_part_of_a_connector_that_gives_none(teacher, student):
    mapping = pair('stem', 'up')
    mapping['input']['connector_idx'] = 1
    distiller = make(loss_forward_mappings=dict(loss_mse=pair(), loss_stem=mapping))
    with pytest.raises(ConfigError, match="Connector 'up' gives one Tensor"):
        run(prepared(distiller, teacher, student), teacher, student)


def test_what_a_loss_raises_of_its_own_is_left_alone(teacher, student):
    class Broken(nn.Module):
        def forward(self, input, target):
            raise ValueError('of its own')

    with pytest.raises(ValueError, match=r'^of its own$'):
        run(prepared(one(distill_losses=dict(loss_mse=Broken())), teacher, student), teacher, student)


def test_a_loss_that_is_no_tensor(teacher, student):
    class Number(nn.Module):
        def forward(self, input, target):
            return 1.0

    with pytest.raises(ComponentTypeError, match='must give a tensor, but gave float'):
        run(prepared(one(distill_losses=dict(loss_mse=Number())), teacher, student), teacher, student)


# -- bad configs ---------------------------------------------------------------------------------


def test_two_losses_of_one_name():
    mse = dict(type='torch.nn.MSELoss')
    assert set(one(distill_losses=[('loss_mse', mse)]).distill_losses) == {'loss_mse'}
    with pytest.raises(ConfigError, match="Two of a kind are called 'loss_mse'"):
        one(distill_losses=[('loss_mse', mse), ('loss_mse', mse)])
    with pytest.raises(ConfigError, match='pair'):
        one(distill_losses=[mse])


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(distill_losses=dict(mse=dict(type='torch.nn.MSELoss'))), "Call it 'loss_mse'"),
        (dict(distill_losses={'loss.mse': dict(type='torch.nn.MSELoss')}), 'without dots'),
        (dict(distill_losses=dict(loss_mse=dict(reduction='sum'))), "key 'type'"),
        (dict(distill_losses=dict(loss_mse=dict(type='torch.nn.MSELoss', tau=2))), "'loss_mse'.*tau"),
        (dict(connectors=dict(keys=dict(type='torch.nn.ReLU'))), "cannot be called 'keys'"),
        (dict(connectors=3), 'Each connector is a pair'),
        (dict(distill_losses=nn.MSELoss()), 'Each distillation loss is a pair'),
        (dict(loss_forward_mappings=[1]), 'mapping loss -> argument -> record'),
        (dict(loss_forward_mappings={}), "'loss_mse' gets nothing"),
    ],
)
def test_bad_configs(change, words):
    with pytest.raises(ConfigError, match=words):
        one(**change)


def test_wrong_types():
    with pytest.raises(ComponentTypeError, match=r"connector 'up' must be an nn.Module"):
        one(connectors=dict(up=3))
    with pytest.raises(UnknownTypeError, match='KLDivergence'):
        one(distill_losses=dict(loss_mse=dict(type='KLDivergense')))


def test_paths_are_checked_when_prepared(teacher, student):
    distiller = one(outputs(fc='fcc'))
    with pytest.raises(ConfigError, match=r"Recorder 'fc': Net has no module 'fcc'. Did you mean 'fc'"):
        distiller.prepare_from_student(student)


def test_idle_connectors_are_said(monkeypatch):
    said = []
    monkeypatch.setattr('strop.distill.distiller.print_log', lambda text, **_: said.append(text))
    make()
    assert not said
    make(loss_forward_mappings=dict(loss_mse=pair(), loss_stem=pair('stem')))
    assert "connectors 'up'" in said[0]
