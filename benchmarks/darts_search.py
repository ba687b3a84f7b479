"""A cell found by DARTS against five random cells of the same space, on Fashion-MNIST.

The space is a small one of the paper's kind: cells of two nodes, four operations and zero, three cells. `DartsTrainer` searches
it twice, by the first and by the second order, on training images of which one half trains the weights and the other the
architecture. Each found cell and five random ones are then trained alike, from the start, on training images, with the same
seeds, and scored on test images that neither search nor training saw. Random cells are drawn uniformly from the space without
its zero operation. Every part is kept in the work folder, so that the benchmark resumes: the searches from their checkpoints,
the cells one by one.

    python benchmarks/darts_search.py --out benchmarks/results/darts_search.json
    python benchmarks/darts_search.py --full          # 20,000 images, more epochs, three seeds
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from record import write_result
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from strop.algorithms import DartsTrainer
from strop.architectures import DartsBackbone
from strop.data import load_images
from strop.engine import LRSchedulerCallback
from strop.files import atomic_write
from strop.mutables import Subnet, extract, space_of
from strop.mutators import DifferentiableMutator
from strop.randomness import counter_rng, derive_seed, seed_everything


class Network(nn.Module):
    """Images of 28 pixels, pooled to 14, through three cells."""

    def __init__(self, channels: int, search: bool) -> None:
        super().__init__()
        norm: dict[str, Any] = {'type': 'BN', 'affine': not search}
        candidates = {
            'zero': {'type': 'DartsZero'},
            'skip_connect': {'type': 'DartsSkipConnect', 'norm_cfg': norm},
            'max_pool_3x3': {'type': 'DartsPoolBN', 'pool_type': 'max', 'norm_cfg': norm},
            'sep_conv_3x3': {'type': 'DartsSepConv', 'kernel_size': 3, 'norm_cfg': norm},
            'dil_conv_3x3': {'type': 'DartsDilConv', 'kernel_size': 3, 'norm_cfg': norm},
        }
        if not search:
            del candidates['zero']
        self.backbone = DartsBackbone(
            1,
            channels,
            {'type': 'DiffMutableOP', 'candidates': candidates},
            {'type': 'DiffChoiceRoute'},
            num_layers=3,
            num_nodes=2,
            stem_multiplier=2,
            out_indices=(2,),
            norm_cfg=norm,
        )
        self.head = nn.Linear(self.backbone.out_channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(F.avg_pool2d(x, 2))[-1].mean((2, 3)))


def images(source: str, split: str, number: int, seed: int) -> TensorDataset:
    """Return some images of a part, normalised, with their labels."""
    arrays = load_images(source, split, seed=seed)
    taken = counter_rng(seed, f'images/{split}').permutation(len(arrays))[:number]
    x = (torch.from_numpy(arrays.images[taken]).float() - 73.0) / 90.0
    return TensorDataset(x, torch.from_numpy(arrays.labels[taken]).long())


def accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {'acc': (outputs.argmax(1) == labels).float().mean()}


def searched(args: argparse.Namespace, order: str, data: TensorDataset, folder: Path) -> dict[str, Any]:
    """Search, or go on with a search, and return the found architecture."""
    file = folder / f'{order}.json'
    if not file.exists():
        seed_everything(derive_seed(args.seed, 'network'))
        net = Network(args.channels, search=True)
        sgd = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=3e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, args.search_epochs, eta_min=0.001)
        loss, mutator = nn.CrossEntropyLoss(), DifferentiableMutator(net)
        trainer = DartsTrainer(
            net, loss, accuracy, sgd, args.search_epochs, data, None, mutator, batch_size=64, workers=0, device='cpu',
            callbacks=[LRSchedulerCallback(schedule)], arc_learning_rate=args.arch_lr,
            unrolled=order == 'second', work_dir=folder / f'search_{order}', seed=args.seed, checkpoint_by='step',
            checkpoint_interval=10, log_frequency=10,
        )  # fmt: skip
        trainer.train(resume=True)
        trainer.export(file)
    return json.loads(file.read_text())


def trained(args: argparse.Namespace, subnet: Subnet, seed: int, train: TensorDataset, test: TensorDataset) -> dict[str, float]:
    """Train a cell from the start and return its test accuracy and size."""
    seed_everything(derive_seed(seed, 'retrain'))
    net = extract(Network(args.channels, search=False), subnet)
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=3e-4)
    loader = DataLoader(train, 64, shuffle=True, drop_last=True)
    steps = args.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps)
    for _ in range(args.epochs):
        net.train()
        for x, y in loader:
            loss = F.cross_entropy(net(x), y)
            sgd.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            sgd.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        right = sum(float((net(x).argmax(1) == y).sum()) for x, y in DataLoader(test, 250))
    return {'accuracy': 100 * right / len(test), 'parameters': float(sum(p.numel() for p in net.parameters()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='fashion-mnist')
    parser.add_argument('--search-images', type=int, default=2000)
    parser.add_argument('--search-epochs', type=int, default=5)
    parser.add_argument('--arch-lr', type=float, default=6e-3)
    parser.add_argument('--images', type=int, default=4000)
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--test-images', type=int, default=5000)
    parser.add_argument('--channels', type=int, default=8)
    parser.add_argument('--random', type=int, default=5)
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--full', action='store_true')
    parser.add_argument('--work-dir', default='work_dirs/darts_search')
    parser.add_argument('--out', default='benchmarks/results/darts_search.json')
    args = parser.parse_args()
    if args.full:
        args.search_images, args.search_epochs, args.images, args.epochs, args.seeds = 20_000, 20, 20_000, 15, 3
        args.arch_lr = 3e-3
        args.test_images = 10_000
    torch.set_num_threads(args.threads)
    names = ('search_images', 'search_epochs', 'arch_lr', 'images', 'epochs', 'test_images', 'channels', 'seed')
    settings = {name: getattr(args, name) for name in names}
    folder = Path(args.work_dir) / f'{derive_seed(0, json.dumps(settings)):016x}'
    folder.mkdir(parents=True, exist_ok=True)

    data = images(args.data, 'train', args.search_images, args.seed)
    space = space_of(Network(args.channels, search=False))
    cells = {f'found_{order}': space.subnet(searched(args, order, data, folder)) for order in ('first', 'second')}
    cells |= {f'random_{index}': space.sample(counter_rng(args.seed, 'random cell', index)) for index in range(args.random)}

    train = images(args.data, 'train', args.images, args.seed)
    test = images(args.data, 'test', args.test_images, args.seed)
    results: dict[str, Any] = {}
    for name, subnet in cells.items():
        runs = []
        for seed in range(args.seeds):
            file = folder / f'{name}_{seed}.json'
            if not file.exists():
                atomic_write(file, json.dumps(trained(args, subnet, seed, train, test)))
            runs.append(json.loads(file.read_text()))
        mean = float(np.mean([run['accuracy'] for run in runs]))
        results[name] = {'cell': dict(subnet), 'accuracy': mean, 'runs': runs}
        print(f'{name}: {mean:.2f} %  {runs[0]["parameters"]:.0f} parameters', flush=True)

    drawn = [results[f'random_{index}']['accuracy'] for index in range(args.random)]
    figures = {
        'found_first': results['found_first']['accuracy'],
        'found_second': results['found_second']['accuracy'],
        'random_mean': float(np.mean(drawn)),
        'random_std': float(np.std(drawn, ddof=1)) if len(drawn) > 1 else math.nan,
        'random_best': max(drawn),
        'random_better_than_first': sum(value > results['found_first']['accuracy'] for value in drawn),
        'random_better_than_second': sum(value > results['found_second']['accuracy'] for value in drawn),
        'cells_in_space': space.count(),
    }
    content = {
        'seed': args.seed,
        'settings': {**settings, 'data': args.data, 'seeds': args.seeds, 'threads': args.threads},
        'figures': figures,
        'cells': results,
    }
    write_result(args.out, 'darts_search', content)
    print(json.dumps(figures, indent=2))


if __name__ == '__main__':
    main()
