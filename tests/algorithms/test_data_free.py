"""Students that learn from generated images: against loops written by hand, on digits, killed, on two processes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from engine.forked import in_group
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from strop.algorithms import DAFLDataFreeDistillation, DataFreeDistillation
from strop.algorithms.data_free import size_of
from strop.data import ImageDataset
from strop.engine import AmpOptimWrapper, DistributedAlgorithm
from strop.errors import ComponentTypeError, ConfigError, TrainingError
from strop.registry import MODELS

RECORDERS = dict(fc=dict(type='ModuleOutputs', source='8'))
OF_TEACHER = dict(fc=dict(type='ModuleOutputs', source='big.8'), feature=dict(type='ModuleOutputs', source='big.7'))
BOTH = dict(preds_S=dict(from_student=True, recorder='fc'), preds_T=dict(from_student=False, recorder='fc'))


def net(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


def kl(**options: object) -> dict:
    return dict(
        type='ConfigurableDistiller',
        student_recorders=RECORDERS,
        teacher_recorders=OF_TEACHER,
        distill_losses=dict(loss_kl=dict(type='KLDivergence', **options)),
        loss_forward_mappings=dict(loss_kl=BOTH),
    )


def dafl_losses(entropy: float = 5.0) -> dict:
    return dict(
        type='ConfigurableDistiller',
        teacher_recorders=OF_TEACHER,
        distill_losses=dict(
            loss_oh=dict(type='OnehotLikeLoss'),
            loss_ie=dict(type='InformationEntropyLoss', loss_weight=entropy),
            loss_ac=dict(type='ActivationLoss', loss_weight=0.01),
        ),
        loss_forward_mappings=dict(
            loss_oh=dict(preds_T=dict(from_student=False, recorder='fc')),
            loss_ie=dict(preds_T=dict(from_student=False, recorder='fc')),
            loss_ac=dict(feat_T=dict(from_student=False, recorder='feature')),
        ),
    )


def config(kind: str, **options: object) -> dict:
    generator = dict(type='DAFLGenerator', img_size=8, latent_dim=32, hidden_channels=32, channels=1)
    made = dict(type=f'mmrazor.{kind}', distiller=kl(tau=2.0), generator=generator)
    made['generator_distiller'] = dafl_losses() if kind.startswith('DAFL') else kl(loss_weight=-1.0, teacher_detach=False)
    return {**made, **options}


def build(kind: str, seed: int = 0, **options: object) -> DataFreeDistillation:
    torch.manual_seed(seed)
    options = {'architecture': net(4), 'teachers': dict(big=net(8)), **options}
    return MODELS.build(config(kind, **options)).train()


def optimizers(algorithm: DataFreeDistillation, rate: float = 0.05) -> OptimWrapperDict:
    return OptimWrapperDict(
        architecture=OptimWrapper(torch.optim.SGD(algorithm.student.parameters(), rate, momentum=0.9)),
        generator=OptimWrapper(torch.optim.Adam(algorithm.generator.parameters(), 1e-3)),
    )


def copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def digits(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    data = ImageDataset('digits', split)
    return (data.images.float() - 78) / 96, torch.as_tensor(data.labels)


@pytest.fixture(scope='module')
def teacher() -> nn.Sequential:
    """Return a network that knows digits."""
    torch.manual_seed(0)
    images, labels = digits('train')
    model = net(16)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(6):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model


KINDS = pytest.mark.parametrize('kind', ['DataFreeDistillation', 'DAFLDataFreeDistillation'])


# -- the real thing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('kind', 'steps', 'options'),
    [('DAFLDataFreeDistillation', 100, {}), ('DataFreeDistillation', 40, dict(student_iter=5, distiller=kl()))],
)
def test_a_student_learns_digits_without_seeing_one(teacher, kind, steps, options) -> None:
    algorithm = build(kind, teachers=dict(big=teacher), architecture=net(6), **options)
    before = copied(algorithm.teachers)
    found = {
        'architecture': torch.optim.Adam(algorithm.student.parameters(), 3e-3),
        'generator': torch.optim.Adam(algorithm.generator.parameters(), 1e-3),
    }
    student, generator = copied(algorithm.student), copied(algorithm.generator)
    losses = []
    for _ in range(steps):
        log = algorithm.train_step(96, found)
        assert all(torch.isfinite(value) and not value.requires_grad for value in log.values())
        losses.append((log['generator.loss'].item(), log['loss'].item()))
    assert same(before, algorithm.teachers.state_dict())
    assert not same(student, algorithm.student.state_dict())
    assert not same(generator, algorithm.generator.state_dict())
    images, labels = digits('test')
    right = (algorithm.eval()(images, mode='tensor').argmax(1) == labels).float().mean().item()
    assert right > 0.3  # three times what guessing gives
    of_generator, of_student = (sum(part[-10:]) - sum(part[:10]) for part in zip(*losses))
    assert of_student < 0
    if kind.startswith('DAFL'):
        assert of_generator < 0


@KINDS
def test_images_of_the_batch_are_never_seen(kind: str) -> None:
    states = []
    for batch in ((torch.full((6, 1, 8, 8), float('nan')), torch.zeros(6)), torch.arange(6), 6):
        algorithm = build(kind)
        given = optimizers(algorithm)
        for _ in range(2):
            algorithm.train_step(batch, given)
        states.append(copied(algorithm))
    assert same(states[0], states[1])
    assert same(states[0], states[2])


# -- the steps --------------------------------------------------------------------------------------


def by_hand(kind: str, algorithm: DataFreeDistillation, steps: int, size: int, order: str) -> None:
    """Train as the papers say, in plain PyTorch, from the same latent vectors."""
    student, generator = algorithm.student.module, algorithm.generator
    (teacher,) = (model.module for model in algorithm.teachers.children())
    for_student = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9)
    for_generator = torch.optim.SGD(generator.parameters(), 0.02)

    def divergence(images: torch.Tensor, tau: float) -> torch.Tensor:
        wanted = F.log_softmax(teacher(images) / tau, 1)
        found = F.log_softmax(student(images) / tau, 1)
        return tau**2 * (wanted.exp() * (wanted - found)).sum(1).mean()

    def step_of_the_generator(images: torch.Tensor) -> None:
        if kind.startswith('DAFL'):
            logits, feature = teacher(images), teacher[:8](images)
            shares = logits.softmax(1).mean(0)
            loss = F.cross_entropy(logits, logits.argmax(1)) + 5 * (shares * shares.log10()).sum()
            loss = loss - 0.01 * feature.abs().mean()
        else:
            loss = -divergence(images, 1.0)
        for_generator.zero_grad()
        loss.backward()
        for_generator.step()

    def step_of_the_student(images: torch.Tensor) -> None:
        for_student.zero_grad()
        divergence(images.detach(), 2.0).backward()
        for_student.step()

    for step in range(steps):
        algorithm.step = step
        if kind.startswith('DAFL'):
            images = generator(algorithm.draw_latents(size, 'generator'))
            step_of_the_generator(images)
            step_of_the_student(images)
            continue
        for part in order:
            if part == 'g':
                step_of_the_generator(generator(algorithm.draw_latents(size, 'generator')))
            else:
                step_of_the_student(generator(algorithm.draw_latents(size, f'architecture{part}')))


@pytest.mark.parametrize(
    ('kind', 'options', 'order'),
    [
        ('DAFLDataFreeDistillation', {}, ''),
        ('DataFreeDistillation', {}, 'g0'),
        ('DataFreeDistillation', dict(student_iter=3), 'g012'),
        ('DataFreeDistillation', dict(student_iter=2, student_train_first=True), '01g'),
    ],
)
def test_training_is_that_of_a_loop_by_hand(kind: str, options: dict, order: str) -> None:
    algorithm, reference = build(kind, **options).double(), build(kind, **options).double()
    given = optimizers(algorithm)
    # Not Adam, which makes steps of the rounding errors that are the gradient of a bias before a batch norm.
    given['generator'].optimizer = torch.optim.SGD(algorithm.generator.parameters(), 0.02)
    for _ in range(3):
        algorithm.train_step(5, given)
    by_hand(kind, reference, 3, 5, order)
    for part in ('student', 'generator', 'teachers'):
        expected = getattr(reference, part).state_dict()
        for name, value in getattr(algorithm, part).state_dict().items():
            assert torch.allclose(value, expected[name], rtol=1e-9, atol=1e-12), (part, name)


def test_losses_have_the_names_of_their_steps() -> None:
    algorithm = build('DataFreeDistillation', student_iter=2)
    log = algorithm.train_step(4, optimizers(algorithm))
    assert set(log) == {'distill_iter0.loss_kl', 'distill_iter1.loss_kl', 'generator.loss_kl', 'generator.loss', 'loss'}
    assert log['loss'] == log['distill_iter1.loss_kl']
    assert log['generator.loss'] < 0
    algorithm = build('DAFLDataFreeDistillation')
    log = algorithm.train_step(4, optimizers(algorithm))
    assert set(log) == {'distill.loss_kl', 'generator.loss', *(f'generator.loss_{name}' for name in ('oh', 'ie', 'ac')), 'loss'}


@KINDS
def test_the_generators_step_leaves_no_gradient_in_the_student(kind: str) -> None:
    algorithm = build(kind)
    seen = []
    for parameter in algorithm.student.parameters():
        parameter.register_hook(lambda gradient: seen.append(algorithm.distiller is not None))
    given = optimizers(algorithm)
    algorithm._train_generator(4, [given['generator']])
    assert not seen
    assert all(parameter.grad is None for parameter in algorithm.student.parameters())
    assert all(parameter.requires_grad for parameter in algorithm.student.parameters())
    assert all(parameter.grad is None for parameter in algorithm.teachers.parameters())


@KINDS
def test_one_optimizer_for_both_gives_each_part_its_own_gradients(kind: str) -> None:
    results = []
    for together in (False, True):
        algorithm = build(kind)
        rate = 0.1
        apart = {key: torch.optim.SGD(getattr(algorithm, key).parameters(), rate) for key in ('architecture', 'generator')}
        both = torch.optim.SGD([*algorithm.student.parameters(), *algorithm.generator.parameters()], rate)
        for _ in range(2):
            algorithm.train_step(4, both if together else apart)
        results.append(copied(algorithm))
    assert same(*results)


def test_gradients_accumulate_over_steps() -> None:
    algorithm = build('DataFreeDistillation')
    before = copied(algorithm.student), copied(algorithm.generator)
    given = OptimWrapperDict(
        **{
            key: OptimWrapper(torch.optim.SGD(getattr(algorithm, key).parameters(), 0.1), accumulative_counts=2)
            for key in ('architecture', 'generator')
        }
    )
    weights = [name for name, _ in algorithm.student.named_parameters()]
    algorithm.train_step(4, given)
    now = algorithm.student.state_dict()
    assert all(torch.equal(now[name], before[0][name]) for name in weights)
    algorithm.train_step(4, given)
    assert not all(torch.equal(now[name], before[0][name]) for name in weights)
    assert not same(before[1], algorithm.generator.state_dict())


@KINDS
def test_half_precision_trains(kind: str) -> None:
    algorithm = build(kind)
    given = OptimWrapperDict(
        **{
            key: AmpOptimWrapper(optimizer=torch.optim.SGD(getattr(algorithm, key).parameters(), 0.1), dtype='bfloat16')
            for key in ('architecture', 'generator')
        }
    )
    before = copied(algorithm.student)
    assert all(torch.isfinite(value) for value in algorithm.train_step(8, given).values())
    assert not same(before, algorithm.student.state_dict())


@KINDS
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(kind: str) -> None:
    algorithm = build(kind)
    with torch.no_grad():
        next(algorithm.teachers.parameters()).fill_(float('nan'))
    before = dict(copied(algorithm.student), **copied(algorithm.generator))
    with pytest.raises(TrainingError, match='not finite'):
        algorithm.train_step(4, optimizers(algorithm))
    parameters = {**dict(algorithm.student.named_parameters()), **dict(algorithm.generator.named_parameters())}
    assert all(torch.equal(value, before[name]) for name, value in parameters.items())


def test_a_batch_gives_both_losses_without_a_step() -> None:
    algorithm = build('DAFLDataFreeDistillation')
    losses = algorithm(torch.zeros(4, 1, 8, 8), torch.zeros(4), mode='loss')
    assert set(losses) == {'generator.loss_oh', 'generator.loss_ie', 'generator.loss_ac', 'distill.loss_kl'}
    assert algorithm(torch.zeros(4, 1, 8, 8), mode='tensor').shape == (4, 10)


def test_nothing_is_kept_after_a_step() -> None:
    algorithm = build('DAFLDataFreeDistillation')
    algorithm.train_step(4, optimizers(algorithm))
    assert algorithm._images is None
    for distiller in (algorithm.distiller, algorithm.generator_distiller):
        for manager in (distiller.student_recorders, distiller.teacher_recorders):
            assert not any(recorder.data_buffer for recorder in manager.recorders.values())


# -- teachers, copies, resumption -------------------------------------------------------------------


def test_teachers_stay_in_evaluation_and_several_may_teach() -> None:
    recorders = {name: dict(type='ModuleOutputs', source=f'{name}.8') for name in ('one', 'two')}
    distiller = dict(
        type='ConfigurableDistiller',
        student_recorders=RECORDERS,
        teacher_recorders=recorders,
        distill_losses={f'loss_{name}': dict(type='KLDivergence', teacher_detach=False) for name in recorders},
        loss_forward_mappings={
            f'loss_{name}': dict(BOTH, preds_T=dict(from_student=False, recorder=name)) for name in recorders
        },
    )
    algorithm = build(
        'DataFreeDistillation', teachers=dict(one=net(5), two=net(7)), distiller=distiller, generator_distiller=distiller
    )
    assert algorithm.training
    assert algorithm.student.training
    assert not any(module.training for module in algorithm.teachers.modules())
    assert not any(parameter.requires_grad for parameter in algorithm.teachers.parameters())
    log = algorithm.train_step(4, optimizers(algorithm))
    assert log['loss'].item() == pytest.approx(sum(log[f'distill_iter0.loss_{name}'].item() for name in recorders), rel=1e-6)


def test_weights_of_a_teacher_are_loaded_and_checked(tmp_path: Path) -> None:
    source = net(8)
    torch.save(
        {'state_dict': {f'architecture.module.{key}': value for key, value in source.state_dict().items()}}, tmp_path / 'a.pth'
    )
    build_cfg = dict(type='PlainArchitecture', module=net(8))
    algorithm = build('DataFreeDistillation', teachers=dict(big=dict(build_cfg=build_cfg, ckpt_path=str(tmp_path / 'a.pth'))))
    (loaded,) = algorithm.teachers.children()
    assert same(source.state_dict(), loaded.module.state_dict())
    torch.save(net(4).state_dict(), tmp_path / 'b.pth')
    with pytest.raises(ConfigError, match=r'b\.pth is of another model.*shape'):
        build('DataFreeDistillation', teachers=dict(big=dict(build_cfg=build_cfg, ckpt_path=str(tmp_path / 'b.pth'))))


@KINDS
def test_a_copy_trains_alike(kind: str) -> None:
    algorithm = build(kind)
    twin = copy.deepcopy(algorithm)
    for model in (algorithm, twin):
        given = optimizers(model)
        for _ in range(2):
            model.train_step(4, given)
    assert same(copied(algorithm), twin.state_dict())


@KINDS
def test_training_goes_on_where_it_was_stopped(kind: str, tmp_path: Path) -> None:
    def train(steps: int, folder: str, resume: bool = False) -> dict[str, torch.Tensor]:
        algorithm = build(kind)
        runner = Runner(
            algorithm,
            work_dir=str(tmp_path / folder),
            train_dataloader=DataLoader(range(64), batch_size=6),
            train_cfg=dict(type='strop.IterBasedTrainLoop', max_iters=steps),
            optim_wrapper=optimizers(algorithm),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)),
            load_from=str(tmp_path / folder / 'iter_2.pth') if resume else None,
            resume=resume,
            log_level='ERROR',
            default_scope='strop',
            randomness=dict(seed=3),
            experiment_name=f'{kind}_{folder}_{resume}',
        )
        runner.train()
        return copied(algorithm)

    unbroken = train(4, 'unbroken')
    train(2, 'broken')
    assert same(unbroken, train(4, 'broken', resume=True))


def test_latents_differ_with_step_purpose_and_seed() -> None:
    algorithm = build('DataFreeDistillation')
    first = algorithm.draw_latents(3, 'generator')
    assert first.shape == (3, 32)
    assert torch.equal(first, algorithm.draw_latents(3, 'generator'))
    assert not torch.equal(first, algorithm.draw_latents(3, 'architecture0'))
    algorithm.seed = 1
    assert not torch.equal(first, algorithm.draw_latents(3, 'generator'))
    algorithm.seed, algorithm.step = None, 1
    assert not torch.equal(first, algorithm.draw_latents(3, 'generator'))


# -- two processes ----------------------------------------------------------------------------------


class Latent(nn.Sequential):
    """A generator without batch norms, which see one process each."""

    latent_dim = 3

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))


def small(kind: str) -> DataFreeDistillation:
    torch.manual_seed(0)
    recorders = dict(out=dict(type='ModuleOutputs', source='2'))
    mapping = dict(preds_S=dict(from_student=True, recorder='out'), preds_T=dict(from_student=False, recorder='out'))

    def distiller(**options: object) -> dict:
        return dict(
            type='ConfigurableDistiller',
            student_recorders=recorders,
            teacher_recorders=dict(out=dict(type='ModuleOutputs', source='big.2')),
            distill_losses=dict(loss_kl=dict(type='KLDivergence', **options)),
            loss_forward_mappings=dict(loss_kl=mapping),
        )

    def layers() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

    cls = DAFLDataFreeDistillation if kind == 'dafl' else DataFreeDistillation
    return cls(
        distiller(),
        distiller(loss_weight=-1.0, teacher_detach=False),
        teachers=dict(big=layers()),
        generator=Latent(),
        architecture=layers(),
    ).train()


def on_one_of_two(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group('gloo')
    for kind in ('dafl', 'both'):
        algorithm = small(kind)
        wrapper = DistributedAlgorithm(algorithm)
        given = {key: torch.optim.SGD(getattr(algorithm, key).parameters(), 0.5) for key in ('architecture', 'generator')}
        drawn = []
        for _ in range(3):
            drawn.append(algorithm.draw_latents(4, 'generator'))
            wrapper.train_step(4, given)
        torch.save({'state': algorithm.state_dict(), 'drawn': drawn}, f'{folder}/{kind}{rank}.pth')
    torch.distributed.destroy_process_group()


def test_two_processes_draw_their_own_images_and_train_as_one_on_all(tmp_path: Path, monkeypatch) -> None:
    in_group(on_one_of_two, tmp_path, folder=tmp_path)
    for kind in ('dafl', 'both'):
        first, second = (torch.load(tmp_path / f'{kind}{rank}.pth') for rank in (0, 1))
        assert not torch.equal(first['drawn'][0], second['drawn'][0])
        assert same(first['state'], second['state'])
        algorithm = small(kind)
        own = type(algorithm).draw_latents

        def joined(size: int, purpose: str, algorithm=algorithm, own=own) -> torch.Tensor:
            parts = []
            for rank in (0, 1):
                monkeypatch.setattr('strop.algorithms.data_free.get_rank', lambda rank=rank: rank)
                parts.append(own(algorithm, size // 2, purpose))
            return torch.cat(parts)

        algorithm.draw_latents = joined
        given = {key: torch.optim.SGD(getattr(algorithm, key).parameters(), 0.5) for key in ('architecture', 'generator')}
        for _ in range(3):
            algorithm.train_step(8, given)
        for name, value in algorithm.state_dict().items():
            assert torch.allclose(value, first['state'][name], atol=1e-6), name


# -- what cannot work -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(teachers={}), ConfigError, '`teachers` is empty'),
        (dict(teachers=net(2)), ComponentTypeError, 'mapping name -> model'),
        (dict(teachers=dict(big=3)), ComponentTypeError, 'config or an nn.Module'),
        (dict(teachers=dict(huge=net(8))), ConfigError, 'big'),
        (dict(generator=nn.Linear(2, 2)), ComponentTypeError, 'latent_dim'),
        (dict(distiller=dict(type='torch.nn.Identity')), ComponentTypeError, '`distiller` must be a ConfigurableDistiller'),
        (dict(generator_distiller=None), ComponentTypeError, '`generator_distiller` must be'),
        (dict(student_iter=0), ConfigError, 'student_iter must be a positive integer'),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_built(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build('DataFreeDistillation', **options)


def test_a_student_is_needed_and_dafl_has_one_order() -> None:
    with pytest.raises(ConfigError, match='needs an `architecture`'):
        MODELS.build(config('DataFreeDistillation', teachers=dict(big=net(8))))
    for options in (dict(student_iter=2), dict(student_train_first=True)):
        with pytest.raises(ConfigError, match='same images'):
            build('DAFLDataFreeDistillation', **options)


def test_optimizers_must_hold_what_is_trained() -> None:
    algorithm = build('DataFreeDistillation')
    with pytest.raises(ConfigError, match=r"but have 'architecture'\..*SeparateOptimWrapperConstructor"):
        algorithm.train_step(4, {'architecture': torch.optim.SGD(algorithm.student.parameters(), 0.1)})
    with pytest.raises(ComponentTypeError, match='got float'):
        algorithm.train_step(4, 0.1)
    swapped = {
        'architecture': torch.optim.SGD(algorithm.generator.parameters(), 0.1),
        'generator': torch.optim.SGD(algorithm.student.parameters(), 0.1),
    }
    with pytest.raises(ConfigError, match="'architecture' holds no parameter"):
        algorithm.train_step(4, swapped)


def with_connector() -> DataFreeDistillation:
    distiller = dict(
        type='ConfigurableDistiller',
        student_recorders=dict(feature=dict(type='ModuleOutputs', source='5')),
        teacher_recorders=dict(feature=dict(type='ModuleOutputs', source='big.5')),
        connectors=dict(wide=dict(type='ConvModuleConnector', in_channel=8, out_channel=16)),
        distill_losses=dict(loss_l2=dict(type='L2Loss')),
        loss_forward_mappings=dict(
            loss_l2=dict(
                s_feature=dict(from_student=True, recorder='feature', connector='wide'),
                t_feature=dict(from_student=False, recorder='feature'),
            )
        ),
    )
    return build('DataFreeDistillation', distiller=distiller, student_iter=2)


def test_connectors_are_trained_by_an_optimizer_of_their_own_or_the_students() -> None:
    results = []
    for apart in (True, False):
        algorithm = with_connector()
        with pytest.raises(ConfigError, match=r"connectors\.wide\.conv_module.*the key 'distiller'"):
            algorithm.train_step(4, optimizers(algorithm))
        before = copied(algorithm.distiller)
        given = dict(optimizers(algorithm).items())
        if apart:
            given['distiller'] = OptimWrapper(torch.optim.SGD(algorithm.distiller.parameters(), 0.05, momentum=0.9))
        else:
            given['architecture'].optimizer.add_param_group({'params': list(algorithm.distiller.parameters())})
        for _ in range(2):
            algorithm.train_step(4, OptimWrapperDict(**given))
        assert not same(before, algorithm.distiller.state_dict())
        results.append(copied(algorithm))
    assert same(*results)


def test_optimizers_of_one_backward_must_update_together() -> None:
    algorithm = with_connector()
    given = dict(optimizers(algorithm).items())
    connectors = torch.optim.SGD(algorithm.distiller.parameters(), 0.05)
    with pytest.raises(ConfigError, match='share one backward'):
        algorithm.train_step(4, {**given, 'distiller': OptimWrapper(connectors, accumulative_counts=2)})
    with pytest.raises(ConfigError, match='share one backward'):
        algorithm.train_step(4, {**given, 'distiller': AmpOptimWrapper(optimizer=connectors, dtype='float16')})
    with pytest.raises(ConfigError, match="'connectors'"):
        algorithm.train_step(4, {**given, 'connectors': OptimWrapper(connectors)})


@pytest.mark.parametrize(
    ('batch', 'size'),
    [
        (7, 7),
        (torch.zeros(5), 5),
        ((torch.zeros(3, 1, 8, 8), torch.zeros(3)), 3),
        ([torch.zeros(3, 1, 8, 8), None], 3),
        ([torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)], 2),
        ([torch.zeros(1, 8, 8)] * 3, 3),
        ([{'inputs': 0}, {'inputs': 1}], 2),
        ({'inputs': torch.zeros(4, 1), 'data_samples': None}, 4),
        ({'inputs': [torch.zeros(1)] * 2}, 2),
    ],
)
def test_the_size_of_a_batch_is_found_in_every_form(batch: object, size: int) -> None:
    assert size_of(batch) == size


@pytest.mark.parametrize('batch', [0, None, {}, [], 'x' * 0, {'data_samples': 1}, 2.5])
def test_a_batch_without_a_size_is_refused(batch: object) -> None:
    with pytest.raises(ConfigError, match='size of the batch'):
        size_of(batch)
