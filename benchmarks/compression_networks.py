"""The networks that `compression.py` compresses, as functions that its recipes name."""

from __future__ import annotations

from pruning_accuracy import ResNet20, load_weights
from pruning_accuracy import with_projections as _with_projections
from timm_lite0 import original as _lite0
from torch import Tensor, nn


def resnet20(weights: str | None = None) -> nn.Module:
    """Return the ResNet-20 of CIFAR, its two padded shortcuts as convolutions that compute the same."""
    model = ResNet20()
    if weights is not None:
        model.load_state_dict(load_weights(weights), strict=False)
    return _with_projections(model)


def lite0() -> nn.Module:
    """Return EfficientNet-Lite0 with its weights of ImageNet."""
    return _lite0()


class Bottleneck(nn.Module):
    """Widen by a 1x1 convolution, filter each channel, narrow again; add the input where it has the same shape."""

    def __init__(self, channels: int, out_channels: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        wide = channels * expansion
        self.widen = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU())
        self.filter = nn.Sequential(
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU()
        )
        self.narrow = nn.Sequential(nn.Conv2d(wide, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self.adds = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        inner = self.narrow(self.filter(self.widen(x)))
        return x + inner if self.adds else inner


class SmallMobileNet(nn.Module):
    """A MobileNetV2 for 28 x 28 pixels: a stem and three stages of three bottlenecks, of 24, 40 and 80 channels."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        blocks, channels = [], 24
        for out_channels, stride in ((24, 1), (40, 2), (80, 2)):
            for place in range(3):
                blocks.append(Bottleneck(channels, out_channels, stride if place == 0 else 1))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def mobilenet() -> nn.Module:
    """Return the small MobileNet, untrained."""
    return SmallMobileNet()
