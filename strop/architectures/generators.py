"""Generators of images for data-free distillation: latent vectors to images, by upsampling twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import nn

from strop.errors import ConfigError
from strop.registry import MODELS

Cfg = dict[str, Any]
Latents = torch.Tensor | Callable[[int, int], torch.Tensor] | None


class ImageGenerator(BaseModule):
    """Base of generators: sizes, and where latent vectors come from.

    Args:
        img_size: Height and width of the images, a multiple of `scale_factor ** 2`.
        latent_dim: Numbers of a latent vector.
        hidden_channels: Channels of the first feature maps.
        scale_factor: What the size is multiplied by, twice.
        channels: Channels of the images.
        init_cfg: MMEngine's initialization config.

    Raises:
        ConfigError: If a number is not positive, or the size is not such a multiple.
    """

    def __init__(
        self,
        img_size: int,
        latent_dim: int,
        hidden_channels: int,
        scale_factor: int = 2,
        channels: int = 3,
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if min(img_size, latent_dim, scale_factor, channels) < 1 or hidden_channels < 2:
            raise ConfigError(
                'Sizes of a generator are positive, and hidden_channels is at least 2; got '
                f'{img_size=}, {latent_dim=}, {hidden_channels=}, {scale_factor=}, {channels=}.'
            )
        self.init_size, left = divmod(img_size, scale_factor**2)
        if left or not self.init_size:
            raise ConfigError(
                f'img_size must be a multiple of {scale_factor**2}, as images grow by scale_factor={scale_factor} twice; got '
                f'{img_size}. {max(1, round(img_size / scale_factor**2)) * scale_factor**2} would do.'
            )
        self.img_size = img_size
        self.latent_dim = latent_dim
        self.hidden_channels = hidden_channels
        self.scale_factor = scale_factor

    def latents(self, data: Latents = None, batch_size: int | None = None) -> torch.Tensor:
        """Return latent vectors on the generator's device.

        Args:
            data: The vectors, or a function `(batch_size, latent_dim) -> vectors`; drawn from the standard normal
                distribution if not given.
            batch_size: How many, where `data` is not the vectors.

        Returns:
            Shape `(batch_size, latent_dim)`.

        Raises:
            ConfigError: If their shape is another, or their number is not known.
        """
        if not isinstance(data, torch.Tensor):
            if not isinstance(batch_size, int) or batch_size < 1:
                raise ConfigError(f'Without latent vectors, batch_size says how many to draw; got {batch_size!r}.')
            data = torch.randn(batch_size, self.latent_dim) if data is None else data(batch_size, self.latent_dim)
        if data.ndim != 2 or data.shape[1] != self.latent_dim:
            raise ConfigError(
                f'Latent vectors have the shape (batch, {self.latent_dim}), but got {tuple(data.shape)}. '
                'The second number is latent_dim.'
            )
        if batch_size and len(data) != batch_size:
            raise ConfigError(f'batch_size={batch_size} is given with {len(data)} latent vectors; leave it out.')
        return data.to(next(self.parameters()))


@MODELS.register_module()
class DAFLGenerator(ImageGenerator):
    """The generator of DAFL: a linear layer, convolutions with batch norm and leaky ReLU, a normalised tanh at the end.

    Args:
        img_size: Height and width of the images, a multiple of `scale_factor ** 2`.
        latent_dim: Numbers of a latent vector.
        hidden_channels: Channels of the first feature maps; the last hidden ones have half of them.
        scale_factor: What the size is multiplied by, twice.
        bn_eps: `eps` of the hidden batch norms.
        leaky_slope: Slope of the leaky ReLU.
        init_cfg: MMEngine's initialization config.
        channels: Channels of the images.

    Raises:
        ConfigError: If a size is out of its range.

    >>> images = DAFLGenerator(img_size=8, latent_dim=10, hidden_channels=16, channels=1)(batch_size=4)
    >>> images.shape
    torch.Size([4, 1, 8, 8])

    Reference: Chen et al., Data-Free Learning of Student Networks, ICCV 2019, https://arxiv.org/abs/1904.01186
    """

    def __init__(
        self,
        img_size: int,
        latent_dim: int,
        hidden_channels: int,
        scale_factor: int = 2,
        bn_eps: float = 0.8,
        leaky_slope: float = 0.2,
        init_cfg: Cfg | list[Cfg] | None = None,
        *,
        channels: int = 3,
    ) -> None:
        super().__init__(img_size, latent_dim, hidden_channels, scale_factor, channels, init_cfg)
        half = hidden_channels // 2
        self.linear = nn.Linear(latent_dim, hidden_channels * self.init_size**2)
        self.bn1 = nn.BatchNorm2d(hidden_channels)
        self.conv_blocks1 = nn.Sequential(
            nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1),
            nn.BatchNorm2d(hidden_channels, eps=bn_eps),
            nn.LeakyReLU(leaky_slope, inplace=True),
        )
        self.conv_blocks2 = nn.Sequential(
            nn.Conv2d(hidden_channels, half, 3, padding=1),
            nn.BatchNorm2d(half, eps=bn_eps),
            nn.LeakyReLU(leaky_slope, inplace=True),
            nn.Conv2d(half, channels, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(channels, affine=False),
        )

    def forward(self, data: Latents = None, batch_size: int | None = None) -> torch.Tensor:
        """Return images of shape `(batch, channels, img_size, img_size)`, normalised over the batch while training.

        Args:
            data: Latent vectors, or what draws them; see `latents`.
            batch_size: How many, where `data` is not the vectors.
        """
        x = self.linear(self.latents(data, batch_size))
        x = self.bn1(x.unflatten(1, (self.hidden_channels, self.init_size, self.init_size)))
        x = self.conv_blocks1(F.interpolate(x, scale_factor=self.scale_factor))
        return self.conv_blocks2(F.interpolate(x, scale_factor=self.scale_factor))


@MODELS.register_module()
class ZSKTGenerator(ImageGenerator):
    """The generator of zero-shot knowledge transfer: as DAFL's, with a trained batch norm at the end instead of the tanh.

    Args:
        img_size: Height and width of the images, a multiple of `scale_factor ** 2`.
        latent_dim: Numbers of a latent vector.
        hidden_channels: Channels of the first feature maps; the last hidden ones have half of them.
        scale_factor: What the size is multiplied by, twice.
        leaky_slope: Slope of the leaky ReLU.
        init_cfg: MMEngine's initialization config.
        channels: Channels of the images.

    Raises:
        ConfigError: If a size is out of its range.

    >>> generator = ZSKTGenerator(img_size=12, latent_dim=10, hidden_channels=8)
    >>> generator(torch.zeros(2, 10)).shape
    torch.Size([2, 3, 12, 12])

    Reference: Micaelli, Storkey: Zero-shot Knowledge Transfer via Adversarial Belief Matching, NeurIPS 2019,
    https://arxiv.org/abs/1905.09768
    """

    def __init__(
        self,
        img_size: int,
        latent_dim: int,
        hidden_channels: int,
        scale_factor: int = 2,
        leaky_slope: float = 0.2,
        init_cfg: Cfg | list[Cfg] | None = None,
        *,
        channels: int = 3,
    ) -> None:
        super().__init__(img_size, latent_dim, hidden_channels, scale_factor, channels, init_cfg)
        half = hidden_channels // 2
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, hidden_channels * self.init_size**2),
            nn.Unflatten(1, (hidden_channels, self.init_size, self.init_size)),
            nn.BatchNorm2d(hidden_channels),
            nn.Upsample(scale_factor=scale_factor),
            nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1),
            nn.BatchNorm2d(hidden_channels),
            nn.LeakyReLU(leaky_slope, inplace=True),
            nn.Upsample(scale_factor=scale_factor),
            nn.Conv2d(hidden_channels, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.LeakyReLU(leaky_slope, inplace=True),
            nn.Conv2d(half, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, data: Latents = None, batch_size: int | None = None) -> torch.Tensor:
        """Return images of shape `(batch, channels, img_size, img_size)`.

        Args:
            data: Latent vectors, or what draws them; see `latents`.
            batch_size: How many, where `data` is not the vectors.
        """
        return self.layers(self.latents(data, batch_size))
