"""A distiller fitted to two models: both run once, and what they give says which losses and projections are needed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from strop.distill.distiller import ConfigurableDistiller
from strop.distill.projections import projection
from strop.distill.recorders import BaseRecorder, ModuleOutputsRecorder
from strop.errors import ComponentTypeError, ConfigError, listed
from strop.graph.forward import moved_to, training_mode_kept
from strop.registry import MODELS

_FEATURE_LOSS = {'type': 'torch.nn.MSELoss'}


def distiller_for(
    student: nn.Module,
    teacher: nn.Module,
    example_inputs: Any,
    *,
    features: Mapping[str, str] | Sequence[str] = (),
    logits: bool = True,
    temperature: float = 4.0,
    logits_loss: Mapping[str, Any] | nn.Module | None = None,
    logits_weight: float = 1.0,
    feature_loss: Mapping[str, Any] | nn.Module | None = None,
    features_weight: float = 1.0,
    connectors: Mapping[str, Any] | None = None,
    teacher_inputs: Any = None,
) -> ConfigurableDistiller:
    """Return a distiller of the outputs and features of two models, with what projections their shapes need.

    Both models run once, in `eval` mode and without gradients. Features whose shapes differ get a projection of the student's:
    a 1 x 1 convolution and interpolation for maps, a linear layer for vectors and tokens. Train its parameters along with the
    student's: `[*student.parameters(), *distiller.parameters()]`.

    Args:
        student: The model that learns.
        teacher: The model that it learns from.
        example_inputs: What both are called with: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        features: Path of a module of the student -> path of one of the teacher; a sequence where they are the same.
        logits: Whether the outputs of the models are compared; of outputs with a name for it, `logits`.
        temperature: That of the divergence of the outputs.
        logits_loss: Loss of the outputs, or its config; by default `KLDivergence` for classes, `TokenKLDivergence` for tokens
            and `ChannelWiseDivergence` for maps.
        logits_weight: Weight of that default.
        feature_loss: Loss of features, or its config (each pair then gets one of its own); by default the mean squared
            difference.
        features_weight: What features count: their losses are multiplied by it.
        connectors: Path in the student -> module or config, in place of the projection that would be made.
        teacher_inputs: What the teacher is called with, where that is something else.

    Raises:
        ConfigError: If a path is not there or not run, an output is no tensor, or no projection makes two features meet.
        ComponentTypeError: If a model is no `nn.Module`.

    >>> teacher = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    >>> student = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    >>> x = torch.rand(2, 3, 9, 9)
    >>> distiller = distiller_for(student, teacher, x, features=['1'])
    >>> with distiller.record(teacher, student):
    ...     with torch.no_grad():
    ...         _ = teacher(x)
    ...     _ = student(x)
    >>> distiller.loss().requires_grad, sum(p.numel() for p in distiller.parameters())
    (True, 40)
    """
    for name, model in (('student', student), ('teacher', teacher)):
        if not isinstance(model, nn.Module):
            raise ComponentTypeError(f'`{name}` must be an nn.Module, but got {type(model).__name__}.')
    pairs = dict(features) if isinstance(features, Mapping) else {path: path for path in _paths(features)}
    if not pairs and not logits:
        raise ConfigError('There is nothing to compare: give `features`, or logits=True.')
    stray = [path for path in connectors or {} if path not in pairs]
    if stray:
        raise ConfigError(f'`connectors` has {listed(stray)}, which `features` does not have.')
    of_student = _seen(student, example_inputs, [*pairs, *([''] if logits else [])])
    of_teacher = _seen(
        teacher, example_inputs if teacher_inputs is None else teacher_inputs, [*pairs.values(), *([''] if logits else [])]
    )
    fitted = _Fitted()
    if logits:
        mine, its = (_logits(side, seen['']) for side, seen in (('student', of_student), ('teacher', of_teacher)))
        if mine[1].shape != its[1].shape:
            raise ConfigError(
                f'The outputs cannot be compared: those of the student have the shape {tuple(mine[1].shape)}, those of the '
                f'teacher {tuple(its[1].shape)}. Take logits=False, or models of the same classes.'
            )
        loss = _default_loss(mine[1], temperature, logits_weight) if logits_loss is None else logits_loss
        fitted.add('logits', '', '', loss, mine[0], its[0])
    for mine_at, its_at in pairs.items():
        (mine_idx, mine_one), (its_idx, its_one) = (
            _tensor(f'{side} {path!r}', seen[path])
            for side, path, seen in (('student', mine_at, of_student), ('teacher', its_at, of_teacher))
        )
        connector = (connectors or {}).get(mine_at) or _projection(mine_at, its_at, mine_one, its_one)
        loss = feature_loss or _FEATURE_LOSS
        fitted.add(mine_at, mine_at, its_at, _Weighted(loss, features_weight), mine_idx, its_idx, connector)
    distiller = ConfigurableDistiller(**fitted.configs)
    distiller.prepare_from_student(student)
    distiller.prepare_from_teacher(teacher)
    weights = [parameter for parameter in student.parameters() if parameter.is_floating_point()]
    return distiller.to(weights[0].device, weights[0].dtype) if weights else distiller


class _Fitted:
    """The configs of a distiller, put together comparison by comparison."""

    def __init__(self) -> None:
        kinds = ('student_recorders', 'teacher_recorders', 'connectors', 'distill_losses', 'loss_forward_mappings')
        self.configs: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}

    def add(self, name: str, mine_at: str, its_at: str, loss: Any, mine_idx: Any, its_idx: Any, connector: Any = None) -> None:
        name = name.replace('.', '_')
        configs = self.configs
        while name in configs['student_recorders']:
            name += '_'  # `a.b` beside `a_b`
        configs['student_recorders'][name] = dict(type='ModuleOutputs', source=mine_at)
        configs['teacher_recorders'][name] = dict(type='ModuleOutputs', source=its_at)
        mine, its = dict(recorder=name, from_student=True), dict(recorder=name, from_student=False)
        for record, index in ((mine, mine_idx), (its, its_idx)):
            if index is not None:
                record['data_idx'] = index
        if connector is not None:
            configs['connectors'][f'to_{name}'] = connector
            mine['connector'] = f'to_{name}'
        loss = MODELS.build(dict(loss)) if isinstance(loss, Mapping) else loss
        arguments = list(inspect.signature(loss.forward).parameters)[:2]
        configs['distill_losses'][f'loss_{name}'] = loss
        configs['loss_forward_mappings'][f'loss_{name}'] = dict(zip(arguments, (mine, its)))


class _Weighted(nn.Module):
    """A loss of two features times a weight."""

    def __init__(self, loss: Mapping[str, Any] | nn.Module, weight: float) -> None:
        super().__init__()
        self.loss = MODELS.build(dict(loss)) if isinstance(loss, Mapping) else loss
        self.weight = weight

    @property
    def weighted(self) -> nn.Module:
        """The loss itself."""
        return self.loss

    def forward(self, preds_S: Any, preds_T: Any) -> Tensor:
        """Return the weighted loss."""
        return self.weight * self.loss(preds_S, preds_T)


def _paths(features: Any) -> list[str]:
    if isinstance(features, str) or not all(isinstance(path, str) for path in features):
        raise ConfigError(f'`features` must be a mapping of paths or a list of them, but got {features!r}.')
    return list(features)


def _seen(model: nn.Module, inputs: Any, paths: Sequence[str]) -> dict[str, Any]:
    """Run a model and return what its modules gave."""
    recorders: dict[str, BaseRecorder] = {path: ModuleOutputsRecorder(path) for path in paths}
    for recorder in recorders.values():
        recorder.initialize(model)
    with ExitStack() as stack, torch.no_grad(), training_mode_kept(model):
        model.eval()
        inputs = moved_to(model, inputs)
        for recorder in recorders.values():
            stack.enter_context(recorder)
        if isinstance(inputs, Mapping):
            model(**inputs)
        elif isinstance(inputs, tuple):
            model(*inputs)
        else:
            model(inputs)
    return {path: recorder.get_record_data() for path, recorder in recorders.items()}


def _logits(side: str, output: Any) -> tuple[Any, Tensor]:
    if isinstance(output, Mapping) and isinstance(output.get('logits'), Tensor):
        return 'logits', output['logits']
    return _tensor(f'{side}', output)


def _tensor(name: str, output: Any) -> tuple[Any, Tensor]:
    """Return the tensor that an output is, or the only one that it holds, with its index."""
    if isinstance(output, Tensor):
        return None, output
    parts = list(output.items()) if isinstance(output, Mapping) else list(enumerate(output)) if _is_list(output) else []
    tensors = [(index, part) for index, part in parts if isinstance(part, Tensor)]
    if len(tensors) != 1:
        held = f' that holds {listed([index for index, _ in parts])}' if parts else ''
        raise ConfigError(
            f'What the {name} gives is a {type(output).__name__}{held}, not one tensor. Say what to compare in a '
            'ConfigurableDistiller, with data_idx.'
        )
    return tensors[0]


def _is_list(output: Any) -> bool:
    return isinstance(output, (tuple, list))


def _default_loss(logits: Tensor, temperature: float, weight: float) -> dict[str, Any]:
    kinds = {2: 'KLDivergence', 3: 'TokenKLDivergence', 4: 'ChannelWiseDivergence'}
    if logits.ndim not in kinds:
        raise ConfigError(
            f'There is no usual loss of outputs of shape {tuple(logits.shape)}: give `logits_loss`, or logits=False.'
        )
    return dict(type=kinds[logits.ndim], tau=temperature, loss_weight=weight)


def _projection(mine_at: str, its_at: str, mine: Tensor, its: Tensor) -> nn.Module | None:
    configs = projection(mine.shape, its.shape)
    if configs is None:
        raise ConfigError(
            f'The student {mine_at!r} gives {tuple(mine.shape)}, the teacher {its_at!r} {tuple(its.shape)}, and no projection '
            f'makes them meet. Give one of your own: connectors={{{mine_at!r}: module}}.'
        )
    built = [MODELS.build(config) for config in configs]
    return nn.Sequential(*built) if len(built) > 1 else built[0] if built else None
