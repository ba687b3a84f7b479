"""A small network and small images that it can learn in a second."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from strop.compression import DataParts, DataSource, Judge, measuring, workshop
from strop.compression.clock import Clock, Pace
from strop.compression.parts import given_parts
from strop.estimators import count
from strop.export.layer_times import layer_times
from strop.randomness import counter_rng, seeded


def small_net(width: int = 16, classes: int = 4) -> nn.Module:
    """Return a convolutional network with a residual block, always with the same weights."""
    with seeded(0, 'net'):
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), Residual(width),
            nn.Conv2d(width, 2 * width, 3, stride=2), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes),
        ).eval()  # fmt: skip


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def drawn(count: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Return 8 x 8 pictures with a bright quarter, and which quarter it is."""
    rng = counter_rng(0, purpose)
    images = rng.normal(0, 0.4, (count, 1, 8, 8))
    labels = np.arange(count) % 4
    for image, label in zip(images, labels):
        top, left = 4 * (label // 2), 4 * (label % 2)
        image[:, top : top + 4, left : left + 4] += 1
    return torch.from_numpy(images).float(), torch.from_numpy(labels)


@pytest.fixture
def pictures() -> dict[str, tuple[Tensor, Tensor]]:
    return {'train': drawn(128, 'train'), 'test': drawn(64, 'test')}


@pytest.fixture
def parts(pictures: dict[str, tuple[Tensor, Tensor]]) -> DataParts:
    return given_parts(pictures, val=0.25, calibration=32, batch_size=32)


@pytest.fixture
def judge(parts: DataParts) -> Judge:
    return Judge(parts, small_net())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module', autouse=True)
def few_rounds() -> Iterator[None]:
    """Measure everything, in two rounds: how long something takes is not what these tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, 'measure_runtimes', functools.partial(measuring.measure_runtimes, rounds=2))
        yield


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Write twelve little PNG files in two class folders."""
    image = pytest.importorskip('PIL.Image')
    rng = counter_rng(0, 'files')
    for label in ('cat', 'dog'):
        (tmp_path / 'images' / label).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / 'images' / label / f'{number:02d}.png')
    return tmp_path / 'images'


def source_of(path: Path, **options: object) -> DataSource:
    return DataSource.of({'source': str(path), **options})


class Counted:
    """Stands for a runtime whose time is a fixed part and the multiply-adds of each layer."""

    def __init__(self, around):
        self.around, self.runtime, self.precision = around, 'eager', 'f32'
        self.sample = around.data.example(1)
        self.whole = count(around.original, self.sample).macs
        self.warnings, self.timed = [], []

    def time(self, model, data):
        share = 0.1 + 0.9 * count(model, data.example(1)).macs / self.whole
        self.timed.append(share)
        return Pace(share, share)

    def layers(self, model, data):
        times = {
            name: 0.1 + 0.9 * cost.macs / self.whole for name, cost in count(model, self.sample).modules.items() if cost.macs
        }
        found = layer_times(model, self.sample, runtime='eager')
        return {name: times[name] for name in found if name in times}, found

    excess = Clock.excess


@pytest.fixture
def by_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop, 'Clock', Counted)
