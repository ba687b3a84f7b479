"""Searches on 1 to 4,096 workers, simulated: accuracy against wall time, how busy workers are, where the driver limits.

    python benchmarks/scaling_simulation.py --data ../shared/data

The searches are real: `strop.search.run` with Strop's own strategies, and an executor whose clock is virtual. A trial's end
is an entry in a queue; nobody sleeps. The driver takes 1.4 ms of that clock for each trial (what it takes in one process
with a journal), one trial after the other, and an outcome that arrives meanwhile waits.

Tables:
  nas-bench-201  CIFAR-100; search on validation accuracy after 12 epochs, report test accuracy after 200 epochs of the
                 network that is best so by validation. It has no training times: a trial takes 12 epochs of 98 steps of
                 batch 256, each 3 times the measured latency of a forward pass of that batch on a GTX 1080 Ti.
  accel-nas      MnasNet's space (10^11 networks), ImageNet. 5,138 networks were measured; the search sees a model of one
                 half of them, and what is reported is that of a model of the other half (ridge regression on choices and
                 pairs of choices). A trial takes a regression of the measured training times on the choices, times the
                 ratio of measured to fitted time of one of the 5,138, drawn for each network, so that stragglers stay.

Methods: random search; regularized evolution, asynchronous (population 50, tournaments of 10); synchronous evolution, SPOS's
generations with a barrier after each (population 50 or the number of workers, whichever is larger; the best fifth are
parents). Five seeds up to 256 workers, three beyond.

Each (table, method, workers, seed) is one cell of the result file; the script goes on where it was stopped. Data:
nas_bench_201.npz and accel_nas_bench.npz, not part of the project (their sources: docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
from record import ROOT, write_result

from strop.mutables import OneOf, Ordered, Space, Subnet
from strop.randomness import counter_rng
from strop.search import SPOSEvolution, Trial, run
from strop.search.executor import Evaluate, Outcome

WORKERS = tuple(4**power for power in range(7))
TRIALS = {1: 256, 4: 512, 16: 1024, 64: 2048, 256: 4096, 1024: 8192, 4096: 16384}
SEEDS = {1024: 3, 4096: 3}
METHODS = ('random', 'synchronous', 'asynchronous')
DRIVER_MS = 1.4
# What the driver takes with a store in PostgreSQL, processor time (store_cost.json).
DATABASE_MS = 85.0
OPERATIONS = ('none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3', 'avg_pool_3x3')
# Of the wall time of one worker's mean trial: where the curves are read off.
MOMENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Function = Callable[[Subnet], float]


class Problem:
    """A table as a search sees it: space, what the search sees, what is reported, how long a trial takes."""

    def __init__(self, space: Space, seen: Function, reported: Function, seconds: Function, facts: dict[str, Any]) -> None:
        self.space, self.seen, self.reported, self.seconds, self.facts = space, seen, reported, seconds, facts
        rng = counter_rng(0, 'mean')
        self.mean = statistics.fmean(seconds(space.sample(rng)) for _ in range(4000))


class VirtualCluster:
    """An executor with its own clock: a trial of `seconds(subnet)` ends that much later, and nobody waits for it."""

    def __init__(self, workers: int, seconds: Function, driver: float) -> None:
        self.capacity = workers
        self.clock = 0.0
        self.busy = 0.0
        self.last_start = 0.0
        self._seconds, self._driver = seconds, driver
        self._ends: list[tuple[float, int, Outcome]] = []
        self._evaluate: Evaluate = lambda subnet: None

    def start(self, evaluate: Evaluate, seed: int) -> None:
        self._evaluate = evaluate

    def submit(self, trial: Trial) -> None:
        self.clock += self._driver
        self.last_start = self.clock
        taken = self._seconds(trial.subnet)
        self.busy += taken
        heapq.heappush(
            self._ends, (self.clock + taken, trial.number, Outcome(trial.number, self._evaluate(trial.subnet), taken))
        )

    def wait(self) -> list[Outcome]:
        self.clock = max(self.clock, self._ends[0][0])
        ended = []
        while self._ends and self._ends[0][0] <= self.clock:
            ended.append(heapq.heappop(self._ends)[2])
        return ended

    def close(self) -> None:
        self._ends.clear()

    def utilisation(self, after: float) -> float:
        """Share of the workers' time until the last trial began that they were busy; `after`: work that lay behind it."""
        return (self.busy - after) / (self.capacity * self.last_start)


def strategy_of(method: str, workers: int) -> Any:
    if method == 'random':
        return 'random'
    if method == 'asynchronous':
        return {'type': 'regularized', 'population': 50, 'sample_size': 10}
    size = max(50, workers)
    return SPOSEvolution(population=size, top_k=size // 5, mutations=size // 2, crossovers=size // 2, synchronous=True)


# -- tables ------------------------------------------------------------------------------------


def nas_bench_201(data: Path) -> Problem:
    arrays = np.load(data / 'nas_bench_201.npz', allow_pickle=False)
    cells = [cell.decode().replace('+', '').split('|') for cell in arrays['arch']]
    rows = np.array([[OPERATIONS.index(word.split('~')[0]) for word in cell if word] for cell in cells])
    weights = 5 ** np.arange(6)
    index = np.empty(5**6, dtype=int)
    index[rows @ weights] = np.arange(len(rows))
    seen, reported = arrays['acc12_val_cifar100'].astype(float), arrays['acc200_test_cifar100'].astype(float)
    seconds = 12 * 98 * 3 * arrays['lat_ms_1080ti_256'].astype(float) / 1000
    keys = [f'edge{place}' for place in range(6)]

    def at(subnet: Subnet) -> int:
        return int(index[sum(subnet.choices[key][0] * 5**place for place, key in enumerate(keys))])

    space = Space({key: OneOf(OPERATIONS) for key in keys})
    facts = {'networks': len(rows), 'best possible, reported': round(float(reported.max()), 3)}
    return Problem(space, lambda net: seen[at(net)], lambda net: reported[at(net)], lambda net: seconds[at(net)], facts)


class _Pairs:
    """Ridge regression on one-hot choices, alone or with all pairs of them, in the form that one network is cheap in."""

    def __init__(self, hot: np.ndarray, target: np.ndarray, pairs: bool, penalty: float = 1.0) -> None:
        self.first, self.second = np.triu_indices(hot.shape[1], 1) if pairs else (np.empty(0, int), np.empty(0, int))
        columns = np.hstack([np.ones((len(hot), 1)), hot, hot[:, self.first] * hot[:, self.second]])
        self.mean = float(target.mean())
        ridge = penalty * np.eye(columns.shape[1])
        ridge[0, 0] = 0.0
        solved = np.linalg.solve(columns.T @ columns + ridge, columns.T @ (target - self.mean))
        self.constant, self.linear = float(solved[0]) + self.mean, solved[1 : hot.shape[1] + 1]
        self.quadratic = np.zeros((hot.shape[1],) * 2)
        self.quadratic[self.first, self.second] = solved[hot.shape[1] + 1 :]

    def __call__(self, row: np.ndarray) -> float:
        return self.constant + float(row @ self.linear) + float(row @ (self.quadratic @ row))


def accel_nas(data: Path) -> Problem:
    from scipy.stats import kendalltau

    arrays = np.load(data / 'accel_nas_bench.npz', allow_pickle=False)
    nets, names = arrays['arch'], [str(key) for key in arrays['arch_keys']]
    values = [sorted(set(column.tolist())) for column in nets.T]
    hot = np.array([column == value for column, options in zip(nets.T, values, strict=True) for value in options[1:]]).T * 1.0
    starts = np.cumsum([0, *(len(options) - 1 for options in values)])
    accuracy, log_time = arrays['val_top1'].astype(float), np.log(arrays['train_time'].astype(float))
    order = counter_rng(0, 'halves').permutation(len(nets))
    halves = order[: len(nets) // 2], order[len(nets) // 2 :]
    models = [_Pairs(hot[half], accuracy[half], pairs=True) for half in halves]
    taus = [
        kendalltau([model(row) for row in hot[other]], accuracy[other])[0]
        for model, other in zip(models, halves[::-1], strict=True)
    ]
    duration = _Pairs(hot, log_time, pairs=False)
    ratios = log_time - np.array([duration(row) for row in hot])
    space = Space({name: Ordered(tuple(options)) for name, options in zip(names, values, strict=True)})

    def row_of(subnet: Subnet) -> np.ndarray:
        row = np.zeros(hot.shape[1])
        for start, name in zip(starts, names, strict=False):
            if pick := subnet.choices[name][0]:
                row[start + pick - 1] = 1.0
        return row

    def seconds(subnet: Subnet) -> float:
        key = ','.join(str(subnet.choices[name][0]) for name in names)
        return math.exp(duration(row_of(subnet)) + ratios[int(counter_rng(0, 'ratio', key).integers(len(ratios)))])

    facts = {
        'networks': space.count(),
        'rank correlation of each half with the other (Kendall)': [round(float(tau), 3) for tau in taus],
        'best measured': round(float(accuracy.max()), 3),
        'slowest ÷ median training time': round(float(np.exp(log_time.max() - np.median(log_time))), 1),
    }
    return Problem(space, lambda net: models[0](row_of(net)), lambda net: models[1](row_of(net)), seconds, facts)


TABLES = {'nas-bench-201': nas_bench_201, 'accel-nas': accel_nas}


# -- cells -------------------------------------------------------------------------------------


def search(
    problem: Problem, method: str, workers: int, seed: int, trials: int, driver: float = DRIVER_MS / 1000
) -> dict[str, Any]:
    """Run one search and return what a cell keeps: the incumbents over time, and how busy everybody was."""
    cluster = VirtualCluster(workers, problem.seconds, driver)
    events: list[tuple[float, float]] = []
    late: list[tuple[float, float]] = []
    best = -math.inf

    def note(trial: Trial) -> None:
        nonlocal best
        late.append((cluster.clock, trial.seconds or 0.0))
        if trial.values is not None and trial.values['score'] > best:
            best = trial.values['score']
            events.append((float(cluster.clock), float(problem.reported(trial.subnet))))

    begin = time.process_time()
    strategy = strategy_of(method, workers)
    result = run(problem.space, problem.seen, strategy=strategy, executor=cluster, trials=trials, seed=seed, callbacks=[note])
    spent = time.process_time() - begin
    behind = sum(min(seconds, max(0.0, end - cluster.last_start)) for end, seconds in late)
    return {
        'trials': len(result.complete),
        'wall_seconds': round(cluster.clock, 1),
        'utilisation': round(cluster.utilisation(behind), 4),
        'driver_ms_real': round(1000 * spent / len(result.trials), 3),
        'best': [[round(moment, 1), round(value, 3)] for moment, value in _thinned(events)],
    }


def _thinned(events: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the last of the incumbents of one moment."""
    return [
        event for event, following in itertools.zip_longest(events, events[1:]) if following is None or following[0] > event[0]
    ]


def at_moment(cell: dict[str, Any], moment: float) -> float | None:
    """Return the reported value of the incumbent at a moment; None before the first one, or when the search is over."""
    known = [value for when, value in cell['best'] if when <= moment]
    return known[-1] if known and moment <= cell['wall_seconds'] * 1.0001 else None


def limits(data: Path, quick: bool) -> list[dict[str, Any]]:
    """How busy workers are when trials are short: the measured training times, scaled to a mean of 1, 10 and 100 seconds."""
    measured = np.load(data / 'accel_nas_bench.npz', allow_pickle=False)['train_time'].astype(float)
    space = Space({f'bit{place}': OneOf((0, 1)) for place in range(20)})
    rows = []
    for mean, driver in ((1.0, DRIVER_MS), (10.0, DRIVER_MS), (1.0, DATABASE_MS), (10.0, DATABASE_MS), (100.0, DATABASE_MS)):
        scaled = measured * (mean / measured.mean())

        def seconds(net: Subnet, scaled: np.ndarray = scaled) -> float:
            return float(scaled[sum(pick[0] << place for place, pick in enumerate(net.choices.values())) * 7919 % len(scaled)])

        problem = Problem(space, lambda net: 0.0, lambda net: 0.0, seconds, {})
        row: dict[str, Any] = {'mean trial seconds': mean, 'driver ms a trial': driver, 'busy workers': {}}
        for workers in (1, 16) if quick else (1, 64, 256, 1024, 4096):
            cell = search(problem, 'random', workers, 0, max(200, 2 * workers), driver / 1000)
            row['busy workers'][str(workers)] = round(cell['utilisation'] * workers, 1)
        rows.append(row)
    return rows


# -- what is said of them ------------------------------------------------------------------------


def spread(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f'{statistics.median(values):.2f} ({low:.2f} to {high:.2f})'


def tables(content: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = []
    for name, facts in content['tables'].items():
        mean = facts['mean trial seconds']
        lines += [f'\n{name}: reported accuracy of the incumbent after so many mean trial times ({mean:.0f} s)\n']
        lines += ['| workers | method | seeds | ' + ' | '.join(f'{moment}' for moment in MOMENTS) + ' | end | busy % |']
        lines += ['|---' * (len(MOMENTS) + 5) + '|']
        for workers, method in itertools.product(WORKERS, METHODS):
            cells = [
                cell
                for cell in content['cells'].values()
                if (cell['table'], cell['workers'], cell['method']) == (name, workers, method)
            ]
            if not cells:
                continue
            row = []
            for moment in MOMENTS:
                known = [value for cell in cells if (value := at_moment(cell, moment * mean)) is not None]
                row.append(f'{statistics.median(known):.2f}' if len(known) == len(cells) else '')
            busy = 100 * statistics.median(cell['utilisation'] for cell in cells)
            lines.append(
                f'| {workers} | {method} | {len(cells)} | '
                + ' | '.join(row)
                + f' | {spread([cell["best"][-1][1] for cell in cells])} | {busy:.1f} |'
            )
    if content.get('limits'):
        shown = list(content['limits'][0]['busy workers'])
        lines += ['\n| trial s | driver ms | ' + ' | '.join(shown) + ' |', '|---' * (len(shown) + 2) + '|']
        for row in content['limits']:
            values = ' | '.join(f'{value:.0f}' if value >= 10 else f'{value:.1f}' for value in row['busy workers'].values())
            lines.append(f'| {row["mean trial seconds"]:g} | {row["driver ms a trial"]:g} | {values} |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared' / 'data')
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--quick', action='store_true', help='up to 64 workers, one seed: to see that it works')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'scaling_simulation.json')
    parser.add_argument('--show', action='store_true', help='only print the tables of the result file')
    options = parser.parse_args()
    content = json.loads(options.out.read_text()) if options.out.is_file() else {'tables': {}, 'cells': {}, 'limits': []}
    if options.show:
        print(tables(content))
        return
    logging.getLogger('strop').setLevel(logging.ERROR)
    content = {key: content[key] for key in ('tables', 'cells', 'limits')}
    kept = {'driver_ms_virtual': DRIVER_MS, 'moments in mean trial times': MOMENTS}

    def write() -> None:
        write_result(options.out, 'scaling_simulation', {**kept, **content}, packages=('optuna', 'scipy'))

    problems = {name: make(options.data) for name, make in TABLES.items()}
    for name, problem in problems.items():
        content['tables'][name] = {'mean trial seconds': round(problem.mean, 2), **problem.facts}
    if not content['limits']:
        content['limits'] = limits(options.data, options.quick)
        write()
    plan = itertools.product(range(1 if options.quick else options.seeds), WORKERS[: 4 if options.quick else None])
    # The first three seeds of the small ones come before the second of the large ones, which take most of the time.
    for seed, workers in sorted(plan, key=lambda pair: (pair[0] + 2 * (pair[0] > 0 and pair[1] > 256), pair[1])):
        for name, method in itertools.product(problems, METHODS):
            key = f'{name} {method} {workers} workers seed {seed}'
            if key in content['cells'] or seed >= SEEDS.get(workers, options.seeds):
                continue
            cell = search(problems[name], method, workers, seed, TRIALS[workers] // (4 if options.quick else 1))
            content['cells'][key] = {'table': name, 'method': method, 'workers': workers, 'seed': seed, **cell}
            print(key, cell['utilisation'], cell['driver_ms_real'], cell['best'][-1], flush=True)
            write()
    print(tables(content))


if __name__ == '__main__':
    main()
