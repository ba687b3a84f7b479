"""Connectors with attention: the masks and non-local relations of FBKD, and the fusion of levels of Review KD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from strop.distill.connectors import BaseConnector, Cfg, check_channels, conv_module
from strop.errors import ConfigError, listed, near
from strop.registry import MODELS

#: Defaults of arguments. They are copied before use, never changed.
CONV2D: Cfg = {'type': 'Conv2d'}
BN: Cfg = {'type': 'BN'}

PAIRWISE = ('gaussian', 'concatenation', 'embedded_gaussian', 'dot_product')


class NonLocal2d(nn.Module):
    """A non-local block: every pixel is answered by a weighted mean over all pixels.

    `z = x + conv_out(y)`, `y_i = sum_j f(x_i, x_j) g(x_j) / C`, where `f` is one of

    - 'gaussian': `exp(x_i . x_j)`, `C` its sum over `j`;
    - 'embedded_gaussian': `exp(theta(x_i) . phi(x_j) / sqrt(d))`, `C` its sum over `j`, `d` the embedding's channels;
    - 'dot_product': `theta(x_i) . phi(x_j)`, `C` the number of `j`;
    - 'concatenation': `relu(w . [theta(x_i), phi(x_j)])`, `C` the number of `j`.

    Args:
        in_channels: Channels of the input.
        reduction: The embeddings have `in_channels // reduction` channels.
        use_scale: Whether the embedded Gaussian divides by `sqrt(d)`.
        conv_cfg: Config of the convolutions.
        norm_cfg: Config of the norm after `conv_out`; None means none.
        mode: Which `f`.
        sub_sample: Let `j` run over the maxima of a pooling.
        maxpool_stride: Kernel and stride of that pooling.
        zeros_init: Start as the identity: the norm of `conv_out` (its weights, without a norm) starts at 0.

    Raises:
        ConfigError: If the mode is unknown or `reduction` or `maxpool_stride` is not positive.

    >>> block = NonLocal2d(4)
    >>> x = torch.rand(2, 4, 3, 5)
    >>> torch.equal(block(x), x)
    True

    Reference: Wang et al., Non-local Neural Networks, CVPR 2018, https://arxiv.org/abs/1711.07971
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 2,
        use_scale: bool = True,
        conv_cfg: Cfg | None = CONV2D,
        norm_cfg: Cfg | None = BN,
        mode: str = 'embedded_gaussian',
        sub_sample: bool = False,
        maxpool_stride: int = 2,
        zeros_init: bool = True,
    ) -> None:
        super().__init__()
        if mode not in PAIRWISE:
            raise ConfigError(f'mode must be one of {listed(PAIRWISE)}; got {mode!r}.{near(mode, PAIRWISE)}')
        if reduction < 1 or maxpool_stride < 1:
            raise ConfigError(
                f'reduction and maxpool_stride must be positive integers; got {reduction!r} and {maxpool_stride!r}.'
            )
        self.mode, self.use_scale = mode, use_scale
        self.pool = maxpool_stride if sub_sample else 1
        inner = max(in_channels // reduction, 1)

        def project(before: int, after: int, **options: Any) -> nn.Module:
            return conv_module(before, after, kernel_size=1, **{'conv_cfg': conv_cfg, 'act_cfg': None, **options})

        self.g = project(in_channels, inner)
        self.conv_out = project(inner, in_channels, norm_cfg=norm_cfg)
        if mode != 'gaussian':
            self.theta = project(in_channels, inner)
            self.phi = project(in_channels, inner)
        if mode == 'concatenation':
            self.concat_project = conv_module(2 * inner, 1, kernel_size=1, bias=False, act_cfg={'type': 'ReLU'})
        out: Any = self.conv_out
        for projection in [child for child in self.children() if child is not out]:
            nn.init.normal_(projection.get_parameter('conv.weight'), std=0.01)
        last = out.norm or out.conv
        if zeros_init:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        elif last is out.conv:
            nn.init.normal_(last.weight, std=0.01)

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool == 1:
            return x
        # A map smaller than the kernel is pooled to one pixel.
        return F.max_pool2d(x, (min(self.pool, x.shape[2]), min(self.pool, x.shape[3])))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Return `f(x_i, x_j) / C`, of shape `(batch, pixels, pooled pixels)`."""
        theta = (x if self.mode == 'gaussian' else self.theta(x)).flatten(2)
        phi = self._pooled(x if self.mode == 'gaussian' else self.phi(x)).flatten(2)
        if self.mode == 'concatenation':
            # The projection is linear, so it is applied to both parts before they meet: no tensor of all pairs of vectors.
            left, right = self.concat_project.get_parameter('conv.weight').flatten().chunk(2)
            pairs = torch.einsum('c,bci->bi', left, theta)[:, :, None] + torch.einsum('c,bcj->bj', right, phi)[:, None]
            return F.relu(pairs) / pairs.shape[-1]
        pairs = theta.transpose(1, 2) @ phi
        if self.mode == 'dot_product':
            return pairs / pairs.shape[-1]
        if self.mode == 'embedded_gaussian' and self.use_scale:
            pairs = pairs / math.sqrt(theta.shape[1])
        return pairs.softmax(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the answered map, of the shape of `x`."""
        g = self._pooled(self.g(x)).flatten(2)
        y = (self.weights(x) @ g.transpose(1, 2)).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        return x + self.conv_out(y)


def attention_masks(feature: torch.Tensor, spatial_T: float, channel_T: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the spatial and the channel attention of FBKD, each with mean 1.

    `H W softmax(mean_c |x| / spatial_T)` over the pixels and `C softmax(mean_hw |x| / channel_T)` over the channels.

    Args:
        feature: Shape `(batch, C, H, W)`.
        spatial_T: Temperature over the pixels.
        channel_T: Temperature over the channels.

    Returns:
        Shapes `(batch, 1, H, W)` and `(batch, C, 1, 1)`, in float32 or better.

    >>> spatial, channel = attention_masks(torch.ones(1, 2, 3, 3), 0.5, 0.5)
    >>> spatial.flatten().tolist() == [1.0] * 9, channel.flatten().tolist()
    (True, [1.0, 1.0])
    """
    batch, channels, height, width = feature.shape
    # In half precision, shares of many pixels would be rounded to nothing.
    size = feature.abs().to(torch.promote_types(feature.dtype, torch.float32))
    pixels = (size.mean(dim=1).flatten(1) / spatial_T).softmax(dim=1) * (height * width)
    maps = (size.mean(dim=(2, 3)) / channel_T).softmax(dim=1) * channels
    return pixels.reshape(batch, 1, height, width), maps.reshape(batch, channels, 1, 1)


class _FBKDConnector(BaseConnector):
    """What both sides of FBKD share: the temperatures and the channels."""

    def __init__(self, in_channels: int, spatial_T: float, channel_T: float, init_cfg: Cfg | list[Cfg] | None) -> None:
        super().__init__(init_cfg)
        if spatial_T <= 0 or channel_T <= 0:
            raise ConfigError(
                f'The temperatures must be positive; got spatial_T={spatial_T!r} and channel_T={channel_T!r}. 0.5 is usual.'
            )
        self.in_channels, self.spatial_T, self.channel_T = in_channels, spatial_T, channel_T

    def _masks(self, feature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        check_channels(feature, self.in_channels, self, 'in_channels')
        return attention_masks(feature, self.spatial_T, self.channel_T)


@MODELS.register_module()
class FBKDStudentConnector(_FBKDConnector):
    """The student's side of feature-based distillation for detectors: attention masks, pooled features, relations.

    Args:
        in_channels: Channels of the feature, equal for student and teacher.
        reduction: The non-local block's embeddings have `in_channels // reduction` channels.
        conv_cfg: Config of the non-local block's convolutions.
        norm_cfg: Config of the norm at its end.
        mode: Its pairwise function, see `NonLocal2d`.
        sub_sample: Whether it pools what it compares with.
        maxpool_stride: Kernel and stride of that pooling.
        zeros_init: Whether it starts as the identity.
        spatial_T: Temperature of the spatial mask.
        channel_T: Temperature of the channel mask.
        init_cfg: MMEngine's initialization config.
        kwargs: `use_scale` of `NonLocal2d`.

    Raises:
        ConfigError: If an argument is out of its range, or a feature has other channels.

    >>> outputs = FBKDStudentConnector(4)(torch.rand(2, 4, 3, 5))
    >>> [tuple(output.shape) for output in outputs]
    [(2, 1, 3, 5), (2, 4, 1, 1), (2, 4), (2, 1, 3, 5), (2, 4, 3, 5), (2, 4, 3, 5)]

    Reference: Zhang, Ma: Improve Object Detection with Feature-based Knowledge Distillation: Towards Accurate and Efficient
    Detectors, ICLR 2021, https://openreview.net/forum?id=uKhGRvM8QNH
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 2,
        conv_cfg: Cfg | None = CONV2D,
        norm_cfg: Cfg | None = BN,
        mode: str = 'dot_product',
        sub_sample: bool = False,
        maxpool_stride: int = 2,
        zeros_init: bool = True,
        spatial_T: float = 0.5,
        channel_T: float = 0.5,
        init_cfg: Cfg | list[Cfg] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, spatial_T, channel_T, init_cfg)
        self.channel_wise_adaptation = nn.Linear(in_channels, in_channels)
        self.spatial_wise_adaptation = nn.Conv2d(1, 1, 3, padding=1)
        self.adaptation_layers = nn.Conv2d(in_channels, in_channels, 1)
        self.student_non_local = NonLocal2d(
            in_channels,
            reduction,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            mode=mode,
            sub_sample=sub_sample,
            maxpool_stride=maxpool_stride,
            zeros_init=zeros_init,
            **kwargs,
        )
        self.non_local_adaptation = nn.Conv2d(in_channels, in_channels, 1)

    def forward_train(self, feature: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what `FBKDLoss` takes of the student.

        Returns:
            Spatial mask `(batch, 1, H, W)`, channel mask `(batch, C, 1, 1)`, adapted channel means `(batch, C)`, adapted
            spatial means `(batch, 1, H, W)`, adapted relations and adapted feature `(batch, C, H, W)`.
        """
        spatial_mask, channel_mask = self._masks(feature)
        return (
            spatial_mask,
            channel_mask,
            self.channel_wise_adaptation(feature.mean(dim=(2, 3))),
            self.spatial_wise_adaptation(feature.mean(dim=1, keepdim=True)),
            self.non_local_adaptation(self.student_non_local(feature)),
            self.adaptation_layers(feature),
        )


@MODELS.register_module()
class FBKDTeacherConnector(_FBKDConnector):
    """The teacher's side of feature-based distillation for detectors: attention masks, spatial means, relations.

    Args:
        in_channels: Channels of the feature, equal for student and teacher.
        reduction: The non-local block's embeddings have `in_channels // reduction` channels.
        conv_cfg: Config of the non-local block's convolutions.
        norm_cfg: Config of the norm at its end.
        mode: Its pairwise function, see `NonLocal2d`.
        sub_sample: Whether it pools what it compares with.
        maxpool_stride: Kernel and stride of that pooling.
        zeros_init: Whether it starts as the identity.
        spatial_T: Temperature of the spatial mask.
        channel_T: Temperature of the channel mask.
        init_cfg: MMEngine's initialization config.
        kwargs: `use_scale` of `NonLocal2d`.

    Raises:
        ConfigError: If an argument is out of its range, or a feature has other channels.

    >>> outputs = FBKDTeacherConnector(4, sub_sample=True)(torch.rand(2, 4, 3, 5))
    >>> [tuple(output.shape) for output in outputs]
    [(2, 1, 3, 5), (2, 4, 1, 1), (2, 1, 3, 5), (2, 4, 3, 5), (2, 4, 3, 5)]

    Reference: Zhang, Ma: Improve Object Detection with Feature-based Knowledge Distillation: Towards Accurate and Efficient
    Detectors, ICLR 2021, https://openreview.net/forum?id=uKhGRvM8QNH
    """

    def __init__(
        self,
        in_channels: int,
        reduction: int = 2,
        conv_cfg: Cfg | None = CONV2D,
        norm_cfg: Cfg | None = BN,
        mode: str = 'dot_product',
        sub_sample: bool = False,
        maxpool_stride: int = 2,
        zeros_init: bool = True,
        spatial_T: float = 0.5,
        channel_T: float = 0.5,
        init_cfg: Cfg | list[Cfg] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, spatial_T, channel_T, init_cfg)
        self.teacher_non_local = NonLocal2d(
            in_channels,
            reduction,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            mode=mode,
            sub_sample=sub_sample,
            maxpool_stride=maxpool_stride,
            zeros_init=zeros_init,
            **kwargs,
        )

    def forward_train(self, feature: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what `FBKDLoss` takes of the teacher.

        Returns:
            Spatial mask `(batch, 1, H, W)`, channel mask `(batch, C, 1, 1)`, spatial means `(batch, 1, H, W)`, relations and
            the feature itself `(batch, C, H, W)`.
        """
        spatial_mask, channel_mask = self._masks(feature)
        return spatial_mask, channel_mask, feature.mean(dim=1, keepdim=True), self.teacher_non_local(feature), feature


@MODELS.register_module()
class ABFConnector(BaseConnector):
    """Attention-based fusion, by which a level of the student also answers for the deeper levels' knowledge.

    From the deepest level `k` to the first, with `up` the nearest neighbour scaling to the level's size:
    `x_k = a * conv1_k(feature_k) + b * up(x_{k+1})`, `(a, b) = sigmoid(att_k([conv1_k(feature_k), up(x_{k+1})]))`, and the
    output of the level is `conv2_k(x_k)`. It takes and returns a tuple of maps, the first level first.

    Args:
        in_channels: Channels of each of the student's levels.
        out_channels: Channels of each of the teacher's levels.
        mid_channels: Channels in which levels are fused; by default those of the deepest level, 512 at most.
        out_sizes: Height and width (or one number for both) of each of the teacher's levels, where they differ.
        init_cfg: MMEngine's initialization config.

    Raises:
        ConfigError: If the lists differ in length, or the features are not as said.

    >>> fuse = ABFConnector([4, 8], [6, 12])
    >>> fused = fuse((torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)))
    >>> [tuple(level.shape) for level in fused]
    [(2, 6, 8, 8), (2, 12, 4, 4)]

    Reference: Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021, https://arxiv.org/abs/2104.09044
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        mid_channels: int | None = None,
        out_sizes: Sequence[int | tuple[int, int]] | None = None,
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not in_channels or len(in_channels) != len(out_channels) or len(out_sizes or in_channels) != len(in_channels):
            raise ConfigError(
                'in_channels, out_channels and out_sizes say something about each level, so they are equally long; got '
                f'{in_channels!r}, {out_channels!r} and {out_sizes!r}.'
            )
        self.in_channels = tuple(in_channels)
        self.out_sizes = None if out_sizes is None else tuple(out_sizes)
        mid = min(512, self.in_channels[-1]) if mid_channels is None else mid_channels
        options: Cfg = {'norm_cfg': BN, 'act_cfg': None}
        self.conv1 = nn.ModuleList(conv_module(channels, mid, kernel_size=1, **options) for channels in in_channels)
        self.att_conv = nn.ModuleList(nn.Conv2d(2 * mid, 2, 1) for _ in in_channels[1:])
        self.conv2 = nn.ModuleList(conv_module(mid, channels, kernel_size=3, padding=1, **options) for channels in out_channels)

    def forward_train(self, feature: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return the fused levels, with the teacher's channels."""
        levels = len(self.in_channels)
        if not isinstance(feature, (tuple, list)) or len(feature) != levels:
            given = f'{len(feature)} of them' if isinstance(feature, (tuple, list)) else f'a {type(feature).__name__}'
            raise ConfigError(
                f'ABFConnector takes a tuple of {levels} feature maps, the first level first, but got {given}. Record a module '
                'that returns them, such as a backbone with out_indices.'
            )
        outputs: list[torch.Tensor] = []
        deeper: torch.Tensor | None = None
        for level in reversed(range(levels)):
            x = self.conv1[level](check_channels(feature[level], self.in_channels[level], self, f'in_channels[{level}]'))
            if deeper is not None:
                deeper = F.interpolate(deeper, size=x.shape[2:], mode='nearest')
                own, theirs = self.att_conv[level](torch.cat([x, deeper], dim=1)).sigmoid().split(1, dim=1)
                x = own * x + theirs * deeper
            size = x.shape[2:] if self.out_sizes is None else self.out_sizes[level]
            size = (size, size) if isinstance(size, int) else tuple(size)
            if tuple(x.shape[2:]) != size:
                x = F.interpolate(x, size=size, mode='nearest')
            deeper = x
            outputs.append(self.conv2[level](x))
        return tuple(reversed(outputs))
