"""The chain: stage after stage, each a checkpoint that appears whole or not at all, from which a killed run goes on."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from strop.compression.artefact import FILE, MODEL, Artefact, check_artefact, copy_file, write_loader
from strop.compression.checkpoint import Finished, locked, remove
from strop.compression.data_source import IN_MEMORY, DataSource, open_data
from strop.compression.measuring import measured
from strop.compression.model_source import ModelSource, state_digest
from strop.compression.outcome import outcome_of
from strop.compression.page import readme
from strop.compression.parts import DataParts
from strop.compression.progress import Progress
from strop.compression.quantize_stage import planned_backends
from strop.compression.recipe import NamedStage, Recipe
from strop.compression.scoring import Judge
from strop.compression.stage import (
    REFERENCE,
    Outcome,
    State,
    Surroundings,
    layer_changes,
    layers_of,
    resources_of,
)
from strop.compression.training import forget
from strop.errors import ConfigError, StoreError, StropError
from strop.estimators.latency import Machine
from strop.estimators.runtimes import computing_with
from strop.export import load_recipe, save_slim
from strop.export.folder import atomic_folder
from strop.export.recipe import contiguous, plain_of
from strop.files import atomic_write, json_text, leftovers, read_json
from strop.graph.forward import evaluated
from strop.mutables import extract, space_of
from strop.randomness import derive_seed, seeded
from strop.report import compression_result as results
from strop.report.compression import CompressionReport

#: The folder of checkpoints inside an output folder; it may be deleted once a compression is done.
STAGES = 'stages'
_OWNER = 'run.json'
#: The times inside the folder of checkpoints.
_TIMES = 'measurements.json'


@dataclass
class Compressed:
    """What a compression gave; unpacks as `model, result`.

    Args:
        model: The smaller model, plain PyTorch in floats, in eval mode.
        result: Everything that was done and measured.
        folder: The artefact.
        integers: Quantized files of the artefact by backend.
    """

    model: nn.Module
    result: results.CompressionResult
    folder: Path
    integers: dict[str, Path] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.result))

    @property
    def met(self) -> bool | None:
        """Whether the budget was met; None without one."""
        return self.result.outcome.met


class Compression:
    """One compression in one output folder.

    Args:
        recipe: What to do.
        output: The folder.
        model: The model, where it is given in memory.
        data: The data, where they are given in memory. Of the recipe's only `val`, `calibration`, `batch_size` and `labels`
            hold then, and nothing if these are `DataParts`.
        factory: What builds a model that is given in memory, so that the artefact can be loaded without it: 'module:function'.
        trust: Whether the recipe may name functions of Python modules.
        own: Which of `model` and `data` the caller named by itself, and not the recipe: those may.
        progress: Tells how far it is.

    Raises:
        ConfigError: If something in the recipe cannot be.
    """

    def __init__(
        self,
        recipe: Recipe,
        output: str | os.PathLike[str],
        *,
        model: nn.Module | None = None,
        data: Any = None,
        factory: str | None = None,
        trust: bool = False,
        own: Sequence[str] = (),
        progress: str | Progress = 'bars',
    ) -> None:
        in_memory = data is not None and not isinstance(data, (str, Path, DataSource))
        if in_memory and recipe.data is not None:
            # What the recipe names is not read; how parts are used holds for those that are given as well.
            recipe = replace(recipe, data=None if isinstance(data, DataParts) else recipe.data.in_memory())
        self.recipe = recipe
        self.folder = Path(output).expanduser().resolve()
        self.trust = trust
        self.own = (*own, *(['model'] if factory else []))
        self.progress = Progress.of(progress)
        self.given_model, self.given_data = model, data
        self.source = recipe.model if model is None else (ModelSource.of(factory) if factory else None)
        if model is None and recipe.model is None:
            raise ConfigError('There is no model: the recipe names none, and none was given.')
        if data is None and recipe.data is None:
            raise ConfigError('There are no data: the recipe names none, and none were given.')
        if self.folder.is_file():
            raise ConfigError(f'The output is a folder, but {self.folder} is a file.')
        (replace(recipe, data=None) if in_memory else recipe).check(trust, own)
        usable = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        self.threads = recipe.threads or usable

    # -- what it begins with ---------------------------------------------------------------

    def open(self) -> None:
        """Build the model, read the data and look at both.

        Raises:
            StropError: If one of them is not what it should be, or they do not fit together.
        """
        torch.set_num_threads(self.threads)
        if self.given_model is not None:
            self.supernet: nn.Module = evaluated(plain_of(copy.deepcopy(self.given_model)).cpu())
            if self.source is not None:
                self.source.check_like(self.supernet)
        else:
            assert self.recipe.model is not None, 'checked when it was made'
            with seeded(self.recipe.seed, 'model'):
                self.supernet = evaluated(plain_of(self.recipe.model.build(self._trusts('model'))).cpu())
            self.source = self.recipe.model.known(self.supernet)
        contiguous(self.supernet)
        searches = any(stage.kind == 'search' for stage in self.recipe.stages)
        undecided = len(space_of(self.supernet)) > 0
        if undecided and not searches:
            raise ConfigError(
                f'The {type(self.supernet).__name__} is a supernet with decisions to make: give the recipe a stage `search`.'
            )
        #: The stage whose model the others are compared with and learn from: what was trained before anything was taken away.
        self.reference = results.SOURCE
        #: What the reader of the result should know of how the model and the data were read.
        self.notes: list[str] = []
        self._whole = True
        self.original = evaluated(extract(self.supernet, space_of(self.supernet).extreme())) if undecided else self.supernet
        self.data = self._data()
        self.judge = Judge(self.data, self.original)
        for stage in self.recipe.stages:
            try:
                stage.settings.check(self.recipe.budget, self.judge.learns)
            except StropError as error:
                raise type(error)(f'stage {stage.name!r}: {error}') from error
        self.backends = planned_backends([stage.settings for stage in self.recipe.stages], self.recipe.budget)

    def _trusts(self, part: str) -> bool:
        return self.trust or part in self.own

    def _data(self) -> DataParts:
        if self.given_data is not None and not isinstance(self.given_data, (str, Path, DataSource)):
            return (self.recipe.data or DataSource(IN_MEMORY)).given(self.given_data, self.recipe.seed)
        source = self.recipe.data
        assert source is not None, 'checked when it was made'
        settings = getattr(self.original, 'pretrained_cfg', None) or getattr(self.original, 'default_cfg', None)
        wanted = None
        named = self.recipe.model if self.given_model is None else None
        told = named is not None and (named.weights or named.args.get('pretrained'))
        untrained = named is not None and named.kind == 'timm' and not told
        if isinstance(settings, Mapping) and settings.get('mean') and not untrained:
            wanted = {key: [255 * float(value) for value in settings[key]] for key in ('mean', 'std')}
            if not told and source.mean is None:
                self.notes.append(
                    f'Images are normalised as `pretrained_cfg` of the {type(self.original).__name__} says: mean '
                    f'{settings["mean"]}, std {settings["std"]}. If it was trained otherwise, give `mean` and `std`.'
                )
        tokenizer = None
        windows = False
        if named is not None and named.kind == 'transformers':
            tokenizer = named.rest
            windows = type(self.original).__name__.endswith(('ForCausalLM', 'LMHeadModel'))
        return open_data(
            source, seed=self.recipe.seed, trust=self._trusts('data'), normalise=wanted, tokenizer=tokenizer, windows=windows
        )

    # -- the run ---------------------------------------------------------------------------

    def run(self, resume: bool = True, from_stage: str | None = None) -> Compressed:
        """Run every stage that is not done yet, and put the artefact together.

        Args:
            resume: Go on with what the folder holds; otherwise it must not hold a run.
            from_stage: Run this stage and those after it again, and measure again; with the first one the original is scored
                again too.

        Raises:
            StoreError: If the folder holds something else.
            StropError: If a stage fails; what was done before it is kept.
        """
        if from_stage is not None:
            self.recipe.stage(from_stage)
        with computing_with(self.threads):
            return self._claimed_run(self._claim(resume), from_stage)

    def _claimed_run(self, begun: bool, from_stage: str | None) -> Compressed:
        lock = locked(self.folder / STAGES)
        try:
            for left in (*leftovers(self.folder / STAGES), *leftovers(self.folder)):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
            self.progress.plan(['source', *(stage.name for stage in self.recipe.stages), 'measure'])
            try:
                self.open()
            except BaseException:
                if begun:  # nothing was done in it yet
                    self._release()
                raise
            return self._run(from_stage)
        finally:
            self.progress.close()
            if lock is not None:
                os.close(lock)

    def _run(self, from_stage: str | None) -> Compressed:
        model_digest = state_digest(self.supernet)
        digests = self.recipe.digests(model_digest, self.data.digest(), self.threads)
        self.result = self._begun()
        state = State(copy.deepcopy(self.supernet))
        if from_stage is not None:
            # No digest sees other code behind the same names, also not those of the times and of the original's scores.
            (self.folder / STAGES / _TIMES).unlink(missing_ok=True)
            if from_stage == self.recipe.stages[0].name:
                self._forget_from(0)
        finished: list[Finished] = [self._source()]
        before = ''  # the checkpoint that a stage begins with: what is made anew may be another model, as after a new plan
        for number, (stage, digest) in enumerate(zip(self.recipe.stages, digests), 1):
            folder = self.folder / STAGES / f'{number:02d}-{stage.name}'
            if stage.name == from_stage:
                self._forget_from(number)
            digest = f'{digest}-{before}'
            done = Finished.read(folder, digest)
            kept = done is not None and done.entry.status == 'done'
            if done is None or not kept:  # what was left out may be possible by now
                if folder.exists():
                    remove(folder)
                done = self._stage(stage, digest, folder, state)
            before = done.mark if done.entry.status == 'done' else before
            self._take(done, state)
            finished.append(done)
            self.result.stages.append(done.entry)
            self.result.tried += done.tried
            self.progress.end(stage.name, done.entry.seconds, done.entry.scores, kept)
            self._write()
        return self._finish(state, finished)

    def _forget_from(self, number: int) -> None:
        """Delete the checkpoints of a stage and of those behind it, the last ones first, so that none is left of an old run."""
        for folder in sorted((self.folder / STAGES).glob('[0-9]*-*'), reverse=True):
            if folder.is_dir() and int(folder.name.partition('-')[0]) >= number:
                remove(folder)

    def _claim(self, resume: bool) -> bool:
        """Make the folder, or see that it holds a run of the same model and data that may go on; return whether it was made."""
        mark = self.folder / _OWNER
        begun = not mark.is_file()
        if self.given_model is not None:
            space_of(self.given_model)  # decisions print the names that they are given here
            model = f'{type(self.given_model).__name__} in memory, weights {state_digest(self.given_model)}'
        else:
            model = '' if self.recipe.model is None else self.recipe.model.to_dict()['source']
        identity = {
            'strop': 'compression',
            'model': model,
            'data': None if self.recipe.data is None or self.recipe.data.source == IN_MEMORY else self.recipe.data.source,
        }
        if not begun:
            known = read_json(mark, 'a run of `strop compress`')
            if not resume:
                raise StoreError(f'{self.folder} holds a compression already. Give another output, or let it go on (resume).')
            if known != identity:
                raise StoreError(
                    f'{self.folder} holds a compression of {known.get("model")} on {known.get("data")}, not of '
                    f'{identity["model"]} on '
                    f'{identity["data"]}. Give another output.'
                )
        elif self.folder.is_dir() and set(self.folder.iterdir()) - set(leftovers(self.folder)):
            raise StoreError(f'{self.folder} is not empty and holds no compression. Give another output.')
        else:
            atomic_write(mark, json.dumps(identity, indent=1) + '\n')
        (self.folder / STAGES).mkdir(exist_ok=True)
        return begun

    def _release(self) -> None:
        """Take back what `_claim` made."""
        shutil.rmtree(self.folder / STAGES, ignore_errors=True)
        (self.folder / _OWNER).unlink(missing_ok=True)  # last: without it the folder would be taken for somebody else's
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _begun(self) -> results.CompressionResult:
        example, budget = self.data.example(1), self.recipe.budget
        tensors = [leaf for leaf in tree_leaves(example) if isinstance(leaf, torch.Tensor)]
        clock = {'runtime': budget.chosen_runtime} if budget.timed else {}
        learned = 'learned from' if self.judge.learns else 'learned from without labels'
        environment = {**asdict(Machine.here(self.threads)), 'strop': __import__('strop').__version__, 'threads': self.threads}
        return results.CompressionResult(
            asked=results.Asked(self.recipe.to_dict(), {**budget.to_dict(), **clock}),
            environment=environment,
            model=results.ModelSource(
                self.recipe.name,
                self.source.name if self.source is not None else f'{type(self.supernet).__name__} in memory',
                list(tensors[0].shape[1:]) if len(tensors) == 1 else None,
            ),
            data=results.DataSource(
                self.data.name,
                self.data.counts(),
                len(self.data.skipped),
                {
                    'train': learned,
                    'calibration': 'training samples that ranges, importances and norms are measured on',
                    'validation': f'choices between models, by {self.judge.choice}',
                    'test': 'scores only',
                },
            ),
            warnings=[
                *self.notes,
                *(f'{path} could not be read and was left out: {why}' for path, why in list(self.data.skipped.items())[:20]),
            ],
        )

    def _source(self) -> Finished:
        """Score the model as it is; kept like a stage."""
        folder = self.folder / STAGES / '00-source'
        identity = f'{state_digest(self.supernet)}-{self.data.digest()}'
        if self.recipe.model is not None and self.recipe.model.args:
            identity += f'-{json_text(self.recipe.model.args)}'
        done = Finished.read(folder, identity)
        searched = self.original is not self.supernet
        if done is None:
            if folder.exists():
                remove(folder)
            begun = time.monotonic()
            self.progress.begin(results.SOURCE)
            entry = results.Stage(
                results.SOURCE,
                results.SOURCE,
                resources=resources_of(self.original, self.data.example(1)),
                scores={} if searched else self.judge.scores(self.original),
                scored_on='' if searched else 'test',
                explanation=['The largest subnet; its weights were not trained yet.'] if searched else [],
            )
            entry.seconds = time.monotonic() - begun
            done = Finished(entry, [], [], [], [], None, None, folder, [])
            with atomic_folder(folder) as temporary:
                done.write(temporary, identity)
        self.result.stages.append(done.entry)
        self.progress.end(results.SOURCE, done.entry.seconds, done.entry.scores)
        self._write()
        return done

    def _stage(self, stage: NamedStage, digest: str, folder: Path, state: State) -> Finished:
        """Run one stage and make its checkpoint."""
        work = folder.with_name(f'{folder.name}.work')
        if work.exists() and (not (work / 'digest').is_file() or (work / 'digest').read_text() != digest):
            forget(work)
        atomic_write(work / 'digest', digest)
        self.progress.begin(stage.name, stage.settings.describe())
        running = results.Stage(stage.name, stage.kind, 'running', stage.settings.to_dict())
        self.result.stages.append(running)
        self._write()
        begun = time.monotonic()
        try:
            with atomic_folder(folder) as temporary:
                around = self._around(stage, temporary, work, state.side)
                before = (
                    {} if state.choices is None and stage.kind == 'search' else layers_of(state.model, around.data.example(1))
                )
                with seeded(self.recipe.seed, f'stage {stage.name}'):
                    found = stage.settings.run(replace(state, model=copy.deepcopy(state.model)), around)
                done = self._outcome(stage, found, state, before, folder)
                if found.model is not None:
                    self._save(found.model, state, done, temporary / MODEL)
                done.entry.seconds = time.monotonic() - begun
                for name, content in found.documents.items():
                    atomic_write(temporary / f'{name}.json', json.dumps(content, indent=1, default=str) + '\n')
                done.write(temporary, digest)
        except Exception as error:
            running.status, running.seconds = 'failed', time.monotonic() - begun
            running.warnings.append(f'{type(error).__name__}: {error}')
            self._write(best_effort=True)
            if isinstance(error, OSError) and error.errno is not None and error.filename is None:
                # A full disk alone does not say where it is.
                raise OSError(error.errno, error.strerror, os.fspath(work)) from error
            raise
        self.result.stages.remove(running)
        forget(work)
        for integer in done.integers:
            if not integer.path.is_file():
                raise StoreError(f'{integer.path} is gone.')
        return done

    def _around(self, stage: NamedStage, folder: Path, work: Path, side: int | None) -> Surroundings:
        return Surroundings(
            name=stage.name,
            original=self.original,
            data=self.data.at(side),
            judge=self.judge.at(side),
            budget=self.recipe.budget,
            seed=derive_seed(self.recipe.seed, f'stage {stage.name}'),
            threads=self.threads,
            folder=folder,
            work=work,
            progress=self.progress,
            backends=self.backends,
            follows=self.recipe.teacher_after(stage.name),
            given=self.result.stage(results.SOURCE).resources,
        )

    def _outcome(self, stage: NamedStage, found: Outcome, state: State, before: Mapping[str, Any], folder: Path) -> Finished:
        side = found.side or state.side
        example = self.data.at(side).example(1)
        model = state.model if found.model is None else contiguous(evaluated(found.model))
        entry = results.Stage(
            stage.name,
            stage.kind,
            settings=stage.settings.to_dict(),
            explanation=found.explanation,
            resources=self._resources(stage, found, model, example),
            curve=[{**point} for point in found.curve],
            warnings=found.warnings,
        )
        if found.scores:
            entry.scores, entry.scored_on = found.scores, 'test'
        elif found.model is not None:
            entry.scores, entry.scored_on = self.judge.at(side).scores(model), 'test'
        if found.skipped:
            last = self._last()
            entry.status, entry.scores, entry.scored_on = 'skipped', dict(last.scores), last.scored_on
        if stage.kind == 'prune':
            times = found.latencies, found.latencies_after, found.timed_in
            entry.layers = layer_changes(before, layers_of(model, example), *times)
        return Finished(
            entry,
            found.tried,
            found.exports,
            [replace(integer, path=folder / integer.path.name) for integer in found.integers],
            found.records,
            found.choices,
            found.side,
            folder,
            [f'{name}.json' for name in found.documents],
        )

    def _resources(self, stage: NamedStage, found: Outcome, model: nn.Module, example: Any) -> results.StageResources:
        """Return what the model costs after a stage; the size of a quantized one is that of its file."""
        if stage.kind == 'export' or found.skipped:
            return replace(self._last().resources)
        costs = resources_of(model, example)
        file = next((integer.path for integer in found.integers if integer.of == stage.name), None)
        # How many bytes its activations take is up to the runtime; what it took there is among the measurements.
        return costs if file is None else replace(costs, size_mb=file.stat().st_size / 1e6, peak_memory_mb=None)

    def _last(self) -> results.Stage:
        """Return the last stage that is done."""
        return next(entry for entry in reversed(self.result.stages) if entry.status == 'done')

    def _save(self, model: nn.Module, state: State, done: Finished, folder: Path) -> None:
        records = [*state.records, *done.records]
        save_slim(
            model,
            folder,
            original=self._whole_model(done.choices or state.choices),
            record=records or None,
            example_inputs=self.data.example(2),
        )

    def _whole_model(self, choices: Mapping[str, Any] | None) -> nn.Module:
        """Return a copy of the model before pruning: of a supernet, the subnet that the search took out."""
        return extract(self.supernet, choices) if choices else copy.deepcopy(self.supernet)

    def _take(self, done: Finished, state: State) -> None:
        """Put what a stage gave into the state, from its checkpoint alone, so that a resumed run is the same run."""
        state.records += done.records
        state.integers += done.integers
        if done.choices is not None:
            state.choices = done.choices
        state.side = done.side or state.side
        if (done.folder / MODEL).is_dir():
            state.model = load_recipe(done.folder / MODEL, factory=lambda **_: self._whole_model(state.choices))
        if done.entry.kind == 'search' or (done.entry.kind == 'finetune' and self._whole):
            # What was trained before anything was taken away is the model to compare with and to learn from.
            self.original = copy.deepcopy(state.model)
            self.judge = Judge(self.data, self.original)
            self.reference = done.entry.name
        if done.entry.kind in ('prune', 'distill', 'quantize'):
            self._whole = False

    # -- the end ---------------------------------------------------------------------------

    def _finish(self, state: State, finished: list[Finished]) -> Compressed:
        """Measure, compare with the budget, and write the artefact."""
        self.progress.begin('measure')
        begun = time.monotonic()
        self._artefact(state, finished)
        images = None if state.side is None else list(self.data.at(state.side).example(1).shape[1:])
        if images is not None:
            after, before = (' × '.join(map(str, shape[-2:])) for shape in (images, self.data.at(None).example(1).shape))
            self.result.warnings.append(
                f'The model and its files take images of {after} pixels, where the original takes {before}; README.md says how '
                'they were made smaller. Figures of both are of their own images.'
            )
        alone = measured(
            self.result,
            self.reference,
            self.original,
            state.model,
            state.integers,
            self.data.at(state.side),
            self.judge.at(state.side),
            self.recipe,
            self.folder / STAGES / _TIMES,
            lambda done, total: self.progress.advance('measure', done, total),
        )
        self.result.outcome = outcome_of(self.recipe, self.result, self.reference, self.judge.metric, alone)
        self._write()
        atomic_write(self.folder / 'README.md', readme(self.result, self.source, images))
        CompressionReport(self.result).write(self.folder)
        self.progress.end('measure', time.monotonic() - begun, {})
        integers = {
            integer.backend: self.folder / 'exports' / integer.path.name
            for integer in state.integers
            if integer.of != REFERENCE
        }
        return Compressed(state.model, self.result, self.folder, integers)

    def _artefact(self, state: State, finished: list[Finished]) -> None:
        folder, source = self.folder, self.source
        example = self.data.at(state.side).example(2)
        factory, args = source.factory if source is not None else (None, None)
        # The mark of a whole artefact goes first and comes last; what describes it is written when it was measured.
        for name in (FILE, 'README.md', 'report.html'):
            (folder / name).unlink(missing_ok=True)
        if (folder / MODEL).exists():
            shutil.rmtree(folder / MODEL)
        contiguous(state.model)
        save_slim(
            state.model,
            folder / MODEL,
            original=self._whole_model(state.choices),
            factory=None if state.choices else factory,
            factory_args=None if state.choices or factory is None else args,
            record=state.records or None,
            example_inputs=example,
            note={'name': self.recipe.name},
        )
        shapes = {name: list(tensor.shape[1:]) for name, tensor in _named(example).items()}
        write_loader(folder, source, example)
        atomic_write(folder / 'recipe.json', json.dumps(self.recipe.to_dict(), indent=2, default=str) + '\n')
        for name in ('exports', 'records'):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
            (folder / name).mkdir()
        self.result.exports = [results.Export('model', 'recipe', 'torch', 0.0, _size(folder / MODEL))]
        for done in finished:
            for export in done.exports:
                for part in sorted(done.folder.glob(f'{Path(export.path).stem}.*')):
                    copy_file(part, folder / 'exports' / part.name)
                self.result.exports.append(replace(export, path=f'exports/{export.path}'))
            for name in done.documents:
                copy_file(done.folder / name, folder / 'records' / f'{done.folder.name}-{name}')
            if done.records:
                content = [record.to_dict() for record in done.records]
                atomic_write(folder / 'records' / f'{done.folder.name}.json', json.dumps(content, indent=1) + '\n')
        Artefact(source, shapes, self.recipe.name, state.choices or {}).write(folder)
        original = self.supernet
        check_artefact(
            folder,
            state.model,
            example,
            None if source is not None else lambda **_: copy.deepcopy(original),
            self._trusts('model'),
        )

    def _write(self, best_effort: bool = False) -> None:
        try:
            self.result.write(self.folder)
        except OSError:
            if not best_effort:
                raise


# -- internals --------------------------------------------------------------------------------------------


def _named(example: Any) -> dict[str, torch.Tensor]:
    if isinstance(example, Mapping):
        return {str(name): value for name, value in example.items() if isinstance(value, torch.Tensor)}
    leaves = [leaf for leaf in tree_leaves(example) if isinstance(leaf, torch.Tensor)]
    return {'input' if len(leaves) == 1 else f'input_{index}': leaf for index, leaf in enumerate(leaves)}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())


__all__ = ['STAGES', 'Compressed', 'Compression']
