"""What the search driver and its store cost: milliseconds a trial with 20 decisions and an empty evaluation.

    python benchmarks/search_driver.py

Random search on a journal file, up to 10,000 trials; beside it, in the same run and on the same kind of store, Optuna's
own `study.optimize` with its RandomSampler. The two run in turns, in blocks of trials, so that the machine's load falls on
both. Times are between one finished trial and the next, by the wall clock and in processor time of the process (which other
programs on the machine disturb less); medians over windows of 500 trials.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

import optuna

import strop
from strop.files import atomic_write
from strop.mutables import OneOf, Space
from strop.search import run

ROOT = Path(__file__).resolve().parents[1]
CHOICES = ('a', 'b', 'c', 'd')
WINDOW = 500


class Clock:
    """Collects the time between one call and the next."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.processor: list[float] = []
        self._last: tuple[float, float] | None = None

    def tick(self, *_: Any) -> None:
        now = time.perf_counter(), time.process_time()
        if self._last is not None:
            self.times.append((now[0] - self._last[0]) * 1000)
            self.processor.append((now[1] - self._last[1]) * 1000)
        self._last = now

    def pause(self) -> None:
        self._last = None


def around(times: list[float], number: int) -> dict[str, float]:
    """Return the median and the quartiles of the window that ends at a trial."""
    low, middle, high = statistics.quantiles(times[max(0, number - WINDOW) : number], n=4)
    return {'median': round(middle, 3), 'q1': round(low, 3), 'q3': round(high, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--trials', type=int, default=10_000)
    parser.add_argument('--block', type=int, default=500, help='trials of each before the other has its turn')
    parser.add_argument('--folder', type=Path, default=None, help='where the journals lie (default: a temporary folder)')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'search_driver.json')
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    space = Space({f'op{place}': OneOf(CHOICES) for place in range(20)})
    ours, theirs = Clock(), Clock()
    opened = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        backend = optuna.storages.journal.JournalFileBackend(f'{folder}/optuna.journal')
        storage = optuna.storages.JournalStorage(backend)
        study = optuna.create_study(direction='maximize', storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))

        def objective(trial: optuna.Trial) -> float:
            for place in range(20):
                trial.suggest_categorical(f'op{place}', CHOICES)
            return 0.0

        for count in range(options.block, options.trials + 1, options.block):
            begin = time.perf_counter()
            result = run(
                space,
                lambda subnet: 0.0,
                strategy='random',
                store=f'{folder}/strop.journal',
                trials=count,
                callbacks=[ours.tick],
            )
            opened.append(time.perf_counter() - begin - sum(ours.times[-options.block + 1 :]) / 1000)
            assert len(result.trials) == count
            ours.pause()
            study.optimize(objective, n_trials=options.block, callbacks=[theirs.tick])
            theirs.pause()
            print(f'{count:6} trials  ours {around(ours.times, len(ours.times))["median"]:.2f} ms  '
                  f'optuna {around(theirs.times, len(theirs.times))["median"]:.2f} ms', flush=True)  # fmt: skip
        sizes = {name: os.path.getsize(f'{folder}/{name}.journal') for name in ('strop', 'optuna')}

    # A block of n trials gives n - 1 times.
    per_block = options.block - 1
    marks = [mark for mark in (500, 1000, 2000, 5000, 10_000) if mark <= options.trials]
    windows = {}
    for mark in marks:
        end = mark // options.block * per_block
        windows[str(mark)] = {
            'strop.search.run, ms a trial': around(ours.times, end),
            'optuna study.optimize, ms a trial': around(theirs.times, end),
            'strop.search.run, ms of processor time a trial': around(ours.processor, end),
            'optuna study.optimize, ms of processor time a trial': around(theirs.processor, end),
        }
    head = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    middle = statistics.median(ours.times)
    content: dict[str, Any] = {
        'command': f'python benchmarks/search_driver.py --trials {options.trials} --block {options.block}',
        'what': 'wall-clock ms a trial, 20 decisions of 4, empty evaluation, journal file, random search; window of 500 trials',
        'commit': head or 'unknown',
        'machine': {'cpu count': os.cpu_count(), 'load at the end': round(os.getloadavg()[0], 2), 'niceness': os.nice(0)},
        'versions': {'strop': strop.__version__, 'optuna': optuna.__version__, 'python': platform.python_version()},
        'date': time.strftime('%Y-%m-%d'),
        'median over all trials': {'strop': round(middle, 3), 'optuna': round(statistics.median(theirs.times), 3)},
        'at': windows,
        'reopening the store at the end, seconds': round(opened[-1], 3),
        'journal bytes a trial': {name: round(size / options.trials) for name, size in sizes.items()},
        'target': 'median <= 3 ms, not growing from 1,000 to 10,000 trials',
        'pass': bool(middle <= 3),
    }
    first, last = windows.get('1000'), windows.get('10000')
    if first and last:
        for name in first:
            content.setdefault('growth from 1,000 to 10,000 trials', {})[name.replace(', ms', ',')] = round(
                last[name]['median'] / first[name]['median'], 3
            )
    text = json.dumps(content, indent=1)
    atomic_write(options.out, text + '\n')
    print(text)


if __name__ == '__main__':
    main()
