"""A small model made smaller, trained and measured for real, as the results that tests of reports look at."""

from __future__ import annotations

import copy
import functools
from dataclasses import asdict

import torch
from torch import nn

from strop.estimators import count
from strop.export import layer_times, measure_runtimes
from strop.report.compression_result import (
    Asked,
    CompressionResult,
    DataSource,
    LayerChange,
    LayerState,
    Measurement,
    Missing,
    ModelSource,
    Outcome,
    SpeedRatio,
    Stage,
    StageResources,
    Tried,
)  # fmt: skip


def _net(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 2),
    )  # fmt: skip


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy bars that lie or stand."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (256,), generator=draw)
    images = torch.randn(256, 1, 8, 8, generator=draw)
    for image, label in zip(images, labels, strict=True):
        (image[0].T if label else image[0])[3] += 1.5
    return images, labels


def _train(model: nn.Module, steps: int) -> list[dict[str, float | None]]:
    images, labels = _data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    curve: list[dict[str, float | None]] = []
    for step in range(1, steps + 1):
        rows = slice(32 * (step % 6), 32 * (step % 6) + 32)
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append({'step': float(step), 'loss': float(loss.detach())})
    return curve


def _accuracy(model: nn.Module) -> float:
    images, labels = _data()
    with torch.no_grad():
        return float((model.eval()(images[192:]).argmax(1) == labels[192:]).double().mean())


def _resources(model: nn.Module) -> StageResources:
    found = count(model, torch.rand(1, 1, 8, 8))
    return StageResources(found.macs, found.params, 4e-6 * found.params, (4 * found.params + found.activation_bytes) / 1e6)


@functools.cache
def _made() -> CompressionResult:
    image = torch.rand(1, 1, 8, 8)
    large, small = _net(32), _net(8)
    _train(large, 30)
    before = _accuracy(small)
    raw = copy.deepcopy(small)
    curve = _train(small, 30)
    first, second = (layer_times(model, image, rounds=5, warmup=1) for model in (large, small))
    times = measure_runtimes({'source': large, 'finetune': small}, image, batches=(1, 16), only=('eager',), rounds=7, seconds=1)
    tried = []
    for width in (4, 8, 12):
        net = _net(width)
        _train(net, 10)
        costs = _resources(net)
        tried.append(Tried(f'width {width}', 'prune', costs.macs, costs.params, None, _accuracy(net), width == 8, 'validation'))
    return CompressionResult(
        asked=Asked({'model': 'demo:bars', 'stages': ['prune', 'finetune']}, {'macs': 0.5, 'accuracy_drop': 5.0}),
        outcome=Outcome(True, ['Macs: at most 0.5 of the original, and it has less.']),
        environment=asdict(times.machine),
        model=ModelSource('bars', 'demo:bars', [1, 8, 8]),
        data=DataSource('noisy bars', {'train': 192, 'test': 64}, 2),
        stages=[
            Stage('source', 'source', resources=_resources(large), scores={'accuracy': _accuracy(large)}, scored_on='test'),
            Stage(
                'prune', 'prune', settings={'ratio': 0.25}, seconds=0.5, explanation=['A quarter of the width is kept.'],
                resources=_resources(raw), scores={'accuracy': before}, scored_on='test',
                layers=[
                    LayerChange(
                        name, layer.kind, LayerState(**layer.to_dict('f32')), LayerState(**second[name].to_dict('f32'))
                    )
                    for name, layer in first.items()
                ],
            ),
            Stage(
                'finetune', 'finetune', seconds=1.5, resources=_resources(small), scores={'accuracy': _accuracy(small)},
                scored_on='test', curve=curve,
            ),
        ],
        tried=tried,
        measurements=[Measurement(**row) for row in times.to_dict()['measurements']],
        ratios=[SpeedRatio(**ratio) for ratio in times.speedups('source', 'finetune')],
        missing=[Missing('openvino', 'openvino is not installed', 'openvino')],
    )  # fmt: skip


def compressed() -> CompressionResult:
    """Return a result of one's own to change."""
    return copy.deepcopy(_made())
