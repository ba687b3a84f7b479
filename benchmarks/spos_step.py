"""A training step of SPOS, divided by a step of the same path trained as a plain model.

Each pair draws a path, extracts it as a plain model, and times one step of both on the same batch, in turns. Both go
through the same `train_step` with SGD and momentum; the first step of each plain model, which allocates its state, is not
timed. Reported: the median ratio of the pairs with a bootstrap interval.

    python benchmarks/spos_step.py --out benchmarks/results/spos_step.json
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from mmengine.optim import OptimWrapper
from record import write_result
from torch import nn

from strop.algorithms import SPOS, BaseAlgorithm
from strop.architectures import GlobalAveragePooling, SearchableShuffleNetV2
from strop.mutables import extract
from strop.randomness import counter_rng, seed_everything

ROWS = [(64, 4), (160, 4), (320, 8), (640, 4)]
TARGET = 1.03


class Classifier(nn.Module):
    """The SPOS paper's space for images of any size."""

    def __init__(self) -> None:
        super().__init__()
        candidates = {f'shuffle_{size}x{size}': {'type': 'ShuffleBlock', 'kernel_size': size} for size in (3, 5, 7)}
        choice = {'type': 'OneShotMutableOP', 'candidates': {**candidates, 'shuffle_xception': {'type': 'ShuffleXception'}}}
        self.backbone = SearchableShuffleNetV2([[channels, blocks, choice] for channels, blocks in ROWS])
        self.neck = GlobalAveragePooling()
        self.head = nn.Linear(1024, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.neck(self.backbone(x))[-1])


def optimizer(algorithm: nn.Module) -> OptimWrapper:
    return OptimWrapper(torch.optim.SGD(algorithm.parameters(), lr=0.01, momentum=0.9))


def timed(algorithm: Any, wrapper: OptimWrapper, batch: Any) -> float:
    begin = time.perf_counter_ns()
    algorithm.train_step(batch, wrapper)
    return (time.perf_counter_ns() - begin) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', type=int, default=200)
    parser.add_argument('--size', type=int, default=64)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', default='benchmarks/results/spos_step.json')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seed_everything(args.seed)
    spos = SPOS(Classifier(), seed=args.seed).train()
    wrapper = optimizer(spos)
    batch = (torch.randn(args.batch, 3, args.size, args.size), torch.randint(10, (args.batch,)))
    for _ in range(5):
        spos.train_step(batch, wrapper)
    rows = []
    for pair in range(args.pairs):
        path = spos.mutator.space.subnet(spos.sample_subnet())  # the path that the next step will draw
        plain = BaseAlgorithm(
            extract(spos.architecture.module, {k.removeprefix('module.'): v for k, v in path.items()})
        ).train()
        plain_wrapper = optimizer(plain)
        plain.train_step(batch, plain_wrapper)
        if pair % 2:
            supernet_ms, plain_ms = timed(spos, wrapper, batch), timed(plain, plain_wrapper, batch)
        else:
            plain_ms, supernet_ms = timed(plain, plain_wrapper, batch), timed(spos, wrapper, batch)
        rows.append((supernet_ms, plain_ms))
        if pair % 20 == 19:
            print(f'{pair + 1}/{args.pairs}: {np.median([a / b for a, b in rows]):.4f}', flush=True)
    ratios = np.array([a / b for a, b in rows])
    rng = counter_rng(args.seed, 'bootstrap')
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    figures = {
        'median_ratio': float(np.median(ratios)),
        'interval_95': [float(low), float(high)],
        'supernet_step_ms': float(np.median([a for a, _ in rows])),
        'plain_step_ms': float(np.median([b for _, b in rows])),
        'pairs': args.pairs,
    }
    settings = {'batch': args.batch, 'image_size': args.size, 'threads': args.threads, 'space': 'ShuffleNetV2, 20 choices of 4'}
    content = {
        'seed': args.seed,
        'settings': settings,
        'target': TARGET,
        'passed': figures['median_ratio'] <= TARGET,
        'figures': figures,
    }
    write_result(args.out, 'spos_step', content)
    print(figures)


if __name__ == '__main__':
    main()
