"""The whole chain in one call, and its plan without running it."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from strop.compression.budget import Budget
from strop.compression.calling import call, main_output
from strop.compression.chain import Compressed, Compression
from strop.compression.data_source import DataSource
from strop.compression.model_source import ModelSource
from strop.compression.progress import Progress
from strop.compression.recipe import Recipe, automatic_stages
from strop.compression.stage import resources_of
from strop.errors import ConfigError
from strop.estimators.runtimes import computing_with


def compress(
    model: nn.Module | str | Mapping[str, Any] | ModelSource | None = None,
    data: Any = None,
    *,
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    stages: Sequence[Any] | None = None,
    budget: Budget | Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] = 'compressed',
    seed: int | None = None,
    threads: int | None = None,
    runtimes: Sequence[str] | None = None,
    factory: str | None = None,
    resume: bool = True,
    from_stage: str | None = None,
    trust: bool = False,
    progress: str | Progress = 'bars',
) -> Compressed:
    """Make a model smaller and faster: search, prune, distil, fine-tune, quantize and export, in one chain with its evidence.

    Each stage ends with a checkpoint in `output`; a run that was killed goes on there, inside a training too, and ends with the
    same bits. Without stages they are chosen for the budget: layers are timed, units are weighed, and the model is cut,
    taught by
    the original, quantized and exported.

    Args:
        model: A plain model, or what builds one: `'timm:resnet18'`, `'transformers:FOLDER'`, `'module:factory'`, a registered
            type with its arguments, or a mapping with `source`, `args` and `weights`.
        data: A name, a path or a mapping with `source`, see `DataSource`; or in memory: a mapping with `train` and `test` (and
            perhaps `validation`, `calibration`), each a data set of (inputs, target), a pair of tensors, or one tensor.
        recipe: A whole recipe, or the file of one; `model`, `data`, `stages`, `budget`, `seed` and `threads` replace its own.
            Its `val`, `calibration`, `batch_size` and `labels` hold for data in memory as well, unless those are `DataParts`,
            which have their own.
        stages: Such as `['search', {'prune': {'ratio': 0.5}}, {'distill': {'epochs': 3}}, 'quantize', 'export']`.
        budget: Such as `{'latency': 0.5, 'runtime': 'openvino', 'accuracy_drop': 1.0}`; see `Budget`.
        output: The folder of the artefact.
        seed: Of everything random.
        threads: Threads of PyTorch; the same number gives the same bits.
        runtimes: Runtimes to measure both models on at the end; all that are installed by default.
        factory: `'module:function'` that builds a model which is given in memory, so that `strop.load` needs no more.
        resume: Go on with what the folder holds.
        from_stage: Run this stage and those after it again, and measure again; with the first one the original is scored again
            too.
        trust: Whether a recipe may name functions of Python modules, and be Python itself; a `model` and `data` that are named
            here may in any case.
        progress: `'bars'`, `'json-lines'` or `'quiet'`.

    Returns:
        The model, the result and the folder; unpacks as `model, result`.

    Raises:
        ConfigError: If something that is asked for cannot be; nothing was run then.
        DataError: If the data is missing, damaged, or does not fit the model.
        UnsafeFileError: If code would run that nobody trusts.
        StoreError: If the folder holds something else.
        StropError: If a stage fails; what was done before it is kept.

    >>> import tempfile, torch
    >>> net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> x, y = torch.rand(64, 64), torch.arange(64) % 4
    >>> model, result = compress(
    ...     net, {'train': (x, y), 'test': (x[:16], y[:16])}, stages=[{'prune': {'ratio': 0.5}}], output=tempfile.mkdtemp(),
    ...     threads=1, runtimes=['eager'], progress='quiet',
    ... )  # fmt: skip
    >>> model[0].out_features, [stage.name for stage in result.stages]
    (16, ['source', 'prune'])
    """
    job = planned(
        model, data, recipe=recipe, stages=stages, budget=budget, output=output, seed=seed, threads=threads,
        runtimes=runtimes, factory=factory, trust=trust, progress=progress,
    )  # fmt: skip
    return job.run(resume=resume, from_stage=from_stage)


def planned(
    model: Any = None,
    data: Any = None,
    *,
    recipe: Any = None,
    stages: Sequence[Any] | None = None,
    budget: Any = None,
    output: str | os.PathLike[str] = 'compressed',
    seed: int | None = None,
    threads: int | None = None,
    runtimes: Sequence[str] | None = None,
    factory: str | None = None,
    trust: bool = False,
    progress: str | Progress = 'bars',
) -> Compression:
    """Return the compression that `compress` would run, its recipe checked; nothing is built or written.

    Raises:
        ConfigError: If something that is asked for cannot be.
    """
    known: dict[str, Any] = {}
    if isinstance(recipe, Recipe):
        known = {'recipe': recipe}
    elif isinstance(recipe, (str, os.PathLike)):
        known = {'recipe': Recipe.read(recipe, trust)}
    elif recipe is not None:
        known = {'recipe': Recipe.of(recipe)}
    in_memory = isinstance(model, nn.Module)
    named = isinstance(data, (str, os.PathLike, DataSource)) or (isinstance(data, Mapping) and 'source' in data)
    given: dict[str, Any] = {}
    if model is not None and not in_memory:
        given['model'] = ModelSource.of(model)
    if data is not None and named:
        given['data'] = DataSource.of(data)
    if not known:
        content: dict[str, Any] = {'stages': stages, 'budget': budget, **given}
        if in_memory:
            content['name'] = type(model).__name__
        whole = Recipe.of({key: value for key, value in content.items() if value is not None})
    else:
        whole = known['recipe']
        changes: dict[str, Any] = dict(given)
        if model is not None:
            changes.setdefault('model', None)
            if whole.name == (whole.model.name if whole.model is not None else 'model'):
                changes['name'] = type(model).__name__ if in_memory else given['model'].name
        if budget is not None:
            changes['budget'] = Budget.of(budget)
        if stages is not None:
            changes['stages'] = Recipe.of({'stages': stages}).stages
        elif whole.automatic and 'budget' in changes:
            changes['stages'] = automatic_stages(changes['budget'])
        whole = replace(whole, **changes)
    for name, value in (('seed', seed), ('threads', threads), ('runtimes', runtimes)):
        if value is not None:
            whole = replace(whole, **{name: getattr(Recipe.of({'stages': ['export'], name: value}), name)})
    return Compression(
        whole,
        output,
        model=model if in_memory else None,
        data=None if named else data,
        factory=factory,
        trust=trust,
        own=tuple(given),
        progress=progress,
    )


@dataclass(frozen=True)
class PlannedStage:
    """What a stage will do, and what that is estimated to take.

    Args:
        name: Its name.
        what: Its settings in words.
        steps: Training steps.
        rehearsed: Training steps of candidates, at the most.
        seconds: About how long both take, from one step that was timed; None for a stage that does not train.
    """

    name: str
    what: str
    steps: int
    rehearsed: int
    seconds: float | None


@dataclass(frozen=True)
class Estimate:
    """What a dry run says.

    Args:
        macs: Of the model, for one sample.
        params: Of the model.
        size_mb: Of its weights.
        peak_memory_mb: Weights, gradients, the optimizer and the activations of a training batch, about.
        parts: Part of the data -> samples.
        stages: The stages.
    """

    macs: int
    params: int
    size_mb: float
    peak_memory_mb: float
    parts: Mapping[str, int]
    stages: tuple[PlannedStage, ...]

    @property
    def seconds(self) -> float:
        """About how long all training takes, that of candidates at its longest."""
        return sum(stage.seconds or 0.0 for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {**asdict(self), 'seconds': self.seconds}


def dry_run(job: Compression) -> Estimate:
    """Build the model and the data, time one training step, and say what the recipe will take; nothing is written.

    Args:
        job: What `planned` returned.

    Raises:
        StropError: If the model or the data are not what they should be.
    """
    with computing_with(job.threads):
        return _estimated(job)


def _estimated(job: Compression) -> Estimate:
    job.open()
    inputs, _ = next(iter(job.data.batches('train')))
    twin = job.original
    costs = resources_of(twin, job.data.example(1))
    batch = resources_of(twin, inputs)
    once = _step_seconds(twin, inputs)
    stages = []
    for stage in job.recipe.stages:
        steps, ahead = stage.settings.steps(len(job.data.train), job.data.batch_size), job.recipe.teacher_after(stage.name)
        rehearsed = 0 if ahead is None else stage.settings.rehearsed(job.recipe.budget)
        taught = ahead if ahead is not None and rehearsed else stage.settings
        # The teacher runs once more in each step.
        seconds = once * (1.3 if taught.kind == 'distill' else 1.0) * (steps + rehearsed)
        stages.append(PlannedStage(stage.name, stage.settings.describe(), steps, rehearsed, seconds or None))
    weights = costs.size_mb or 0.0
    activations = (batch.peak_memory_mb or 0.0) - weights
    return Estimate(
        int(costs.macs or 0), int(costs.params or 0), weights, 4 * weights + 3 * activations, job.data.counts(), tuple(stages)
    )


def _step_seconds(model: nn.Module, inputs: Any) -> float:
    twin = copy.deepcopy(model)
    twin.train()
    if not any(parameter.requires_grad for parameter in twin.parameters()):
        raise ConfigError('The model has no parameter that can be trained.')
    best = float('inf')
    for _ in range(2):
        begun = time.monotonic()
        output: Tensor = main_output(call(twin, inputs), inputs)
        output.float().square().mean().backward()
        best = min(best, time.monotonic() - begun)
    return best


__all__ = ['Estimate', 'PlannedStage', 'compress', 'dry_run', 'planned']
