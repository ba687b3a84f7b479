"""What widths that AutoSlim found score against uniform widths of as many multiply-adds.

A supernet in the style of MobileNetV2, 1.5 times as wide as the network that one would take, is trained by AutoSlim on
Fashion-MNIST (Debian package dataset-fashion-mnist). The greedy search then narrows it to the multiply-adds of the plain
width. A step is judged by the loss on held-out training images that it adds for each multiply-add that it saves, with batch
norms recalibrated on training images.
What was found and the uniform width (of no fewer multiply-adds) are both trained from scratch alike, and scored once on the
test images.

Cells (supernet, search, and each training, for each seed) are kept in the work folder, so that the benchmark resumes.

    python benchmarks/autoslim_accuracy.py --out benchmarks/results/autoslim_accuracy.json
    python benchmarks/autoslim_accuracy.py --full        # all images, more epochs, five seeds
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from record import write_result
from torch import Tensor, nn
from training import Cells, accuracy, batches, fit, load, mean_and_spread, normalised, sgd

from strop.algorithms import AutoSlim
from strop.engine import kept_batch_norms, recalibrate_batch_norms
from strop.estimators import SpaceEstimator, count
from strop.mutables import extract
from strop.randomness import seed_everything
from strop.search import GreedySlimming, run

WIDE = 1.5
STEPS = 12  # a width is a multiple of this part of the widest
ROWS = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 40, 2, 2), (4, 64, 1, 1))  # expansion, channels, blocks, stride


class Inverted(nn.Module):
    """The inverted residual block of MobileNetV2."""

    def __init__(self, channels: int, out_channels: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = channels * expand
        layers: list[nn.Module] = []
        if expand > 1:
            layers += [nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNet(nn.Module):
    """A MobileNetV2 for 28 x 28 pixels, its channels multiplied by `width` (to multiples of 4)."""

    def __init__(self, width: float = 1.0, classes: int = 10) -> None:
        super().__init__()

        def wide(channels: float) -> int:
            return max(4, int(channels * width / 4 + 0.5) * 4)

        channels = wide(16)
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6())
        blocks = []
        for expand, out_channels, number, stride in ROWS:
            for place in range(number):
                blocks.append(Inverted(channels, wide(out_channels), stride if place == 0 else 1, expand))
                channels = wide(out_channels)
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.Conv2d(channels, wide(128), 1, bias=False), nn.BatchNorm2d(wide(128)), nn.ReLU6())
        self.fc = nn.Linear(wide(128), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.blocks(self.stem(x))).mean((2, 3)))


def slimmable(seed: int) -> AutoSlim:
    """Return the supernet with its widths and its in-place distillation."""
    seed_everything(seed)
    logits = dict(logits=dict(type='ModuleOutputs', source='fc'))
    ratios = [step / STEPS for step in range(STEPS // 3, STEPS + 1)]
    return AutoSlim(
        MobileNet(WIDE),
        dict(
            type='OneShotChannelMutator',
            channel_unit_cfg=dict(
                type='OneShotMutableChannelUnit', default_args=dict(candidate_choices=ratios, choice_mode='ratio', divisor=2)
            ),
            parse_cfg=dict(demo_input=(1, 1, 28, 28)),
        ),
        dict(
            type='ConfigurableDistiller',
            teacher_recorders=logits,
            student_recorders=logits,
            distill_losses=dict(loss_kl=dict(type='KLDivergence')),
            loss_forward_mappings=dict(
                loss_kl=dict(
                    preds_S=dict(from_student=True, recorder='logits'), preds_T=dict(from_student=False, recorder='logits')
                )
            ),
        ),
        seed=seed,
    )


def macs(model: nn.Module) -> int:
    return count(model, input_shape=(1, 1, 28, 28)).macs


class Study:
    """The cells of one setting."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cells = Cells(Path(options.work) / f'{options.images}-{options.epochs}-{options.retrain}-{options.device}')
        self.data = load(options.data, options.images, options.held, options.device)
        self.target = macs(MobileNet(1.0))

    def supernet(self, seed: int) -> AutoSlim:
        algorithm = slimmable(seed).to(self.options.device)
        file = self.cells.folder / f'supernet-{seed}.pt'
        if not file.exists():
            begin = time.perf_counter()
            steps = self.options.epochs * (len(self.data['train'][0]) // 64)
            optimizer, schedule = sgd(algorithm.parameters(), self.options.lr, steps)
            algorithm.train()
            for _, _, batch in batches(self.data['train'], seed, self.options.epochs, 64):
                algorithm.train_step(batch, optimizer)
                schedule.step()
            print(f'supernet {seed}: {time.perf_counter() - begin:.0f} s', flush=True)
            torch.save(algorithm.state_dict(), file)
        algorithm.load_state_dict(torch.load(file, weights_only=True))
        return algorithm.eval()

    def search(self, seed: int) -> dict[str, Any]:
        """Narrow the supernet of a seed to the multiply-adds of the plain network."""
        algorithm = self.supernet(seed)
        network = algorithm.architecture  # widths act where the mutator was bound, not in a child of it
        estimator = SpaceEstimator(algorithm.architecture, torch.zeros(1, 1, 28, 28), binding=algorithm.mutator.binding)
        calibration = [normalised(pixels) for pixels in self.data['train'][0][:512].split(128)]

        def cost(subnet: Any) -> float:
            return float(estimator.estimate(subnet, ['macs'])['macs'])

        def forward(inputs: Tensor) -> int:
            network(inputs)
            return len(inputs)

        def score(subnet: Any) -> float:
            algorithm.mutator.set_subnet(subnet)
            with kept_batch_norms(algorithm), torch.no_grad():
                recalibrate_batch_norms(algorithm, calibration, forward, 512)
                algorithm.eval()
                losses = [
                    float(nn.functional.cross_entropy(network(normalised(pixels)), labels, reduction='sum'))
                    for pixels, labels in zip(self.data['held'][0].split(500), self.data['held'][1].split(500))
                ]
                return -sum(losses) / len(self.data['held'][1])

        strategy = GreedySlimming(cost=cost, targets=float(self.target), per_cost=True)
        begin = time.perf_counter()
        store = str(self.cells.folder / f'search-{seed}.journal')
        result = run(algorithm.mutator.space, score, strategy=strategy, trials=100_000, store=store, seed=seed)
        found = strategy.reached(self.target)
        assert found is not None
        algorithm.mutator.set_subnet(found.subnet)
        static = extract(algorithm.architecture).module
        assert macs(static) == cost(found.subnet)
        return {
            'subnet': dict(found.subnet),
            'macs': macs(static),
            'inherited': found.values['score'] if found.values else None,
            'trials': len(result.trials),
            'seconds': time.perf_counter() - begin,
        }

    def trained(self, kind: str, seed: int) -> dict[str, Any]:
        """Train the found or the uniform widths from scratch."""
        if kind == 'searched':
            algorithm = slimmable(seed)
            algorithm.mutator.set_subnet(self.cells.get(f'search-{seed}', lambda: self.search(seed))['subnet'])
            model = extract(algorithm.architecture).module
        else:
            model = MobileNet(1.0)
        # Both start from the same kind of weights, none of them inherited.
        seed_everything(seed)
        for module in model.modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        model = model.to(self.options.device)
        fit(model, self.data['train'], seed, epochs=self.options.retrain, lr=self.options.lr)
        return {
            'macs': macs(copy.deepcopy(model).cpu()),
            'parameters': sum(parameter.numel() for parameter in model.parameters()),
            'held': accuracy(model, self.data['held']),
            'test': accuracy(model, self.data['test']),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='/usr/share/datasets/fashion-mnist')
    parser.add_argument('--images', type=int, default=12_000, help='training images')
    parser.add_argument('--held', type=int, default=2_000, help='training images that widths are judged on')
    parser.add_argument('--epochs', type=int, default=4, help='of the supernet')
    parser.add_argument('--retrain', type=int, default=6, help='epochs of what was found')
    parser.add_argument('--lr', type=float, default=0.1)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--work', default='work_dirs/autoslim_accuracy')
    parser.add_argument('--full', action='store_true', help='55,000 images, 15 and 30 epochs, five seeds')
    parser.add_argument('--out')
    options = parser.parse_args()
    if options.full:
        options.images, options.held, options.epochs, options.retrain, options.seeds = 55_000, 5_000, 15, 30, 5
    if options.device == 'cpu':
        torch.set_num_threads(1)
    study = Study(options)
    rows: dict[str, dict[int, Any]] = {'searched': {}, 'uniform': {}}
    for seed in range(options.seeds):
        for kind, cells in rows.items():
            cells[seed] = study.cells.get(f'{kind}-{seed}', lambda kind=kind, seed=seed: study.trained(kind, seed))
    tests = {kind: [cell['test'] for cell in cells.values()] for kind, cells in rows.items()}
    figures = {
        **{kind: mean_and_spread(values) for kind, values in tests.items()},
        'searched_minus_uniform': mean_and_spread([s - u for s, u in zip(tests['searched'], tests['uniform'])]),
        'macs': {kind: [cell['macs'] for cell in cells.values()] for kind, cells in rows.items()},
    }
    print(figures)
    if options.out:
        settings = {name: value for name, value in vars(options).items() if name not in ('out', 'work')}
        searches = {seed: study.cells.get(f'search-{seed}', dict) for seed in range(options.seeds)}
        content = {'data': 'Fashion-MNIST', 'settings': settings, 'figures': figures, 'rows': rows, 'searches': searches}
        write_result(options.out, 'autoslim_accuracy', content)


if __name__ == '__main__':
    main()
