"""A training step at an active width, divided by one of the static model that was extracted at that width.

For each model and width, steps of both are timed in turns on the same batch: forward, loss and backward, and the same with
the update of SGD with momentum, which an elastic model does for all of its weights and the static one for the active ones.
Reported: the median ratio of the pairs with a bootstrap interval.

    python benchmarks/elastic_cost.py --out benchmarks/results/elastic_cost.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from record import write_result
from torch import nn

from strop.elastic import ElasticWidths
from strop.graph import channel_units
from strop.randomness import counter_rng, seed_everything

MODELS = ('resnet18', 'mobilenetv2_100')
TARGETS = {1.0: 1.05, 0.25: 1.15}


def interval(ratios: np.ndarray, draws: int = 2000) -> list[float]:
    """Return the 95 % bootstrap interval of the median."""
    rng = counter_rng(0, 'bootstrap')
    medians = np.median(rng.choice(ratios, (draws, len(ratios))), axis=1)
    return [float(np.quantile(medians, q)) for q in (0.025, 0.975)]


def steps(model: nn.Module, batch: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return one step without and one with the update of the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    images, labels = batch

    def gradients() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()

    def update() -> None:
        gradients()
        optimizer.step()

    return gradients, update


def compared(elastic: Callable[[], None], static: Callable[[], None], pairs: int) -> dict[str, Any]:
    """Time both in turns; return medians in ms and the ratio."""
    times: dict[int, list[float]] = {0: [], 1: []}
    for pair in range(pairs + 3):
        for which in ((0, 1), (1, 0))[pair % 2]:
            begin = time.perf_counter_ns()
            (elastic, static)[which]()
            if pair >= 3:
                times[which].append((time.perf_counter_ns() - begin) / 1e6)
    ratios = np.array(times[0]) / np.array(times[1])
    return {
        'elastic_ms': float(np.median(times[0])),
        'static_ms': float(np.median(times[1])),
        'ratio': float(np.median(ratios)),
        'interval': interval(ratios),
        'pairs': pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', type=int, default=100)
    parser.add_argument('--size', type=int, default=64)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--widths', type=float, nargs='+', default=[1.0, 0.5, 0.25])
    parser.add_argument('--models', nargs='+', default=list(MODELS))
    parser.add_argument('--out', default='benchmarks/results/elastic_cost.json')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seed_everything(0)
    batch = (torch.randn(args.batch, 3, args.size, args.size), torch.randint(10, (args.batch,)))
    rows = []
    for name in args.models:
        for width in args.widths:
            model = timm.create_model(name, num_classes=10).train()
            widths = ElasticWidths(model, channel_units(model, batch[0][:2]))
            widths.set({unit: max(1, round(size * width)) for unit, size in widths.current.items()})
            static = widths.extract(model)
            row = {'model': name, 'width': width, 'batch': args.batch, 'size': args.size}
            for kind, elastic_step, static_step in zip(
                ('gradients', 'with_update'), steps(model, batch), steps(static, batch), strict=True
            ):
                row[kind] = compared(elastic_step, static_step, args.pairs)
                print(name, width, kind, {key: value for key, value in row[kind].items() if key != 'pairs'}, flush=True)
            row['target'] = TARGETS.get(width)
            rows.append(row)
    write_result(args.out, 'elastic_cost', {'options': vars(args), 'rows': rows}, packages=('timm',))


if __name__ == '__main__':
    main()
