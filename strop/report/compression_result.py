"""`result.json`: what a compression was asked for, what each stage did, and what was measured; typed, versioned, checked."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from strop.errors import ConfigError, listed, near
from strop.files import atomic_write, read_json

VERSION = 1

#: The name of the file in the folder of a compression.
FILE_NAME = 'result.json'

#: The name and the kind of the first stage: the model as it was given.
SOURCE = 'source'

_T = TypeVar('_T')


@dataclass
class Asked:
    """What the compression was asked for.

    Args:
        recipe: The whole recipe, as it was read.
        budget: Name of a limit -> its value, or a mapping with the value and its runtime.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """Whether the budget was met.

    Args:
        met: None while it is not known, or if there was no budget.
        sentences: What came out, in words; where the budget was not met, what the nearest reachable is and why.
    """

    met: bool | None = None
    sentences: list[str] = field(default_factory=list)


@dataclass
class ModelSource:
    """The model as it was given.

    Args:
        name: What the reader calls it.
        source: What builds it: a registry type, `timm:NAME`, `transformers:PATH` or `module:factory`.
        input_shape: Shape of one sample; None where it has several inputs.
    """

    name: str = ''
    source: str = ''
    input_shape: list[int] | None = None


@dataclass
class DataSource:
    """The data as it was read.

    Args:
        name: What the reader calls it.
        parts: Part (`train`, `calibration`, `validation`, `test`) -> its number of samples.
        skipped: How many samples could not be read.
        uses: Part -> what it was used for, where that is not what its name says.
    """

    name: str = ''
    parts: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    uses: dict[str, str] = field(default_factory=dict)


@dataclass
class StageResources:
    """What the model costs after a stage.

    Args:
        macs: Multiply-adds of one sample.
        params: Parameters.
        size_mb: Weights as they are stored, in units of 10^6 bytes; of a quantized model, its file.
        peak_memory_mb: Weights and the most activations alive at once for one sample, in units of 10^6 bytes; None of a
            quantized model, whose activations are as wide as its runtime makes them.
    """

    macs: int | None = None
    params: int | None = None
    size_mb: float | None = None
    peak_memory_mb: float | None = None


@dataclass
class LayerState:
    """One layer at one moment.

    Args:
        shape: Of its weight.
        macs: Multiply-adds of one sample.
        params: Parameters.
        latency_ms: Median time of it for one sample.
        precision: What it computes in, such as `f32` or `int8`.
        runtime: Where the time was measured.
    """

    shape: list[int] | None = None
    macs: int | None = None
    params: int | None = None
    latency_ms: float | None = None
    precision: str | None = None
    runtime: str | None = None


@dataclass
class LayerChange:
    """What a stage did to one layer; `after` is None if the layer is gone."""

    name: str
    kind: str
    before: LayerState = field(default_factory=LayerState)
    after: LayerState | None = None


@dataclass
class Stage:
    """One stage. The first of a result is the given model itself, with name and kind `source`.

    Args:
        name: Unique in the result.
        kind: `source`, `search`, `prune`, `distill`, `finetune`, `quantize` or `export`.
        status: `done`, `running`, `failed` or `skipped`.
        settings: What it was run with.
        seconds: How long it took; if it was killed and went on, the last part alone.
        explanation: Sentences: what was chosen, and why.
        resources: What the model costs after it.
        scores: Metric -> value after it, higher is better.
        scored_on: The part of the data that the scores are of.
        curve: Points of training: `step` and any of `loss`, `lr`, `score`, ...
        layers: What it did to each layer.
        warnings: What the reader should know.
    """

    name: str
    kind: str
    status: str = 'done'
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    explanation: list[str] = field(default_factory=list)
    resources: StageResources = field(default_factory=StageResources)
    scores: dict[str, float] = field(default_factory=dict)
    scored_on: str = ''
    curve: list[dict[str, float | None]] = field(default_factory=list)
    layers: list[LayerChange] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass
class Tried:
    """One model that was considered.

    Args:
        label: What the reader calls it.
        stage: The stage that tried it.
        macs: Multiply-adds of one sample.
        params: Parameters.
        latency_ms: Median, measured or predicted.
        score: Higher is better.
        chosen: Whether the stage went on with it.
        scored_on: The part of the data that the score is of.
        metric: Which score it is.
    """

    label: str
    stage: str
    macs: int | None = None
    params: int | None = None
    latency_ms: float | None = None
    score: float | None = None
    chosen: bool = False
    scored_on: str = ''
    metric: str = ''


@dataclass
class Measurement:
    """The time of one forward of one model on one runtime.

    Args:
        stage: The model after this stage.
        runtime: `eager`, `compile`, `onnxruntime`, `openvino` or `executorch`.
        precision: `f32`, `bf16` or `int8`.
        batch: Samples in a forward.
        threads: Threads that it computed with.
        median_ms: Median of the rounds.
        low_ms: First quartile.
        high_ms: Third quartile.
        rounds: How many there were.
        score: The metric, computed by this runtime.
        bytes: Size of the file that was run.
        peak_memory_mb: What loading and running the file added to a fresh process at most, in units of 10^6 bytes.
    """

    stage: str
    runtime: str
    precision: str
    batch: int
    threads: int
    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int
    score: float | None = None
    bytes: int | None = None
    peak_memory_mb: float | None = None


@dataclass
class Export:
    """One file that came out, run and compared with the model before it counted.

    Args:
        path: Relative to the folder of the result.
        format: `pt2`, `onnx`, `pte`, `recipe`, ...
        runtime: What it is for.
        difference: To the model, relative; None if it could not be run here.
        bytes: Its size.
        precision: What it computes in.
    """

    path: str
    format: str
    runtime: str
    difference: float | None
    bytes: int
    precision: str = 'f32'


@dataclass
class SpeedRatio:
    """How many times as fast one model is as another, from pairs of the same rounds.

    Args:
        what: In words.
        value: Median of the ratios.
        low: Lower end of its confidence interval.
        high: Upper end of it.
        confidence: Coverage of the interval.
    """

    what: str
    value: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass
class Missing:
    """A runtime, or a runtime with one model, that was not measured.

    Args:
        runtime: Its name.
        reason: Why.
        extra: The extra of `pip install 'strop[extra]'` that brings it; empty if that is not the reason.
    """

    runtime: str
    reason: str
    extra: str = ''


@dataclass
class CompressionResult:
    """Everything that a compression says of itself.

    Args:
        asked: What it was asked for.
        outcome: Whether the budget was met.
        environment: CPU, versions, threads: what `asdict(Machine.here(threads))` holds, and more.
        model: The model as it was given.
        data: The data as it was read.
        stages: In the order of the work; the first is the given model (`SOURCE`).
        tried: Every model that was considered.
        measurements: Times on runtimes.
        exports: Files that came out.
        ratios: How many times as fast.
        missing: What was not measured, and why.
        warnings: What the reader should know.
        version: Of the form of the file.

    >>> result = CompressionResult(model=ModelSource('net', 'demo:net'))
    >>> result.stages.append(Stage('source', 'source', scores={'accuracy': 0.9}, scored_on='test'))
    >>> CompressionResult.from_dict(result.to_dict()) == result
    True
    """

    asked: Asked = field(default_factory=Asked)
    outcome: Outcome = field(default_factory=Outcome)
    environment: dict[str, Any] = field(default_factory=dict)
    model: ModelSource = field(default_factory=ModelSource)
    data: DataSource = field(default_factory=DataSource)
    stages: list[Stage] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    exports: list[Export] = field(default_factory=list)
    ratios: list[SpeedRatio] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it, checked.

        Numbers of NumPy and single values of tensors become Python's. A loss that is not finite becomes None.

        Raises:
            ConfigError: If something in it is of the wrong kind, or a number is not finite; the message says where.
        """
        content = _plain(dataclasses.asdict(self), ())
        check_result(content)
        return {'version': content.pop('version'), **content}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str = 'The result') -> CompressionResult:
        """Read what `to_dict` returned.

        Args:
            content: As JSON holds it.
            where: What the message calls it.

        Raises:
            ConfigError: If it is of a newer version, breaks the schema or has numbers that are not finite; the message says
                where.
        """
        check_result(content, where)
        try:
            return _built(cls, _plain(content, ()))
        except ConfigError as error:
            raise ConfigError(f'{where} cannot be read. {error}') from None

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write it to a file, or as `result.json` into a folder; all of it, or nothing.

        Raises:
            ConfigError: If it does not fit the schema; then nothing is written.
        """
        target = Path(path).expanduser()
        if target.is_dir() or target.suffix != '.json':
            target = target / FILE_NAME
        atomic_write(target, json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + '\n')
        return target

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> CompressionResult:
        """Read a file, or the `result.json` of a folder. Nothing in it is executed.

        Raises:
            ConfigError: If it is not there, not JSON, of a newer version, breaks the schema, or has numbers that are not
                finite.
            UnsafeFileError: If it is a pickle or no text.
        """
        target = Path(path).expanduser()
        if target.is_dir():
            target = target / FILE_NAME
        if not target.is_file():
            raise ConfigError(
                f'{path} has no {FILE_NAME}. Give the folder that `strop compress --output` wrote, or a {FILE_NAME} itself.'
            )
        content = read_json(target, 'a result of `strop compress`')
        if not isinstance(content, Mapping):
            raise ConfigError(f'{target} is not a result of `strop compress`: it holds a {type(content).__name__}.')
        return cls.from_dict(content, str(target))

    def stage(self, name: str) -> Stage:
        """Return a stage by its name.

        Raises:
            ConfigError: If there is none; the message names near matches.
        """
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise ConfigError(f'The result has no stage {name!r}.{near(name, names)} It has {listed(names)}.')
        return self.stages[names.index(name)]


def result_schema() -> dict[str, Any]:
    """Return the JSON Schema of `result.json`.

    >>> result_schema()['title']
    'Result of a compression'
    """
    content: dict[str, Any] = json.loads(files('strop.report').joinpath('compression_result.schema.json').read_text('utf-8'))
    return content


def check_result(content: Mapping[str, Any], where: str = 'The result') -> None:
    """Validate the content of a `result.json`.

    Args:
        content: As JSON holds it.
        where: What the message calls it.

    Raises:
        ConfigError: If the version is newer than this package reads, or the content breaks the schema.
    """
    import jsonschema

    version = content.get('version')
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise ConfigError(f'{where} has version {version}; this Strop reads up to version {VERSION}. Upgrade Strop.')
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(result_schema()).iter_errors(dict(content)))
    if error is not None:
        place = '.'.join(map(str, error.absolute_path)) or 'its root'
        hint = ''
        if error.validator == 'additionalProperties':
            known = list(error.schema.get('properties', {}))
            unknown = [key for key in error.instance if key not in known]
            hint = near(unknown[0], known) if unknown else ''
        raise ConfigError(f'{where} breaks the schema of {FILE_NAME} at {place}: {error.message[:300]}.{hint}')


# -- internals --------------------------------------------------------------------------------------------


def _plain(value: Any, place: tuple[str, ...]) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        if 'curve' in place:
            return None
        raise ConfigError(f'Numbers of a result are finite, but {".".join(place)} is {value}.')
    if isinstance(value, Mapping):
        return {str(key): _plain(item, (*place, str(key))) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, (*place, str(index))) for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(getattr(value, 'tolist', None)):  # arrays, tensors and their numbers
        return _plain(value.tolist(), place)
    raise ConfigError(f'A result holds what JSON can hold, but {".".join(place)} is a {type(value).__name__}: {value!r:.200}')


def _built(kind: type[_T], content: Mapping[str, Any]) -> _T:
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], value) for name, value in content.items()})


def _value(hint: Any, value: Any) -> Any:
    choices = [hint, *get_args(hint)]
    inner = next((choice for choice in choices if dataclasses.is_dataclass(choice)), None)
    if inner is None or value is None:
        return value
    if isinstance(value, Sequence):
        return [_built(inner, item) for item in value]  # type: ignore[arg-type]
    return _built(inner, value)  # type: ignore[arg-type]
