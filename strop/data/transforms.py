"""Transforms of image tensors whose randomness is a function of (seed, epoch, image).

A transform is any callable from image to image. Those of this file that draw take a generator as well, which
`strop.data.datasets` derives for each image and epoch; foreign ones run with torch's, NumPy's and Python's generators
seeded the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from strop.errors import ConfigError
from strop.randomness import counter_rng, seeded
from strop.registry import TRANSFORMS


@TRANSFORMS.register_module()
class TensorNormalize(nn.Module):
    """Make floats of pixels: `(x - mean) / std` for each channel, with mean and std in units of pixels (0 to 255).

    Args:
        mean: One number a channel.
        std: One positive number a channel.

    Raises:
        ConfigError: If the lengths differ or a `std` is not positive; when called, if an image has other channels.

    >>> TensorNormalize([100.0], [50.0])(torch.tensor([[[150]]], dtype=torch.uint8))
    tensor([[[1.]]])
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ConfigError(f'mean and std need one number a channel, std above 0; got mean={mean!r}, std={std!r}.')
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map `(channels, height, width)` of any type to floats."""
        if image.ndim < 3 or image.shape[-3] != len(self.mean):
            raise ConfigError(
                f'TensorNormalize has {len(self.mean)} numbers, one a channel, but the image has shape {tuple(image.shape)}.'
            )
        return (image.float() - self.mean) / self.std


class RandomTransform:
    """A transform that draws from the generator that it is given.

    Sub-classes define `apply(image, rng)`.
    """

    def apply(self, image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Return the transformed image; everything random comes from `rng`."""
        raise ConfigError(f'{type(self).__name__} has to define apply(image, rng).')

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Transform with a generator that torch's global one seeds."""
        return self.apply(image, np.random.default_rng(int(torch.randint(2**62, ()))))


@TRANSFORMS.register_module()
class TensorRandomCrop(RandomTransform):
    """Pad all sides, then cut a window at a random place.

    Args:
        size: Of the window, a side; the size of the image if not given.
        padding: Pixels added on every side.
        fill: Value of the pixels added.

    Raises:
        ConfigError: If the window is larger than the padded image, or `padding` is negative.

    >>> TensorRandomCrop(padding=4)(torch.rand(3, 32, 32)).shape
    torch.Size([3, 32, 32])
    """

    def __init__(self, size: int | None = None, padding: int = 4, fill: float = 0) -> None:
        if padding < 0 or (size is not None and size < 1):
            raise ConfigError(f'padding must not be negative and size must be positive; got padding={padding}, size={size}.')
        self.size, self.padding, self.fill = size, padding, fill

    def apply(self, image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Return the window."""
        height, width = (self.size, self.size) if self.size else (image.shape[-2], image.shape[-1])
        padded = F.pad(image, (self.padding,) * 4, value=self.fill) if self.padding else image
        spare = padded.shape[-2] - height, padded.shape[-1] - width
        if min(spare) < 0:
            raise ConfigError(f'A crop of {height}x{width} does not fit into {tuple(padded.shape[-2:])}, padding included.')
        top, left = int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1))
        return padded[..., top : top + height, left : left + width]


@TRANSFORMS.register_module()
class TensorRandomFlip(RandomTransform):
    """Mirror left and right with probability `prob`.

    Args:
        prob: In [0, 1].

    Raises:
        ConfigError: If `prob` is not a probability.

    >>> TensorRandomFlip(1.0)(torch.tensor([[[1, 2]]]))
    tensor([[[2, 1]]])
    """

    def __init__(self, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ConfigError(f'prob must be in [0, 1]; got {prob!r}.')
        self.prob = prob

    def apply(self, image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Return the image or its mirror image."""
        return image.flip(-1) if rng.random() < self.prob else image


class Transforms:
    """Several transforms in a row.

    Args:
        transforms: Callables, or configs of registered ones.
        seed: With the counter of the call it decides everything that is drawn.

    Raises:
        ConfigError: If an item is neither a callable nor a config.

    >>> both = Transforms([dict(type='TensorRandomFlip'), TensorNormalize([0.0], [255.0])], seed=0)
    >>> image = torch.arange(4, dtype=torch.uint8).reshape(1, 2, 2)
    >>> bool((both(image, counter=5) == both(image, counter=5)).all())
    True
    """

    def __init__(self, transforms: Sequence[Any] = (), seed: int = 0) -> None:
        built: list[Callable[[torch.Tensor], torch.Tensor]] = []
        for item in transforms:
            made = TRANSFORMS.build(item) if isinstance(item, dict) else item
            if not callable(made):
                raise ConfigError(f'A transform is a callable or a config of a registered one; got {item!r}.')
            built.append(made)
        self.transforms = built
        self.seed = seed

    def __call__(self, image: torch.Tensor, counter: int | None = None) -> torch.Tensor:
        """Transform `image`.

        Args:
            image: Shape `(channels, height, width)`.
            counter: Number of the draw; None draws from torch's global generator.
        """
        for place, transform in enumerate(self.transforms):
            if counter is None or isinstance(transform, TensorNormalize):
                image = transform(image)
            elif isinstance(transform, RandomTransform):
                image = transform.apply(image, counter_rng(self.seed, f'transform {place}', counter))
            else:
                with seeded(self.seed, f'transform {place}', counter, gpus=False):
                    image = transform(image)
        return image
