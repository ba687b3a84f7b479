"""The stages that train: `finetune` learns from labels, `distill` from the model before compression."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from strop.compression.budget import Budget
from strop.compression.calling import Answers, Compiled, call, laid, layout_for, main_output
from strop.compression.stage import Outcome, StageSettings, State, Surroundings
from strop.compression.training import Objective, Schedule, forget, train
from strop.distill import distiller_for
from strop.errors import ConfigError
from strop.graph.forward import evaluated
from strop.randomness import derive_seed, seeded


@dataclass(frozen=True)
class LearningStage(StageSettings):
    """What both stages share: see `strop.compression.training.Schedule`."""

    epochs: int = 5
    lr: float = 0.02
    optimizer: str = 'sgd'
    weight_decay: float = 5e-4
    warmup: float = 0.1
    clip: float | None = 5.0
    precision: str | None = None
    checkpoint_steps: int | None = None
    freeze_norms: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        self.schedule  # noqa: B018 - it checks the values

    @property
    def needs(self) -> tuple[str, ...]:
        """Paths of modules that the model must still have."""
        return ()

    @property
    def schedule(self) -> Schedule:
        """How long and how fast."""
        return Schedule(**{name: getattr(self, name) for name in Schedule.__dataclass_fields__})

    def steps(self, samples: int, batch: int) -> int:
        return self.epochs * max(1, samples // batch)

    @abstractmethod
    def objective(
        self, student: nn.Module, around: Surroundings, answers: Answers | None = None
    ) -> tuple[Objective, nn.Module | None]:
        """Return what gives the losses of a batch, and modules that are trained along.

        Args:
            student: The model that learns.
            around: The data and the original model.
            answers: Where to look up what the original gives, if the same batches come again.
        """

    def rehearse(self, model: nn.Module, around: Surroundings, steps: int) -> nn.Module:
        """Return a copy of a model that was trained for a few steps, as this stage would.

        The learning rate rises and falls within these steps. Nothing is compiled for so few.

        Args:
            model: The model; it stays as it is.
            around: The data and the original model.
            steps: So many batches; beyond one epoch the nearest number of whole epochs.
        """
        student, folder = copy.deepcopy(model), around.work / 'rehearsal'
        objective, along = replace(self, compile=False).objective(student, around, around.answers)
        loader = around.data.loader(derive_seed(around.seed, 'rehearsal'), steps)
        schedule = replace(self.schedule, epochs=max(1, round(steps / len(loader))), checkpoint_steps=None, compile=False)
        forget(folder)
        layout = layout_for(student, around.data.example(2), weights=True)
        seed = around.seed % 2**31
        found = train(student, loader, objective, schedule, folder, seed=seed, trained=along, layout=layout)
        forget(folder)
        return found.model

    def run(self, state: State, around: Surroundings) -> Outcome:
        """Train."""
        student = state.model
        objective, along = self.objective(student, around)
        judge, whole = around.judge, copy.deepcopy(student)
        before, gap_before = judge.score_and_gap(student, 'validation')
        found = train(
            student,
            around.data.loader(derive_seed(around.seed, 'order')),
            objective,
            self.schedule,
            around.work,
            seed=around.seed % 2**31,
            trained=along,
            layout=layout_for(student, around.data.example(2), weights=True),
            example=around.data.example(around.data.full_batch) if self.compile else None,
            tell=around.tell,
        )
        after, gap = judge.score_and_gap(found.model, 'validation')
        around.progress.done(around.name)
        said = [
            f'{judge.choice[0].upper()}{judge.choice[1:]} on the validation samples went from {before:.4f} to {after:.4f} in '
            f"{self.epochs} epochs, the divergence from the original's outputs from {gap_before:.4f} to {gap:.4f}."
        ]
        if after >= before:
            return Outcome(model=found.model, curve=found.curve, explanation=said)
        error = judge.error(before)
        if before - after <= error and gap < gap_before:
            said.append(f'The score fell by less than its standard error, {error:.4f}; the divergence tells that it is better.')
            return Outcome(model=found.model, curve=found.curve, explanation=said)
        return Outcome(
            model=whole,
            curve=found.curve,
            explanation=[*said, 'So the model of before the stage was kept.'],
            warnings=['The training made the model worse, so it was not taken. Try a smaller `lr`, or more epochs.'],
        )


@dataclass(frozen=True)
class FinetuneStage(LearningStage):
    """Train the model on labels.

    Args:
        smoothing: Label smoothing.
    """

    kind: ClassVar[str] = 'finetune'

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.smoothing, (int, float)) or isinstance(self.smoothing, bool) or not 0 <= self.smoothing < 1:
            raise ConfigError(f'`smoothing` is a share of 0 or more, below 1, but got {self.smoothing!r}.')

    def check(self, budget: Budget, learns: bool | None = None) -> None:
        """Raise if there are no labels."""
        if learns is False:
            raise ConfigError(
                'The stage `finetune` learns from labels, but there are none here (or `labels: false` forbids '
                'them). Use `distill`, '
                'which learns from the model itself.'
            )

    def objective(
        self, student: nn.Module, around: Surroundings, answers: Answers | None = None
    ) -> tuple[Objective, nn.Module | None]:
        """Return the loss by the labels."""
        judge = around.judge

        def losses(student: Callable[..., Any], inputs: Any, targets: Any, step: int) -> Mapping[str, Tensor]:
            return {'loss': judge.loss(call(student, around.data.seen(inputs)), targets, inputs, self.smoothing)}

        return losses, None


@dataclass(frozen=True)
class DistillStage(LearningStage):
    r"""Train the model to give what the model before compression gives, and perhaps the labels.

    .. math:: L = \mathrm{soft} \cdot D(s, t) + \mathrm{hard} \cdot L_{label}(s) + \mathrm{features\_weight} \cdot L_{feature}

    with :math:`D` the divergence of `Judge.divergence`: for classes that of Hinton et al., Distilling the Knowledge in a Neural
    Network, 2015, https://arxiv.org/abs/1503.02531.

    Args:
        temperature: Of the classes.
        soft: Weight of the teacher.
        hard: Weight of the labels; 0 learns without them.
        features: Modules whose outputs are compared as well: a list of paths, or student -> teacher.
        features_weight: Weight of each.
    """

    kind: ClassVar[str] = 'distill'

    temperature: float = 4.0
    soft: float = 1.0
    hard: float = 0.0
    features: Any = field(default_factory=list)
    features_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (('temperature', 1e-3), ('soft', 0.0), ('hard', 0.0), ('features_weight', 0.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value < 1e6:
                raise ConfigError(f'`{name}` of the stage `distill` must be a number of at least {least:g}, but got {value!r}.')
        if not isinstance(self.features, (Mapping, list, tuple, type(None))):
            raise ConfigError(f'`features` of the stage `distill` are paths of modules, but got {self.features!r}.')
        pairs = self.features.items() if isinstance(self.features, Mapping) else [(path, path) for path in self.features or ()]
        if not all(isinstance(path, str) for pair in pairs for path in pair):
            raise ConfigError(f'`features` of the stage `distill` are paths of modules, but got {self.features!r}.')
        if self.compile and self.features:
            raise ConfigError(
                '`compile` and `features` of the stage `distill` do not go together: what modules give is read by hooks, which '
                'a compiled model does not call. Leave one of them out.'
            )
        if not self.soft and not self.hard and not self.features:
            raise ConfigError('The stage `distill` has nothing to learn by: `soft`, `hard` and `features` are all empty.')

    def check(self, budget: Budget, learns: bool | None = None) -> None:
        """Raise if labels are wanted and there are none."""
        if learns is False and self.hard:
            raise ConfigError(
                f'The stage `distill` has hard={self.hard}, which learns from labels, but there are none here '
                '(or `labels: false` '
                'forbids them): leave `hard` out.'
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """The modules whose outputs are compared."""
        return tuple(self.features or ())

    def run(self, state: State, around: Surroundings) -> Outcome:
        """Train, and say what from."""
        found = super().run(state, around)
        learned = 'the original model and the labels' if self.hard else 'the original model alone, without a label'
        found.explanation.insert(0, f'It learned from {learned}.')
        return found

    def objective(
        self, student: nn.Module, around: Surroundings, answers: Answers | None = None
    ) -> tuple[Objective, nn.Module | None]:
        """Return the divergence from the original, and what else is to be learned."""
        judge = around.judge
        teacher = evaluated(copy.deepcopy(around.original)).requires_grad_(False)
        layout = layout_for(teacher, around.data.at(None).example(2), weights=True)
        teacher.to(memory_format=layout)
        taught: Callable[..., Any] = teacher
        if self.compile:
            taught = Compiled(teacher, around.data.at(None).example(around.data.full_batch))
        distiller = None
        if self.features:
            with seeded(around.seed, 'distiller'):
                distiller = distiller_for(
                    student, teacher, around.data.example(2), features=self.features, logits=False,
                    features_weight=self.features_weight, teacher_inputs=around.data.at(None).example(2),
                )  # fmt: skip

        def asked(inputs: Any) -> Tensor:
            with torch.no_grad():
                return main_output(call(taught, laid(inputs, layout)), inputs)

        def found(learner: Callable[..., Any], inputs: Any, targets: Any, step: int) -> Mapping[str, Tensor]:
            if next((tensor.device for tensor in teacher.parameters()), None) != _device(inputs):
                teacher.to(_device(inputs))
            losses: dict[str, Tensor] = {}
            if distiller is None:
                wanted = asked(inputs) if answers is None else answers.of(inputs, partial(asked, inputs))
                outputs = call(learner, around.data.seen(inputs))
            else:
                with distiller.record(teacher, student):
                    wanted = asked(inputs)
                    outputs = call(learner, around.data.seen(inputs))
                losses['loss_features'] = distiller.loss()
            if self.soft:
                output = main_output(outputs, inputs)
                losses['loss_teacher'] = self.soft * judge.divergence(output, wanted, temperature=self.temperature)
            if self.hard:
                losses['loss_labels'] = self.hard * judge.loss(outputs, targets, inputs)
            return losses

        return found, distiller


def _device(inputs: Any) -> torch.device:
    leaf = next(leaf for leaf in torch.utils._pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    return leaf.device


__all__ = ['DistillStage', 'FinetuneStage', 'LearningStage']
