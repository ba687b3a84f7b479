"""What passes from stage to stage, and what a stage is: settings that are checked, and a function that works on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from strop.compression.budget import Budget
from strop.compression.calling import Answers, laid, layout_for
from strop.compression.parts import DataParts
from strop.compression.scoring import Judge
from strop.errors import ConfigError, listed, near
from strop.estimators import count
from strop.pruning import Budget as PruningBudget
from strop.report.compression_result import Export, LayerChange, LayerState, StageResources, Tried

if TYPE_CHECKING:
    from strop.compression.learning import LearningStage
    from strop.compression.progress import Progress


#: What a quantized file is `of` if it is the model before compression, quantized alike.
REFERENCE = 'reference'


@dataclass(frozen=True)
class IntegerFile:
    """A quantized model: a file for one runtime.

    Args:
        backend: The backend of `strop.quantization` that it was made for.
        path: The file.
        of: Name of the stage that made it, or `REFERENCE`.
        score: Its main score on the test part, computed by its runtime; None where it cannot be run here.
        scores: Every score.
    """

    backend: str
    path: Path
    of: str
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass
class State:
    """What a stage begins with.

    Args:
        model: The plain model, in eval mode on the CPU; it may be changed.
        choices: The subnet that it is of a supernet.
        side: Short side of the images that it takes, in pixels; None are whole ones.
        records: What pruning and removing of blocks recorded, in order.
        integers: The quantized models so far.
    """

    model: nn.Module
    choices: dict[str, Any] | None = None
    side: int | None = None
    records: list[Any] = field(default_factory=list)
    integers: list[IntegerFile] = field(default_factory=list)


@dataclass
class Outcome:
    """What a stage gives.

    Args:
        model: The new model; None if it is the one before.
        choices: The subnet, after a search.
        side: Short side of the images that the new model takes; None if it is the one before.
        records: What is to be kept beside those of earlier stages.
        integers: Quantized models that it made, in its folder.
        explanation: What was chosen and why, in sentences.
        curve: Points of training.
        tried: Models that were considered.
        exports: Files that it wrote, relative to its folder.
        scores: Its own scores, where they are not those of the model.
        warnings: What the reader should know.
        documents: File name -> JSON that is kept among the records.
        latencies: Layer -> milliseconds, of the model it began with.
        latencies_after: Likewise, of its own model.
        timed_in: Runtime and precision of these times.
        skipped: Whether what the stage needs is not installed, and it may be left out.
    """

    model: nn.Module | None = None
    choices: dict[str, Any] | None = None
    side: int | None = None
    records: list[Any] = field(default_factory=list)
    integers: list[IntegerFile] = field(default_factory=list)
    explanation: list[str] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    exports: list[Export] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    documents: dict[str, Any] = field(default_factory=dict)
    latencies: dict[str, float] = field(default_factory=dict)
    latencies_after: dict[str, float] = field(default_factory=dict)
    timed_in: tuple[str, str] | None = None
    skipped: bool = False


@dataclass
class Surroundings:
    """What a stage works with.

    Args:
        name: The stage's name.
        original: The model before compression, with its weights; stages leave it as it is.
        data: The data, as the model sees them.
        judge: What scores models that see them so.
        budget: The budget of the recipe.
        seed: Of everything random in this stage.
        threads: Threads of PyTorch.
        folder: Where the stage's own files go; it appears whole or not at all.
        work: A folder that is kept when the stage is killed, for checkpoints inside it.
        progress: Tells how far the stage is.
        backends: Backends of the quantize stages of the recipe.
        follows: The next stage that trains, if there is one.
        given: What the model costs that was given (of a supernet the largest subnet), which shares of `macs` and `params` are
            of; by default what `original` costs.
        answers: What `original` gave for batches that come again.
    """

    name: str
    original: nn.Module
    data: DataParts
    judge: Judge
    budget: Budget
    seed: int
    threads: int
    folder: Path
    work: Path
    progress: Progress
    backends: tuple[str, ...] = ()
    follows: LearningStage | None = None
    given: StageResources | None = None
    answers: Answers = field(default_factory=Answers)

    def at(self, side: int | None) -> Surroundings:
        """Return the same for a model of images with another short side; None is what the original model sees."""
        return self if side == self.data.side else replace(self, data=self.data.at(side), judge=self.judge.at(side))

    def counted_limits(self) -> dict[str, float]:
        """Return what the budget limits of `macs` (of one sample) and `params`, as numbers.

        A limit of the file's size is one of as many parameters as it holds, about.
        """
        whole = self.given or resources_of(self.original, self.at(None).data.example(1))
        limits = {
            name: PruningBudget(**{name: given}).limit(name, float(getattr(whole, name) or 0))  # type: ignore[arg-type]
            for name, given in self.budget.counted.items()
        }
        if self.budget.size_mb is not None:
            bytes_each = 1.1 if self.backends else 4.05  # scales, biases and names come on top of the weights
            stored = self.budget.size_mb * 1e6 / bytes_each
            limits['params'] = min(stored, limits.get('params', stored))
        return limits

    def calibration(self, model: nn.Module) -> list[Any]:
        """Return the batches of calibration samples in the layout in which a model takes them best."""
        layout = layout_for(model, self.data.example(2))
        return [laid(inputs, layout) for inputs in self.data.inputs('calibration')]

    def tell(self, done: int, total: int) -> None:
        """Say how far the stage is."""
        self.progress.advance(self.name, done, total)


@dataclass(frozen=True)
class StageSettings(ABC):
    """The settings of one stage, checked when they are read.

    A sub-class is a dataclass whose fields are the keys of the recipe, with the name of its kind.
    """

    kind: ClassVar[str]
    #: Whether the model comes out with other weights or sizes.
    changes_model: ClassVar[bool] = True

    @classmethod
    def of(cls, given: Any) -> StageSettings:
        """Read the mapping of a recipe.

        Raises:
            ConfigError: If it is no mapping, has an unknown key, or a value is not what it can be.
        """
        if given is None:
            given = {}
        if not isinstance(given, Mapping):
            raise ConfigError(f'The settings of the stage {cls.kind!r} are a mapping, but got {given!r}.')
        known = [entry.name for entry in fields(cls)]
        for key in given:
            if key not in known:
                raise ConfigError(
                    f'The stage {cls.kind!r} has no setting {key!r}.{near(key, known)} It has {listed(known, 24)}.'
                )
        return cls(**{str(key): value for key, value in given.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults, as JSON holds it."""
        content = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
            if value != default:
                content[entry.name] = list(value) if isinstance(value, tuple) else value
        return content

    def check(self, budget: Budget, learns: bool | None = None) -> None:
        """Raise what is wrong with the settings beside this budget; packages that are missing too.

        Args:
            budget: The budget of the recipe.
            learns: Whether there are labels to learn from; None if that is not known yet.
        """
        return

    def rehearsed(self, budget: Budget) -> int:
        """Return how many steps it teaches candidates for at the most, all together, as the next stage that trains will.

        More than 0 means that what it does depends on that stage.
        """
        return 0

    def plans(self, budget: Budget) -> bool:
        """Whether it chooses by itself what to take away, and leaves the modules that the next stage that trains needs."""
        return False

    def installed(self) -> list[str]:
        """Return which optional parts it will use because they are installed, and not because it is told to."""
        return []

    def sees_backends(self, budget: Budget) -> bool:
        """Whether what it does depends on what the recipe quantizes for, and on the runtime of the budget."""
        return False

    @abstractmethod
    def run(self, state: State, around: Surroundings) -> Outcome:
        """Do the work of the stage."""

    def describe(self) -> str:
        """Return the stage in a few words, for the plan."""
        return ', '.join(f'{name} {value}' for name, value in self.to_dict().items())

    def steps(self, samples: int, batch: int) -> int:
        """Return how many training steps it makes, for the plan."""
        return 0


def resources_of(model: nn.Module, example: Any) -> StageResources:
    """Return what a model costs for one sample.

    Args:
        model: The model.
        example: Inputs of one sample.
    """
    found = _count(model, example)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return StageResources(found.macs, found.params, stored / 1e6, (stored + found.activation_bytes) / 1e6)


def layers_of(model: nn.Module, example: Any) -> dict[str, tuple[str, LayerState]]:
    """Return layer -> its class and what it costs for one sample, of those that multiply."""
    found = _count(model, example)
    modules = dict(model.named_modules())
    layers = {}
    for path, cost in found.modules.items():
        module = modules[path]
        if not path or not cost.macs or any(True for _ in module.children()):
            continue
        weight = getattr(module, 'weight', None)
        shape = list(weight.shape) if isinstance(weight, torch.Tensor) else None
        layers[path] = (cost.kind, LayerState(shape, cost.macs, cost.params, precision='f32'))
    return layers


def layer_changes(
    before: Mapping[str, tuple[str, LayerState]],
    after: Mapping[str, tuple[str, LayerState]],
    times: Mapping[str, float] | None = None,
    times_after: Mapping[str, float] | None = None,
    timed_in: tuple[str, str] | None = None,
) -> list[LayerChange]:
    """Return what changed from layer to layer.

    Args:
        before: Layer -> its class and what it costs.
        after: Likewise; layers that are gone are missing.
        times: Layer -> milliseconds before.
        times_after: Layer -> milliseconds after.
        timed_in: Runtime and precision of the times.

    >>> before = {'a': ('Linear', LayerState([8, 8], 64)), 'b': ('Linear', LayerState([8, 8], 64))}
    >>> changes = layer_changes(before, {'a': ('Linear', LayerState([4, 8], 32))}, {'a': 0.3, 'b': 0.2}, {'a': 0.1})
    >>> changes[0].before.latency_ms, changes[0].after.latency_ms, changes[1].after
    (0.3, 0.1, None)
    """

    def timed(state: LayerState, milliseconds: float | None) -> LayerState:
        if milliseconds is None or timed_in is None:
            return replace(state, latency_ms=milliseconds)
        return replace(state, latency_ms=milliseconds, runtime=timed_in[0], precision=timed_in[1])

    changes = []
    for name, (kind, state) in before.items():
        first = timed(state, (times or {}).get(name))
        last = timed(after[name][1], (times_after or {}).get(name)) if name in after else None
        changes.append(LayerChange(name, kind, first, last))
    return changes


def _count(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return count(model, **example)
    return count(model, *example) if isinstance(example, (tuple, list)) else count(model, example)


StageTable = dict[str, type[StageSettings]]
Tell = Callable[[int, int], None]

__all__ = [
    'REFERENCE',
    'IntegerFile', 'Outcome', 'StageSettings', 'State', 'Surroundings', 'layer_changes', 'layers_of', 'resources_of',
]  # fmt: skip
