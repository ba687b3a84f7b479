import copy
import gc
import json

import pytest
import torch
import torch.nn.functional as F
from engine.forked import in_group
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import nn

from strop.algorithms import SingleTeacherDistill
from strop.distill import ConfigurableDistiller
from strop.engine import AmpOptimWrapper, DistributedAlgorithm, start_process_group
from strop.errors import ComponentTypeError, ConfigError, TrainingError, UnsafeFileError
from strop.registry import MODELS

DATA = (torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3)


class Net(nn.Module):
    def __init__(self, width, dropout=0.0):
        super().__init__()
        self.stem = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        return self.fc(self.drop(self.act(self.norm(self.stem(x)))))


def net(width=8, seed=0, **more):
    torch.manual_seed(seed)
    return Net(width, **more)


def distiller(student='fc', teacher='fc', **changes):
    config = dict(
        student_recorders=dict(fc=dict(type='ModuleOutputs', source=student)),
        teacher_recorders=dict(fc=dict(type='ModuleOutputs', source=teacher)),
        distill_losses=dict(loss_mse=dict(type='torch.nn.MSELoss')),
        loss_forward_mappings=dict(
            loss_mse=dict(input=dict(from_student=True, recorder='fc'), target=dict(from_student=False, recorder='fc'))
        ),
    )
    return {**config, **changes}


PROJECTED = dict(
    student='stem',
    teacher='stem',
    connectors=dict(up=dict(type='torch.nn.Linear', in_features=4, out_features=8)),
    loss_forward_mappings=dict(
        loss_mse=dict(
            input=dict(from_student=True, recorder='fc', connector='up'), target=dict(from_student=False, recorder='fc')
        )
    ),
)


def make(teacher=None, student=None, **more):
    more.setdefault('distiller', distiller())
    return SingleTeacherDistill(
        teacher=net(seed=1) if teacher is None else teacher, architecture=student or net(4, seed=2), **more
    )


def sgd(algorithm, **more):
    return OptimWrapper(torch.optim.SGD(algorithm.parameters(), lr=0.1), **more)


# -- losses --------------------------------------------------------------------------------------


def test_losses_are_the_students_and_the_distillers():
    algorithm = make()
    student, teacher = copy.deepcopy(algorithm.student.module), copy.deepcopy(algorithm.teacher.module).eval()
    losses = algorithm(*DATA, mode='loss')
    assert set(losses) == {'student.loss', 'distill.loss_mse'}
    logits = student(DATA[0])
    torch.testing.assert_close(losses['student.loss'], F.cross_entropy(logits, DATA[1]))
    torch.testing.assert_close(losses['distill.loss_mse'], F.mse_loss(logits, teacher(DATA[0])))


@pytest.mark.parametrize('name', ['SingleTeacherDistill', 'mmrazor.SingleTeacherDistill'])
def test_a_step_equals_one_written_by_hand(name):
    algorithm = MODELS.build(
        dict(type=name, architecture=net(4, seed=2), teacher=net(seed=1), distiller=distiller(**PROJECTED))
    )
    student, teacher = copy.deepcopy(algorithm.student.module), copy.deepcopy(algorithm.teacher.module).eval()
    up = copy.deepcopy(algorithm.distiller.connectors['up'])
    algorithm.train_step(DATA, torch.optim.SGD(algorithm.parameters(), lr=0.1, weight_decay=0.1))
    optimizer = torch.optim.SGD([*student.parameters(), *up.parameters()], lr=0.1, weight_decay=0.1)
    with torch.no_grad():
        expected = teacher.stem(DATA[0])
    loss = F.cross_entropy(student(DATA[0]), DATA[1])
    (loss + F.mse_loss(up(student.stem(DATA[0])), expected)).backward()
    optimizer.step()
    for mine, by_hand in ((algorithm.student.module, student), (algorithm.distiller.connectors['up'], up)):
        for key, value in by_hand.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[key], value)
    for key, value in teacher.state_dict().items():
        assert torch.equal(algorithm.teacher.module.state_dict()[key], value), 'a frozen teacher stays as it is'


def test_without_the_students_own_loss():
    algorithm = make(calculate_student_loss=False)
    assert set(algorithm(*DATA, mode='loss')) == {'distill.loss_mse'}
    assert set(algorithm(DATA[0], mode='loss')) == {'distill.loss_mse'}, 'labels are not needed then'


def test_only_connectors_learn_where_the_student_does_not():
    algorithm = make(distiller=distiller(**PROJECTED), student_trainable=False, calculate_student_loss=False)
    before = copy.deepcopy(algorithm.state_dict())
    algorithm.train_step(DATA, sgd(algorithm))
    changed = {name for name, value in algorithm.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split('.')[0] for name in changed if 'norm' not in name} == {'distiller'}


def test_a_trainable_teacher_learns_by_its_own_loss():
    algorithm = make(teacher_trainable=True)
    before = copy.deepcopy(algorithm.teacher.state_dict())
    log = algorithm.train_step(DATA, sgd(algorithm))
    assert set(log) == {'teacher.loss', 'student.loss', 'distill.loss_mse', 'loss'}
    assert not torch.equal(algorithm.teacher.module.fc.weight, before['module.fc.weight'])
    assert torch.equal(algorithm.teacher.module.norm.running_mean, before['module.norm.running_mean'])


@pytest.mark.parametrize(
    ('settings', 'modes'),
    [
        (dict(), (False, False, False)),
        (dict(teacher_trainable=True), (True, False, True)),
        (dict(teacher_norm_eval=False), (True, True, True)),
    ],
)
def test_modes_of_the_teacher(settings, modes):
    algorithm = make(**settings)
    for _ in range(2):
        teacher = algorithm.teacher
        assert (teacher.training, teacher.module.norm.training, teacher.module.drop.training) == modes
        assert algorithm.student.module.norm.training
        algorithm.eval()
        assert not any(module.training for module in algorithm.modules())
        algorithm.train()


def test_activations_do_not_change_what_was_recorded():
    algorithm = make()
    assert not algorithm.student.module.act.inplace
    assert not algorithm.teacher.module.act.inplace
    assert make(teacher_module_inplace=True, module_inplace=True).teacher.module.act.inplace


# -- several teachers ----------------------------------------------------------------------------


def several(**changes):
    return distiller(
        teacher_recorders={name: dict(type='ModuleOutputs', source=source) for name, source in changes.items()},
        distill_losses={f'loss_{name}': dict(type='torch.nn.MSELoss') for name in changes},
        loss_forward_mappings={
            f'loss_{name}': dict(input=dict(from_student=True, recorder='fc'), target=dict(from_student=False, recorder=name))
            for name in changes
        },
    )


def test_several_teachers_by_number_and_by_name(tmp_path):
    teachers = [net(8, seed=1), net(16, seed=3)]
    saved = net(16, seed=9)
    torch.save(saved.state_dict(), tmp_path / 'b.pth')
    for given, names, checkpoints in (
        (teachers, ('0', '1'), None),
        (dict(a=teachers[0], b=net(16)), ('a', 'b'), dict(b=str(tmp_path / 'b.pth'))),
    ):
        algorithm = make(teacher=given, teacher_ckpt=checkpoints, distiller=several(**{f't{n}': f'{n}.fc' for n in names}))
        losses = algorithm(*DATA, mode='loss')
        logits = algorithm.student.module(DATA[0])
        second = teachers[1] if checkpoints is None else saved
        for name, teacher in zip(names, (teachers[0], second)):
            torch.testing.assert_close(losses[f'distill.loss_t{name}'], F.mse_loss(logits, teacher.eval()(DATA[0])))
    with pytest.raises(ConfigError, match=r"Did you mean '0\.fc'"):
        make(teacher=teachers, distiller=several(t='0.fcc'))
    with pytest.raises(ConfigError, match='list or mapping of paths'):
        make(teacher=teachers, teacher_ckpt='one.pth', distiller=several(t='0.fc'))
    with pytest.raises(ConfigError, match='no teacher'):
        make(teacher=[])


# -- checkpoints of teachers ---------------------------------------------------------------------


def test_a_teacher_starts_from_its_checkpoint_and_keeps_it(tmp_path):
    saved = net(seed=5)
    torch.save({'state_dict': saved.state_dict(), 'meta': {}}, tmp_path / 'teacher.pth')
    algorithm = make(teacher_ckpt=str(tmp_path / 'teacher.pth'))
    algorithm.init_weights()
    for name, value in saved.state_dict().items():
        assert torch.equal(algorithm.teacher.module.state_dict()[name], value)


def test_modules_with_an_init_weights_of_their_own_keep_the_weights_they_come_with():
    teacher, student = net(seed=1), net(4)
    teacher.init_weights = lambda: teacher.fc.weight.data.zero_()
    student.init_weights = lambda: student.fc.weight.data.zero_()
    algorithm = make(teacher, student)
    algorithm.init_weights()
    assert algorithm.teacher.module.fc.weight.any()
    assert algorithm.student.module.fc.weight.any()


def test_a_checkpoint_of_another_model_says_which_keys(tmp_path):
    torch.save(net(16).state_dict(), tmp_path / 'wide.pth')
    with pytest.raises(ConfigError, match=r"'stem.weight' has the shape \(16, 4\) in it and \(8, 4\) in the model"):
        make(teacher_ckpt=tmp_path / 'wide.pth')
    torch.save(nn.Sequential(nn.Linear(4, 8)).state_dict(), tmp_path / 'other.pth')
    with pytest.raises(ConfigError, match=r"of another model than Net: it has no 'stem.weight'.*'0.bias', '0.weight' instead"):
        make(teacher_ckpt=tmp_path / 'other.pth')
    with pytest.raises(FileNotFoundError, match='teacher_ckpt=None does'):
        make(teacher_ckpt=tmp_path / 'none.pth')
    torch.save(net(), tmp_path / 'whole.pth')
    with pytest.raises(UnsafeFileError):
        make(teacher_ckpt=tmp_path / 'whole.pth')


def test_a_teacher_without_weights_is_said(monkeypatch):
    said = []
    monkeypatch.setattr('strop.algorithms.single_teacher.print_log', lambda text, **_: said.append(text))
    config = dict(type='torch.nn.Sequential')
    with pytest.raises(ConfigError):
        make(teacher=config)
    assert 'teaches noise' in said[0]
    make(teacher=net())
    assert len(said) == 1


# -- OpenMMLab's models --------------------------------------------------------------------------


class Classifier(BaseModel):
    """A model whose head runs only for losses, with draws of its own."""

    def __init__(self, width):
        super().__init__()
        self.backbone = nn.Linear(4, width)
        self.head = nn.Linear(width, 3)

    def draw(self, x):
        return torch.randn(len(x), 1)

    def extract_feat(self, x):
        return self.backbone(x)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        features = self.extract_feat(inputs)
        if mode == 'tensor':
            return features
        logits = self.head(features * (1 + self.draw(inputs)))
        return logits.split(1) if mode == 'predict' else {'loss_cls': F.cross_entropy(logits, data_samples)}


def test_models_of_openmmlab_run_their_heads_and_draws_are_handed_over():
    path = f'{__name__}.Classifier.draw'
    algorithm = make(
        teacher=Classifier(8),
        student=Classifier(4),
        distiller=distiller(
            'head',
            'head',
            distill_deliveries=dict(draw=dict(type='MethodOutputs', max_keep_data=1, method_path=path)),
        ),
    )
    student, teacher = algorithm.student, algorithm.teacher
    torch.manual_seed(7)
    losses = algorithm(*DATA, mode='loss')
    torch.manual_seed(7)
    drawn = 1 + torch.randn(8, 1)
    logits = [model.head(model.backbone(DATA[0]) * drawn) for model in (student, teacher)]
    torch.testing.assert_close(losses['distill.loss_mse'], F.mse_loss(*logits))
    torch.testing.assert_close(losses['student.loss_cls'], F.cross_entropy(logits[0], DATA[1]))
    assert not algorithm.distiller.deliveries.deliveries['draw'].data_queue


def test_a_student_that_learns_alone_draws_for_itself():
    draws = dict(draw=dict(type='MethodOutputs', max_keep_data=1, method_path=f'{__name__}.Classifier.draw'))
    algorithm = make(
        teacher=Classifier(8), student=Classifier(4), distiller=distiller('head', 'head', distill_deliveries=draws)
    )
    algorithm.stop_distillation()
    torch.manual_seed(7)
    losses = algorithm(*DATA, mode='loss')
    torch.manual_seed(7)
    drawn = 1 + torch.randn(8, 1)
    logits = algorithm.student.head(algorithm.student.backbone(DATA[0]) * drawn)
    assert set(losses) == {'student.loss_cls'}
    torch.testing.assert_close(losses['student.loss_cls'], F.cross_entropy(logits, DATA[1]))


def test_several_teachers_and_the_student_share_the_draws():
    draws = dict(draw=dict(type='MethodOutputs', max_keep_data=1, method_path=f'{__name__}.Classifier.draw'))
    both = distiller('head', '1.head', distill_deliveries=draws)
    algorithm = make(teacher=[Classifier(8), Classifier(8)], student=Classifier(4), distiller=both)
    torch.manual_seed(7)
    losses = algorithm(*DATA, mode='loss')
    torch.manual_seed(7)
    drawn = 1 + torch.randn(8, 1)
    models = algorithm.student, algorithm.teachers['1']
    logits = [model.head(model.backbone(DATA[0]) * drawn) for model in models]
    torch.testing.assert_close(losses['distill.loss_mse'], F.mse_loss(*logits))


def test_a_distiller_may_hand_over_draws_and_compare_nothing():
    path = f'{__name__}.Classifier.draw'
    draws = dict(draw=dict(type='MethodOutputs', max_keep_data=10000, method_path=path))
    algorithm = make(teacher=Classifier(8), student=Classifier(4), distiller=dict(distill_deliveries=draws))
    assert set(algorithm(*DATA, mode='loss')) == {'student.loss_cls'}


# -- training ------------------------------------------------------------------------------------


def test_gradients_are_accumulated_over_batches():
    torch.manual_seed(0)
    halves = [(DATA[0][:4], DATA[1][:4]), (DATA[0][4:], DATA[1][4:])]
    algorithm = make()
    whole = copy.deepcopy(algorithm)
    for each in (algorithm, whole):
        each.eval()
    wrapper = sgd(algorithm, accumulative_counts=2)
    for half in halves:
        algorithm.train_step(half, wrapper)
    whole.train_step(DATA, sgd(whole))
    for name, value in whole.student.state_dict().items():
        torch.testing.assert_close(algorithm.student.state_dict()[name], value)


def test_mixed_precision():
    algorithm = make(distiller=distiller(**PROJECTED))
    wrapper = AmpOptimWrapper(optimizer=torch.optim.SGD(algorithm.parameters(), lr=0.1), dtype='bfloat16', loss_scale=1.0)
    before = algorithm.distiller.connectors['up'].weight.clone()
    log = algorithm.train_step(DATA, wrapper)
    assert torch.isfinite(log['loss'])
    assert not torch.equal(before, algorithm.distiller.connectors['up'].weight)


def test_a_loss_of_distillation_that_is_nan_is_named():
    algorithm = make()
    before = copy.deepcopy(algorithm.state_dict())
    with torch.no_grad():
        algorithm.teacher.module.fc.bias.fill_(float('nan'))
    with pytest.raises(TrainingError, match=r'distill\.loss_mse=nan'):
        algorithm.train_step(DATA, sgd(algorithm))
    assert torch.equal(before['architecture.module.fc.weight'], algorithm.student.module.fc.weight)
    assert not algorithm.distiller.teacher_recorders.get_recorder('fc').data_buffer


def test_nothing_is_kept_after_a_step_that_failed():
    algorithm = make()
    with pytest.raises(RuntimeError):
        algorithm(torch.zeros(2, 7), DATA[1][:2], mode='loss')
    assert not algorithm.teacher.module.fc._forward_hooks
    with pytest.raises(TrainingError, match='recorded nothing'):
        algorithm.distiller.compute_distill_losses()


def test_a_copy_teaches_itself():
    algorithm = make()
    other = copy.deepcopy(algorithm)
    other.load_state_dict(algorithm.state_dict())
    before = copy.deepcopy(algorithm.state_dict())
    other.train_step(DATA, sgd(other))
    assert all(torch.equal(value, before[name]) for name, value in algorithm.state_dict().items())


def test_live_tensors_do_not_grow_over_steps():
    algorithm = make(distiller=distiller(**PROJECTED))
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.01)

    def steps(count):
        for _ in range(count):
            algorithm.train_step(DATA, optimizer)
        gc.collect()
        return sum(type(item) in (torch.Tensor, nn.Parameter) for item in gc.get_objects())

    assert steps(5) == steps(300)


def test_compiled_models_learn_alike():
    torch.compiler.reset()
    plain, student, teacher = make(), net(4, seed=2), net(seed=1)
    student.compile(backend='eager')
    teacher.compile(backend='eager')
    compiled = make(teacher, student)
    for algorithm in (plain, compiled):
        optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
        for _ in range(3):
            algorithm.train_step(DATA, optimizer)
    torch.testing.assert_close(compiled.student.module.fc.weight, plain.student.module.fc.weight)


def test_stopped_distillation_leaves_the_teacher_alone():
    algorithm = make()
    algorithm.stop_distillation()
    algorithm.teacher.forward = None
    assert set(algorithm(*DATA, mode='loss')) == {'student.loss'}
    with pytest.raises(ConfigError, match='nothing would be left'):
        make(calculate_student_loss=False).stop_distillation()


def test_the_student_learns_what_the_teacher_knows():
    torch.manual_seed(0)
    algorithm = make(calculate_student_loss=False)
    optimizer = torch.optim.Adam(algorithm.student.parameters(), lr=0.02)
    losses = [float(algorithm.train_step(DATA, optimizer)['loss'].detach()) for _ in range(150)]
    assert losses[-1] < losses[0] / 20


# -- bad input -----------------------------------------------------------------------------------


def test_a_frozen_student_is_refused():
    with pytest.raises(ConfigError, match='no parameter of the student requires a gradient'):
        make(student=net(4).requires_grad_(False))
    with pytest.raises(ConfigError, match='has no connector with parameters'):
        make(student_trainable=False)


def test_the_whole_of_a_plain_student_is_told_from_its_losses():
    with pytest.raises(ConfigError, match=r"gives its losses.*the Net itself gives is source='module'"):
        make(distiller=distiller(student='', teacher=''))
    assert 'distill.loss_mse' in make(distiller=distiller(student='module', teacher=''))(*DATA, mode='loss')
    assert make(distiller=distiller(student='', teacher=''), calculate_student_loss=False)(*DATA, mode='loss')


def test_wrong_components():
    with pytest.raises(ComponentTypeError, match='config or an instance of ConfigurableDistiller, but got str'):
        make(distiller='kd')
    with pytest.raises(ComponentTypeError, match='ConfigurableDistiller, not a Linear'):
        make(distiller=dict(type='torch.nn.Linear', in_features=1, out_features=1))
    with pytest.raises(ComponentTypeError, match=r'`teacher` must be a config or an nn\.Module, but got str'):
        make(teacher='resnet50')
    with pytest.raises(ConfigError, match=r"Recorder 'fc': PlainArchitecture has no module 'fcc'. Did you mean 'fc'"):
        make(distiller=distiller(teacher='fcc'))
    assert isinstance(make(distiller=ConfigurableDistiller(**distiller())).distiller, ConfigurableDistiller)


# -- two processes -------------------------------------------------------------------------------


def on_one_of_two(rank, folder):
    start_process_group()
    weights = two_steps(DistributedAlgorithm, slice(4 * rank, 4 * rank + 4))
    (folder / f'{rank}.json').write_text(json.dumps(weights))
    torch.distributed.destroy_process_group()


def two_steps(wrap, part):
    """Train for two steps on a part of the batch and return the weights that learned."""
    torch.set_num_threads(1)
    student = net(4, seed=2)
    student.norm = nn.GroupNorm(1, 4)
    torch.manual_seed(3)
    algorithm = make(student=student, distiller=distiller(**PROJECTED))
    wrapped = wrap(algorithm)
    wrapper = sgd(algorithm)
    for _ in range(2):
        wrapped.train_step((DATA[0][part], DATA[1][part]), wrapper)
    parameters = [*algorithm.student.parameters(), *algorithm.distiller.parameters()]
    return torch.cat([parameter.detach().flatten() for parameter in parameters]).tolist()


def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    in_group(on_one_of_two, tmp_path, folder=tmp_path)
    weights = [json.loads((tmp_path / f'{rank}.json').read_text()) for rank in range(2)]
    assert weights[0] == weights[1]
    torch.testing.assert_close(torch.tensor(weights[0]), torch.tensor(two_steps(lambda model: model, slice(0, 8))))


class FromFile(Classifier):
    """One that a config gives the weights of."""

    def __init__(self, width, init_cfg=None):
        super().__init__(width)
        self.init_cfg = init_cfg


@pytest.mark.parametrize('several', [False, True])
def test_a_teacher_of_a_config_has_the_weights_of_its_init_cfg(tmp_path, several):
    torch.manual_seed(5)
    saved = Classifier(8).state_dict()
    torch.save(saved, tmp_path / 'teacher.pth')
    teacher = dict(type=FromFile, width=8, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'teacher.pth')))
    layers = distiller('backbone', 't.backbone' if several else 'backbone')
    algorithm = make(teacher={'t': teacher} if several else teacher, student=Classifier(4), distiller=layers)
    algorithm.init_weights()
    found = (algorithm.teacher['t'] if several else algorithm.teacher).state_dict()
    assert all(torch.equal(found[name], value) for name, value in saved.items())


@pytest.mark.parametrize('as_config', [True, False])
def test_a_plain_teacher_learns_by_the_loss_that_is_given(as_config):
    teacher = dict(type='torch.nn.Linear', in_features=4, out_features=1)
    algorithm = SingleTeacherDistill(
        {}, teacher if as_config else MODELS.build(teacher), architecture=nn.Linear(4, 1), loss=nn.MSELoss(),
        teacher_trainable=True,
    )  # fmt: skip
    targets = torch.full((8, 1), 3.0)
    losses = algorithm(DATA[0], targets, mode='loss')
    torch.testing.assert_close(losses['teacher.loss'], F.mse_loss(algorithm.teacher.module(DATA[0]), targets))
    assert losses['teacher.loss'].requires_grad
