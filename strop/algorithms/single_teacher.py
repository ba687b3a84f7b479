"""Distillation from one teacher, or from several, into the architecture.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, NIPS Deep Learning Workshop 2014,
https://arxiv.org/abs/1503.02531. What is compared, and how, is the distiller's configuration.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from strop.algorithms.algorithm import BaseAlgorithm, LossResults, build_architecture, built_model
from strop.algorithms.plain_architecture import PlainArchitecture
from strop.distill import ConfigurableDistiller, ModuleOutputsRecorder, RecorderManager
from strop.engine.pretrained import load_pretrained
from strop.errors import ComponentTypeError, ConfigError, listed
from strop.registry import MODELS


class DistillAlgorithm(BaseAlgorithm):
    """What all algorithms share whose student is watched by a distiller.

    Args:
        distiller: A `ConfigurableDistiller` or its config.
        student_trainable: Whether the student learns; if not, only the connectors do.
        calculate_student_loss: Whether the student learns by the labels, too.
        kwargs: `architecture` (the student) and all else that `BaseAlgorithm` takes. Activations of the student do not
            work in place unless `module_inplace` says otherwise, since they would change what was recorded.

    Raises:
        ComponentTypeError: If the distiller is none.
        ConfigError: If nothing would learn.
    """

    def __init__(
        self,
        distiller: ConfigurableDistiller | Mapping[str, Any],
        student_trainable: bool = True,
        calculate_student_loss: bool = True,
        **kwargs: Any,
    ) -> None:
        if not isinstance(distiller, (Mapping, ConfigurableDistiller)):
            raise ComponentTypeError(
                f'`distiller` must be a config or an instance of ConfigurableDistiller, but got {type(distiller).__name__}.'
            )
        if isinstance(distiller, Mapping):
            distiller = {'type': 'ConfigurableDistiller', **distiller}
        kwargs.setdefault('module_inplace', False)
        super().__init__(**kwargs, distiller=distiller)
        if not isinstance(self.distiller, ConfigurableDistiller):
            raise ComponentTypeError(
                f'{type(self).__name__} needs a ConfigurableDistiller, not a {type(self.distiller).__name__}.'
            )
        if isinstance(kwargs.get('architecture'), nn.Module) and isinstance(self.architecture, PlainArchitecture):
            # It comes with its weights; the runner would have models of timm initialize them anew.
            self.architecture._is_init = True
        self.student_trainable = student_trainable
        self.calculate_student_loss = calculate_student_loss
        #: Set by `StopDistillHook`: from then on the student learns by the labels alone.
        self.distillation_stopped = False
        learns = [*(self.student.parameters() if student_trainable else ()), *self.distiller.parameters()]
        if not any(parameter.requires_grad for parameter in learns):
            raise ConfigError(
                'Nothing learns: no parameter of the student requires a gradient. Thaw it (student.requires_grad_(True)).'
                if student_trainable
                else 'Nothing learns: student_trainable is False, and the distiller has no connector with parameters.'
            )
        self.distiller.prepare_from_student(self.student)
        if calculate_student_loss:
            check_outputs(self.distiller.student_recorders, self.student)

    @property
    def student(self) -> BaseModel:
        """The architecture, which learns."""
        return self.architecture

    def stop_distillation(self) -> None:
        """Learn by the labels alone from now on.

        Raises:
            ConfigError: If the labels are not learned from.
        """
        if not self.calculate_student_loss:
            raise ConfigError('Without distillation nothing would be left to learn from: calculate_student_loss is False.')
        self.distillation_stopped = True

    def _student_losses(self, batch_inputs: Any, data_samples: Any) -> dict[str, Any]:
        """Run the student, recorded, and return its losses by the labels if they are wanted."""
        self.distiller.set_deliveries_override(True)
        # Once it learns alone, no teacher has left it anything.
        alone = self.distillation_stopped and not getattr(self, 'teacher_trainable', False)
        with (
            self.distiller.student_recorders,
            nullcontext() if alone else self.distiller.deliveries,
            nullcontext() if self.student_trainable else torch.no_grad(),
        ):
            return self._run_student(batch_inputs, data_samples)

    def _run_student(self, batch_inputs: Any, data_samples: Any) -> dict[str, Any]:
        if self.calculate_student_loss:
            return prefixed(self.student(batch_inputs, data_samples, mode='loss'), 'student')
        _watched_forward(self.student, batch_inputs, data_samples)
        return {}


@MODELS.register_module()
class SingleTeacherDistill(DistillAlgorithm):
    """Teach the architecture by one frozen model, or by several, through a distiller.

    A step's losses are those of the student by the labels, `student.<name>`, and those of the distiller, `distill.<name>`.

    Several teachers are given as a list or a mapping name -> teacher. They run one after the other, and the paths of their
    recorders begin with their name or number: `source='0.head.fc'`.

    Args:
        distiller: A `ConfigurableDistiller` or its config.
        teacher: The teacher: a config, a `BaseModel` or any `nn.Module`; or several.
        teacher_ckpt: Checkpoint that the teacher starts from; for several, a list or mapping of them. It must fit.
        teacher_trainable: Whether the teacher learns, too, by its own loss: `teacher.<name>`.
        teacher_norm_eval: Keep a frozen teacher in `eval` mode whole (MMRazor: its batch norms only, so that its dropout
            went on), a trainable one's batch norms.
        student_trainable: Whether the student learns; if not, only the connectors do.
        calculate_student_loss: Whether the student learns by the labels, too.
        teacher_module_inplace: Whether activations of the teacher work in place, which may change what was recorded; None
            leaves them as they are.
        kwargs: `architecture` (the student) and all else that `BaseAlgorithm` takes.

    Raises:
        ComponentTypeError: If the distiller or a teacher is of the wrong class.
        ConfigError: If a checkpoint is of another model, a path is not in its model, or nothing would learn.
        UnsafeFileError: If a checkpoint would have to be unpickled.

    >>> logits = dict(logits=dict(type='ModuleOutputs', source='0'))
    >>> distiller = dict(
    ...     student_recorders=logits,
    ...     teacher_recorders=logits,
    ...     distill_losses=dict(loss_kl=dict(type='KLDivergence', tau=4)),
    ...     loss_forward_mappings=dict(
    ...         loss_kl=dict(
    ...             preds_S=dict(from_student=True, recorder='logits'), preds_T=dict(from_student=False, recorder='logits')
    ...         )
    ...     ),
    ... )
    >>> teacher, student = nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 2))
    >>> algorithm = SingleTeacherDistill(distiller, teacher, architecture=student)
    >>> optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
    >>> log = algorithm.train_step((torch.ones(3, 4), torch.tensor([0, 1, 0])), optimizer)
    >>> sorted(log)
    ['distill.loss_kl', 'loss', 'student.loss']
    """

    def __init__(
        self,
        distiller: ConfigurableDistiller | Mapping[str, Any],
        teacher: BaseModel | nn.Module | Mapping[str, Any] | Sequence[Any],
        teacher_ckpt: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any] | None = None,
        teacher_trainable: bool = False,
        teacher_norm_eval: bool = True,
        student_trainable: bool = True,
        calculate_student_loss: bool = True,
        teacher_module_inplace: bool | None = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(distiller, student_trainable, calculate_student_loss, **kwargs)
        self.teacher_trainable = teacher_trainable
        self.teacher_norm_eval = teacher_norm_eval
        self.teacher = build_teachers(teacher, teacher_ckpt, kwargs.get('loss') or kwargs.get('loss_function'))
        for module in self.teacher.modules():
            if teacher_module_inplace is not None and isinstance(getattr(module, 'inplace', None), bool):
                module.inplace = teacher_module_inplace  # type: ignore[assignment]
        if not teacher_trainable:
            self.teacher.requires_grad_(False)
        self.distiller.prepare_from_teacher(self.teacher)
        self.train(self.training)

    @property
    def teachers(self) -> dict[str, Any]:
        """The teachers by name; one alone has the empty name."""
        return dict(self.teacher.items()) if isinstance(self.teacher, nn.ModuleDict) else {'': self.teacher}

    def loss(self, batch_inputs: Any, data_samples: Any = None) -> LossResults:
        """Return the losses of the student, of the distiller and of a trainable teacher."""
        losses: dict[str, Any] = {}
        try:
            if self.teacher_trainable or not self.distillation_stopped:
                losses.update(self._teacher_losses(batch_inputs, data_samples))
            losses.update(self._student_losses(batch_inputs, data_samples))
            if not self.distillation_stopped:
                losses.update(prefixed(self.distiller.compute_distill_losses(), 'distill'))
        finally:
            self.distiller.clear()
        return losses

    def _teacher_losses(self, batch_inputs: Any, data_samples: Any) -> dict[str, Any]:
        """Run the teachers, recorded, and return their losses if they learn."""
        losses: dict[str, Any] = {}
        with self.distiller.teacher_recorders, nullcontext() if self.teacher_trainable else torch.no_grad():
            for number, (name, teacher) in enumerate(self.teachers.items()):
                # What the first one draws is handed to the others, too.
                self.distiller.set_deliveries_override(number > 0)
                with self.distiller.deliveries:
                    found = self._run_teacher(teacher, batch_inputs, data_samples)
                if self.teacher_trainable:
                    losses.update(prefixed(found, f'teacher.{name}' if name else 'teacher'))
        return losses

    def _run_teacher(self, teacher: BaseModel, batch_inputs: Any, data_samples: Any) -> Any:
        if self.teacher_trainable:
            return teacher(batch_inputs, data_samples, mode='loss')
        return _watched_forward(teacher, batch_inputs, data_samples)

    def train(self, mode: bool = True) -> SingleTeacherDistill:
        """Set the mode; the teacher's stays `eval` where `teacher_norm_eval` says so."""
        super().train(mode)
        if mode and getattr(self, 'teacher_norm_eval', False) and 'teacher' in self._modules:
            if not self.teacher_trainable:
                self.teacher.eval()
            for module in self.teacher.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def check_outputs(recorders: RecorderManager, architecture: nn.Module) -> None:
    """Check that no recorder takes the losses of a plain module's wrapper for the module's output.

    Raises:
        ConfigError: If one does.
    """
    for name, recorder in recorders.recorders.items():
        whole = type(recorder) is ModuleOutputsRecorder and recorder.module is architecture
        if whole and isinstance(architecture, PlainArchitecture):
            raise ConfigError(
                f'Recorder {name!r}: source={recorder.source!r} is the model as the algorithm runs it, which gives its losses. '
                f"What the {type(architecture.module).__name__} itself gives is source='module'."
            )


def build_teachers(teacher: Any, checkpoint: Any = None, loss: Any = None) -> nn.Module:
    """Build a teacher and load its checkpoint; several become an `nn.ModuleDict`.

    Args:
        teacher: A config, a module, or a sequence or mapping of them.
        checkpoint: A path, or a sequence or mapping of paths for several teachers.
        loss: Loss function for teachers that are plain modules.

    Raises:
        ComponentTypeError: If a teacher is neither a config nor a module.
        ConfigError: If a checkpoint is of another model, or their number is wrong.
    """
    several: Mapping[str, Any] | None = None
    if isinstance(teacher, (list, tuple)):
        several = {str(index): one for index, one in enumerate(teacher)}
    elif isinstance(teacher, nn.ModuleDict) or (isinstance(teacher, Mapping) and not {'type', 'cfg_path'} & set(teacher)):
        several = dict(teacher.items())
    if several is None:
        return _build_teacher(teacher, checkpoint, loss)
    if not several:
        raise ConfigError('There is no teacher: give a config, a module, or a list or mapping of some.')
    if isinstance(checkpoint, (list, tuple)):
        checkpoint = {str(index): path for index, path in enumerate(checkpoint)}
    if checkpoint is not None and (not isinstance(checkpoint, Mapping) or not set(checkpoint) <= set(several)):
        raise ConfigError(
            f'`teacher_ckpt` must be a list or mapping of paths for the teachers {listed(several)}, but got {checkpoint!r}.'
        )
    return nn.ModuleDict({name: _build_teacher(one, (checkpoint or {}).get(name), loss) for name, one in several.items()})


def _build_teacher(teacher: Any, checkpoint: Any, loss: Any) -> BaseModel:
    if not isinstance(teacher, (Mapping, nn.Module)):
        raise ComponentTypeError(f'`teacher` must be a config or an nn.Module, but got {type(teacher).__name__}.')
    model = built_model(teacher)
    built = build_architecture(model, None if isinstance(model, BaseModel) else loss)
    if checkpoint is not None:
        # By the names that the user's own module has.
        try:
            load_pretrained(built.module if isinstance(built, PlainArchitecture) else built, checkpoint)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'`teacher_ckpt`: {error} Where a checkpoint of the whole algorithm is loaded afterwards (to test, export or '
                'resume it), teacher_ckpt=None does.'
            ) from None
    elif isinstance(teacher, Mapping) and not _initialized_from_file(built):
        print_log(
            f'The teacher ({type(built).__name__}) has no `teacher_ckpt`: unless weights are loaded later, it teaches noise.',
            logger='current',
            level=30,
        )
        return built
    elif isinstance(teacher, Mapping) and not built.is_init:
        built.init_weights()
    # Or the runner would initialize it anew before training.
    built._is_init = True
    return built


def _initialized_from_file(model: nn.Module) -> bool:
    configs = [getattr(module, 'init_cfg', None) for module in model.modules()]
    flat = [config for item in configs for config in (item if isinstance(item, list) else [item])]
    return any(isinstance(config, Mapping) and 'Pretrained' in str(config.get('type')) for config in flat)


def _watched_forward(model: BaseModel, batch_inputs: Any, data_samples: Any) -> Any:
    """Run a model for what its recorders see."""
    # Models of OpenMMLab run their heads, and what configs record there, only for losses.
    needs_loss = data_samples is not None and not isinstance(model, PlainArchitecture)
    return model(batch_inputs, data_samples, mode='loss' if needs_loss else 'tensor')


def prefixed(losses: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return losses with a prefix before each name.

    >>> prefixed({'loss_kl': 0.5}, 'distill')
    {'distill.loss_kl': 0.5}
    """
    return {f'{prefix}.{name}': value for name, value in losses.items()}
