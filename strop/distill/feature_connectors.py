"""Connectors of single papers: factor transfer, masked generation, overhauled features, contrast, be your own teacher."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from strop.distill.connectors import BaseConnector, Cfg, check_channels, check_tensor, conv_module
from strop.errors import ComponentTypeError, ConfigError, ModeError, near
from strop.graph.forward import in_double
from strop.registry import MODELS

PHASES = ('pretrain', 'train')


def _factor_layers(kind: type[nn.Module], channels: list[int], use_bn: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        norm = nn.BatchNorm2d(after) if use_bn else nn.Identity()
        layers += [kind(before, after, kernel_size=3, stride=1, padding=1), norm, nn.LeakyReLU(0.1, inplace=True)]
    return nn.Sequential(*layers)


@MODELS.register_module()
class Paraphraser(BaseConnector):
    """The teacher's side of factor transfer: an auto-encoder whose code is the teacher's factor.

    In the phase 'pretrain' it gives its reconstruction of the feature, to be compared with the feature itself (`L2Loss`). In
    the phase 'train' it is fixed and gives the factor, without a gradient.

    Args:
        in_channel: Channels of the teacher's feature.
        out_channel: Channels of the factor; the paper takes half of the feature's.
        phase: 'pretrain' or 'train'. Load the pretrained one with `init_cfg`.
        use_bn: Whether batch norms follow the convolutions.
        init_cfg: MMEngine's initialization config.

    Raises:
        ModeError: If the phase is neither.
        ConfigError: If a feature has other channels.

    >>> paraphraser = Paraphraser(8, 4)
    >>> paraphraser(torch.rand(2, 8, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    >>> paraphraser.phase = 'train'
    >>> paraphraser(torch.rand(2, 8, 5, 5)).shape
    torch.Size([2, 4, 5, 5])

    Reference: Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018,
    https://arxiv.org/abs/1802.04977
    """

    def __init__(
        self,
        in_channel: int,
        out_channel: int,
        phase: str = 'pretrain',
        use_bn: bool | None = False,
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channel = in_channel
        self.encoder = _factor_layers(nn.Conv2d, [in_channel, in_channel, out_channel, out_channel], bool(use_bn))
        self.decoder = _factor_layers(nn.ConvTranspose2d, [out_channel, out_channel, in_channel, in_channel], bool(use_bn))
        self.phase = phase

    @property
    def phase(self) -> str:
        """The phase, 'pretrain' or 'train'."""
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        if phase not in PHASES:
            raise ModeError(f"phase must be 'pretrain' or 'train', but got {phase!r}.{near(phase, PHASES)}")
        self._phase = phase
        self.requires_grad_(phase == 'pretrain')
        self.train(self.training)

    def train(self, mode: bool = True) -> Paraphraser:
        """Set the mode; fixed batch norms keep their statistics."""
        super().train(mode)
        if self._phase == 'train':
            self.encoder.eval()
            self.decoder.eval()
        return self

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction in the phase 'pretrain', the factor in the phase 'train'."""
        check_channels(feature, self.in_channel, self, 'in_channel')
        return self.forward_train(feature) if self.phase == 'train' else self.forward_pretrain(feature)

    def forward_pretrain(self, feature: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction, of the shape of the feature."""
        return self.decoder(self.encoder(feature))

    def forward_train(self, feature: torch.Tensor) -> torch.Tensor:
        """Return the factor, of shape `(batch, out_channel, height, width)`, without a gradient."""
        with torch.no_grad():
            return self.encoder(feature)


@MODELS.register_module()
class Translator(BaseConnector):
    """The student's side of factor transfer: convolutions that turn its feature into a factor.

    Args:
        in_channel: Channels of the student's feature.
        out_channel: Channels of the teacher's factor.
        use_bn: Whether batch norms follow the convolutions.
        init_cfg: MMEngine's initialization config.

    Raises:
        ConfigError: If a feature has other channels.

    >>> Translator(6, 4)(torch.rand(2, 6, 5, 5)).shape
    torch.Size([2, 4, 5, 5])

    Reference: Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018,
    https://arxiv.org/abs/1802.04977
    """

    def __init__(
        self, in_channel: int, out_channel: int, use_bn: bool | None = True, init_cfg: Cfg | list[Cfg] | None = None
    ) -> None:
        super().__init__(init_cfg)
        self.in_channel = in_channel
        self.encoder = _factor_layers(nn.Conv2d, [in_channel, in_channel, out_channel, out_channel], bool(use_bn))

    def forward_train(self, feature: torch.Tensor) -> torch.Tensor:
        """Return the factor, of shape `(batch, out_channel, height, width)`."""
        return self.encoder(check_channels(feature, self.in_channel, self, 'in_channel'))


@MODELS.register_module()
class MGDConnector(BaseConnector):
    """Hide a part of the student's feature and let convolutions generate the teacher's from what is left.

    `generate(mask * align(feature))`, where each element of the mask is 0 with probability `lambda_mgd` and 1 otherwise. The
    mask is drawn in training mode only, from torch's generator of the feature's device.

    Args:
        student_channels: Channels of the student's feature.
        teacher_channels: Channels of the teacher's feature; a 1x1 convolution brings the student's to them if they differ.
        lambda_mgd: The share that is hidden, in [0, 1).
        mask_on_channel: Hide whole channels instead of pixels.
        init_cfg: MMEngine's initialization config.

    Raises:
        ConfigError: If the share is out of range, or a feature has other channels.

    >>> MGDConnector(6, 8)(torch.rand(2, 6, 5, 7)).shape
    torch.Size([2, 8, 5, 7])

    Reference: Yang et al., Masked Generative Distillation, ECCV 2022, https://arxiv.org/abs/2205.01529
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        lambda_mgd: float = 0.65,
        mask_on_channel: bool = False,
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not 0 <= lambda_mgd < 1:
            raise ConfigError(f'lambda_mgd is the share of the feature that is hidden, in [0, 1); got {lambda_mgd!r}.')
        self.student_channels = student_channels
        self.lambda_mgd = lambda_mgd
        self.mask_on_channel = mask_on_channel
        self.align = nn.Conv2d(student_channels, teacher_channels, 1) if student_channels != teacher_channels else None
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def draw_mask(self, feature: torch.Tensor) -> torch.Tensor:
        """Draw a mask of zeros and ones, of shape `(batch, channels, 1, 1)` or `(batch, 1, height, width)`."""
        batch, channels, height, width = feature.shape
        shape = (batch, channels, 1, 1) if self.mask_on_channel else (batch, 1, height, width)
        # Compared in float32: bfloat16 has too few numbers between 0 and 1 to meet the share.
        return (torch.rand(shape, device=feature.device, dtype=torch.float32) >= self.lambda_mgd).to(feature.dtype)

    def forward_train(self, feature: torch.Tensor) -> torch.Tensor:
        """Return the generated feature, of shape `(batch, teacher_channels, height, width)`."""
        check_channels(feature, self.student_channels, self, 'student_channels')
        if self.align is not None:
            feature = self.align(feature)
        if self.training:
            feature = feature * self.draw_mask(feature)
        return self.generation(feature)


def negative_mean(mean: torch.Tensor, std: torch.Tensor, rare: float = 1e-3) -> torch.Tensor:
    """Return the expectation of the negative values of a normal distribution.

    `E[x | x < 0] = mean - std * phi(mean / std) / Phi(-mean / std)`, with the density `phi` and the distribution function
    `Phi` of the standard normal distribution.

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel; its sign is ignored.
        rare: Where negative values are not likelier than this, the result is `-3 * std`. 0 takes the formula everywhere.

    Returns:
        As many numbers, in float64.

    >>> round(negative_mean(torch.tensor(0.0), torch.tensor(1.0)).item(), 6) == -round(math.sqrt(2 / math.pi), 6)
    True
    """
    mean, std = in_double(mean.detach()), in_double(std.detach()).abs()
    # A constant channel has no spread; its one value is what can be negative.
    constant = std == 0
    ratio = mean / std.masked_fill(constant, 1.0)
    log_below = torch.special.log_ndtr(-ratio)
    log_density = -0.5 * ratio.square() - 0.5 * math.log(2 * math.pi)
    expected = mean - std * (log_density - log_below).exp()
    if rare > 0:
        expected = torch.where(log_below > math.log(rare), expected, -3 * std)
    return torch.where(constant, mean.clamp(max=0), expected)


@MODELS.register_module()
class OFDTeacherConnector(BaseConnector):
    """The teacher's side of overhauled feature distillation: the margin ReLU `max(feature, margin)`.

    The margin of a channel is the expectation of its negative values, which the batch norm before the activation tells: its
    outputs are normal with mean `bias` and standard deviation `|weight|`. `OFDDistiller` calls `init_margin`.

    Differs from the paper as its official code does: channels that are negative with a probability of at most 0.001 get
    `-3 * |weight|`.

    Args:
        init_cfg: MMEngine's initialization config.

    >>> connector = OFDTeacherConnector()
    >>> connector.init_margin(nn.BatchNorm2d(2))
    >>> connector(torch.full((1, 2, 1, 1), -5.0)).flatten().tolist()
    [-0.7978845834732056, -0.7978845834732056]

    Reference: Heo et al., A Comprehensive Overhaul of Feature Distillation, ICCV 2019, https://arxiv.org/abs/1904.01866
    """

    margin: torch.Tensor | None

    def __init__(self, init_cfg: Cfg | list[Cfg] | None = None) -> None:
        super().__init__(init_cfg)
        # It follows from the teacher, so it is computed again rather than kept in checkpoints.
        self.register_buffer('margin', None, persistent=False)

    def init_margin(self, margin: nn.Module | torch.Tensor) -> None:
        """Set the margins.

        Args:
            margin: The teacher's batch norm whose output is the feature, or one margin for each channel.

        Raises:
            ComponentTypeError: If it is neither.
        """
        if isinstance(margin, _BatchNorm):
            channels = margin.num_features
            where = margin.running_mean if margin.weight is None else margin.weight
            device = where.device if where is not None else None
            mean = torch.zeros(channels, device=device) if margin.bias is None else margin.bias
            std = torch.ones(channels, device=device) if margin.weight is None else margin.weight
            found = negative_mean(mean, std).to(torch.float32)
        elif isinstance(margin, torch.Tensor):
            found = margin.detach().clone()
        else:
            raise ComponentTypeError(
                'The margin comes from the batch norm whose output is recorded, or is a tensor with one number for each '
                f'channel, but got {type(margin).__name__}. Record the output of a batch norm (source="...bn").'
            )
        self.margin = found.reshape(1, -1, 1, 1)

    def forward_train(self, feature: torch.Tensor) -> torch.Tensor:
        """Return `max(feature, margin)`, without a gradient.

        Raises:
            ConfigError: If there is no margin yet.
        """
        if self.margin is None:
            raise ConfigError('OFDTeacherConnector has no margin yet. Use OFDDistiller, or call init_margin(batch_norm) first.')
        check_channels(feature, self.margin.shape[1], self, 'the margin')
        return torch.maximum(feature.detach(), self.margin.to(feature))


@MODELS.register_module()
class CRDConnector(BaseConnector):
    """An embedding on the unit sphere: a linear layer and `x / ||x||`.

    Args:
        dim_in: Numbers in one sample of the feature, `channels * height * width`.
        dim_out: Numbers of the embedding.
        kwargs: `init_cfg`.

    Raises:
        ConfigError: If a feature has another size.

    >>> embedded = CRDConnector(6, 4)(torch.rand(3, 6, 1, 1))
    >>> embedded.shape, bool(torch.allclose(embedded.norm(dim=1), torch.ones(3)))
    (torch.Size([3, 4]), True)

    Reference: Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, https://arxiv.org/abs/1910.10699
    """

    def __init__(self, dim_in: int = 1024, dim_out: int = 128, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.linear = nn.Linear(dim_in, dim_out)

    def forward_train(self, feature: torch.Tensor) -> torch.Tensor:
        """Return embeddings of shape `(batch, dim_out)` and length 1."""
        flat = check_tensor(feature, self).flatten(1)
        if flat.shape[1] != self.linear.in_features:
            raise ConfigError(
                f'CRDConnector with dim_in={self.linear.in_features} takes so many numbers a sample, but got a feature of '
                f'shape {tuple(feature.shape)}. dim_in={flat.shape[1]} would fit; pooling before it makes it smaller.'
            )
        return F.normalize(self.linear(flat), dim=1)


@MODELS.register_module()
class BYOTConnector(BaseConnector):
    """A shallow classifier at an intermediate feature, by which a network becomes its own teacher.

    An attention (separable convolutions, upsampled to the feature's size, a sigmoid) weighs the feature; separable
    convolutions double its channels until they are those of the last stage; after pooling, a linear layer classifies.

    Args:
        in_channel: Channels of the feature, divided by `expansion`.
        out_channel: Channels of the last stage, divided by `expansion`; `in_channel` times a power of two.
        num_classes: Number of classes.
        expansion: What channels are multiplied by: 4 for bottleneck ResNets, 1 for basic ones.
        pool_size: Kernel of the average pooling. What it leaves must be one pixel.
        kernel_size: Odd kernel of the separable convolutions.
        stride: Stride of each pair of separable convolutions.
        init_cfg: MMEngine's initialization config.

    Raises:
        ConfigError: If channels don't meet by doubling, a kernel is even, or the pooling leaves more than one pixel.

    >>> connector = BYOTConnector(4, 16, num_classes=10, expansion=1, pool_size=2, stride=2)
    >>> [tuple(output.shape) for output in connector(torch.rand(2, 4, 8, 8))]
    [(2, 16), (2, 10)]

    Reference: Zhang et al., Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
    Distillation, ICCV 2019, https://arxiv.org/abs/1905.08094
    """

    def __init__(
        self,
        in_channel: int,
        out_channel: int,
        num_classes: int,
        expansion: int = 4,
        pool_size: int | tuple[int, int] = 4,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        doublings = math.log2(out_channel / in_channel)
        if doublings < 0 or not doublings.is_integer():
            raise ConfigError(
                f'out_channel must be in_channel times a power of two, as channels are doubled; got in_channel={in_channel} '
                f'and out_channel={out_channel}.'
            )
        if any(size % 2 == 0 for size in ((kernel_size,) if isinstance(kernel_size, int) else kernel_size)):
            raise ConfigError(f'kernel_size must be odd; got {kernel_size!r}.')
        self.channels = in_channel * expansion
        widths = [self.channels * 2**step for step in range(int(doublings) + 1)]
        self.attention = nn.Sequential(
            _separable(self.channels, self.channels, kernel_size, stride), nn.BatchNorm2d(self.channels), nn.ReLU(inplace=True)
        )
        self.scala = nn.Sequential(
            *[_separable(before, after, kernel_size, stride) for before, after in pairwise(widths)], nn.AvgPool2d(pool_size)
        )
        self.fc = nn.Linear(out_channel * expansion, num_classes)

    def forward_train(self, feature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pooled feature, `(batch, out_channel * expansion)`, and the logits, `(batch, num_classes)`."""
        check_channels(feature, self.channels, self, 'in_channel * expansion')
        attention = F.interpolate(self.attention(feature), size=feature.shape[-2:], mode='bilinear', align_corners=False)
        deep = self.scala[:-1](feature * attention.sigmoid())
        kernel: Any = self.scala[-1].kernel_size
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        if not (height <= deep.shape[2] < 2 * height and width <= deep.shape[3] < 2 * width):
            raise ConfigError(
                f'BYOTConnector pools {deep.shape[2]}x{deep.shape[3]} pixels with pool_size={kernel!r}, which does not leave '
                f'one. pool_size={tuple(deep.shape[2:])} would, or another stride.'
            )
        pooled = self.scala[-1](deep).flatten(1)
        return pooled, self.fc(pooled)


def _separable(
    in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], stride: int | tuple[int, int]
) -> nn.Sequential:
    """Return two depthwise separable convolutions; the first has the stride, the second changes the channels."""
    padding = kernel_size // 2 if isinstance(kernel_size, int) else (kernel_size[0] // 2, kernel_size[1] // 2)
    options: Cfg = {'kernel_size': kernel_size, 'padding': padding, 'norm_cfg': {'type': 'BN'}}
    options.update(dw_norm_cfg=None, dw_act_cfg=None)
    return nn.Sequential(
        conv_module(in_channels, in_channels, 'DepthwiseSeparableConvModule', stride=stride, **options),
        conv_module(in_channels, out_channels, 'DepthwiseSeparableConvModule', **options),
    )
