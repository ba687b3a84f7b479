"""What executors cost and gain: an empty trial, two workers against one, and two workers that score one supernet.

Three parts, each measured in rounds in which all kinds have their turn:

- `overhead`: milliseconds a trial with 20 decisions, a journal file and an empty evaluation, by each executor; beside it the
  same evaluation by bare `multiprocessing.Pool.apply_async` and by bare Ray actors, which propose and store nothing. As many
  trials are under way as there are workers (two).
- `speedup`: a trial of about two seconds of matrix products on one thread, a dozen of them, by one worker and by two; the same
  by bare multiprocessing and bare Ray. Workers have started before the clock does.
- `scoring`: subnets of a trained supernet (the small space on real digits of configs/spos), batch norms recalibrated on 512
  images, scored on 500 held-out ones: in this process, and by one and two workers. All must give the same numbers, which is
  checked. Seconds are given without and with the start of the workers.

Every cell is kept in the work folder, so that the benchmark resumes.

    python benchmarks/executors.py --out benchmarks/results/executors.json
    python benchmarks/executors.py --quick
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ['OMP_NUM_THREADS'] = '1'
os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')

import torch
from mmengine.config import Config
from record import ROOT, write_result
from training import Cells

from strop.engine import build_runner
from strop.engine.scoring import SubnetScores
from strop.mutables import OneOf, Space
from strop.search import Executor, InProcess, LocalProcesses, RayExecutor, Trial, run

CHOICES = ('a', 'b', 'c', 'd')
SPACE = Space({f'op{place}': OneOf(CHOICES) for place in range(20)})
CONFIGS = ROOT / 'configs' / 'spos'
SCORE = 'accuracy/top1'


class Timed:
    """An executor with a clock that runs from the moment when all workers are ready to the last outcome."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.seconds = 0.0

    @property
    def capacity(self) -> int:
        return self.inner.capacity

    @property
    def on_report(self) -> Any:
        return self.inner.on_report

    @on_report.setter
    def on_report(self, ask: Any) -> None:
        self.inner.on_report = ask

    def start(self, evaluate: Any, seed: int) -> None:
        self.inner.start(evaluate, seed)
        while isinstance(self.inner, RayExecutor) and not all(actor.ready for actor in self.inner._actors):
            self.inner._step()
        self._began = time.perf_counter()

    def submit(self, trial: Trial) -> None:
        self.inner.submit(trial)

    def wait(self) -> Any:
        outcomes = self.inner.wait()
        self.seconds = time.perf_counter() - self._began
        return outcomes

    def close(self) -> None:
        self.inner.close()


def executor(kind: str, workers: int) -> Executor:
    """Return one of ours."""
    if kind == 'in-process':
        return InProcess()
    return LocalProcesses(workers, threads=1) if kind == 'LocalProcesses' else RayExecutor(workers, threads=1)


# -- what is evaluated -----------------------------------------------------------------------------


def empty(subnet: Any) -> float:
    return 0.0


class Work:
    """So many matrix products."""

    def __init__(self, products: int) -> None:
        self.products = products

    def __call__(self, subnet: Any) -> float:
        matrix = torch.full((256, 256), 1 / 256)
        product = matrix
        for _ in range(self.products):
            product = product @ matrix
        return float(product.sum())


def calibrated(seconds: float) -> dict[str, Any]:
    """Return how many products take so long on one thread."""
    Work(200)(None)
    begin = time.perf_counter()
    Work(2000)(None)
    each = (time.perf_counter() - begin) / 2000
    return {'products': int(seconds / each), 'seconds a product': each}


# -- bare ------------------------------------------------------------------------------------------


def _prepare(ready: Any) -> None:
    torch.set_num_threads(1)
    ready.wait()


def bare_processes(evaluate: Callable[[Any], Any], trials: int, workers: int) -> float:
    """Return the seconds of `trials` evaluations by a pool that has started."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['torch'])
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    ready = context.Barrier(workers + 1)
    with context.Pool(workers, initializer=_prepare, initargs=(ready,)) as pool:
        ready.wait()
        begin = time.perf_counter()
        for number in range(trials):
            if number >= workers:
                _raised(ended.get())
            subnet = {f'op{place}': CHOICES[(number + place) % 4] for place in range(20)}
            pool.apply_async(evaluate, (subnet,), callback=ended.put, error_callback=ended.put)
        for _ in range(min(workers, trials)):
            _raised(ended.get())
        return time.perf_counter() - begin


def _raised(outcome: Any) -> None:
    if isinstance(outcome, BaseException):
        raise outcome


class Bare:
    """An actor that evaluates."""

    def __init__(self, evaluate: Callable[[Any], Any]) -> None:
        torch.set_num_threads(1)
        self.evaluate = evaluate

    def ready(self) -> bool:
        return True

    def score(self, subnet: Any) -> Any:
        return self.evaluate(subnet)


def bare_actors(evaluate: Callable[[Any], Any], trials: int, workers: int) -> float:
    """Return the seconds of `trials` evaluations by Ray actors that have started."""
    import ray

    actors = [ray.remote(Bare).options(num_cpus=1).remote(evaluate) for _ in range(workers)]
    ray.get([actor.ready.remote() for actor in actors])
    begin = time.perf_counter()
    running: dict[Any, Any] = {}
    idle = list(actors)
    for number in range(trials):
        if not idle:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            ray.get(ended)
            idle.append(running.pop(ended))
        subnet = {f'op{place}': CHOICES[(number + place) % 4] for place in range(20)}
        actor = idle.pop()
        running[actor.score.remote(subnet)] = actor
    ray.get(list(running))
    seconds = time.perf_counter() - begin
    for actor in actors:
        ray.kill(actor)
    return seconds


def ours(kind: str, evaluate: Callable[[Any], Any], trials: int, workers: int) -> float:
    """Return the seconds of a search by one of our executors, whose workers have started."""
    timed = Timed(executor(kind, workers))
    with tempfile.TemporaryDirectory() as folder:
        result = run(SPACE, evaluate, strategy='random', store=f'{folder}/trials.journal', trials=trials, executor=timed)
    assert len(result.complete) == trials
    return timed.seconds


def seconds(kind: str, evaluate: Callable[[Any], Any], trials: int, workers: int) -> float:
    bare = {'bare multiprocessing': bare_processes, 'bare Ray actors': bare_actors}
    return bare[kind](evaluate, trials, workers) if kind in bare else ours(kind, evaluate, trials, workers)


# -- the parts -------------------------------------------------------------------------------------


class Study:
    """The cells of all parts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        sizes = f'{options.empty}-{options.trials}-{options.seconds:g}-{options.subnets}-{options.epochs}'
        self.cells = Cells(options.work / sizes)

    def overhead(self) -> dict[str, Any]:
        kinds = ['in-process', 'LocalProcesses', 'bare multiprocessing', 'RayExecutor', 'bare Ray actors']
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        trials = self.options.empty
        for turn in range(self.options.rounds):
            for kind in kinds:
                cell = self.cells.get(
                    f'overhead-{kind}-{turn}'.replace(' ', '_'),
                    lambda kind=kind: {'ms': seconds(kind, empty, trials, 2) / trials * 1000, 'load': os.getloadavg()[0]},
                )
                found[kind].append(cell['ms'])
        middle = {kind: statistics.median(times) for kind, times in found.items()}
        return {
            'ms a trial': {kind: round(value, 3) for kind, value in middle.items()},
            'rounds': found,
            'target': 'in-process <= 3 ms',
            'pass': middle['in-process'] <= 3,
        }

    def speedup(self) -> dict[str, Any]:
        pairs = {'LocalProcesses': 'bare multiprocessing', 'RayExecutor': 'bare Ray actors'}
        kinds = [kind for pair in pairs.items() for kind in pair]
        products = self.cells.get('products', lambda: calibrated(self.options.seconds))['products']
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        each: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(self.options.rounds):
            for kind in kinds:
                times = [
                    self.cells.get(
                        f'speedup-{kind}-{workers}-{turn}'.replace(' ', '_'),
                        lambda kind=kind, workers=workers: {
                            'seconds': seconds(kind, Work(products), self.options.trials, workers),
                            'load': os.getloadavg()[0],
                        },
                    )['seconds']
                    for workers in (1, 2)
                ]
                found[kind].append(times[0] / times[1])
                each[kind].append(times[0] / self.options.trials)
        middle = {kind: statistics.median(ratios) for kind, ratios in found.items()}
        best = middle['bare multiprocessing']
        return {
            'one worker / two': {kind: round(value, 3) for kind, value in middle.items()},
            'divided by bare multiprocessing': {kind: round(middle[kind] / best, 3) for kind in pairs},
            'divided by the same bare': {kind: round(middle[kind] / middle[bare], 3) for kind, bare in pairs.items()},
            'seconds a trial, one worker': {kind: round(statistics.median(times), 3) for kind, times in each.items()},
            'rounds': found,
            'target': '>= 1.7, and >= 0.95 of bare multiprocessing',
            'pass': all(middle[kind] >= 1.7 and middle[kind] >= 0.95 * best for kind in pairs),
        }

    def checkpoint(self) -> Path:
        """Return the trained supernet."""
        folder = self.cells.folder / 'supernet'
        file = folder / f'epoch_{self.options.epochs}.pth'
        if not file.exists():
            config = Config.fromfile(CONFIGS / 'spos_shufflenet_supernet_mnist.py')
            config.train_cfg.max_epochs = config.param_scheduler.T_max = self.options.epochs
            build_runner(config, work_dir=folder, resume=True).train()
        return file

    def scored(self, kind: str, workers: int) -> dict[str, Any]:
        config = Config.fromfile(CONFIGS / 'spos_shufflenet_search_mnist.py')
        config.load_from, config.log_level = str(self.checkpoint()), 'ERROR'
        with tempfile.TemporaryDirectory() as folder:
            runner = build_runner(config, task='search', work_dir=folder)
            runner.load_or_resume()
            loop = runner.train_loop
            begin = time.perf_counter()
            timed = Timed(executor(kind, workers))
            result = run(
                runner.model.mutator.space,
                SubnetScores(loop.scorer, SCORE),
                strategy='random',
                trials=self.options.subnets,
                objectives={SCORE: 'maximize'},
                executor=timed,
                store=f'{folder}/trials.journal',
            )
            whole = time.perf_counter() - begin
        values = [trial.values[SCORE] for trial in result.trials if trial.values]
        assert len(values) == self.options.subnets
        return {'seconds': timed.seconds, 'with the start': whole, 'load': os.getloadavg()[0], 'values': values}

    def scoring(self) -> dict[str, Any]:
        kinds = [('in-process', 1), ('LocalProcesses', 1), ('LocalProcesses', 2), ('RayExecutor', 1), ('RayExecutor', 2)]
        rows: dict[str, list[dict[str, Any]]] = {f'{kind} {workers}': [] for kind, workers in kinds}
        for turn in range(self.options.rounds):
            for kind, workers in kinds:
                cell = self.cells.get(
                    f'scoring-{kind}-{workers}-{turn}', lambda kind=kind, workers=workers: self.scored(kind, workers)
                )
                rows[f'{kind} {workers}'].append(cell)
        values = [cell.pop('values') for cells in rows.values() for cell in cells]
        same = all(other == values[0] for other in values)

        def ratio(first: str, second: str, key: str) -> float:
            return round(statistics.median(one[key] / two[key] for one, two in zip(rows[first], rows[second], strict=True)), 3)

        pairs = {kind: (f'{kind} 1', f'{kind} 2') for kind in ('LocalProcesses', 'RayExecutor')}
        gains = {kind: ratio(*pair, 'seconds') for kind, pair in pairs.items()}
        return {
            'subnets': self.options.subnets,
            'one worker / two': gains,
            'this process / two workers': {kind: ratio('in-process 1', pair[1], 'seconds') for kind, pair in pairs.items()},
            'this process / two workers, with their start': {
                kind: ratio('in-process 1', pair[1], 'with the start') for kind, pair in pairs.items()
            },
            'ms a subnet': {
                name: round(statistics.median(cell['seconds'] for cell in cells) / self.options.subnets * 1000, 1)
                for name, cells in rows.items()
            },
            'all scores equal': same,
            'rounds': rows,
            'target': '>= 1.6, the same scores',
            'pass': same and min(gains.values()) >= 1.6,
        }


def table(figures: dict[str, Any]) -> str:
    """Return the figures as the table of docs/benchmarks.md."""
    rows = [
        '| what | in this process | local processes | bare multiprocessing | Ray | bare Ray actors |',
        '|---|---|---|---|---|---|',
    ]

    def row(what: str, cells: dict[str, Any]) -> None:
        kinds = ('in-process', 'LocalProcesses', 'bare multiprocessing', 'RayExecutor', 'bare Ray actors')
        rows.append(f'| {what} | ' + ' | '.join(str(cells.get(kind, '')) for kind in kinds) + ' |')

    if 'overhead' in figures:
        row('empty trial, ms (two workers)', figures['overhead']['ms a trial'])
    if 'speedup' in figures:
        row('one worker ÷ two, trials of two seconds', figures['speedup']['one worker / two'])
        row('the same, divided by bare multiprocessing', figures['speedup']['divided by bare multiprocessing'])
    if 'scoring' in figures:
        found = figures['scoring']
        row(f'{found["subnets"]} subnets of a supernet, one worker ÷ two', found['one worker / two'])
        row('the same, this process ÷ two workers', found['this process / two workers'])
        row('the same, with the start of the workers', found['this process / two workers, with their start'])
    return '\n'.join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', default=['overhead', 'speedup', 'scoring'])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--empty', type=int, default=1000, help='empty trials of a round')
    parser.add_argument('--trials', type=int, default=12, help='trials of a round of `speedup`')
    parser.add_argument('--seconds', type=float, default=2.2, help='how long one of them takes')
    parser.add_argument('--subnets', type=int, default=200)
    parser.add_argument('--epochs', type=int, default=10, help='training of the supernet')
    parser.add_argument('--quick', action='store_true', help='tiny sizes: that it runs, not what it measures')
    parser.add_argument('--work', type=Path, default=ROOT / 'work_dirs' / 'executors')
    parser.add_argument('--out', type=Path)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.empty, options.trials, options.seconds, options.subnets, options.epochs = 1, 60, 4, 0.3, 8, 1
    torch.set_num_threads(1)

    import ray

    ray.init('local', num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level='ERROR')
    try:
        study = Study(options)
        figures = {part: getattr(study, part)() for part in options.parts}
    finally:
        ray.shutdown()
    for part, found in figures.items():
        print(part, {name: value for name, value in found.items() if name != 'rounds'})
    print(table(figures))
    if options.out:
        settings = {name: value for name, value in vars(options).items() if name not in ('out', 'work')}
        content = {
            'settings': settings,
            'machine_now': {
                'cpu count': os.cpu_count(),
                'load at the end': round(os.getloadavg()[0], 2),
                'niceness': os.nice(0),
            },
            **figures,
        }
        write_result(options.out, 'executors', content, packages=('ray', 'optuna'))


if __name__ == '__main__':
    main()
