"""What the benchmarks that train small networks share: images, batches that are a function of the seed, SGD, cells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strop.data.sources import parts_of
from strop.files import atomic_write
from strop.randomness import counter_rng

Images = tuple[Tensor, Tensor]
Losses = Callable[[Tensor, Tensor, int], Tensor]


def load(path: str, train: int, held: int, device: str = 'cpu') -> dict[str, Images]:
    """Return the first training images, the last ones (held out for choices) and all test images, as bytes."""
    parts = parts_of(path)

    def tensors(images: np.ndarray, labels: np.ndarray) -> Images:
        images = images[..., None] if images.ndim == 3 else images
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous()
        return pixels.to(device), torch.from_numpy(np.ascontiguousarray(labels)).long().to(device)

    images, labels, _ = parts['train']()
    found = {'train': tensors(images[:train], labels[:train]), 'held': tensors(images[-held:], labels[-held:])}
    images, labels, _ = parts['test']()
    return {**found, 'test': tensors(images, labels)}


def normalised(pixels: Tensor) -> Tensor:
    """Return pixels as numbers of about mean 0 and deviation 1."""
    return (pixels.float() / 255 - 0.45) / 0.25


def augmented(pixels: Tensor, rng: np.random.Generator, shift: int) -> Tensor:
    """Shift by up to `shift` pixels and flip, each image on its own."""
    number, _, height, width = pixels.shape
    padded = F.pad(pixels, (shift,) * 4)
    draw = [torch.from_numpy(rng.integers(0, 2 * shift + 1, number)).to(pixels.device)[:, None] for _ in range(2)]
    rows, columns = draw[0] + torch.arange(height, device=pixels.device), draw[1] + torch.arange(width, device=pixels.device)
    flip = torch.from_numpy(rng.random(number) < 0.5).to(pixels.device)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    which = torch.arange(number, device=pixels.device)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def batches(images: Images, seed: int, epochs: int, batch: int, shift: int = 2) -> Iterator[tuple[int, int, Images]]:
    """Yield (step, number of steps, a batch): the same ones for a seed, whatever is trained on them."""
    pixels, labels = images
    per_epoch = len(pixels) // batch
    for epoch in range(epochs):
        order = torch.from_numpy(counter_rng(seed, 'order', epoch).permutation(len(pixels))).to(pixels.device)
        for place in range(per_epoch):
            step = epoch * per_epoch + place
            index = order[place * batch : (place + 1) * batch]
            moved = augmented(pixels[index], counter_rng(seed, 'augmentation', step), shift)
            yield step, epochs * per_epoch, (normalised(moved), labels[index])


def sgd(parameters: Any, lr: float, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """Return SGD with momentum and a learning rate that falls by a cosine to zero."""
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def fit(
    model: nn.Module,
    images: Images,
    seed: int,
    *,
    epochs: int,
    lr: float,
    batch: int = 64,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    more: Any = (),
) -> None:
    """Train a model: `loss(inputs, labels)` runs it; cross-entropy by default. `more` are further parameters."""
    steps = epochs * (len(images[0]) // batch)
    optimizer, schedule = sgd([*model.parameters(), *more], lr, steps)
    model.train()
    for _, _, (inputs, labels) in batches(images, seed, epochs, batch):
        value = F.cross_entropy(model(inputs), labels) if loss is None else loss(inputs, labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Top-1 in percent."""
    right = 0
    for pixels, labels in zip(images[0].split(500), images[1].split(500)):
        right += int((model(normalised(pixels)).argmax(1) == labels).sum())
    return 100 * right / len(images[1])


class Cells:
    """Figures kept in a folder, one file each, so that a benchmark resumes."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the figures called `name`, made if they are not there."""
        file = self.folder / f'{name}.json'
        if not file.exists():
            figures = make()
            atomic_write(file, json.dumps(figures))
            print(name, {key: value for key, value in figures.items() if not isinstance(value, (dict, list))}, flush=True)
        return json.loads(file.read_text())


def mean_and_spread(values: list[float]) -> dict[str, float]:
    """Return mean, standard deviation and the standard error of the mean."""
    array = np.asarray(values, dtype=float)
    spread = float(array.std(ddof=1)) if len(array) > 1 else float('nan')
    return {'mean': float(array.mean()), 'sd': spread, 'standard_error': spread / len(array) ** 0.5, 'values': list(values)}
