"""Models before and after, on every runtime that is there: times of the same moments, scores, files and memory."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from strop.errors import ConfigError, EstimateError, StropError, listed, near
from strop.estimators import Latency, measure, ratio, runtimes
from strop.estimators.latency import Machine, settling_ms
from strop.estimators.runtimes import check_positive, onnx_bytes
from strop.estimators.sessions import Run, bound
from strop.export.comparison import Inputs
from strop.export.layer_times import Positional
from strop.export.process_memory import process_memory_mb
from strop.export.programs import export_onnx
from strop.export.runtime_models import Eager, Reordered, RuntimeModel, ordered
from strop.graph.forward import copied, evaluated
from strop.quantization import Quantized, backends
from strop.quantization.backends import Frozen, prepared

if TYPE_CHECKING:
    from strop.quantization import Backend

#: What is not an integer is computed in these.
FLOATS = ('f32', 'bf16')

# What quantization calls its back ends -> the runtimes that compute them.
_RUNTIME_OF = {'inductor': 'compile'}
_FEWEST_ROUNDS = 5
#: A shorter float that takes this many times as long as f32, and so much longer, is not measured.
_IMITATED, _WASTED_MS = 3.0, 50.0
_MOST_CALLS = 20


@dataclass(frozen=True)
class RuntimeFile:
    """A file for a runtime that is measured as it is.

    Args:
        path: The file.
        backend: What runs it; see `strop.quantization.backends`.
        precision: What it computes in.
    """

    path: Path
    backend: str
    precision: str = 'int8'


Subject = nn.Module | Quantized | RuntimeFile


@dataclass(frozen=True)
class RuntimeTime:
    """One model on one runtime.

    Args:
        stage: Which model.
        runtime: What ran it.
        precision: What it computed in.
        batch: Samples in a forward.
        threads: Threads that it computed with.
        latency: Of one forward.
        score: What `score` says of the model as this runtime computes it.
        bytes: Size of the file that was run.
        peak_memory_mb: What loading and running the file for one sample added to a fresh process at most, in 10^6 bytes.
    """

    stage: str
    runtime: str
    precision: str
    batch: int
    threads: int
    latency: Latency
    score: float | None = None
    bytes: int | None = None
    peak_memory_mb: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as the measurements of a `result.json` hold it."""
        low, high = self.latency.quartiles_ms
        kept = {name: getattr(self, name) for name in ('stage', 'runtime', 'precision', 'batch', 'threads')}
        times = dict(median_ms=self.latency.median_ms, low_ms=low, high_ms=high, rounds=len(self.latency.samples_ms))
        return {**kept, **times, 'score': self.score, 'bytes': self.bytes, 'peak_memory_mb': self.peak_memory_mb}


@dataclass(frozen=True)
class RuntimeTimes:
    """Models on runtimes, those of one batch size measured in the same rounds.

    Args:
        rows: What was measured.
        missing: What was not: `runtime`, `reason` and the `extra` that brings it.
        machine: Where.
    """

    rows: tuple[RuntimeTime, ...]
    missing: tuple[Mapping[str, str], ...]
    machine: Machine

    def fastest(self, stage: str, batch: int, precisions: Iterable[str] | None = None) -> RuntimeTime | None:
        """Return where a model was fastest, of all runtimes; None if it was not measured."""
        wanted = None if precisions is None else set(precisions)
        rows = [
            row
            for row in self.rows
            if row.stage == stage and row.batch == batch and (wanted is None or row.precision in wanted)
        ]
        return min(rows, key=lambda row: row.latency.median_ms, default=None)

    def speedups(self, first: str, second: str, confidence: float = 0.95) -> list[dict[str, Any]]:
        """Return how many times as fast the second model is as the first, as the ratios of a `result.json` hold it.

        For each batch size: on each runtime in each precision that both were measured in, and its fastest against the fastest
        float of the first on any runtime.
        """
        found = []
        for batch in dict.fromkeys(row.batch for row in self.rows):
            rows = {(row.stage, row.runtime, row.precision): row for row in self.rows if row.batch == batch}
            for (stage, runtime, precision), row in rows.items():
                before = rows.get((first, runtime, precision))
                if stage == second and before is not None:
                    what = f'{second} beside {first}, both {precision} in {runtime}, batch {batch}'
                    found.append(_speedup(what, before, row, confidence))
            before, after = self.fastest(first, batch, FLOATS), self.fastest(second, batch)
            if before is not None and after is not None:
                what = (
                    f'{second} ({after.precision} in {after.runtime}) beside the fastest float of {first} ({before.precision} '
                    f'in {before.runtime}), batch {batch}'
                )
                found.append(_speedup(what, before, after, confidence))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return `measurements`, `missing` and `machine` as JSON holds them."""
        return {
            'measurements': [row.to_dict() for row in self.rows],
            'missing': [dict(entry) for entry in self.missing],
            'machine': asdict(self.machine),
        }

    def table(self) -> Table:
        """Return a `rich` table of everything measured."""
        table = Table(title=f'{self.machine.cpu}, {self.machine.threads} thread{"s" * (self.machine.threads != 1)}')
        for name in ('model', 'runtime', 'computes in'):
            table.add_column(name)
        for name in ('batch', 'median ms', 'quartiles', 'score'):
            table.add_column(name, justify='right')
        for row in self.rows:
            low, high = row.latency.quartiles_ms
            score = '' if row.score is None else f'{row.score:.4f}'
            table.add_row(
                escape(row.stage), row.runtime, row.precision, str(row.batch), f'{row.latency.median_ms:.3f}',
                f'{low:.3f} to {high:.3f}', score,
            )  # fmt: skip
        return table


def measure_runtimes(
    models: Mapping[str, Subject | Sequence[Subject]],
    inputs: Any,
    *,
    batches: Sequence[int] = (1, 32),
    threads: int = 1,
    only: Iterable[str] | None = None,
    precisions: Iterable[str] = FLOATS,
    rounds: int = 30,
    seconds: float = 30.0,
    score: Callable[[nn.Module], float] | Mapping[str, Callable[[nn.Module], float]] | None = None,
    memory: bool = True,
    inputs_of: Mapping[str, Any] | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> RuntimeTimes:
    """Measure several models on every runtime that is installed.

    Plain models run in eager, in `torch.compile` (Inductor with frozen weights, its fastest form), in ONNX Runtime and in
    OpenVINO, in each of the precisions that those have; a quantized model, or a file, in its own runtime beside them.
    Everything of one batch size is measured in the same rounds, one after the other, so that a slow moment falls on all alike;
    a sample is the mean of up to 20 calls in a row after one that is not timed, as many as the time allows.
    What cannot be measured is listed with the reason, and stops nothing; so is a shorter float that a processor only imitates,
    at several times the time of `f32` in the same runtime.

    Args:
        models: Name -> a plain model, what `quantize` returned, a file, or several of these.
        inputs: Example inputs of any batch size: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        batches: Batch sizes.
        threads: Threads to compute with.
        only: Runtimes to measure; all by default.
        precisions: Of floats: `'f32'`, `'bf16'`.
        rounds: Most rounds of one batch size.
        seconds: Time for the rounds of one batch size; there are fewer where they take longer, but at least five.
        score: Judges a model, called with each as its runtime computes it; or name -> what judges that model.
        memory: Measure memory in fresh processes (ONNX Runtime and OpenVINO, Linux).
        inputs_of: Name -> example inputs of a model that takes others than the rest, such as smaller images.
        tell: Called with how many preparations of how many are done.

    Raises:
        ConfigError: If an argument is not what it can be.

    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    >>> times = measure_runtimes({'net': net}, torch.rand(2, 8), batches=(1, 4), only=('eager',), rounds=5)
    >>> [(row.runtime, row.precision, row.batch) for row in times.rows]
    [('eager', 'f32', 1), ('eager', 'bf16', 1), ('eager', 'f32', 4), ('eager', 'bf16', 4)]
    """
    check_positive(threads=threads, rounds=rounds, **{f'batches[{index}]': size for index, size in enumerate(batches)})
    known = [*runtimes(), *(name for name, entry in backends().items() if _measurable(name, entry))]
    wanted = known if only is None else list(only)
    for name in wanted:
        if name not in known:
            raise ConfigError(f'A runtime to measure is one of {listed(known)}, but got {name!r}.{near(name, known)}')
    given_floats = tuple(precisions)
    for precision in given_floats:
        if precision not in FLOATS:
            raise ConfigError(f'Floats are measured in {listed(FLOATS)}, but got {precision!r}.{near(precision, FLOATS)}')
    floats = [precision for precision in FLOATS if precision in given_floats]  # f32 first: others are judged by it
    subjects = {stage: _subjects(stage, found) for stage, found in models.items()}
    if not subjects:
        raise ConfigError('There is no model to measure: `models` is a mapping of names to models.')
    _check_files(subjects)
    for what, names in (('inputs_of', inputs_of or {}), ('score', score if isinstance(score, Mapping) else {})):
        for name in names:
            if name not in subjects:
                raise ConfigError(f'`{what}` names {name!r}, which is none of the models.{near(name, subjects)}')
    given = {stage: Inputs.of((inputs_of or {}).get(stage, inputs)).to('cpu') for stage in subjects}
    missing = _not_installed(wanted)
    gone = {entry['runtime'] for entry in missing}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bench = _Bench(
            given, threads, [name for name in wanted if name not in gone], floats, Path(folder), missing, list(batches)
        )
        jobs = [job for stage, found in subjects.items() for subject in found for job in bench.jobs(stage, subject)]
        _check_twins([job[:3] for job in jobs])
        total = len(jobs)
        for number, job in enumerate(jobs):
            if tell is not None:
                tell(number, total)
            bench.prepare(job)
        ready = bench.worthwhile
        scores, peaks = bench.scores(ready, score), bench.memory(ready) if memory else {}
        rows: list[RuntimeTime] = []
        for batch in batches:
            for each, latency in bench.times(ready, batch, rounds, seconds):
                size = None if each.path is None else _size_of(each.path)
                found = scores.get(each.key), size, peaks.get(each.key)
                rows.append(RuntimeTime(*each.key, batch, threads, latency, *found))
        if tell is not None:
            tell(total, total)
    return RuntimeTimes(tuple(rows), tuple(missing), Machine.here(threads))


# -- internals --------------------------------------------------------------------------------------------


@dataclass
class _Ready:
    """A model that is ready to run on a runtime; `batch` where it takes no other."""

    stage: str
    runtime: str
    precision: str
    run: Run
    path: Path | None = None
    batch: int | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.stage, self.runtime, self.precision


Job = tuple[str, str, str, Callable[[], list[_Ready]]]


class _Bench:
    """Prepares models, and runs them."""

    def __init__(
        self,
        inputs: Mapping[str, Inputs],
        threads: int,
        wanted: Sequence[str],
        floats: Sequence[str],
        folder: Path,
        missing: list[Mapping[str, str]],
        batches: Sequence[int],
    ) -> None:
        self._inputs, self._threads, self._wanted, self._floats = inputs, threads, wanted, floats
        self._folder, self._missing, self._batches = folder, missing, batches
        self._written: dict[int, list[tuple[Path, int | None]]] = {}
        self._numbers = itertools.count()
        self._ready: list[_Ready] = []
        self._imitated: set[tuple[str, str]] = set()

    def jobs(self, stage: str, subject: Subject) -> list[Job]:
        """Return (stage, runtime, precision, what prepares it) for everything that a subject can be measured as."""
        if isinstance(subject, RuntimeFile):
            runtime = _RUNTIME_OF.get(subject.backend, subject.backend)
            make: Any = partial(self._file, stage, subject)
            return [(stage, runtime, subject.precision, make)] if runtime in self._wanted else []
        if isinstance(subject, Quantized):
            runtime = _RUNTIME_OF.get(subject.backend.name, subject.backend.name)
            if runtime not in self._wanted:
                return []
            found: list[Job] = [(stage, runtime, 'int8', partial(self._quantized, stage, subject, 'int8'))]
            if runtime not in runtimes():  # its float model is known through the quantized one only
                found.append((stage, runtime, 'f32', partial(self._quantized, stage, subject, 'f32')))
            return found
        try:
            plain = evaluated(copied(getattr(subject, '_orig_mod', subject)).cpu())
        except Exception as error:
            reason = f'{stage} cannot be copied: {type(error).__name__}: {" ".join(str(error).split())[:400]}'
            self._missing += [{'runtime': name, 'reason': reason, 'extra': ''} for name in runtimes() if name in self._wanted]
            return []
        return [
            (stage, name, precision, partial(self._plain, stage, plain, name, precision))
            for name, entry in runtimes().items()
            if name in self._wanted
            for precision in self._floats
            if precision in entry.precisions
        ]

    def prepare(self, job: Job) -> None:
        """Prepare what a job does, and run it once at each batch size; what fails is listed as missing.

        A float that an earlier job has shown to be imitated is not prepared again: a compiler may take a minute for it.
        """
        stage, runtime, precision, make = job
        if (runtime, precision) in self._imitated:
            return
        found = []
        try:
            for ready in make():
                for batch in self._batches if ready.batch is None else (ready.batch,):
                    ready.run(self.tensors(stage, batch))
                found.append(ready)
        except Exception as error:
            reason = f'{type(error).__name__}: {" ".join(str(error).split())[:400]}'
            self._missing.append({'runtime': runtime, 'reason': f'{stage} in {precision}: {reason}', 'extra': ''})
            return
        self._ready += found
        for each in found:
            self._compare(each)

    @property
    def worthwhile(self) -> list[_Ready]:
        """What is ready, but for floats that take far longer than `f32` in the same runtime, with any of the models."""
        return [each for each in self._ready if (each.runtime, each.precision) not in self._imitated]

    def _compare(self, each: _Ready) -> None:
        """Compare a shorter float with `f32` in the same runtime; one that takes far longer is listed as missing."""
        beside = next(
            (
                entry for entry in self._ready
                if entry.batch is None and entry.key == (each.stage, each.runtime, 'f32')
            ),
            None,
        )  # fmt: skip
        if each.precision in ('f32', 'int8') or each.batch is not None or beside is None:
            return
        batch = max(self._batches)
        tensors = self.tensors(each.stage, batch)
        times = measure(
            {entry.precision: bound(entry.run, tensors) for entry in (beside, each)},
            runs=1, warmup=0, settle=0, threads=self._threads,
        )  # fmt: skip
        before, after = (times[entry.precision].median_ms for entry in (beside, each))
        if after > _IMITATED * before and after - before > _WASTED_MS:
            reason = f'{each.precision} takes {after / before:.1f} times as long as f32 there ({each.stage}, batch {batch})'
            self._missing.append({'runtime': each.runtime, 'reason': reason, 'extra': ''})
            self._imitated.add((each.runtime, each.precision))

    def tensors(self, stage: str, batch: int) -> list[torch.Tensor]:
        """Return the tensors of a model's inputs of a batch size."""
        return [tensor.clone() for tensor in self._given(stage, batch).tensors().values()]

    def _given(self, stage: str, batch: int | None) -> Inputs:
        """Return the inputs of a model; of None those of the batch size that was given."""
        inputs = self._inputs[stage]
        return inputs if batch is None or inputs.batch == batch else inputs.with_batch(batch)

    def scores(
        self, ready: Sequence[_Ready], score: Callable[[nn.Module], float] | Mapping[str, Callable[[nn.Module], float]] | None
    ) -> dict[tuple[str, str, str], float]:
        """Return key -> score, of what takes any batch size."""
        found = {}
        for each in ready:
            judge = score.get(each.stage) if isinstance(score, Mapping) else score
            if judge is not None and each.batch is None:
                try:
                    names = list(self._inputs[each.stage].kwargs)
                    found[each.key] = float(judge(RuntimeModel(each.run, names, self._batches).eval()))
                except StropError:
                    raise
                except Exception as error:
                    raise EstimateError(
                        f'`score` failed on {each.stage} as {each.runtime} computes it in {each.precision}: '
                        f'{type(error).__name__}: {error}'
                    ) from error
        return found

    def memory(self, ready: Sequence[_Ready]) -> dict[tuple[str, str, str], float]:
        """Return key -> memory for one sample."""
        found = {}
        for each in ready:
            if each.path is not None and each.batch in (None, 1):
                tensors = self.tensors(each.stage, 1)
                tensors = each.run.ordered(tensors) if isinstance(each.run, Reordered) else tensors
                peak = process_memory_mb(each.path, each.runtime, tensors, self._threads, each.precision)
                if peak is not None:
                    found[each.key] = peak
        return found

    def times(
        self, ready: Sequence[_Ready], batch: int, rounds: int, seconds: float
    ) -> list[tuple[_Ready, Latency]]:  # fmt: skip
        """Time everything that takes a batch size, in the same rounds."""
        entries = {', '.join(each.key): each for each in ready if each.batch in (None, batch)}
        if not entries:
            return []
        calls = {name: bound(each.run, self.tensors(each.stage, batch)) for name, each in entries.items()}
        trial = measure(calls, runs=2, warmup=1, settle=0, threads=self._threads)
        fastest = [min(latency.samples_ms) for latency in trial.values()]
        lap, settling = sum(fastest), sum(max(each, settling_ms(self._threads)) for each in fastest)
        available = 1e3 * seconds
        fewest = min(_FEWEST_ROUNDS, rounds)
        settle = int(available >= fewest * (lap + settling))
        repeats = max(1, min(_MOST_CALLS, int((available / rounds - settle * settling) / lap)))
        rounds = max(fewest, min(rounds, int(available / (repeats * lap + settle * settling))))
        times = measure(calls, runs=rounds, warmup=1, settle=settle, calls=repeats, threads=self._threads)
        return [(each, times[name]) for name, each in entries.items()]

    # -- what prepares them ----------------------------------------------------------------

    def _plain(self, stage: str, model: nn.Module, runtime: str, precision: str) -> list[_Ready]:
        inputs = self._inputs[stage]
        if runtime == 'eager':
            return [_Ready(stage, runtime, precision, Eager(model, inputs, precision))]
        if runtime == 'compile':
            # Of inputs that nobody calls it with: a program for the very ones that it holds would serve no others.
            alone = Positional(model, inputs.map(torch.clone))
            return [_Ready(stage, runtime, precision, Frozen(alone, self._threads, precision))]
        load = backends()[runtime].load
        assert load is not None, 'both ONNX runtimes load files'
        found = []
        for path, batch in self._onnx(stage, model):
            run = load(path, self._threads, precision)
            in_file = inputs if batch else inputs.bound(model)[0]
            found.append(_Ready(stage, runtime, precision, ordered(run, inputs, in_file), path, batch))
        return found

    def _onnx(self, stage: str, model: nn.Module) -> list[tuple[Path, int | None]]:
        """Return the ONNX files of a model: one for every batch size, or one for each where it cannot be left open."""
        if id(model) not in self._written:
            path = self._unused('.onnx')
            try:
                export_onnx(model, self._inputs[stage], path, check=False)
                self._written[id(model)] = [(path, None)]
            except StropError:
                found = []
                for batch in self._batches:
                    fixed = path.with_name(f'{path.stem}-{batch}.onnx')
                    fixed.write_bytes(onnx_bytes(Positional(model, self._inputs[stage]), tuple(self.tensors(stage, batch))))
                    found.append((fixed, batch))
                self._written[id(model)] = found  # type: ignore[assignment]
        return self._written[id(model)]

    def _quantized(self, stage: str, quantized: Quantized, precision: str) -> list[_Ready]:
        entry, found = quantized.backend, []
        graph = quantized.model if precision == 'int8' else quantized.reference
        runtime = _RUNTIME_OF.get(entry.name, entry.name)
        for batch in (None,) if entry.open_batch else self._batches:
            path = self._unused(entry.suffix)
            inputs = self._given(stage, batch)
            entry.write(graph, quantized.example if batch is None else (inputs.args, inputs.kwargs), path)
            run = prepared(entry, path, self._threads)
            in_file = inputs if batch is not None else inputs.in_order(quantized.example)
            found.append(_Ready(stage, runtime, precision, ordered(run, inputs, in_file), path, batch))
        return found

    def _unused(self, suffix: str) -> Path:
        """Return a path of the folder that nothing else is written to."""
        return self._folder / f'{next(self._numbers)}{suffix}'

    def _file(self, stage: str, file: RuntimeFile) -> list[_Ready]:
        entry = backends()[file.backend]
        floats = file.precision if file.precision in entry.precisions else None
        runtime = _RUNTIME_OF.get(entry.name, entry.name)
        run = prepared(entry, file.path, self._threads, floats)
        batch = None if entry.open_batch else 1
        return [_Ready(stage, runtime, file.precision, run, file.path, batch)]


def _subjects(stage: str, found: Any) -> list[Subject]:
    subjects = list(found) if isinstance(found, (list, tuple)) else [found]
    for subject in subjects:
        if isinstance(subject, RuntimeFile):
            if subject.backend not in backends():
                raise ConfigError(
                    f'A file is for one of {listed(backends())}, but {stage!r} has one for {subject.backend!r}.'
                    f'{near(subject.backend, backends())}'
                )
        elif not isinstance(subject, (nn.Module, Quantized)):
            raise ConfigError(
                f'A model to measure is an nn.Module, what `quantize` returned, or a RuntimeFile, but {stage!r} is a '
                f'{type(subject).__name__}.'
            )
    return subjects


def _check_files(subjects: Mapping[str, Sequence[Subject]]) -> None:
    """Refuse one file as two models: it holds one of them, and its times would be called those of the other."""
    owners: dict[Path, str] = {}
    for stage, found in subjects.items():
        for subject in found:
            if isinstance(subject, RuntimeFile):
                owner = owners.setdefault(Path(subject.path).resolve(), stage)
                if owner != stage:
                    raise ConfigError(
                        f'{subject.path} is given as {owner!r} and as {stage!r}, but a file holds one model: give each its own.'
                    )


def _check_twins(keys: Sequence[tuple[str, str, str]]) -> None:
    """Refuse two models of one stage that are measured alike: their times could not be told apart."""
    for stage, runtime, precision in keys:
        if keys.count((stage, runtime, precision)) > 1:
            raise ConfigError(
                f'{stage!r} has several models for {runtime} in {precision}, whose times could not be told apart: give each a '
                'name of its own.'
            )


def _measurable(name: str, entry: Backend) -> bool:
    return _RUNTIME_OF.get(name, name) not in runtimes() and entry.load is not None


def _size_of(path: Path) -> int:
    """Return the bytes of a file, with those of the weights that ONNX puts beside a large one."""
    beside = path.with_name(f'{path.name}.data')
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def _not_installed(wanted: Iterable[str]) -> list[Mapping[str, str]]:
    found: list[Mapping[str, str]] = []
    for name in wanted:
        entry: Any = runtimes().get(name) or backends()[name]
        if not entry.available:
            found.append({'runtime': name, 'reason': f'{entry.package} is not installed', 'extra': entry.extra or ''})
    return found


def _speedup(what: str, before: RuntimeTime, after: RuntimeTime, confidence: float) -> dict[str, Any]:
    found = ratio(before.latency, after.latency, confidence)
    return {'what': what, 'value': found.value, 'low': found.low, 'high': found.high, 'confidence': confidence}


__all__ = ['FLOATS', 'RuntimeFile', 'RuntimeTime', 'RuntimeTimes', 'measure_runtimes']
