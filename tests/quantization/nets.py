"""Small networks with the shapes that real ones have, and data for them."""

from __future__ import annotations

import torch
from torch import nn


class Residual(nn.Module):
    """Two convolutions with batch norms whose settings are not the usual ones, one ReLU used twice, and a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width, eps=1e-2, momentum=0.3)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        return self.relu(x + self.norm2(self.conv2(out)))


class SmallNet(nn.Sequential):
    """A residual network of a few thousand parameters, with calibrated batch norms."""

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.add_module('stem', nn.Conv2d(3, width, 3, stride=2, padding=1))
        self.add_module('act', nn.ReLU())
        self.add_module('block1', Residual(width))
        self.add_module('block2', Residual(width))
        self.add_module('pool', nn.AdaptiveAvgPool2d(1))
        self.add_module('flat', nn.Flatten())
        self.add_module('drop', nn.Dropout(0.5))
        self.add_module('head', nn.Linear(width, classes))


class Attention(nn.Module):
    """Self-attention from plain matrix products, behind a layer norm."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5).softmax(-1)
        return x + self.proj((weights @ v).transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """The other half of a transformer block."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


def small_net(seed: int = 0) -> SmallNet:
    """A network in eval mode whose batch norms have seen data."""
    torch.manual_seed(seed)
    net = SmallNet()
    for images in image_batches(4, seed=seed + 1):
        net(images)
    return net.eval()


def small_transformer(seed: int = 0) -> nn.Sequential:
    """Two blocks; a few channels of the norms are far larger than the others, as in trained transformers."""
    torch.manual_seed(seed)
    net = nn.Sequential(Attention(), Mlp(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        for norm in (net[0].norm, net[1].norm):
            norm.weight[:2] = 20
            norm.bias.normal_()
    return net


def image_batches(count: int = 3, size: int = 8, seed: int = 5) -> list[torch.Tensor]:
    """Batches of random images."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 16, 16, generator=generator) + 0.3 for _ in range(count)]


def token_batches(count: int = 3, seed: int = 5) -> list[torch.Tensor]:
    """Batches of random embedded tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 6, 16, generator=generator) for _ in range(count)]


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Signal to noise ratio in dB."""
    reference, other = reference.detach(), other.detach()
    return float(10 * torch.log10(reference.pow(2).sum() / (reference - other).pow(2).sum()))


def fragile_net() -> SmallNet:
    """A network of which one layer, `block1.conv2`, loses most: large weights for a channel that is always zero."""
    net = small_net()
    with torch.no_grad():
        net.block1.norm1.weight[0] = 0
        net.block1.norm1.bias[0] = -1
        net.block1.conv2.weight[:, 0] = 100
    return net
