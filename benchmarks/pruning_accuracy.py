"""What a CIFAR ResNet-20 scores after it was pruned to about 2.1 times fewer MACs and briefly fine-tuned.

The network is that of He et al. (https://arxiv.org/abs/1512.03385, section 4.2) with the parameter-free shortcut (option A:
every second pixel, padded with zero channels), started from published weights. Images are CIFAR-10 stored as lossy JPEG, so
scores are those of "CIFAR-10-JPEG", never CIFAR-10's. The network is fine-tuned on them first; then each method prunes that
network to the same MACs, and each result is fine-tuned in the same way, with the same images in the same order. Fine-tuning
and gradients see training images only, test images are scored once in the end.

Torch-Pruning doesn't get through the padded shortcut: pruned as a whole, the network raises in its forward. So its group
pruner (`GroupNormPruner` with `GroupMagnitudeImportance`, global, in 400 steps until the budget is met, as in its CIFAR recipe
without the sparse training) stands here in the two forms that its users can choose:

- `peer_inner`: layers on the residual stream ignored, only the inner channels of the blocks are pruned;
- `peer_inner-l1`, `-bn_scale`, `-fpgm`, `-taylor`: the same with that importance of Torch-Pruning's (in 40 steps for Taylor,
  with gradients of the same images before each);
- `peer_projection`: the padded shortcut replaced by a 1x1 convolution that computes the same, and everything pruned.

Strop prunes the network as it is: everything, every unit by the same share; with those layers ignored (`-inner`); and also in
one ranking of all units by score for each multiply-add saved (`-inner-global`), the form that Torch-Pruning's is compared to.
`-inner-steps` is one ranking of all units by score, in 20 steps with new scores before each, as Torch-Pruning does it. In
`-inner-capped` no layer loses more than three quarters: 0.75 was tried on the held-out images of seed 0, nothing else was.

Cells (a base for each seed; each method and seed) are kept in the work folder, so that the benchmark resumes.

    python benchmarks/pruning_accuracy.py --data cifar10_jpeg.npz --weights cifar10_resnet20_weights.npz
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from record import write_result
from torch import nn

from strop.data.sources import parts_of
from strop.estimators import count
from strop.files import atomic_write
from strop.randomness import counter_rng, seeded

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EXAMPLE = (1, 3, 32, 32)
Images = tuple[torch.Tensor, torch.Tensor]


class PaddedShortcut(nn.Module):
    """Every second pixel, with zero channels on both sides."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.padding = (out_channels - channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = PaddedShortcut(channels, out_channels) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet20(nn.Module):
    """Three stages of three blocks, of 16, 32 and 64 channels."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def with_projections(model: ResNet20) -> ResNet20:
    """Replace the padded shortcuts by 1x1 convolutions that compute the same."""
    model = copy.deepcopy(model)
    for stage in (model.layer2, model.layer3):
        block = stage[0]
        channels, out_channels = block.conv1.in_channels, block.conv1.out_channels
        projection = nn.Conv2d(channels, out_channels, 1, 2, bias=False)
        padding = block.shortcut.padding
        with torch.no_grad():
            projection.weight.zero_()
            for channel in range(channels):
                projection.weight[padding + channel, channel] = 1
        block.shortcut = projection.to(block.conv1.weight.device)
    return model


def load_weights(path: str) -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def load_data(path: str, train: int, held: int, device: str) -> dict[str, Images]:
    """The first training images, the last ones (held out for checks) and all test images, as bytes."""
    parts = parts_of(path)

    def tensors(images: np.ndarray, labels: np.ndarray) -> Images:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous()
        return pixels.to(device), torch.from_numpy(np.ascontiguousarray(labels)).long().to(device)

    images, labels, _ = parts['train']()
    found = {'train': tensors(images[:train], labels[:train]), 'held': tensors(images[-held:], labels[-held:])}
    images, labels, _ = parts['test']()
    return {**found, 'test': tensors(images, labels)}


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def augmented(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Shift by up to four pixels and flip, each image on its own."""
    number = len(pixels)
    padded = F.pad(pixels, (4, 4, 4, 4))
    rows = torch.from_numpy(rng.integers(0, 9, number)).to(pixels.device)[:, None] + torch.arange(32, device=pixels.device)
    columns = torch.from_numpy(rng.integers(0, 9, number)).to(pixels.device)[:, None] + torch.arange(32, device=pixels.device)
    flip = torch.from_numpy(rng.random(number) < 0.5).to(pixels.device)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    which = torch.arange(number, device=pixels.device)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def fine_tune(model: nn.Module, images: Images, seed: int, options: argparse.Namespace, parameters: Any = None) -> None:
    """SGD with momentum, the learning rate falling by a cosine to zero; `parameters` as the optimizer takes them, or all."""
    pixels, labels = images
    optimizer = torch.optim.SGD(parameters or model.parameters(), lr=options.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    per_epoch = len(pixels) // options.batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * per_epoch)
    model.train()
    for epoch in range(options.epochs):
        order = torch.from_numpy(counter_rng(seed, 'order', epoch).permutation(len(pixels))).to(pixels.device)
        for step in range(per_epoch):
            index = order[step * options.batch : (step + 1) * options.batch]
            batch = augmented(pixels[index], counter_rng(seed, 'augmentation', epoch * per_epoch + step))
            loss = F.cross_entropy(model(normalised(batch)), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Top-1 in percent."""
    model.eval()
    right = 0
    for pixels, labels in zip(images[0].split(500), images[1].split(500)):
        right += int((model(normalised(pixels)).argmax(1) == labels).sum())
    return 100 * right / len(images[1])


def macs(model: nn.Module) -> int:
    return count(copy.deepcopy(model).cpu(), input_shape=EXAMPLE).macs


def by_strop(model: nn.Module, target: int, images: Images, importance: str, **options: Any) -> nn.Module:
    from strop.pruning import prune

    example = torch.zeros(EXAMPLE, device=images[0].device)
    gradients: dict[str, Any] = {}
    if importance == 'taylor':
        batches = zip(images[0].split(128)[:16], images[1].split(128)[:16])
        gradients = {'data': [(normalised(pixels), labels) for pixels, labels in batches], 'loss': nn.CrossEntropyLoss()}
    return prune(model, example, budget={'macs': target}, importance=importance, **gradients, **options).model


def by_peer(model: ResNet20, target: int, images: Images, inner: bool, importance: str = 'group') -> nn.Module:
    import torch_pruning as tp

    judge = {
        'group': lambda: tp.importance.GroupMagnitudeImportance(p=2),
        'l1': lambda: tp.importance.GroupMagnitudeImportance(p=1),
        'bn_scale': tp.importance.BNScaleImportance,
        'fpgm': tp.importance.FPGMImportance,
        'taylor': tp.importance.GroupTaylorImportance,
    }[importance]()
    steps = 40 if importance == 'taylor' else 400
    if inner:
        model = copy.deepcopy(model)
        blocks = [*model.layer1, *model.layer2, *model.layer3]
        ignored = [model.linear, model.conv1, *(block.conv2 for block in blocks)]
    else:
        model = with_projections(model)
        ignored = [model.linear]
    pruner = tp.pruner.GroupNormPruner(
        model,
        torch.zeros(EXAMPLE, device=images[0].device),
        importance=judge,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=steps,
        ignored_layers=ignored,
    )
    for _ in range(steps):
        if importance == 'taylor':
            model.zero_grad()
            for pixels, labels in zip(images[0].split(128)[:16], images[1].split(128)[:16]):
                F.cross_entropy(model(normalised(pixels)), labels).backward()
        pruner.step()
        if macs(model) <= target:
            return model
    raise RuntimeError('the budget was not met')


STREAM = ('conv1', 'layer?.?.conv2')  # layers that write to the residual stream
IMPORTANCES = ('l1', 'bn_scale', 'fpgm', 'taylor')


def _method(name: str) -> Callable[[ResNet20, int, Images], nn.Module]:
    if name.startswith('peer_'):
        form, _, judge = name.partition('-')
        return lambda *given: by_peer(*given, inner=form == 'peer_inner', importance=judge or 'group')
    importance, _, variant = name.partition('-')
    # One ranking of all units, by score for each multiply-add saved. Taylor's scores are changes of one loss and compare
    # between layers as they are; the others are divided by the mean of their layer.
    ranked = {'scope': 'global', 'weigh': 'macs', 'normalise': None if importance == 'taylor' else 'mean'}
    options: dict[str, dict[str, Any]] = {
        '': {},
        'global': ranked,
        'inner': {'ignored': STREAM},
        'inner-global': {'ignored': STREAM, **ranked},
        'inner-steps': {'ignored': STREAM, 'scope': 'global', 'normalise': 'mean', 'steps': 20},
        'inner-capped': {'ignored': STREAM, **ranked, 'max_ratio': 0.75},
    }
    return lambda *given: by_strop(*given, importance, **options[variant])


VARIANTS = ('', '-global', '-inner', '-inner-global', '-inner-capped', '-inner-steps')
METHODS = {
    name: _method(name)
    for name in (
        'peer_inner',
        'peer_projection',
        *(f'peer_inner-{name}' for name in IMPORTANCES),
        *(f'{name}{variant}' for variant in VARIANTS for name in (*IMPORTANCES, 'random')),
    )
}
DEFAULT = (
    *(f'{name}{variant}' for variant in ('-inner-steps', '-inner-capped') for name in IMPORTANCES),
    *(f'peer_inner-{name}' for name in IMPORTANCES),
    'peer_inner',
    'peer_projection',
)


class Study:
    """The cells of one setting, kept in a folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        name = f'{options.images}-{options.epochs}-{options.lr}-{options.batch}-{options.speed_up}'
        self.folder = Path(options.work) / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._data: dict[str, Images] | None = None

    @property
    def data(self) -> dict[str, Images]:
        if self._data is None:
            self._data = load_data(self.options.data, self.options.images, 5000, self.options.device)
        return self._data

    def scores(self, model: nn.Module) -> dict[str, float]:
        return {'held': accuracy(model, self.data['held']), 'test': accuracy(model, self.data['test'])}

    def base(self, seed: int) -> tuple[ResNet20, dict[str, Any]]:
        """The network of the published weights, fine-tuned on the images."""
        model = ResNet20()
        weights, cell = self.folder / f'base-{seed}.pt', self.folder / f'base-{seed}.json'
        if not cell.exists():
            model.load_state_dict(load_weights(self.options.weights), strict=False)
            model.to(self.options.device)
            before = self.scores(model)
            begin = time.perf_counter()
            fine_tune(model, self.data['train'], seed, self.options)
            figures = {'published': before, **self.scores(model), 'seconds': time.perf_counter() - begin}
            torch.save({name: value.cpu() for name, value in model.state_dict().items()}, weights)
            atomic_write(cell, json.dumps(figures))
            print(f'base, seed {seed}: {figures}', flush=True)
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model.to(self.options.device).eval(), json.loads(cell.read_text())

    def cell(self, method: str, seed: int) -> dict[str, Any]:
        """Prune by a method, score, fine-tune, score again."""
        file = self.folder / f'{method}-{seed}.json'
        if file.exists():
            return json.loads(file.read_text())
        model, _ = self.base(seed)
        full = macs(model)
        begin = time.perf_counter()
        with seeded(seed, method):
            pruned = METHODS[method](model, int(full / self.options.speed_up), self.data['train'])
        figures: dict[str, Any] = {
            'macs': macs(pruned),
            'times_fewer': full / macs(pruned),
            'parameters': sum(parameter.numel() for parameter in pruned.parameters()),
            'seconds_to_prune': time.perf_counter() - begin,
            'widths': {name: module.out_channels for name, module in pruned.named_modules() if isinstance(module, nn.Conv2d)},
            'before_tuning': self.scores(pruned),
        }
        fine_tune(pruned, self.data['train'], seed, self.options)
        figures |= self.scores(pruned)
        atomic_write(file, json.dumps(figures))
        shown = {name: figures[name] for name in ('times_fewer', 'before_tuning', 'held', 'test')}
        print(f'{method}, seed {seed}: {shown}', flush=True)
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='../shared/data/cifar10_jpeg.npz')
    parser.add_argument('--weights', default='../shared/data/cifar10_resnet20_weights.npz')
    parser.add_argument('--images', type=int, default=8000, help='training images')
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--lr', type=float, default=0.02)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--speed-up', type=float, default=2.1, help='how many times fewer MACs')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=DEFAULT)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--work', default='work_dirs/pruning_accuracy')
    parser.add_argument('--out', help='write the result file, such as benchmarks/results/pruning_accuracy.json')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    study = Study(options)
    bases = {seed: study.base(seed)[1] for seed in options.seeds}
    rows = {method: {seed: study.cell(method, seed) for seed in options.seeds} for method in options.methods}
    figures = {
        'base': {name: float(np.mean([bases[seed][name] for seed in options.seeds])) for name in ('held', 'test')},
        **{
            method: {
                'test': float(np.mean([cell['test'] for cell in cells.values()])),
                'lowest': min(cell['test'] for cell in cells.values()),
                'highest': max(cell['test'] for cell in cells.values()),
                'before_tuning': float(np.mean([cell['before_tuning']['test'] for cell in cells.values()])),
                'times_fewer_macs': float(np.mean([cell['times_fewer'] for cell in cells.values()])),
            }
            for method, cells in rows.items()
        },
    }
    print(json.dumps(figures, indent=2))
    if options.out:
        settings = {name: getattr(options, name) for name in ('images', 'epochs', 'lr', 'batch', 'speed_up', 'seeds', 'device')}
        settings |= {'base_macs': macs(ResNet20())}
        content = {'data': 'CIFAR-10-JPEG', 'settings': settings, 'figures': figures, 'bases': bases, 'rows': rows}
        write_result(options.out, 'pruning_accuracy', content, packages=('torch-pruning',))


if __name__ == '__main__':
    main()
