"""What a store costs: milliseconds a trial with 20 decisions and an empty evaluation, and trials a second of several drivers.

    python benchmarks/store_cost.py --postgresql postgresql+psycopg://USER@HOST:PORT/DATABASE

Random search in one process on each kind of store, in turns of 50 trials, so that the machine's load falls on all of
them; wall time and processor time from one finished trial to the next, medians of all but the first turn. Then one, two and
four processes that search on one store at once, each a driver of its own: finished trials a second, all together. Last, what
a proposal takes with each strategy after 100 to 4,000 trials, without a store. SQLite and the journal lie in --folder (a
temporary folder by default; say there what kind of disk it is). PostgreSQL is left out where no URL is given. What the
result file holds already is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

from record import ROOT, write_result

from strop.mutables import OneOf, Space
from strop.randomness import counter_rng
from strop.search import Trial, build_strategy, run

SPACE = Space({f'op{place}': OneOf(('a', 'b', 'c', 'd')) for place in range(20)})
TURN = 50
ALONE, TOGETHER = 'a trial', 'trials a second of several drivers'
PROPOSALS = 'ms a proposal after so many trials'
# Strategy -> up to how many trials its proposals are timed.
STRATEGIES = {'random': 4000, 'regularized': 4000, 'spos': 4000, 'default': 300, 'TPESampler': 300}


def empty(subnet: Any) -> float:
    return 0.0


def alone(stores: dict[str, Any], turns: int, name: str) -> dict[str, dict[str, float]]:
    wall: dict[str, list[float]] = {kind: [] for kind in stores}
    processor: dict[str, list[float]] = {kind: [] for kind in stores}
    for turn in range(1, turns + 1):
        for kind, store in stores.items():
            marks: list[tuple[float, float]] = []
            note = [lambda trial, marks=marks: marks.append((time.perf_counter(), time.process_time()))]
            run(SPACE, empty, strategy='random', store=store, trials=turn * TURN, callbacks=note, name=name)
            if turn > 1:
                wall[kind] += [1000 * (after[0] - before[0]) for before, after in itertools.pairwise(marks)]
                processor[kind] += [1000 * (after[1] - before[1]) for before, after in itertools.pairwise(marks)]
    found = {}
    for kind in stores:
        low, middle, high = statistics.quantiles(wall[kind], n=4)
        found[kind] = {
            'ms': round(middle, 3),
            'q1': round(low, 3),
            'q3': round(high, 3),
            'processor_ms': round(statistics.median(processor[kind]), 3),
        }
    return found


def _drive(store: str, name: str, seed: int, trials: int, ready: Any) -> None:
    logging.disable(logging.WARNING)
    ready.wait()
    run(SPACE, empty, strategy='random', store=store, name=name, trials=trials, seed=seed)


def together(store: str, processes: int, trials: int) -> float:
    """Return how many trials a second several drivers finish on one store."""
    name = f'{processes} drivers'
    logging.disable(logging.WARNING)
    run(SPACE, empty, strategy='random', store=store, name=name, trials=1)
    logging.disable(logging.NOTSET)
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['strop.search'])
    ready = context.Barrier(processes + 1)
    drivers = [context.Process(target=_drive, args=(store, name, seed, trials, ready)) for seed in range(processes)]
    for driver in drivers:
        driver.start()
    ready.wait()
    begin = time.perf_counter()
    for driver in drivers:
        driver.join()
    if any(driver.exitcode for driver in drivers):
        raise SystemExit('a driver failed; what it printed says why')
    return round((trials - 1) / (time.perf_counter() - begin), 1)


def proposals(kind: str, counts: tuple[int, ...]) -> dict[str, float]:
    """Return milliseconds of processor time a proposal takes after so many trials, without evaluation and store."""
    most = max(count for count in counts if count <= STRATEGIES[kind])
    strategy = build_strategy(kind).bind(SPACE)
    times: list[float] = []
    for number in range(most):
        begin = time.process_time()
        subnet = strategy.ask(number, counter_rng(0, 'proposal', number))
        times.append(1000 * (time.process_time() - begin))
        assert subnet is not None, 'the space is large'
        value = float(sum(choice == 'a' for choice in subnet.values()))
        strategy.tell(Trial(number, subnet, 'complete', {'score': value}))
    return {str(count): round(statistics.median(times[max(0, count - 50) : count]), 3) for count in counts if count <= most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--postgresql', help='an empty database; its studies are named after this script')
    parser.add_argument('--folder', type=Path, default=None)
    parser.add_argument('--turns', type=int, default=6)
    parser.add_argument('--trials', type=int, default=200, help='of several drivers together')
    parser.add_argument('--counts', type=int, nargs='+', default=[100, 300, 1000, 4000])
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'store_cost.json')
    options = parser.parse_args()
    # The address of a database is nobody's business, and its password less so.
    sys.argv = [word if '://' not in word else 'URL' for word in sys.argv]
    content: dict[str, Any] = {}
    if options.out.is_file():
        known = json.loads(options.out.read_text())
        content = {key: known[key] for key in (ALONE, TOGETHER, PROPOSALS) if key in known}

    def write() -> None:
        write_result(options.out, 'store_cost', {'turn': TURN, **content}, packages=('optuna', 'sqlalchemy', 'psycopg'))

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        stores: dict[str, Any] = {'journal': f'{folder}/search.journal', 'SQLite': f'sqlite:///{folder}/search.db'}
        if options.postgresql:
            stores['PostgreSQL'] = options.postgresql
        if ALONE not in content:
            content[ALONE] = alone(stores, options.turns, f'alone {time.time_ns()}')
            write()
        rates = content.setdefault(TOGETHER, {})
        for kind, store in stores.items():
            if kind not in rates:
                rates[kind] = {str(count): together(store, count, options.trials) for count in (1, 2, 4)}
                write()
    known = content.setdefault(PROPOSALS, {})
    for kind in STRATEGIES:
        if kind not in known:
            known[kind] = proposals(kind, tuple(options.counts))
            write()
    print(json.dumps(content, indent=1))


if __name__ == '__main__':
    main()
