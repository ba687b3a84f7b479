"""What a training step of anybody's loop needs to distil into a model, or to train it as a supernet.

A loop calls the model and computes a loss; what compression adds to that is the same in every loop: the subnet of the step is
made current, the teacher sees what the student sees, and the distiller's loss is added. `CompressionStep` holds these, and the
count of the steps. `strop.engine.lightning` and `strop.engine.transformers_trainer` put it into two loops that are not the
caller's own; in a loop that is, it is a `with` block.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce, broadcast, is_distributed
from torch import nn

from strop.distill import ConfigurableDistiller
from strop.engine.calibration import kept_batch_norms
from strop.engine.trainer import to_device
from strop.errors import ComponentTypeError, ConfigError, NotDecidedError, TrainingError, listed, near
from strop.mutables import Subnet, load_subnet
from strop.mutators import BaseMutator, DifferentiableMutator, Mutator
from strop.pruning import recalibrate
from strop.randomness import derive_seed, seeded
from strop.registry import MODELS


class CompressionStep:
    """The subnet, the teacher and the distillation loss of the steps of a training loop.

    Inside `training()` the student runs as the subnet of the step, and each call of it is preceded by one of the teacher with
    the same inputs, recorded both. `loss(own)` adds what the distiller finds. The subnet is a function of (seed, number of the
    step), so that processes agree on it, and a run that goes on from `state_dict()` draws what it would have drawn.

    Args:
        student: The model that the loop calls, as it is before the loop wraps it for distributed training.
        mutator: Bound to the student, to a part of it or to what it is a part of; None if there is no supernet.
        distiller: A `ConfigurableDistiller` or its config; None for the loop's own loss alone.
        teacher: The teacher, which is frozen and kept in eval mode; None with a distiller lets the student teach itself.
        distill_weight: What the distiller's loss is multiplied by.
        seed: Seed of the subnets.
        subnet: The subnet of evaluations: 'max', 'min' ('final' of differentiable mutators), a subnet, a mapping, or a file
            of one; None leaves the one that is current.
        calibration: Batches of inputs on which the batch norms of that subnet are measured before it is evaluated; they get
            back what they had. A list or a data loader, since each evaluation reads it anew.
        teacher_inputs: `teacher_inputs(args, kwargs) -> (args, kwargs)` for a teacher that sees something else than the
            student; by default the same, without keywords that its forward does not have.

    Raises:
        ComponentTypeError: If a part is of the wrong class.
        ConfigError: If parts do not belong together, or there is nothing to do.

    >>> from strop.distill import distiller_for
    >>> from strop.mutables import LayerChoice
    >>> from strop.mutators import RandomMutator
    >>> teacher = nn.Linear(4, 3)
    >>> student = nn.Sequential(LayerChoice([nn.Linear(4, 3), nn.Linear(4, 3, bias=False)], key='layer'))
    >>> mutator = RandomMutator(student)
    >>> mutator.reset()
    >>> inputs, labels = torch.randn(2, 4), torch.tensor([0, 2])
    >>> distiller = distiller_for(student, teacher, inputs)
    >>> step = CompressionStep(student, mutator=mutator, distiller=distiller, teacher=teacher)
    >>> with step.training():
    ...     loss = step.loss(nn.functional.cross_entropy(student(inputs), labels))
    >>> loss.backward()
    >>> step.count
    1
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        mutator: BaseMutator | None = None,
        distiller: ConfigurableDistiller | Mapping[str, Any] | None = None,
        teacher: nn.Module | None = None,
        distill_weight: float = 1.0,
        seed: int = 0,
        subnet: str | os.PathLike[str] | Mapping[str, Any] | Subnet | None = None,
        calibration: Iterable[Any] | None = None,
        teacher_inputs: Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
    ) -> None:
        if isinstance(distiller, Mapping):
            distiller = MODELS.build({'type': 'ConfigurableDistiller', **distiller})
        for name, part, kind in (
            ('student', student, nn.Module),
            ('mutator', mutator, BaseMutator),
            ('distiller', distiller, ConfigurableDistiller),
            ('teacher', teacher, nn.Module),
        ):
            if not isinstance(part, kind) and (part is not None or name == 'student'):
                raise ComponentTypeError(f'`{name}` must be a {kind.__name__}, but got {type(part).__name__}.')
        if mutator is None and distiller is None:
            raise ConfigError(
                'There is nothing to do in a step: give a `mutator` of the student, a `distiller`, or both.'
                + (' Of a teacher alone nothing is learned: distiller=strop.distiller_for(student, teacher, inputs).')
                * (teacher is not None)
            )
        if teacher is not None and distiller is None:
            raise ConfigError(
                'A `teacher` needs a `distiller`: strop.distiller_for(student, teacher, inputs) makes a usual one.'
            )
        if teacher is not None and teacher is student:
            raise ConfigError('The teacher is the student itself. Leave `teacher` out to let the student teach itself.')
        if mutator is not None and not (_within(mutator.model, student) or _within(student, mutator.model)):
            raise ConfigError(
                f'The {type(mutator).__name__} is bound to another model than the student. Make the mutator of the model that '
                'the loop calls, before the loop wraps it.'
            )
        if subnet is not None and mutator is None:
            raise ConfigError('`subnet` says what a supernet is evaluated as; it needs the `mutator` of the student.')
        if isinstance(calibration, Iterator):
            raise ConfigError(
                '`calibration` is read before each evaluation: give a list of batches or a data loader, no iterator.'
            )
        self.student = student
        self.mutator: Any = mutator
        self.distiller: Any = distiller
        self.teacher = teacher
        self.distill_weight = distill_weight
        self.seed = seed
        self.calibration = calibration
        self.teacher_inputs = teacher_inputs or self._accepted
        #: How many steps were begun: each `training()` is one, also where a loop accumulates gradients over several.
        self.count = 0
        #: The distiller's weighted loss in the latest step, detached; None before.
        self.distill_loss: torch.Tensor | None = None
        self._running = False
        self._keywords: set[str] | None = None
        if teacher is not None:
            teacher.requires_grad_(False)
            teacher.eval()
            signature = inspect.signature(teacher.forward)
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
                self._keywords = set(signature.parameters)
        self.subnet = self._checked(subnet)

    # -- training --------------------------------------------------------------------------

    @contextmanager
    def training(self) -> Iterator[CompressionStep]:
        """Begin a step: make its subnet current, and watch student and teacher until the block ends.

        Raises:
            TrainingError: If a step is under way already.
            ConfigError: If a source of a recorder is not in its model.
        """
        if self._running:
            raise TrainingError('A step is under way already: end its `with step.training()` block before the next one begins.')
        self._follow()
        if self.mutator is not None:
            self._draw()
        self.count += 1
        self.distill_loss = None
        self._running = True
        try:
            with ExitStack() as stack:
                if self.distiller is not None:
                    stack.enter_context(self.distiller.record(self.teacher, self.student))
                if self.teacher is not None:
                    # First of all hooks, so that the recorders know the teacher's calls from the student's.
                    handle = self.student.register_forward_pre_hook(self._teach, with_kwargs=True, prepend=True)
                    stack.callback(handle.remove)
                yield self
        except BaseException:
            if self.distiller is not None:
                self.distiller.clear()
            raise
        finally:
            self._running = False

    def loss(self, own: torch.Tensor | None = None, share: float = 1.0) -> torch.Tensor:
        """Return the loss of the step: the loop's own, plus the distiller's.

        Args:
            own: The loop's loss; None where the student learns from the teacher alone.
            share: What the distiller's loss is multiplied by, beside `distill_weight`: one part in n where a loop adds up n
                batches that its own loss is already averaged over.

        Raises:
            TrainingError: If the student was not called in the step, or a loss is not finite.
            ConfigError: If there is no loss at all.
        """
        if self.distiller is None:
            if own is None:
                raise ConfigError('This step has no distiller, so the loop must give a loss of its own: step.loss(loss).')
            return own
        found = self.distiller.loss() * (self.distill_weight * share)
        self.distill_loss = found.detach()
        return found if own is None else own + found

    def forget(self) -> None:
        """Forget what was recorded in a step whose loss is not used."""
        if self.distiller is not None:
            self.distiller.clear()

    def _draw(self) -> None:
        devices = {parameter.device for parameter in self.mutator.parameters() if parameter.is_cuda}
        with torch.random.fork_rng(devices=devices), seeded(self.seed, 'subnet', self.count, gpus=False):
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(derive_seed(self.seed, 'subnet', self.count))
            if isinstance(self.mutator, Mutator):
                self.mutator.reset()
            else:
                self.mutator.set_subnet(self.mutator.sample_subnet())

    def _teach(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self.teacher is not None, 'the hook is there for a teacher alone'
        # Loops put whole trees of modules into train mode, and the teacher may be in one.
        self.teacher.eval()
        args, kwargs = self.teacher_inputs(args, kwargs)
        with torch.no_grad():
            self.teacher(*args, **kwargs)

    def _accepted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {name: value for name, value in kwargs.items() if self._keywords is None or name in self._keywords}

    def _follow(self) -> None:
        """Put what the loop does not know of on the device that it put the student on."""
        device = next((parameter.device for parameter in self.student.parameters()), None)
        if device is None:
            return
        for part in (self.teacher, self.distiller, self.mutator):
            tensor = None if part is None else next(iter((*part.parameters(), *part.buffers())), None)
            if part is not None and tensor is not None and tensor.device != device:
                part.to(device)

    # -- the optimizer ---------------------------------------------------------------------

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what is trained beside the student: parameters of connectors and losses, and those of the mutator."""
        for part in (self.distiller, self.mutator):
            if part is not None:
                yield from (parameter for parameter in part.parameters() if parameter.requires_grad)

    def add_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer train `parameters()`, too, with the settings of its first group; those that it has stay.

        In a distributed run they start from those of the first process, and their gradients are averaged as they come, since
        the wrapper of the student does not know them.

        >>> student = nn.Linear(2, 2)
        >>> distiller = MODELS.build(dict(type='ConfigurableDistiller'))
        >>> step = CompressionStep(student, distiller=distiller)
        >>> step.add_to(torch.optim.SGD(student.parameters(), lr=0.1))
        """
        # Before a state is loaded for them, which goes to where they are; the student may move in between.
        self._follow()
        inner = getattr(optimizer, 'optimizer', optimizer)  # Accelerate wraps it, without the hooks of optimizers
        if hasattr(inner, '_optimizer_load_state_dict_pre_hooks'):
            inner.register_load_state_dict_pre_hook(lambda *_: self._follow())
        known = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
        for parameter in self.parameters():
            if id(parameter) in known:
                continue
            # A group of its own would come too late for schedulers, which keep one number for each group.
            optimizer.param_groups[0]['params'].append(parameter)
            if is_distributed():
                broadcast(parameter.data)
                parameter.register_post_accumulate_grad_hook(_averaged)

    # -- evaluation ------------------------------------------------------------------------

    @contextmanager
    def evaluating(self, subnet: str | os.PathLike[str] | Mapping[str, Any] | Subnet | None = None) -> Iterator[None]:
        """Make one subnet current until the block ends, with batch norms measured for it where there is `calibration`.

        Args:
            subnet: As for the class, whose subnet is the default.

        Raises:
            SubnetError: If it does not fit.
            ConfigError: If the student is no supernet, or a name or file is unknown.
        """
        if subnet is not None and self.mutator is None:
            raise ConfigError('The student has no `mutator`, so it cannot be evaluated as another subnet.')
        wanted = self.subnet if subnet is None else self._checked(subnet)
        if wanted is None:
            yield
            return
        try:
            before = self.mutator.current_subnet()
        except NotDecidedError:
            before = None
        with kept_batch_norms(self.student):
            try:
                self.mutator.set_subnet(self._choices(wanted))
                if self.calibration is not None:
                    self._follow()
                    device = next(self.student.parameters()).device
                    recalibrate(self.student, (to_device(batch, device) for batch in self.calibration))
                yield
            finally:
                if before is not None:
                    self.mutator.set_subnet(before)

    def _checked(self, subnet: Any) -> Any:
        """Return a subnet that is known to fit, or the kind of one that is asked of the mutator in time."""
        if subnet is None:
            return None
        kinds = ('max', 'min', *(('final',) if isinstance(self.mutator, DifferentiableMutator) else ()))
        if isinstance(subnet, str) and subnet in kinds:
            return subnet
        if isinstance(subnet, str) and not os.path.exists(subnet):
            raise ConfigError(
                f'`subnet` must be one of {listed(kinds)}, a mapping, or a file of a subnet, but there is no file '
                f'{subnet!r}.{near(subnet, kinds)}'
            )
        space = self.mutator.space
        return load_subnet(subnet, space) if isinstance(subnet, (str, os.PathLike)) else space.subnet(subnet)

    def _choices(self, subnet: Any) -> Any:
        return self.mutator.sample_choices(subnet) if isinstance(subnet, str) else subnet

    # -- state -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the count of the steps, and the weights of distiller and mutator."""
        parts = {'distiller': self.distiller, 'mutator': self.mutator}
        return {'count': self.count, **{name: part.state_dict() for name, part in parts.items() if part is not None}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ConfigError: If it is the state of other parts than these.
        """
        mine = {name: part for name, part in (('distiller', self.distiller), ('mutator', self.mutator)) if part is not None}
        if not isinstance(state, Mapping) or set(state) != {'count', *mine}:
            given = listed(state) if isinstance(state, Mapping) else type(state).__name__
            raise ConfigError(f'The state of this step has {listed(["count", *mine])}, but what is to be loaded has {given}.')
        for name, part in mine.items():
            try:
                part.load_state_dict(state[name])
            except RuntimeError as error:
                raise ConfigError(f'The saved {name} is not that of this step: {error}') from error
        self.count = int(state['count'])


def _within(part: nn.Module, whole: nn.Module) -> bool:
    return any(module is part for module in whole.modules())


def _averaged(parameter: torch.Tensor) -> None:
    if parameter.grad is not None:
        all_reduce(parameter.grad, 'mean')
