"""How many candidates a second are estimated, against a forward with hooks for each.

The space is that of Single Path One-Shot NAS (https://arxiv.org/abs/1904.00420): 20 blocks of ShuffleNetV2, four candidates
each, images of 224 x 224. The reference sets a subnet, runs one image through it and adds up multiply-adds and parameters
in forward hooks, which stay in place between candidates; the estimator traces the supernet once and then evaluates batches.
Both are timed in turns (strop.estimators.measure), and their numbers are compared on every candidate of the reference.

    python benchmarks/estimator_speed.py --out benchmarks/results/estimator_speed.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import strop
from strop.architectures import SearchableShuffleNetV2
from strop.estimators import SpaceEstimator, count, measure
from strop.files import atomic_write
from strop.mutables import Subnet, apply_subnet, bind, extract
from strop.randomness import counter_rng, seed_everything

SHAPE = (1, 3, 224, 224)
ROWS = [(64, 4), (160, 4), (320, 8), (640, 4)]
USED = [f':/strop/{room}' for room in ('estimators', 'mutables', 'architectures', 'randomness.py')] + [
    ':/benchmarks/estimator_speed.py'
]
TARGET_RATIO, TARGET_RATE = 1_000, 10_000


def supernet() -> nn.Module:
    candidates = {f'shuffle_{size}x{size}': {'type': 'ShuffleBlock', 'kernel_size': size} for size in (3, 5, 7)}
    candidates['shuffle_xception'] = {'type': 'ShuffleXception'}
    choice = {'type': 'OneShotMutableOP', 'candidates': candidates}
    return SearchableShuffleNetV2([[channels, blocks, choice] for channels, blocks in ROWS])


class HookCounter:
    """Multiply-adds and parameters of whatever runs in one forward: the reference."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()
        self.binding = bind(model)
        self.image = torch.zeros(SHAPE)
        self.macs = 0
        self.seen: dict[int, int] = {}
        for module in model.modules():
            if not any(True for _ in module.children()):
                module.register_forward_hook(self._hook)

    def _hook(self, module: nn.Module, args: Any, out: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            self.macs += out.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            self.macs += out.numel() * module.in_features
        for parameter in module.parameters():
            self.seen[id(parameter)] = parameter.numel()

    def __call__(self, subnet: Subnet) -> tuple[int, int]:
        self.macs, self.seen = 0, {}
        self.binding.apply(subnet)
        with torch.inference_mode():
            self.model(self.image)
        return self.macs, sum(self.seen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=int, default=100, help='rounds, each one forward with hooks and one batch of estimates')
    parser.add_argument('--batch', type=int, default=10_000, help='candidates estimated in one call')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=None)
    options = parser.parse_args()

    seed_everything(options.seed)
    model = supernet()
    start = time.perf_counter()
    estimator = SpaceEstimator(model, input_shape=SHAPE)
    build_seconds = time.perf_counter() - start
    if estimator.mode != 'analytic':
        raise SystemExit(f'The estimator runs subnets instead of evaluating them: {estimator.reason}')
    subnets = [estimator.space.sample(counter_rng(options.seed, 'benchmark', index)) for index in range(options.batch)]
    counter = HookCounter(model)
    compared = subnets[: options.runs + 10]
    turn = itertools.cycle(compared)
    counted: dict[Subnet, tuple[int, int]] = {}

    def hooks() -> None:
        subnet = next(turn)
        counted[subnet] = counter(subnet)

    times = measure(
        {
            'hooks': hooks,
            'estimate_many': lambda: estimator.estimate_many(subnets, ['macs', 'params']),
            'estimate_many with memory': lambda: estimator.estimate_many(subnets[: options.batch // 10]),
            'estimate one': lambda: estimator.estimate(subnets[0], ['macs', 'params']),
        },
        runs=options.runs,
        warmup=2,
        threads=options.threads,
    )

    estimates = estimator.estimate_many(compared)
    differing = 0
    for index, subnet in enumerate(compared):
        macs, params = counted[subnet] if subnet in counted else counter(subnet)
        differing += (int(estimates['macs'][index]), int(estimates['params'][index])) != (macs, params)
    assert differing == 0, f'{differing} of {len(compared)} candidates are estimated differently'
    for index in range(3):
        resources = count(extract(model, compared[index]), input_shape=SHAPE)
        assert resources.activation_bytes == estimates['activation_bytes'][index], 'activation memory differs'
    apply_subnet(model, compared[0])

    paired = times.ratio('hooks', 'estimate_many')
    rate = 1e3 / (times['estimate_many'].median_ms / options.batch)
    figures = {
        'candidates_per_second': rate,
        'candidates_per_second_with_activation_memory': 1e3
        / (times['estimate_many with memory'].median_ms / (options.batch // 10)),
        'candidates_per_second_one_call_each': 1e3 / times['estimate one'].median_ms,
        'candidates_per_second_hooks': 1e3 / times['hooks'].median_ms,
        'times_as_fast_as_hooks': paired.value * options.batch,
        'times_as_fast_as_hooks_interval_95': [paired.low * options.batch, paired.high * options.batch],
        'estimator_build_seconds': build_seconds,
        'candidates_compared': len(compared),
        'candidates_that_differ': differing,
        'decisions': len(estimator.space),
        'subnets_in_space': float(estimator.space.count()),
        'macs_smallest': estimator.smallest('macs').value,
        'macs_largest': estimator.largest('macs').value,
    }
    passed = rate >= TARGET_RATE and figures['times_as_fast_as_hooks'] >= TARGET_RATIO  # type: ignore[operator]
    report = {
        'benchmark': 'estimator_speed',
        'command': ' '.join(['python', *sys.argv]),
        'commit': git('rev-parse', 'HEAD'),
        'changed_files': git('status', '--porcelain', '--untracked-files=no', '--', *USED).splitlines(),
        'seed': options.seed,
        'versions': {'strop': strop.__version__, 'torch': torch.__version__, 'numpy': np.__version__},
        'space': {'rows': ROWS, 'candidates': 4, 'input_shape': SHAPE},
        'targets': {'times_as_fast_as_hooks': TARGET_RATIO, 'candidates_per_second': TARGET_RATE},
        'passed': passed,
        'figures': figures,
        'measured': times.to_dict(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.out is not None:
        atomic_write(options.out, text + '\n')
    if not passed:
        raise SystemExit('The targets are not met.')


def git(*arguments: str) -> str:
    done = subprocess.run(['git', *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ''


if __name__ == '__main__':
    main()
