"""Data-free distillation: a generator draws the images, so the student learns without the teacher's data.

Chen et al.: Data-Free Learning of Student Networks (DAFL), ICCV 2019, https://arxiv.org/abs/1904.01186. Micaelli, Storkey:
Zero-shot Knowledge Transfer via Adversarial Belief Matching (ZSKT), NeurIPS 2019, https://arxiv.org/abs/1905.09768. Fang et
al.: Data-Free Adversarial Distillation (DFAD), 2019, https://arxiv.org/abs/1912.11006.

Implemented here: the steps; what makes them one paper or another are the losses of the two distillers. The batches of the
training loop give nothing but their size. Differs from the papers: while the generator learns, the student is fixed and gets
no gradient that its own step would add to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from strop.algorithms.algorithm import BaseAlgorithm, LossResults
from strop.algorithms.single_teacher import build_teachers, prefixed
from strop.distill import ConfigurableDistiller
from strop.errors import ComponentTypeError, ConfigError, listed
from strop.graph.forward import evaluated
from strop.randomness import derive_seed
from strop.registry import MODELS

#: What `loss` is asked for within a step; the keys of the optimizers that follow it.
GENERATOR, STUDENT = 'generator', 'architecture'
#: Keys of optimizers for the connectors of either distiller.
OF_CONNECTORS = {STUDENT: 'distiller', GENERATOR: 'generator_distiller'}


@MODELS.register_module()
class DataFreeDistillation(BaseAlgorithm):
    """Train a generator and a student in turn, by teachers that never change.

    In a generator step new images pass teachers and student, and the losses of `generator_distiller` update the generator
    (adversarial ones have a negative weight). In a student step new images without a gradient do, and the losses of
    `distiller` update the student. Teachers and student run with `mode='tensor'`. Latent vectors are a function of
    (seed, rank, step).

    Args:
        distiller: A `ConfigurableDistiller` or its config: what the student learns. Sources of teacher recorders start with
            the teacher's name, as in 'res34.head.fc'.
        generator_distiller: The same for what the generator learns.
        teachers: Name -> module, its config, or `dict(build_cfg=..., ckpt_path=...)` with the file or URL of its weights.
        generator: A module or its config, such as `dict(type='DAFLGenerator', ...)`: it has `latent_dim`, and makes images of
            latent vectors, shape `(batch, latent_dim)`.
        student_iter: Student steps in each training step.
        student_train_first: Whether they come before the generator's step.
        seed: Seed of the latent vectors; the runner's seed by default (0 without a runner).
        kwargs: `architecture`, the student, and the other arguments of `BaseAlgorithm`.

    Raises:
        ComponentTypeError: If a part is of the wrong class.
        ConfigError: If there is no teacher, or the weights of one are of another model.

    >>> recorder = dict(out=dict(type='ModuleOutputs', source='0'))
    >>> teachers = dict(out=dict(type='ModuleOutputs', source='big.0'))
    >>> mapping = dict(preds_S=dict(from_student=True, recorder='out'), preds_T=dict(from_student=False, recorder='out'))
    >>> def distiller(**options):
    ...     return ConfigurableDistiller(
    ...         recorder, teachers, None, None, dict(loss_kl=dict(type='KLDivergence', **options)), dict(loss_kl=mapping)
    ...     )
    >>> class Latent(nn.Linear):
    ...     latent_dim = 2
    >>> algorithm = DataFreeDistillation(
    ...     distiller(),
    ...     distiller(loss_weight=-1.0, teacher_detach=False),
    ...     teachers=dict(big=nn.Sequential(nn.Linear(4, 3))),
    ...     generator=Latent(2, 4),
    ...     architecture=nn.Sequential(nn.Linear(4, 3)),
    ... )
    >>> optimizers = {key: torch.optim.SGD(getattr(algorithm, key).parameters(), 0.1) for key in ('architecture', 'generator')}
    >>> sorted(algorithm.train_step(8, optimizers))
    ['distill_iter0.loss_kl', 'generator.loss', 'generator.loss_kl', 'loss']
    """

    def __init__(
        self,
        distiller: ConfigurableDistiller | Mapping[str, Any],
        generator_distiller: ConfigurableDistiller | Mapping[str, Any],
        teachers: Mapping[str, Any],
        generator: nn.Module | Mapping[str, Any],
        student_iter: int = 1,
        student_train_first: bool = False,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        if 'architecture' not in kwargs:
            raise ConfigError(f'{type(self).__name__} needs an `architecture`, the student.')
        super().__init__(**kwargs)
        if not isinstance(student_iter, int) or student_iter < 1:
            raise ConfigError(f'student_iter must be a positive integer; got {student_iter!r}.')
        self.student_iter = student_iter
        self.student_train_first = student_train_first
        self.seed = seed
        self.distiller = _distiller('distiller', distiller)
        self.generator_distiller = _distiller('generator_distiller', generator_distiller)
        self.teachers = _teachers(teachers)
        self.generator = MODELS.build(dict(generator)) if isinstance(generator, Mapping) else generator
        if not isinstance(self.generator, nn.Module) or not isinstance(getattr(self.generator, 'latent_dim', None), int):
            raise ComponentTypeError(
                '`generator` must be a module with the attribute `latent_dim`, or its config, for example '
                "dict(type='DAFLGenerator', img_size=32, latent_dim=1000, hidden_channels=128); got "
                f'{type(self.generator).__name__}.'
            )
        self.latent_dim: int = self.generator.latent_dim  # type: ignore[assignment]
        for watching in (self.distiller, self.generator_distiller):
            watching.prepare_from_student(self.student)
            watching.prepare_from_teacher(self.teachers)
        self._checked = False

    @property
    def student(self) -> BaseModel:
        """The student: the architecture."""
        return self.architecture

    def train(self, mode: bool = True) -> DataFreeDistillation:
        """Set the mode; teachers stay in evaluation."""
        super().train(mode)
        if hasattr(self, 'teachers'):
            self.teachers.eval()
        return self

    # -- images ----------------------------------------------------------------------------

    def draw_latents(self, batch_size: int, purpose: str) -> torch.Tensor:
        """Return the latent vectors of this step, of shape `(batch_size, latent_dim)`, on the CPU.

        Args:
            batch_size: How many.
            purpose: What they are for: each purpose gets vectors of its own.
        """
        seed = derive_seed(self.seed or 0, f'latents/{purpose}/{get_rank()}', self.step)
        return torch.randn(batch_size, self.latent_dim, generator=torch.Generator().manual_seed(seed))

    def generate(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the images of latent vectors."""
        return self.generator(latents.to(next(self.generator.parameters())))

    # -- losses ----------------------------------------------------------------------------

    def loss(self, batch_inputs: Any, data_samples: Any = None) -> LossResults:
        """Return the losses of one step, or of both kinds of steps.

        Args:
            batch_inputs: Latent vectors of a generator step, images of a student step; otherwise a batch, of which only the
                size is used.
            data_samples: 'generator' or 'architecture' for the step of that part; anything else gives both.

        Returns:
            The losses of the step; or those of both, named 'generator.<name>' and 'distill.<name>'.
        """
        if isinstance(data_samples, str) and data_samples == GENERATOR:
            return self._losses(self.generator_distiller, self.generate(batch_inputs), of_generator=True)
        if isinstance(data_samples, str) and data_samples == STUDENT:
            return self._losses(self.distiller, batch_inputs, of_generator=False)
        images = self.generate(self.draw_latents(size_of(batch_inputs), GENERATOR))
        of_generator = self._losses(self.generator_distiller, images, of_generator=True)
        of_student = self._losses(self.distiller, images.detach(), of_generator=False)
        return {**prefixed(of_generator, 'generator'), **prefixed(of_student, 'distill')}

    def _losses(self, distiller: ConfigurableDistiller, images: torch.Tensor, of_generator: bool) -> LossResults:
        try:
            with distiller.teacher_recorders, nullcontext() if of_generator else torch.no_grad():
                for number, teacher in enumerate(self.teachers.children()):
                    # What the first one draws is handed to the others, too.
                    distiller.set_deliveries_override(number > 0)
                    with distiller.distill_deliveries:
                        teacher(images, mode='tensor')
            if not of_generator or distiller.student_recorders.recorders:
                distiller.set_deliveries_override(True)
                with distiller.student_recorders, distiller.distill_deliveries:
                    self.student(images, mode='tensor')
            return distiller.compute_distill_losses()
        finally:
            distiller.clear()

    # -- training --------------------------------------------------------------------------

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        """Train the generator once and the student `student_iter` times.

        Args:
            data: A batch, of which only the size is used; or that size.
            optim_wrapper: MMEngine's `OptimWrapperDict`, or a mapping, with the keys 'architecture' (the student's) and
                'generator', and perhaps 'distiller' and 'generator_distiller' for connectors; its values may be plain torch
                optimizers. One optimizer for all is taken as well.

        Returns:
            The losses of student step i as 'distill_iter<i>.<name>', those of the generator as 'generator.<name>', the last
            sum of the student as 'loss'.

        Raises:
            ConfigError: If an optimizer is missing, or lacks parameters that it should train.
            TrainingError: If a loss is not finite.
        """
        optimizers = self._optimizers(optim_wrapper)
        size = size_of(data)
        log: dict[str, torch.Tensor] = {}
        if not self.student_train_first:
            log.update(self._train_generator(size, optimizers[GENERATOR]))
        for index in range(self.student_iter):
            with torch.no_grad():
                images = self.generate(self.draw_latents(size, f'{STUDENT}{index}'))
            losses = self._train(images, STUDENT, optimizers[STUDENT])
            log['loss'] = losses.pop('loss')
            log.update(prefixed(losses, f'distill_iter{index}'))
        if self.student_train_first:
            log.update(self._train_generator(size, optimizers[GENERATOR]))
        self.step += 1
        return log

    def _train_generator(self, size: int, optimizers: Sequence[OptimWrapper]) -> dict[str, torch.Tensor]:
        with _fixed(self.student):
            losses = self._train(self.draw_latents(size, GENERATOR), GENERATOR, optimizers)
        return prefixed(losses, 'generator')

    def _train(self, inputs: torch.Tensor, part: str, optimizers: Sequence[OptimWrapper]) -> dict[str, torch.Tensor]:
        optim_wrapper, *more = optimizers
        with optim_wrapper.optim_context(self._wrapper() if self._wrapper is not None else self):
            losses = self._run_forward((inputs, part), mode='loss')
        total, log = self.parse_losses(losses)
        self._check_finite(total, log, optim_wrapper)
        optim_wrapper.update_params(total)
        for other in more:
            # That backward has filled the gradients of the connectors too.
            other._inner_count += 1
            if other.should_update():
                other.step()
                other.zero_grad()
        return {name: value.detach() for name, value in log.items()}

    def _optimizers(self, given: Any) -> dict[str, list[OptimWrapper]]:
        """Return the optimizers that follow the loss of each part, its own first."""
        if isinstance(given, (OptimWrapper, torch.optim.Optimizer)) and not isinstance(given, OptimWrapperDict):
            found: dict[str, Any] = {STUDENT: given, GENERATOR: given}
        elif isinstance(given, (OptimWrapperDict, Mapping)):
            found = dict(given.items())
        else:
            raise ComponentTypeError(
                f'train_step needs an OptimWrapperDict or a mapping of optimizers, but got {type(given).__name__}.'
            )
        unknown = sorted(set(found) - {*OF_CONNECTORS, *OF_CONNECTORS.values()})
        if not {STUDENT, GENERATOR} <= set(found) or unknown:
            raise ConfigError(
                "The optimizers need the keys 'architecture' (the student) and 'generator', and may have 'distiller' and "
                f"'generator_distiller' (their connectors), but have {listed(found) or 'none'}. In a config: optim_wrapper="
                "dict(constructor='SeparateOptimWrapperConstructor', architecture=dict(optimizer=...), "
                'generator=dict(optimizer=...)).'
            )
        wrappers = {
            key: OptimWrapper(value) if isinstance(value, torch.optim.Optimizer) else value for key, value in found.items()
        }
        chosen = {part: [wrappers[key] for key in (part, extra) if key in wrappers] for part, extra in OF_CONNECTORS.items()}
        if not self._checked:
            _check_optimizers(chosen[STUDENT], STUDENT, self.student, self.distiller)
            _check_optimizers(chosen[GENERATOR], GENERATOR, self.generator, self.generator_distiller)
            self._checked = True
        return chosen


@MODELS.register_module()
class DAFLDataFreeDistillation(DataFreeDistillation):
    """Train generator and student on the same images in each step, as DAFL does.

    The losses of `generator_distiller` (one-hot, activation, entropy of the teacher's outputs) update the generator; those of
    `distiller` update the student, on the images that the generator made before its update.

    Args:
        distiller: A `ConfigurableDistiller` or its config: what the student learns.
        generator_distiller: The same for what the generator learns.
        teachers: Name -> module, its config, or `dict(build_cfg=..., ckpt_path=...)` with the file or URL of its weights.
        generator: A module or its config; it has `latent_dim`.
        student_iter: 1, as both learn from the same images.
        student_train_first: False, as the order makes no difference.
        seed: Seed of the latent vectors; the runner's seed by default (0 without a runner).
        kwargs: `architecture`, the student, and the other arguments of `BaseAlgorithm`.

    Raises:
        ComponentTypeError: If a part is of the wrong class.
        ConfigError: If there is no teacher, the weights of one are of another model, or `student_iter` is not 1.

    Reference: Chen et al., Data-Free Learning of Student Networks, ICCV 2019, https://arxiv.org/abs/1904.01186
    """

    def __init__(
        self,
        distiller: ConfigurableDistiller | Mapping[str, Any],
        generator_distiller: ConfigurableDistiller | Mapping[str, Any],
        teachers: Mapping[str, Any],
        generator: nn.Module | Mapping[str, Any],
        student_iter: int = 1,
        student_train_first: bool = False,
        **kwargs: Any,
    ) -> None:
        if student_iter != 1 or student_train_first:
            raise ConfigError(
                'DAFLDataFreeDistillation trains both on the same images once a step, so student_iter is 1 and '
                'student_train_first False. DataFreeDistillation has the other orders.'
            )
        super().__init__(distiller, generator_distiller, teachers, generator, **kwargs)
        self._images: torch.Tensor | None = None

    def generate(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the images of latent vectors, and keep them for the student's step."""
        images = super().generate(latents)
        self._images = images.detach()
        return images

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        """Train generator and student on new images.

        Args:
            data: A batch, of which only the size is used; or that size.
            optim_wrapper: As in `DataFreeDistillation`.

        Returns:
            The losses of the student as 'distill.<name>', those of the generator as 'generator.<name>', the sum of the
            student's as 'loss'.

        Raises:
            ConfigError: If an optimizer is missing, or lacks parameters that it should train.
            TrainingError: If a loss is not finite.
        """
        optimizers = self._optimizers(optim_wrapper)
        # The generator's update changes neither these images nor the student: its loss is that of the weights before.
        log = self._train_generator(size_of(data), optimizers[GENERATOR])
        images, self._images = self._images, None
        losses = self._train(images, STUDENT, optimizers[STUDENT])  # type: ignore[arg-type]
        total = losses.pop('loss')
        self.step += 1
        return {**log, **prefixed(losses, 'distill'), 'loss': total}


def size_of(data: Any) -> int:
    """Return the number of samples of a batch.

    Args:
        data: A tensor, a mapping with `inputs`, a pair of inputs and labels, a list of samples, or the number itself.

    Raises:
        ConfigError: If it is none of these, or empty.

    >>> size_of(3), size_of((torch.zeros(4, 1), torch.zeros(4))), size_of([{'inputs': 0}] * 5)
    (3, 4, 5)
    """
    given = data
    if isinstance(data, Mapping):
        data = data.get('inputs')
    elif isinstance(data, (tuple, list)) and len(data) == 2 and not isinstance(data[0], (Mapping, int, float)):
        # A pair of inputs and labels, where both count the samples; two images in a list differ from it in their axes.
        first, second = data
        pair = not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor) or first.shape != second.shape
        data = first if pair else data
    size = data if isinstance(data, int) else len(data) if hasattr(data, '__len__') else 0
    if size < 1:
        raise ConfigError(
            'The size of the batch is needed: give a batch as a loader makes it, or a positive integer; got '
            f'{type(given).__name__}.'
        )
    return size


@contextmanager
def _fixed(model: nn.Module) -> Iterator[None]:
    """Let no parameter of a model require a gradient inside the block."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad = True


def _distiller(name: str, given: Any) -> ConfigurableDistiller:
    built = MODELS.build(dict(given)) if isinstance(given, Mapping) else given
    if not isinstance(built, ConfigurableDistiller):
        raise ComponentTypeError(f'`{name}` must be a ConfigurableDistiller or its config, but got {type(built).__name__}.')
    return built


def _teachers(given: Any) -> nn.Module:
    if not isinstance(given, Mapping):
        raise ComponentTypeError(
            f'`teachers` must be a mapping name -> model, as dict(res34=dict(build_cfg=..., ckpt_path=...)), but got '
            f'{type(given).__name__}.'
        )
    if not given:
        raise ConfigError('`teachers` is empty; without a teacher there is nothing to learn.')
    split = {
        name: (teacher['build_cfg'], teacher.get('ckpt_path')) if _has_weights(teacher) else (teacher, None)
        for name, teacher in given.items()
    }
    teachers = build_teachers(
        {name: model for name, (model, _) in split.items()}, {name: path for name, (_, path) in split.items() if path}
    )
    return evaluated(teachers.requires_grad_(False))


def _has_weights(teacher: Any) -> bool:
    return isinstance(teacher, Mapping) and 'build_cfg' in teacher


def _check_optimizers(optimizers: Sequence[OptimWrapper], key: str, model: nn.Module, distiller: nn.Module) -> None:
    """Check that what a step should train is in its optimizers, and that these update together."""
    held = {id(parameter) for each in optimizers for group in each.optimizer.param_groups for parameter in group['params']}
    if not any(id(parameter) in held for parameter in model.parameters() if parameter.requires_grad):
        raise ConfigError(f'The optimizer {key!r} holds no parameter of the {type(model).__name__} that it should train.')
    left = [name for name, parameter in distiller.named_parameters() if parameter.requires_grad and id(parameter) not in held]
    if left:
        raise ConfigError(
            f'No optimizer holds the parameters of the connectors ({listed(left, 3)}), so they would stay as they are. Give '
            f'them one with the key {OF_CONNECTORS[key]!r}, or put them into that of {key!r}.'
        )
    if len(optimizers) > 1 and (
        any(getattr(each, 'loss_scaler', None) is not None for each in optimizers)
        or len({each._accumulative_counts for each in optimizers}) > 1
    ):
        raise ConfigError(
            f'The optimizers {key!r} and {OF_CONNECTORS[key]!r} share one backward, so they accumulate equally often and scale '
            'no loss. Put all parameters into one, or use bfloat16.'
        )
