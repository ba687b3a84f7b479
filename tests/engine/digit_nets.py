"""Small networks and scikit-learn's 8 x 8 digits, for the tests of steps in other loops."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

from strop.data import load_images
from strop.distill import ConfigurableDistiller, distiller_for
from strop.mutables import LayerChoice


def digits(number: int, split: str = 'train') -> TensorDataset:
    """Return images of shape (1, 8, 8) in [0, 1], and their labels."""
    arrays = load_images('digits', split)
    return TensorDataset(torch.from_numpy(arrays.images[:number]) / 255.0, torch.from_numpy(arrays.labels[:number]).long())


class Net(nn.Module):
    """A convolution, a norm, perhaps a choice of kernel, and a linear head."""

    def __init__(self, width: int = 8, choice: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        convolutions = [nn.Conv2d(width, width, size, stride=2, padding=size // 2) for size in (1, 3, 5)]
        self.body = LayerChoice(convolutions, key='body') if choice else convolutions[1]
        self.after = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.after(self.body(self.norm(self.stem(x)).relu())).relu()
        return self.head(x.mean((2, 3)))


def net(seed: int = 0, **options: object) -> Net:
    """Return a network whose weights are a function of the seed."""
    torch.manual_seed(seed)
    return Net(**options)  # type: ignore[arg-type]


def teacher() -> Net:
    """Return a wider network with random weights."""
    return net(seed=1, width=12).eval()


def distiller(student: nn.Module, its_teacher: nn.Module, features: bool = True) -> ConfigurableDistiller:
    """Return a distiller of the logits, and of a feature map through a connector with weights."""
    torch.manual_seed(2)
    return distiller_for(student, its_teacher, torch.zeros(2, 1, 8, 8), features={'after': 'after'} if features else ())
