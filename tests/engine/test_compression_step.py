from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from strop.algorithms import SPOS
from strop.engine import CompressionStep
from strop.errors import ComponentTypeError, ConfigError, SubnetError, TrainingError
from strop.mutables import LayerChoice, dump_subnet, extract
from strop.mutators import BaseMutator, DartsMutator, OneShotChannelMutator, RandomMutator
from tests.engine.digit_nets import Net, digits, distiller, net, teacher
from tests.engine.forked import forked


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return digits(16)[:]


def supernet(**options: Any) -> tuple[Net, RandomMutator]:
    model = net(choice=True, **options)
    return model, RandomMutator(model)


# -- distillation ------------------------------------------------------------------------------


def test_the_loss_is_the_loops_own_plus_the_divergence_from_the_teacher(batch: Any) -> None:
    images, labels = batch
    student, its_teacher = net(), teacher()
    step = CompressionStep(
        student, distiller=distiller(student, its_teacher, features=False), teacher=its_teacher, distill_weight=0.5
    )
    with step.training():
        outputs = student(images)
        loss = step.loss(F.cross_entropy(outputs, labels))
    expected = F.log_softmax(its_teacher(images) / 4, 1)
    ours = F.log_softmax(outputs / 4, 1)
    divergence = 16 * (expected.exp() * (expected - ours)).sum(1).mean()
    torch.testing.assert_close(loss, F.cross_entropy(outputs, labels) + 0.5 * divergence)
    torch.testing.assert_close(step.distill_loss, 0.5 * divergence.detach())


def test_the_teacher_is_frozen_stays_in_eval_mode_and_keeps_its_statistics(batch: Any) -> None:
    student, its_teacher = net(), teacher()
    before = {name: value.clone() for name, value in its_teacher.state_dict().items()}
    step = CompressionStep(student, distiller=distiller(student, its_teacher), teacher=its_teacher)
    its_teacher.train()  # as a loop does with a tree of modules that the teacher is in
    with step.training():
        student(batch[0])
        step.loss().backward()
    assert all(torch.equal(value, before[name]) for name, value in its_teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in its_teacher.parameters())
    assert not its_teacher.training


def test_gradients_reach_student_and_connectors(batch: Any) -> None:
    student, its_teacher = net(), teacher()
    step = CompressionStep(student, distiller=distiller(student, its_teacher), teacher=its_teacher)
    with step.training():
        student(batch[0])
        step.loss().backward()
    parameters = list(step.parameters())
    assert parameters
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)
    assert student.stem.weight.grad is not None


def test_nothing_is_recorded_and_no_teacher_runs_outside_of_steps(batch: Any) -> None:
    student, its_teacher = net(), teacher()
    calls = []
    its_teacher.register_forward_hook(lambda *_: calls.append(1))
    made = distiller(student, its_teacher)
    step = CompressionStep(student, distiller=made, teacher=its_teacher)
    calls.clear()
    student(batch[0])
    assert not calls
    with step.training():
        student(batch[0])
    assert calls == [1]
    student(batch[0])
    assert calls == [1]


def test_keywords_that_the_teacher_does_not_have_are_left_out() -> None:
    class Tagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, tag: str) -> torch.Tensor:
            return self.fc(x)

    student, its_teacher = Tagged(), nn.Linear(4, 3)
    recorders = dict(out=dict(type='ModuleOutputs', source=''))
    config = dict(
        student_recorders=recorders,
        teacher_recorders=recorders,
        distill_losses=dict(loss_mse=dict(type='torch.nn.MSELoss')),
        loss_forward_mappings=dict(
            loss_mse=dict(input=dict(recorder='out', from_student=True), target=dict(recorder='out', from_student=False))
        ),
    )
    x = torch.randn(2, 4)
    step = CompressionStep(student, distiller=config, teacher=its_teacher)
    with step.training():
        student(x, tag='a')
        loss = step.loss()
    torch.testing.assert_close(loss, F.mse_loss(student.fc(x), its_teacher(x)))
    step = CompressionStep(
        student, distiller=config, teacher=its_teacher, teacher_inputs=lambda args, kwargs: ((2 * args[0],), {})
    )
    with step.training():
        student(x, tag='a')
        loss = step.loss()
    torch.testing.assert_close(loss, F.mse_loss(student.fc(x), its_teacher(2 * x)))


def test_a_step_that_failed_leaves_nothing_behind(batch: Any) -> None:
    student, its_teacher = net(), teacher()
    step = CompressionStep(student, distiller=distiller(student, its_teacher), teacher=its_teacher)
    with pytest.raises(ZeroDivisionError), step.training():
        student(batch[0])
        raise ZeroDivisionError
    with pytest.raises(TrainingError, match='recorded nothing'), step.training():
        step.loss()
    assert not student._forward_pre_hooks
    with step.training():
        student(batch[0])
        assert torch.isfinite(step.loss())


def test_two_steps_at_once_are_refused(batch: Any) -> None:
    model, mutator = supernet()
    step = CompressionStep(model, mutator=mutator)
    with step.training(), pytest.raises(TrainingError, match='under way'), step.training():
        pass


# -- supernets ---------------------------------------------------------------------------------


def test_the_subnets_are_those_that_spos_draws() -> None:
    model, mutator = supernet()
    step = CompressionStep(model, mutator=mutator, seed=3)
    drawn = []
    for _ in range(12):
        with step.training():
            drawn.append(dict(mutator.current_subnet())['body'])
    assert len(set(drawn)) == 3
    algorithm = SPOS(net(choice=True), mutator=dict(type='RandomMutator'), seed=3)
    expected = []
    for number in range(12):
        algorithm.step = number
        expected.append(dict(algorithm.mutator.space.subnet(algorithm.sample_subnet()))['body'])
    assert drawn == expected


def test_drawing_leaves_the_generators_of_the_loop_alone() -> None:
    model, mutator = supernet()
    step = CompressionStep(model, mutator=mutator)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with step.training():
        assert torch.equal(torch.rand(3), expected)


def test_the_drawn_subnet_learns_from_the_teacher_and_the_others_do_not(batch: Any) -> None:
    model, mutator = supernet()
    mutator.reset()
    its_teacher = teacher()
    step = CompressionStep(model, mutator=mutator, distiller=distiller(model, its_teacher), teacher=its_teacher)
    with step.training():
        model(batch[0])
        step.loss().backward()
    chosen = dict(mutator.current_subnet())['body']
    trained = [index for index, candidate in enumerate(model.body) if candidate.weight.grad is not None]
    assert trained == [chosen]


def test_what_is_evaluated_equals_the_extracted_subnet_and_the_drawn_one_comes_back(batch: Any) -> None:
    model, mutator = supernet()
    step = CompressionStep(model, mutator=mutator, subnet={'body': 2})
    with step.training():
        pass
    before = mutator.current_subnet()
    model.eval()
    with step.evaluating():
        outputs = model(batch[0])
        with step.evaluating('min'):
            assert dict(mutator.current_subnet()) == {'body': 0}
        assert dict(mutator.current_subnet()) == {'body': 2}
    torch.testing.assert_close(outputs, extract(model, {'body': 2})(batch[0]))
    assert mutator.current_subnet() == before


def test_an_evaluated_subnet_has_the_statistics_of_its_calibration_data_alone(batch: Any) -> None:
    images, labels = batch
    model, mutator = supernet()
    step = CompressionStep(model, mutator=mutator, subnet='max', calibration=[images, (images, labels)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    with step.evaluating():
        assert model.training
        features = model.body(model.norm(model.stem(images)).relu())
        torch.testing.assert_close(model.after.running_mean, features.mean((0, 2, 3)), atol=1e-4, rtol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_subnet_can_be_a_file(tmp_path: Path) -> None:
    model, mutator = supernet()
    dump_subnet(mutator.space.subnet({'body': 1}), tmp_path / 'subnet.json')
    step = CompressionStep(model, mutator=mutator, subnet=str(tmp_path / 'subnet.json'))
    with step.evaluating():
        assert dict(mutator.current_subnet()) == {'body': 1}


def test_widths_of_channels_are_drawn_and_evaluated(batch: Any) -> None:
    model = net()
    mutator = OneShotChannelMutator(parse_cfg=dict(demo_input=(2, 1, 8, 8)), model=model)
    step = CompressionStep(model, mutator=mutator, subnet='max')
    whole = net().eval()
    widths = set()
    for _ in range(4):
        with step.training():
            model(batch[0]).sum().backward()
            widths.add(tuple(dict(mutator.current_subnet()).values()))
    assert len(widths) > 1
    model.load_state_dict(whole.state_dict())
    model.eval()
    with step.evaluating():
        torch.testing.assert_close(model(batch[0]), whole(batch[0]))


def test_a_differentiable_mutator_learns_with_the_model_and_is_evaluated_as_its_final_subnet(batch: Any) -> None:
    model = net(choice=True)
    mutator = DartsMutator(model)
    step = CompressionStep(model, mutator=mutator, subnet='final')
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step.add_to(optimizer)
    before = mutator.logits('body').detach().clone()
    with step.training():
        F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
    assert not torch.equal(mutator.logits('body'), before)
    with step.evaluating():
        assert dict(mutator.current_subnet()) == mutator.sample_choices('final')


def test_a_mutator_without_reset_is_drawn_from_as_well() -> None:
    model = nn.Sequential(LayerChoice([nn.ReLU(), nn.Identity()], key='act'))
    step = CompressionStep(model, mutator=BaseMutator(model))
    with step.training():
        assert dict(step.mutator.current_subnet())['act'] in (0, 1)


# -- state and optimizer -----------------------------------------------------------------------


def test_a_step_that_goes_on_from_its_state_draws_what_comes_next() -> None:
    model, mutator = supernet()
    step = CompressionStep(model, mutator=mutator)
    drawn = []
    for number in range(8):
        with step.training():
            drawn.append(mutator.current_subnet())
        if number == 3:
            state = step.state_dict()
    other, its_mutator = supernet()
    again = CompressionStep(other, mutator=its_mutator)
    again.load_state_dict(state)
    for expected in drawn[4:]:
        with again.training():
            assert its_mutator.current_subnet() == expected


def test_the_state_has_the_connectors_and_refuses_those_of_others() -> None:
    student, its_teacher = net(), teacher()
    step = CompressionStep(student, distiller=distiller(student, its_teacher), teacher=its_teacher)
    state = copy.deepcopy(step.state_dict())
    torch.manual_seed(9)
    for parameter in step.parameters():
        nn.init.normal_(parameter)
    step.load_state_dict(state)
    assert all(torch.equal(value, state['distiller'][name]) for name, value in step.distiller.state_dict().items())
    bare = CompressionStep(student, distiller=distiller(student, its_teacher, features=False), teacher=its_teacher)
    with pytest.raises(ConfigError, match='not that of this step'):
        bare.load_state_dict(state)
    model, mutator = supernet()
    with pytest.raises(ConfigError, match="'count', 'mutator'"):
        CompressionStep(model, mutator=mutator).load_state_dict(state)


def test_connectors_join_the_first_group_once() -> None:
    student, its_teacher = net(), teacher()
    step = CompressionStep(student, distiller=distiller(student, its_teacher), teacher=its_teacher)
    optimizer = torch.optim.SGD(
        [{'params': student.parameters(), 'lr': 0.1}, {'params': [nn.Parameter(torch.ones(1))], 'lr': 9}]
    )
    size = len(optimizer.param_groups[0]['params'])
    for _ in range(2):
        step.add_to(optimizer)
    assert len(optimizer.param_groups[0]['params']) == size + len(list(step.parameters()))
    assert len(optimizer.param_groups) == 2


def _train_a_share(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)
    student, its_teacher = net(), teacher()
    made = distiller(student, its_teacher)
    if rank:
        for parameter in made.parameters():
            nn.init.ones_(parameter)  # the first process has the say
    step = CompressionStep(student, distiller=made, teacher=its_teacher)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    step.add_to(optimizer)
    images = digits(32)[:][0]
    with step.training():
        student(images[rank * 16 : rank * 16 + 16])
        step.loss().backward()
    torch.save([parameter.grad for parameter in step.parameters()], folder / f'{rank}.pth')


def test_processes_average_the_gradients_of_connectors(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda rank: forked(_train_a_share, rank, tmp_path, errors=tmp_path / f'{rank}.txt'), (0, 1)))
    assert ended == [0, 0], [file.read_text() for file in tmp_path.glob('*.txt')]
    gradients = []
    for rank in range(2):
        student, its_teacher = net(), teacher()
        step = CompressionStep(student, distiller=distiller(student, its_teacher), teacher=its_teacher)
        with step.training():
            student(digits(32)[:][0][rank * 16 : rank * 16 + 16])
            step.loss().backward()
        gradients.append([parameter.grad for parameter in step.parameters()])
    for rank in range(2):
        for found, first, second in zip(torch.load(tmp_path / f'{rank}.pth'), *gradients):
            torch.testing.assert_close(found, (first + second) / 2)


# -- bad input ---------------------------------------------------------------------------------


def test_parts_that_do_not_belong_together_are_refused() -> None:
    model, mutator = supernet()
    mutator.reset()
    its_teacher = teacher()
    made = distiller(model, its_teacher)
    for wrong, words, kind in (
        (dict(), 'nothing to do', ConfigError),
        (dict(teacher=its_teacher), 'distiller_for', ConfigError),
        (dict(mutator=mutator, teacher=its_teacher), 'needs a `distiller`', ConfigError),
        (dict(distiller=made, teacher=model), 'student itself', ConfigError),
        (dict(distiller=made, teacher=its_teacher, subnet='max'), 'needs the `mutator`', ConfigError),
        (dict(mutator=supernet()[1]), 'another model than', ConfigError),
        (dict(mutator=mutator, subnet='mox'), "'max'", ConfigError),
        (dict(mutator=mutator, subnet={'bod': 1}), 'bod', SubnetError),
        (dict(mutator=mutator, calibration=iter([1])), 'no iterator', ConfigError),
        (dict(mutator=model), '`mutator`', ComponentTypeError),
        (dict(distiller=model), '`distiller`', ComponentTypeError),
        (dict(distiller=made, teacher='resnet50'), '`teacher`', ComponentTypeError),
    ):
        with pytest.raises(kind, match=words):
            CompressionStep(model, **wrong)
    with pytest.raises(ComponentTypeError, match='`student`'):
        CompressionStep(None, mutator=mutator)
    with pytest.raises(ConfigError, match='loss of its own'):
        CompressionStep(model, mutator=mutator).loss()
    with pytest.raises(ConfigError, match='no `mutator`'), CompressionStep(model, distiller=made).evaluating('max'):
        pass


def test_connectors_follow_the_student_before_a_state_is_loaded_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop moves the student, and loads the optimizer's state, which goes to where the parameters are."""
    student, its_teacher = net(), teacher()
    step = CompressionStep(student, distiller=distiller(student, its_teacher), teacher=its_teacher)
    optimizer = torch.optim.Adam(student.parameters())
    step.add_to(optimizer)
    order: list[str] = []
    monkeypatch.setattr(step, '_follow', lambda: order.append('followed'))
    optimizer.register_load_state_dict_post_hook(lambda *_: order.append('loaded'))
    optimizer.load_state_dict(optimizer.state_dict())
    assert order == ['followed', 'loaded']


def test_connectors_take_features_of_a_mixed_precision_that_ended_with_the_forward(batch: Any) -> None:
    student, its_teacher = net(), teacher()
    step = CompressionStep(student, distiller=distiller(student, its_teacher), teacher=its_teacher)
    with step.training():
        with torch.autocast('cpu', torch.bfloat16):
            outputs = student(batch[0])
        assert outputs.dtype == torch.bfloat16
        step.loss().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in step.parameters())


def test_connectors_join_optimizers_that_only_wrap_another() -> None:
    """As Accelerate's, which has the groups of the optimizer inside, and none of its hooks."""

    class Wrapping:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer
            self.param_groups = optimizer.param_groups

    student, its_teacher = net(), teacher()
    step = CompressionStep(student, distiller=distiller(student, its_teacher), teacher=its_teacher)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    size = len(optimizer.param_groups[0]['params'])
    step.add_to(Wrapping(optimizer))  # type: ignore[arg-type]
    assert len(optimizer.param_groups[0]['params']) == size + len(list(step.parameters()))
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1
