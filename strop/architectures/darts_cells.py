"""The search space of DARTS: its operations, cells and backbone.

Reference: Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019, https://arxiv.org/abs/1806.09055
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import nn

from strop.architectures.blocks import BaseOP
from strop.architectures.conv_module import BN, RELU, Cfg, build_activation_layer, build_norm_layer
from strop.architectures.heads import LinearClsHead
from strop.architectures.layers import DropPath
from strop.data import labels_of
from strop.errors import ConfigError, listed, near
from strop.registry import MODELS


def _norm(norm_cfg: Cfg, channels: int) -> nn.Module:
    return build_norm_layer(norm_cfg, channels)[1]


def _act(act_cfg: Cfg) -> nn.Module:
    # Never in place: every operation of an edge reads the same input.
    return build_activation_layer(act_cfg, inplace=False)


def _odd_size(kernel_size: int, name: str) -> int:
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(f'kernel_size of {name} must be an odd positive integer such as 3 or 5; got {kernel_size!r}.')
    return kernel_size


class FactorizedReduce(nn.Module):
    """Halve the size by two strided 1x1 convolutions, one of which looks at the pixels that the other leaves out.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, an even number.
        act_cfg: Config of the activation before.
        norm_cfg: Config of the norm after.

    Raises:
        ConfigError: If `out_channels` is odd.

    >>> FactorizedReduce(4, 8)(torch.rand(1, 4, 7, 6)).shape
    torch.Size([1, 8, 4, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, act_cfg: Cfg = RELU, norm_cfg: Cfg = BN) -> None:
        super().__init__()
        if out_channels % 2:
            raise ConfigError(f'out_channels of FactorizedReduce must be even, as it has two halves; got {out_channels}.')
        self.act = _act(act_cfg)
        self.conv1 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.norm = _norm(norm_cfg, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, out_channels, ceil(h / 2), ceil(w / 2))`."""
        x = self.act(x)
        # An odd side has one shifted pixel fewer than strided ones.
        shifted = F.pad(x[:, :, 1:, 1:], (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return self.norm(torch.cat([self.conv1(x), self.conv2(shifted)], dim=1))


class ActConvNorm(nn.Sequential):
    """An activation, a convolution and a norm, in this order.

    >>> ActConvNorm(4, 8, 1)(torch.rand(1, 4, 3, 3)).shape
    torch.Size([1, 8, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        act_cfg: Cfg = RELU,
        norm_cfg: Cfg = BN,
    ) -> None:
        super().__init__(
            _act(act_cfg),
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
            _norm(norm_cfg, out_channels),
        )


class _DartsOP(BaseOP):
    """An operation of DARTS: the sub-class makes `self.layers`.

    Args:
        use_drop_path: Zero whole samples in training; `set_drop_path` of the backbone sets how many.
        norm_cfg: Config of the norms.
        act_cfg: Config of the activations.
        kwargs: `in_channels`, `out_channels`, `stride`, `init_cfg`.
    """

    def __init__(self, use_drop_path: bool = False, norm_cfg: Cfg = BN, act_cfg: Cfg = RELU, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm_cfg, self.act_cfg = norm_cfg, act_cfg
        self.drop_path = DropPath(0.0) if use_drop_path else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, out_channels, ceil(h / stride), ceil(w / stride))`."""
        x = self.layers(x)
        return x if self.drop_path is None else self.drop_path(x)

    def _separable(self, kernel_size: int, stride: int, dilation: int, out_channels: int) -> list[nn.Module]:
        padding = dilation * (kernel_size - 1) // 2
        depthwise = nn.Conv2d(
            self.in_channels, self.in_channels, kernel_size, stride, padding, dilation, self.in_channels, bias=False
        )
        pointwise = nn.Conv2d(self.in_channels, out_channels, 1, bias=False)
        return [_act(self.act_cfg), depthwise, pointwise, _norm(self.norm_cfg, out_channels)]


@MODELS.register_module()
class DartsPoolBN(_DartsOP):
    """A pooling and a norm; a 1x1 convolution before the norm where the channels change.

    Args:
        pool_type: 'max' or 'avg'.
        kernel_size: Odd.
        norm_cfg: Config of the norm.
        use_drop_path: See `_DartsOP`.
        kwargs: `in_channels`, `out_channels`, `stride`, `init_cfg`.

    Raises:
        ConfigError: If `pool_type` is unknown or the kernel even.

    >>> DartsPoolBN('avg', in_channels=4, out_channels=4, stride=2)(torch.rand(1, 4, 8, 8)).shape
    torch.Size([1, 4, 4, 4])
    """

    def __init__(
        self, pool_type: str, kernel_size: int = 3, norm_cfg: Cfg = BN, use_drop_path: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(use_drop_path, norm_cfg, **kwargs)
        size = _odd_size(kernel_size, type(self).__name__)
        kinds = {
            'max': nn.MaxPool2d(size, self.stride, size // 2),
            'avg': nn.AvgPool2d(size, self.stride, size // 2, count_include_pad=False),
        }
        if pool_type not in kinds:
            raise ConfigError(f'pool_type must be one of {listed(kinds)}; got {pool_type!r}.{near(pool_type, kinds)}')
        layers: list[nn.Module] = [kinds[pool_type]]
        if self.in_channels != self.out_channels:
            layers.append(nn.Conv2d(self.in_channels, self.out_channels, 1, bias=False))
        self.layers = nn.Sequential(*layers, _norm(norm_cfg, self.out_channels))


@MODELS.register_module()
class DartsDilConv(_DartsOP):
    """A dilated depthwise and a 1x1 convolution after the activation, then the norm.

    Args:
        kernel_size: Odd; of the depthwise convolution, whose dilation is 2.
        use_drop_path: See `_DartsOP`.
        norm_cfg: Config of the norm.
        kwargs: `in_channels`, `out_channels`, `stride`, `init_cfg`, `act_cfg`.

    >>> DartsDilConv(5, in_channels=4, out_channels=4)(torch.rand(1, 4, 8, 8)).shape
    torch.Size([1, 4, 8, 8])
    """

    def __init__(self, kernel_size: int, use_drop_path: bool = False, norm_cfg: Cfg = BN, **kwargs: Any) -> None:
        super().__init__(use_drop_path, norm_cfg, **kwargs)
        size = _odd_size(kernel_size, type(self).__name__)
        self.layers = nn.Sequential(*self._separable(size, self.stride, 2, self.out_channels))


@MODELS.register_module()
class DartsSepConv(_DartsOP):
    """A separable convolution, twice.

    Args:
        kernel_size: Odd; of the depthwise convolutions.
        use_drop_path: See `_DartsOP`.
        norm_cfg: Config of the norms.
        kwargs: `in_channels`, `out_channels`, `stride`, `init_cfg`, `act_cfg`.

    >>> DartsSepConv(3, in_channels=4, out_channels=4, stride=2)(torch.rand(1, 4, 8, 8)).shape
    torch.Size([1, 4, 4, 4])
    """

    def __init__(self, kernel_size: int, use_drop_path: bool = False, norm_cfg: Cfg = BN, **kwargs: Any) -> None:
        super().__init__(use_drop_path, norm_cfg, **kwargs)
        size = _odd_size(kernel_size, type(self).__name__)
        self.layers = nn.Sequential(
            *self._separable(size, self.stride, 1, self.in_channels), *self._separable(size, 1, 1, self.out_channels)
        )


@MODELS.register_module()
class DartsSkipConnect(_DartsOP):
    """The identity; where the size halves a `FactorizedReduce`, where only the channels change a 1x1 convolution.

    Args:
        use_drop_path: See `_DartsOP`. The identity itself is never dropped, as in the official code.
        norm_cfg: Config of the norm.
        kwargs: `in_channels`, `out_channels`, `stride`, `init_cfg`, `act_cfg`.

    Raises:
        ConfigError: If the stride is neither 1 nor 2.

    >>> x = torch.rand(1, 4, 8, 8)
    >>> DartsSkipConnect(in_channels=4, out_channels=4)(x) is x
    True
    """

    def __init__(self, use_drop_path: bool = False, norm_cfg: Cfg = BN, **kwargs: Any) -> None:
        super().__init__(use_drop_path, norm_cfg, **kwargs)
        if self.stride not in (1, 2):
            raise ConfigError(f'stride of DartsSkipConnect must be 1 or 2; got {self.stride}.')
        options: Cfg = {'act_cfg': self.act_cfg, 'norm_cfg': norm_cfg}
        if self.stride == 2:
            self.layers: nn.Module = FactorizedReduce(self.in_channels, self.out_channels, **options)
        elif self.in_channels != self.out_channels:
            self.layers = ActConvNorm(self.in_channels, self.out_channels, 1, **options)
        else:
            self.layers = nn.Identity()
            self.drop_path = None


@MODELS.register_module()
class DartsZero(BaseOP):
    """Zeros: the edge is not there. Its name in a space is `zero` or `none`, which is never a final choice.

    Args:
        kwargs: `in_channels`, `out_channels`, `stride`, `init_cfg`.

    >>> DartsZero(in_channels=4, out_channels=8, stride=2)(torch.rand(1, 4, 7, 7)).shape
    torch.Size([1, 8, 4, 4])
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(batch, in_channels, h, w)` to zeros of `(batch, out_channels, ceil(h / stride), ceil(w / stride))`."""
        size = [-(-side // self.stride) for side in x.shape[2:]]
        return x.new_zeros(x.shape[0], self.out_channels, *size)


class DartsCell(nn.Module):
    """A cell: each node adds some of the states before it, each through an operation; their outputs are concatenated.

    Args:
        num_nodes: Number of nodes.
        channels: Channels of each node.
        prev_channels: Channels of the outputs of the cell before the last, and of the last.
        reduction: Halve the size.
        prev_reduction: Whether the last cell halved the size, so that the one before it is twice as large.
        mutable_cfg: Config of the choice on each edge.
        route_cfg: Config of the choice of a node's edges.
        act_cfg: Config of the activations.
        norm_cfg: Config of the norms.

    The decisions of node 2 (0 and 1 are the inputs) are called `normal_n2`, and `normal_n2_p0`, ... on its edges;
    `reduce_...` in cells that halve the size. All cells of a kind share them.
    """

    def __init__(
        self,
        num_nodes: int,
        channels: int,
        prev_channels: tuple[int, int],
        reduction: bool,
        prev_reduction: bool,
        mutable_cfg: Cfg,
        route_cfg: Cfg,
        act_cfg: Cfg = RELU,
        norm_cfg: Cfg = BN,
    ) -> None:
        super().__init__()
        options: Cfg = {'act_cfg': act_cfg, 'norm_cfg': norm_cfg}
        self.preproc0: nn.Module = (
            FactorizedReduce(prev_channels[0], channels, **options)
            if prev_reduction
            else ActConvNorm(prev_channels[0], channels, 1, **options)
        )
        self.preproc1 = ActConvNorm(prev_channels[1], channels, 1, **options)
        kind = 'reduce' if reduction else 'normal'
        self.nodes = nn.ModuleList(
            _route(f'{kind}_n{number}', number, channels, reduction, mutable_cfg, route_cfg)
            for number in range(2, num_nodes + 2)
        )

    def forward(self, s0: torch.Tensor, s1: torch.Tensor) -> torch.Tensor:
        """Compute the cell from the outputs of the two cells before it."""
        states = [self.preproc0(s0), self.preproc1(s1)]
        for node in self.nodes:
            states.append(node(states[:]))
        return torch.cat(states[2:], dim=1)


def _route(key: str, edges: int, channels: int, reduction: bool, mutable_cfg: Cfg, route_cfg: Cfg) -> nn.Module:
    choices = nn.ModuleDict()
    for number in range(edges):
        cfg = copy.deepcopy(mutable_cfg)
        # Only the two inputs of a cell have the size from before the reduction.
        shape = {'in_channels': channels, 'out_channels': channels, 'stride': 2 if reduction and number < 2 else 1}
        cfg['module_kwargs'] = {**(cfg.get('module_kwargs') or {}), **shape}
        choices[f'{key}_p{number}'] = MODELS.build({**cfg, 'alias': f'{key}_p{number}'})
    return MODELS.build({**copy.deepcopy(route_cfg), 'edges': choices, 'alias': key})


class AuxiliaryTower(nn.Sequential):
    """What the auxiliary classifier of the retrained network sees: pooled, narrowed features of a cell.

    Args:
        in_channels: Channels of the cell.
        base_channels: Channels between the two convolutions.
        out_channels: Channels of the output.
        norm_cfg: Config of the norms.

    >>> AuxiliaryTower(16, 8, 32)(torch.rand(2, 16, 8, 8)).shape
    torch.Size([2, 32, 1, 1])
    """

    def __init__(self, in_channels: int, base_channels: int, out_channels: int, norm_cfg: Cfg = BN) -> None:
        super().__init__(
            nn.ReLU(),
            # 5x5 in steps of 3 in the official code, for maps of 8x8; this is the same size from maps of any size.
            nn.AdaptiveAvgPool2d(2),
            nn.Conv2d(in_channels, base_channels, 1, bias=False),
            _norm(norm_cfg, base_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(base_channels, out_channels, 2, bias=False),
            _norm(norm_cfg, out_channels),
            nn.ReLU(inplace=True),
        )


@MODELS.register_module()
class DartsBackbone(BaseModule):
    """The network of DARTS: a stem and cells, of which those at one and two thirds of the depth halve the size.

    Args:
        in_channels: Channels of the images.
        base_channels: Channels of the nodes of the first cell; they double at each reduction.
        mutable_cfg: Config of the choice on each edge; it gets `alias` and `module_kwargs`.
        route_cfg: Config of the choice of each node's edges; it gets `alias` and `edges`.
        num_layers: Number of cells.
        num_nodes: Nodes of each cell.
        stem_multiplier: The stem has so many times `base_channels`.
        out_indices: Cells whose outputs are given.
        auxliary: In training, also give the features of the auxiliary tower, as the first of the outputs.
        aux_channels: Channels inside the auxiliary tower.
        aux_out_channels: Channels of its output.
        act_cfg: Config of the activations of stem and cells; the candidates have configs of their own.
        norm_cfg: Config of their norms.
        init_cfg: MMEngine's initialisation config.

    Raises:
        ConfigError: If a number is not positive, an index of `out_indices` is no cell, or the auxiliary tower lacks channels.

    >>> ops = dict(
    ...     zero=dict(type='DartsZero'), skip=dict(type='DartsSkipConnect'), conv=dict(type='DartsSepConv', kernel_size=3)
    ... )
    >>> mutable = dict(type='DiffMutableOP', candidates=ops)
    >>> backbone = DartsBackbone(3, 4, mutable, dict(type='DiffChoiceRoute'), num_layers=3, num_nodes=2, out_indices=(2,))
    >>> from strop.mutables import apply_subnet, space_of
    >>> subnet = apply_subnet(backbone, space_of(backbone).first())
    >>> backbone(torch.rand(1, 3, 16, 16))[-1].shape
    torch.Size([1, 32, 4, 4])
    >>> subnet['normal_n2']
    ['normal_n2_p0', 'normal_n2_p1']
    """

    def __init__(
        self,
        in_channels: int,
        base_channels: int,
        mutable_cfg: Cfg,
        route_cfg: Cfg,
        num_layers: int = 8,
        num_nodes: int = 4,
        stem_multiplier: int = 3,
        out_indices: Sequence[int] = (7,),
        auxliary: bool = False,
        aux_channels: int | None = None,
        aux_out_channels: int | None = None,
        act_cfg: Cfg = RELU,
        norm_cfg: Cfg = BN,
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        numbers = dict(
            in_channels=in_channels,
            base_channels=base_channels,
            num_layers=num_layers,
            num_nodes=num_nodes,
            stem_multiplier=stem_multiplier,
        )
        for name, value in numbers.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f'{name} of DartsBackbone must be a positive integer; got {value!r}.')
        for index in out_indices:
            if not 0 <= index < num_layers:
                raise ConfigError(f'out_indices must be in range(0, {num_layers}), the cells; received {index}.')
        self.out_indices = tuple(out_indices)
        self.auxliary = auxliary
        reductions = [num_layers // 3, 2 * num_layers // 3]
        self.aux_index = reductions[1]
        channels = base_channels
        stem_channels = stem_multiplier * channels
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem_channels, 3, padding=1, bias=False), _norm(norm_cfg, stem_channels)
        )
        self.cells = nn.ModuleList()
        before, last, last_reduced = stem_channels, stem_channels, False
        for index in range(num_layers):
            reduction = index in reductions
            channels = channels * 2 if reduction else channels
            self.cells.append(
                DartsCell(
                    num_nodes, channels, (before, last), reduction, last_reduced, mutable_cfg, route_cfg, act_cfg, norm_cfg
                )
            )
            before, last, last_reduced = last, channels * num_nodes, reduction
            if auxliary and index == self.aux_index:
                if aux_channels is None or aux_out_channels is None:
                    raise ConfigError('auxliary=True needs aux_channels and aux_out_channels, for example 128 and 768.')
                self.auxliary_module = AuxiliaryTower(last, aux_channels, aux_out_channels, norm_cfg)
        #: Channels of the last cell.
        self.out_channels = last

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of the cells of `out_indices`; in training with `auxliary`, the auxiliary features before them."""
        outputs: list[torch.Tensor] = []
        auxiliary: list[torch.Tensor] = []
        s0 = s1 = self.stem(x)
        for index, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1)
            if index in self.out_indices:
                outputs.append(s1)
            if self.auxliary and self.training and index == self.aux_index:
                auxiliary.append(self.auxliary_module(s1))
        return (*auxiliary, *outputs)

    def set_drop_path(self, prob: float) -> None:
        """Set the probability with which operations made with `use_drop_path` drop a sample."""
        for module in self.modules():
            if isinstance(module, DropPath):
                module.drop_prob = DropPath(prob).drop_prob


@MODELS.register_module()
class DartsSubnetClsHead(LinearClsHead):
    """A linear head that also trains on the features of the auxiliary tower.

    Args:
        aux_in_channels: Length of the auxiliary feature.
        aux_loss: Config of the auxiliary loss; its `loss_weight` is how much it counts.
        kwargs: Arguments of `LinearClsHead`.

    >>> head = DartsSubnetClsHead(8, dict(type='CrossEntropyLoss', loss_weight=0.4), num_classes=4, in_channels=16)
    >>> sorted(head.loss((torch.rand(2, 8), torch.rand(2, 16)), torch.tensor([0, 3])))
    ['loss', 'loss_aux']
    """

    def __init__(self, aux_in_channels: int, aux_loss: Cfg | nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if aux_in_channels < 1:
            raise ConfigError(f'aux_in_channels must be positive; got {aux_in_channels!r}.')
        self.aux_linear = nn.Linear(aux_in_channels, self.num_classes)
        self.aux_loss: nn.Module = aux_loss if isinstance(aux_loss, nn.Module) else MODELS.build(aux_loss)

    def loss(self, feats: Any, data_samples: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Return the losses of a batch; where there are two features, the first is the auxiliary one."""
        losses = super().loss(feats, data_samples, **kwargs)
        if isinstance(feats, (tuple, list)) and len(feats) > 1:
            logits = self.aux_linear(feats[0].flatten(1))
            losses['loss_aux'] = self.aux_loss(logits, labels_of(data_samples, logits.device))
        return losses
