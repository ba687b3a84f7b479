"""Distillers: recorders, connectors and losses put together by a config."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from strop.distill.deliveries import DistillDeliveryManager
from strop.distill.loss_inputs import check_not_stretched
from strop.distill.mappings import check_mappings
from strop.distill.projections import connector_hint
from strop.distill.recorders import RecorderManager, mapped
from strop.distill.recording import recorded
from strop.errors import ComponentTypeError, ConfigError, StropError, TrainingError, listed
from strop.registry import MODELS


class BaseDistiller(BaseModule):
    """What algorithms ask of a distiller: the losses of the forwards that it has watched.

    Args:
        init_cfg: MMEngine's initialization config, for the parameters of connectors and losses.
    """

    def __init__(self, init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None) -> None:
        super().__init__(init_cfg)

    @abstractmethod
    def compute_distill_losses(self) -> dict[str, Tensor]:
        """Return the distillation losses by name."""


@MODELS.register_module()
class ConfigurableDistiller(BaseDistiller):
    """Distil what recorders recorded, through connectors, by losses; all by name, and checked when built.

    For each loss, `loss_forward_mappings` says what its forward gets: argument -> `dict(recorder=..., from_student=True or
    False)`, and perhaps `record_idx` (number of the call in the forward, 0), `data_idx` (part of what the call gave),
    `connector` (what the record is passed through) and `connector_idx` (part of what the connector gives).

    Args:
        student_recorders: name -> recorder config, for the student.
        teacher_recorders: name -> recorder config, for the teacher.
        distill_deliveries: name -> delivery config: outputs of functions that the teacher hands to the student.
        connectors: name -> module or its config; trained with the student.
        distill_losses: name -> loss or its config; a sequence of pairs (name, config) is taken as well. Names contain 'loss',
            since MMEngine adds up only those entries of a step's results.
        loss_forward_mappings: loss -> argument -> record.
        init_cfg: MMEngine's initialization config.

    Raises:
        ConfigError: If a mapping names no recorder, connector, loss or argument of the loss, or two losses share a name.
        UnknownTypeError: If a type is not registered.

    >>> teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    >>> distiller = ConfigurableDistiller(
    ...     student_recorders=dict(out=dict(type='ModuleOutputs', source='')),
    ...     teacher_recorders=dict(out=dict(type='ModuleOutputs', source='')),
    ...     distill_losses=dict(loss_mse=dict(type='torch.nn.MSELoss')),
    ...     loss_forward_mappings=dict(
    ...         loss_mse=dict(input=dict(from_student=True, recorder='out'), target=dict(from_student=False, recorder='out'))
    ...     ),
    ... )
    >>> with distiller.record(teacher, student):
    ...     with torch.no_grad():
    ...         expected = teacher(torch.ones(2, 4))
    ...     output = student(torch.ones(2, 4))
    >>> bool(distiller.loss() == (output - expected).square().mean())
    True
    """

    def __init__(
        self,
        student_recorders: Mapping[str, Any] | None = None,
        teacher_recorders: Mapping[str, Any] | None = None,
        distill_deliveries: Mapping[str, Any] | None = None,
        connectors: Mapping[str, Any] | None = None,
        distill_losses: Mapping[str, Any] | Sequence[tuple[str, Any]] | None = None,
        loss_forward_mappings: Mapping[str, Any] | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.student_recorders = RecorderManager(student_recorders)
        self.teacher_recorders = RecorderManager(teacher_recorders)
        self.deliveries = DistillDeliveryManager(distill_deliveries)
        self.connectors = _modules('connector', connectors)
        self.distill_losses = _modules('distillation loss', distill_losses)
        if not isinstance(loss_forward_mappings or {}, Mapping):
            raise ConfigError(
                f'`loss_forward_mappings` must be a mapping loss -> argument -> record, but got {loss_forward_mappings!r}.'
            )
        for name in self.distill_losses:
            if 'loss' not in name:
                raise ConfigError(
                    f'The distillation loss {name!r} would not be added to the loss: MMEngine adds up entries whose name '
                    f"contains 'loss'. Call it 'loss_{name}'."
                )
        self.loss_forward_mappings = check_mappings(
            loss_forward_mappings or {},
            dict(self.distill_losses.items()),
            dict(self.connectors.items()),
            {True: self.student_recorders.recorders, False: self.teacher_recorders.recorders},
        )
        used = {record.get('connector') for records in self.loss_forward_mappings.values() for record in records.values()}
        idle = [name for name in self.connectors if name not in used]
        if idle:
            print_log(f'No loss gets anything through the connectors {listed(idle)}.', logger='current', level=30)

    # -- forwards ------------------------------------------------------------------------------

    @property
    def distill_deliveries(self) -> DistillDeliveryManager:
        """The deliveries."""
        return self.deliveries

    def prepare_from_student(self, model: nn.Module) -> None:
        """Find the sources of the student's recorders.

        Raises:
            ConfigError: If one is not there; the message names near matches.
        """
        self.student_recorders.initialize(model)

    def prepare_from_teacher(self, model: nn.Module) -> None:
        """Find the sources of the teacher's recorders.

        Raises:
            ConfigError: If one is not there; the message names near matches.
        """
        self.teacher_recorders.initialize(model)

    def set_deliveries_override(self, override: bool) -> None:
        """Let the deliveries keep what they see (False: the teacher's turn), or hand it out (True: the student's)."""
        self.deliveries.override_data = override

    @contextmanager
    def record(self, teacher: nn.Module | None, student: nn.Module | None = None) -> Iterator[ConfigurableDistiller]:
        """Record the forwards of teacher and student that run inside a `with` block.

        Functions and methods of classes that both call are told apart: what is called during the forward of the student is
        the student's. Run the teacher first where there are deliveries, and under `torch.no_grad()` unless it is trained.

        Args:
            teacher: The teacher; None where the student teaches itself.
            student: The student.

        Raises:
            ConfigError: If a source is not in its model, or there are deliveries and one model for both.
        """
        if student is None:
            raise ConfigError('There is nothing to distil into: record(teacher, student), or record(None, student).')
        taught_by = student if teacher is None else teacher
        if taught_by is student and self.deliveries.deliveries:
            raise ConfigError(
                'Deliveries hand what a teacher drew to a student of its own: record(teacher, student) with two models. Where '
                'one model is both, enter `distiller.deliveries` yourself and switch it by set_deliveries_override().'
            )
        if self.student_recorders.model is not student:
            self.prepare_from_student(student)
            if not any(parameter.requires_grad for parameter in student.parameters()):
                print_log('The student is frozen: at most the connectors can learn.', logger='current', level=30)
        if self.teacher_recorders.model is not taught_by:
            self.prepare_from_teacher(taught_by)
        with recorded(self.teacher_recorders, self.student_recorders, self.deliveries, teacher, student):
            yield self

    # -- losses --------------------------------------------------------------------------------

    def get_record(
        self,
        recorder: str,
        from_student: bool,
        record_idx: int = 0,
        data_idx: int | str | None = None,
        connector: str | None = None,
        connector_idx: int | None = None,
    ) -> Any:
        """Return what was recorded, through a connector if one is named.

        Args:
            recorder: Name of the recorder.
            from_student: Whether it is the student's.
            record_idx: Number of the call in the forward.
            data_idx: Part of what the call gave.
            connector: Name of the connector.
            connector_idx: Part of what the connector gives.

        Raises:
            TrainingError: If nothing (or not so much) was recorded.
            ConfigError: If there is no such recorder or part.
        """
        recorders = self.student_recorders if from_student else self.teacher_recorders
        data = recorders.get_recorder(recorder).get_record_data(record_idx, data_idx)
        if connector is None:
            return data
        if connector not in self.connectors:
            raise ConfigError(f'There is no connector {connector!r}. There is {listed(self.connectors) or "none"}.')
        data = self.connectors[connector](_as_taken(self.connectors[connector], data))
        if connector_idx is None:
            return data
        if not isinstance(data, (tuple, list)) or not -len(data) <= connector_idx < len(data):
            size = f'{len(data)} parts' if isinstance(data, (tuple, list)) else f'one {type(data).__name__}'
            raise ConfigError(f'Connector {connector!r} gives {size}, so `connector_idx` cannot be {connector_idx}.')
        return data[connector_idx]

    def compute_distill_losses(self) -> dict[str, Tensor]:
        """Return the losses of what was recorded, by name.

        The student's records are forgotten then. The teacher's stay until its next forward or `clear()`, since one teacher's
        forward may serve several students.

        Raises:
            TrainingError: If a source recorded nothing, or no gradient flows to anything that is trained.
            ConfigError: If shapes do not meet; the message names both, and the connector that would help.
        """
        try:
            losses = {name: self._loss(name, records) for name, records in self.loss_forward_mappings.items()}
        finally:
            self.student_recorders.clear()
        if losses and torch.is_grad_enabled() and not any(loss.requires_grad for loss in losses.values()):
            raise TrainingError(
                'No gradient flows from the distillation losses: the student is frozen (no parameter requires a gradient), or '
                'it ran under torch.no_grad(), or only the teacher is recorded.'
            )
        return losses

    def loss(self, check_finite: bool = True) -> Tensor:
        """Return the sum of the losses of what was recorded, and forget it all.

        Args:
            check_finite: Refuse a loss that is NaN or infinite. It waits for the device.

        Raises:
            TrainingError: As `compute_distill_losses`, or if a loss is not finite; the message names it.
            ConfigError: If there is no loss, or shapes do not meet.
        """
        if not self.loss_forward_mappings:
            raise ConfigError('This distiller has no losses: give distill_losses and loss_forward_mappings.')
        try:
            losses = self.compute_distill_losses()
        finally:
            self.clear()
        if check_finite:
            bad = [name for name, loss in losses.items() if not torch.isfinite(loss.detach()).all()]
            if bad:
                values = ', '.join(f'{name}={loss.detach().float().mean().item():.4g}' for name, loss in losses.items())
                raise TrainingError(f'The distillation loss {listed(bad)} is not finite ({values}).')
        return torch.stack([loss.float().mean() if loss.ndim else loss.float() for loss in losses.values()]).sum()

    def clear(self) -> None:
        """Forget all records and what deliveries keep."""
        self.student_recorders.clear()
        self.teacher_recorders.clear()
        self.deliveries.clear()

    def _loss(self, name: str, records: Mapping[str, Mapping[str, Any]]) -> Tensor:
        inputs = {}
        for argument, record in records.items():
            try:
                inputs[argument] = self.get_record(**record)
            except StropError as error:
                raise type(error)(f'{name!r}, argument {argument!r}, {self._origin(record)}: {error}') from error
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                # Only a connector can fail so.
                raise ConfigError(
                    f'{name!r}, argument {argument!r}, {self._origin(record)}: the connector {record.get("connector")!r} '
                    f'failed ({type(error).__name__}: {error}).'
                ) from error
        try:
            check_not_stretched(self.distill_losses[name], inputs)
            loss = self.distill_losses[name](**inputs)
        except (StropError, RuntimeError, ValueError, IndexError, TypeError) as error:
            explained = self._explained(name, records, inputs, error)
            if explained is None:
                raise
            raise ConfigError(explained) from error
        if not isinstance(loss, Tensor):
            raise ComponentTypeError(f'The loss {name!r} must give a tensor, but gave {type(loss).__name__}.')
        return loss

    def _explained(
        self, name: str, records: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Any], error: Exception
    ) -> str | None:
        """Return what to say about a loss that failed, or None where its own words are the best."""
        told = ', '.join(
            f'{argument} is {_shape(inputs[argument])} from {self._origin(record)}' for argument, record in records.items()
        )
        if isinstance(error, ConfigError):
            return f'The distillation loss {name!r} ({told}): {error}'
        sides: dict[bool, Tensor] = {}
        for argument, record in records.items():
            if isinstance(inputs[argument], Tensor):
                sides.setdefault(record['from_student'], inputs[argument])
        if isinstance(error, StropError) or len(sides) < 2 or sides[True].shape == sides[False].shape:
            return None
        return (
            f'The distillation loss {name!r} cannot compare what it gets: {told}.{connector_hint(sides[True], sides[False])} '
            f'({type(error).__name__}: {error})'
        )

    def _origin(self, record: Mapping[str, Any]) -> str:
        recorders = self.student_recorders if record['from_student'] else self.teacher_recorders
        recorder = recorders.get_recorder(record['recorder'])
        return f'the {"student" if record["from_student"] else "teacher"}, {recorder.source or record["recorder"]!r}'


def _as_taken(connector: nn.Module, data: Any) -> Any:
    """Return what was recorded in the precision of a connector, where mixed precision ended with the model's forward."""
    own = next((parameter for parameter in connector.parameters() if parameter.is_floating_point()), None)
    others = [leaf for leaf in tree_leaves(data) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if own is None or all(leaf.dtype == own.dtype for leaf in others) or torch.is_autocast_enabled(own.device.type):
        return data
    return mapped(data, lambda tensor: tensor.to(own.dtype) if tensor.is_floating_point() else tensor)


def _shape(data: Any) -> str:
    return str(tuple(data.shape)) if isinstance(data, Tensor) else f'a {type(data).__name__}'


def _modules(kind: str, configs: Mapping[str, Any] | Sequence[tuple[str, Any]] | None) -> nn.ModuleDict:
    """Build named modules from their configs."""
    if isinstance(configs, Mapping) or configs is None:
        pairs = list((configs or {}).items())
    else:
        if not isinstance(configs, (list, tuple)) or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in configs
        ):
            raise ConfigError(f'Each {kind} is a pair (name, config), in a mapping or a list, but got {configs!r}.')
        pairs = [tuple(pair) for pair in configs]  # type: ignore[misc]
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f'Two of a kind are called {twice[0]!r}: each {kind} needs a name of its own.')
    built = nn.ModuleDict()
    for name, config in pairs:
        if not isinstance(name, str) or not name or '.' in name or hasattr(built, name):
            raise ConfigError(f'A {kind} cannot be called {name!r}: take a word without dots that is no method of a mapping.')
        if isinstance(config, Mapping):
            if 'type' not in config:
                raise ConfigError(f"The {kind} {name!r} needs a config with the key 'type', but got {dict(config)!r}.")
            try:
                config = MODELS.build(dict(config))
            except (TypeError, ConfigError) as error:
                raise ConfigError(f'The {kind} {name!r}: {error}') from error
        if not isinstance(config, nn.Module):
            raise ComponentTypeError(
                f'The {kind} {name!r} must be an nn.Module or its config, but got {type(config).__name__}.'
            )
        built[name] = config
    return built
