"""Averages of what training and validation measure, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, is_distributed


class AverageMeter:
    """The latest value and the mean of a series.

    Args:
        name: What is measured.
        fmt: Format of the numbers in `str()`.

    >>> meter = AverageMeter('loss')
    >>> meter.update(1.0)
    >>> meter.update(4.0, n=2)
    >>> meter.avg, str(meter)
    (3.0, 'loss 4.0000 (3.0000)')
    """

    def __init__(self, name: str, fmt: str = ':.4f') -> None:
        self.name = name
        self.fmt = fmt
        self.reset()

    def reset(self) -> None:
        """Forget the series."""
        self.val = self.sum = 0.0
        self.count = 0

    @property
    def avg(self) -> float:
        """The mean so far; 0 of an empty series."""
        return self.sum / self.count if self.count else 0.0

    def update(self, val: Any, n: int = 1) -> None:
        """Add a value that stands for `n` samples."""
        self.val = float(val.detach()) if isinstance(val, torch.Tensor) else float(val)
        self.sum += self.val * n
        self.count += n

    def __str__(self) -> str:
        return f'{self.name} {{{self.fmt}}} ({{{self.fmt}}})'.format(self.val, self.avg)

    def summary(self) -> str:
        """Return the mean as text."""
        return f'{self.name}: {{{self.fmt}}}'.format(self.avg)


class AverageMeterGroup:
    """An `AverageMeter` for each name.

    >>> meters = AverageMeterGroup()
    >>> meters.update({'loss': 1.0, 'acc': 0.5})
    >>> meters.update({'loss': 2.0, 'acc': 1.0})
    >>> meters.means()
    {'loss': 1.5, 'acc': 0.75}
    """

    def __init__(self) -> None:
        self.meters: dict[str, AverageMeter] = {}

    def update(self, data: Mapping[str, Any], n: int = 1) -> None:
        """Add a value of each name, which stand for `n` samples."""
        for name, value in data.items():
            self.meters.setdefault(name, AverageMeter(name)).update(value, n)

    def __getitem__(self, name: str) -> AverageMeter:
        return self.meters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.meters)

    def means(self) -> dict[str, float]:
        """Return name -> mean."""
        return {name: meter.avg for name, meter in self.meters.items()}

    def reduce(self) -> AverageMeterGroup:
        """Make the means those over all processes, and return the group.

        All take part, also one that has no samples and so no meters; it gets those of the others.
        """
        if is_distributed():
            names = list(dict.fromkeys(name for group in all_gather_object(list(self.meters)) for name in group))
            meters = [self.meters.setdefault(name, AverageMeter(name)) for name in names]
            totals = torch.tensor([[meter.sum, float(meter.count)] for meter in meters], dtype=torch.float64)
            if names:
                all_reduce(totals)
            for meter, (total, count) in zip(meters, totals.tolist()):
                meter.sum, meter.count = total, int(count)
        return self

    def __str__(self) -> str:
        return '  '.join(map(str, self.meters.values()))

    def summary(self) -> str:
        """Return the means as text."""
        return '  '.join(meter.summary() for meter in self.meters.values())
