"""A step of DARTS (first order) on the paper's cells, divided by the same step written by hand in plain PyTorch.

Both networks have the same operations and, to begin with, the same weights; their losses are compared before anything is
timed. Ours is the step of `DartsTrainer` as a user runs it, with its seeding, checks and logging. Two ways of writing it by
hand are timed: the usual one (`loss.backward()` for the architecture, too, as in the official code), and a careful one that
makes the same savings as the trainer: gradients of the architecture alone in its step, none of it in that of the weights. The
target is held against the careful one. Timed is the processor time of the process, since another load on the machine does not
change it much; steps are timed in turns. Reported: medians of the ratios with bootstrap intervals.

    python benchmarks/darts_step.py --out benchmarks/results/darts_step.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from record import write_result
from torch import nn

from strop.algorithms import DartsTrainer
from strop.architectures import DartsBackbone
from strop.mutators import DifferentiableMutator
from strop.randomness import counter_rng, seed_everything

TARGET = 1.05
CONVS = {'sep_conv_3x3': ('sep', 3), 'sep_conv_5x5': ('sep', 5), 'dil_conv_3x3': ('dil', 3), 'dil_conv_5x5': ('dil', 5)}
BARE: dict[str, Any] = {'type': 'BN', 'affine': False}
CANDIDATES = {
    'zero': {'type': 'DartsZero'},
    'skip_connect': {'type': 'DartsSkipConnect', 'norm_cfg': BARE},
    'max_pool_3x3': {'type': 'DartsPoolBN', 'pool_type': 'max', 'norm_cfg': BARE},
    'avg_pool_3x3': {'type': 'DartsPoolBN', 'pool_type': 'avg', 'norm_cfg': BARE},
    **{
        name: {'type': 'DartsSepConv' if kind == 'sep' else 'DartsDilConv', 'kernel_size': size, 'norm_cfg': BARE}
        for name, (kind, size) in CONVS.items()
    },
}


# -- by hand -----------------------------------------------------------------------------------------


def bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


def separable(channels: int, size: int, stride: int, dilation: int) -> list[nn.Module]:
    padding = dilation * (size - 1) // 2
    depthwise = nn.Conv2d(channels, channels, size, stride, padding, dilation, groups=channels, bias=False)
    return [nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False), bn(channels)]


class Reduce(nn.Module):
    """Halve the size by two strided convolutions."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels // 2, 1, stride=2, bias=False)
        self.conv2 = nn.Conv2d(before, channels // 2, 1, stride=2, bias=False)
        self.norm = bn(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(x)
        return self.norm(torch.cat([self.conv1(x), self.conv2(x[:, :, 1:, 1:])], 1))


class Zero(nn.Module):
    """No edge."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def operations(channels: int, stride: int) -> nn.ModuleList:
    def convs(kind: str, size: int) -> nn.Module:
        if kind == 'dil':
            return nn.Sequential(*separable(channels, size, stride, 2))
        return nn.Sequential(*separable(channels, size, stride, 1), *separable(channels, size, 1, 1))

    return nn.ModuleList(
        [
            Zero(stride),
            nn.Identity() if stride == 1 else Reduce(channels, channels),
            nn.Sequential(nn.MaxPool2d(3, stride, 1), bn(channels)),
            nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), bn(channels)),
            *(convs(kind, size) for kind, size in CONVS.values()),
        ]
    )


class HandCell(nn.Module):
    """A cell whose edges add all operations."""

    def __init__(self, nodes: int, before: int, last: int, channels: int, reduction: bool, last_reduced: bool) -> None:
        super().__init__()
        plain = nn.Sequential(nn.ReLU(), nn.Conv2d(before, channels, 1, bias=False), bn(channels))
        self.pre0 = Reduce(before, channels) if last_reduced else plain
        self.pre1 = nn.Sequential(nn.ReLU(), nn.Conv2d(last, channels, 1, bias=False), bn(channels))
        self.nodes = nodes
        self.edges = nn.ModuleList(
            operations(channels, 2 if reduction and edge < 2 else 1) for node in range(nodes) for edge in range(node + 2)
        )

    def forward(self, s0: torch.Tensor, s1: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        states = [self.pre0(s0), self.pre1(s1)]
        edge = 0
        for _ in range(self.nodes):
            total: Any = 0
            for state in states:
                total = total + sum(w * op(state) for w, op in zip(weights[edge], self.edges[edge]))
                edge += 1
            states.append(total)
        return torch.cat(states[2:], 1)


class HandNetwork(nn.Module):
    """A stem, cells, a linear classifier, and the architecture parameters."""

    def __init__(self, channels: int, layers: int, nodes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * channels, 3, padding=1, bias=False), bn(3 * channels))
        reductions = (layers // 3, 2 * layers // 3)
        cells, before, last, last_reduced = [], 3 * channels, 3 * channels, False
        for layer in range(layers):
            channels *= 2 if layer in reductions else 1
            cells.append(HandCell(nodes, before, last, channels, layer in reductions, last_reduced))
            before, last, last_reduced = last, nodes * channels, layer in reductions
        self.cells = nn.ModuleList(cells)
        self.kinds = [layer in reductions for layer in range(layers)]
        self.head = nn.Linear(last, 10)
        edges = sum(node + 2 for node in range(nodes))
        self.alphas = [nn.Parameter(1e-3 * torch.randn(edges, len(CANDIDATES))) for _ in range(2)]

    def forward(self, x: torch.Tensor, learn: bool = True) -> torch.Tensor:
        with torch.set_grad_enabled(learn):
            weights = [torch.softmax(alpha, 1) for alpha in self.alphas]
        s0 = s1 = self.stem(x)
        for cell, reduces in zip(self.cells, self.kinds):
            s0, s1 = s1, cell(s0, s1, weights[reduces])
        return self.head(s1.mean((2, 3)))


class ByHand:
    """The two steps of DARTS, first order."""

    def __init__(self, network: HandNetwork, careful: bool) -> None:
        self.network = network
        self.careful = careful
        self.sgd = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
        self.adam = torch.optim.Adam(network.alphas, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def step(self, train: tuple[torch.Tensor, torch.Tensor], valid: tuple[torch.Tensor, torch.Tensor]) -> float:
        loss = F.cross_entropy(self.network(valid[0]), valid[1])
        if self.careful:
            for alpha, gradient in zip(self.network.alphas, torch.autograd.grad(loss, self.network.alphas)):
                alpha.grad = gradient
        else:
            self.adam.zero_grad()
            loss.backward()
        self.adam.step()
        self.sgd.zero_grad()
        loss = F.cross_entropy(self.network(train[0], learn=not self.careful), train[1])
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.sgd.step()
        return loss.item()


# -- by the trainer ----------------------------------------------------------------------------------


class Network(nn.Module):
    """The same network of our parts."""

    def __init__(self, channels: int, layers: int, nodes: int) -> None:
        super().__init__()
        self.backbone = DartsBackbone(
            3,
            channels,
            {'type': 'DiffMutableOP', 'candidates': CANDIDATES},
            {'type': 'DiffChoiceRoute'},
            num_layers=layers,
            num_nodes=nodes,
            out_indices=(layers - 1,),
            norm_cfg=BARE,
        )
        self.head = nn.Linear(self.backbone.out_channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x)[-1].mean((2, 3)))


def equal_weights(ours: Network, mutator: DifferentiableMutator, theirs: HandNetwork) -> None:
    """Give the hand-written network the weights and logits of ours."""
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.shape == b.shape, 'the parameters are in one order'
        b.data.copy_(a.data)
    for kind, alpha in zip(('normal', 'reduce'), theirs.alphas, strict=True):
        rows = [logits for key, logits in mutator.choices.items() if key.startswith(kind)]
        if rows:
            alpha.data.copy_(torch.stack([row.detach() for row in rows]))


def timed(step: Callable[[], Any]) -> float:
    begin = time.process_time_ns()
    step()
    return (time.process_time_ns() - begin) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--channels', type=int, default=16)
    parser.add_argument('--layers', type=int, default=3)
    parser.add_argument('--nodes', type=int, default=4)
    parser.add_argument('--size', type=int, default=16)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--full', action='store_true', help='the network of the paper: 8 cells, 32 pixels, batch 64')
    parser.add_argument('--out', default='benchmarks/results/darts_step.json')
    args = parser.parse_args()
    if args.full:
        args.layers, args.size, args.batch = 8, 32, 64
    torch.set_num_threads(args.threads)
    seed_everything(args.seed)
    batches = [(torch.randn(args.batch, 3, args.size, args.size), torch.randint(10, (args.batch,))) for _ in range(2)]
    net = Network(args.channels, args.layers, args.nodes)
    mutator = DifferentiableMutator(net)
    hands = {}
    for name in ('usual', 'careful'):
        network = HandNetwork(args.channels, args.layers, args.nodes)
        equal_weights(net, mutator, network)
        hands[name] = ByHand(network, careful=name == 'careful')
    sgd = torch.optim.SGD(net.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    with tempfile.TemporaryDirectory() as folder:
        trainer = DartsTrainer(
            net, nn.CrossEntropyLoss(), None, sgd, 1, list(zip(*batches[0])), None, mutator, workers=0, device='cpu',
            work_dir=folder,
        )  # fmt: skip
        trainer.train_loader, trainer.valid_loader = [[batch] for batch in batches]  # type: ignore[assignment]
        losses: list[float] = []
        trainer.log = lambda **values: losses.append(values['loss'].item())  # type: ignore[method-assign]
        steps = {'trainer': lambda: trainer.train_one_epoch(0)}
        steps |= {name: lambda hand=hand: losses.append(hand.step(*batches)) for name, hand in hands.items()}  # type: ignore[misc]
        for step in steps.values():
            step()
        assert max(losses) - min(losses) < 1e-4 * abs(losses[0]), f'the first steps differ: {losses}'
        for step in steps.values():
            step()
        rows = []
        for turn in range(args.rounds):
            order = list(steps) if turn % 2 else list(steps)[::-1]
            times = {name: timed(steps[name]) for name in order}
            rows.append(times)
            print(f'{turn + 1}/{args.rounds}: ' + '  '.join(f'{name} {times[name]:.0f} ms' for name in steps), flush=True)
    rng = counter_rng(args.seed, 'bootstrap')
    figures: dict[str, Any] = {f'{name}_ms': float(np.median([row[name] for row in rows])) for name in steps}
    for name in hands:
        ratios = np.array([row['trainer'] / row[name] for row in rows])
        medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
        figures[f'ratio_to_{name}'] = float(np.median(ratios))
        figures[f'interval_95_{name}'] = np.percentile(medians, [2.5, 97.5]).tolist()
    settings = {name: getattr(args, name) for name in ('rounds', 'channels', 'layers', 'nodes', 'size', 'batch', 'threads')}
    content = {
        'seed': args.seed,
        'settings': settings,
        'target': TARGET,
        'passed': figures['ratio_to_careful'] <= TARGET,
        'figures': figures,
    }
    write_result(args.out, 'darts_step', content)
    print(figures)


if __name__ == '__main__':
    main()
