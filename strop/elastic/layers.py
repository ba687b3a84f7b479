"""Single layers with an active size, under the names that MMRazor's configs and models use.

A model that can be traced needs none of them: `ElasticWidths` gives any of its layers an active size. They are for
supernets that are written with them, where each layer is told which decision its sizes follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from strop.elastic.hiding import Entry, Hidden, HiddenBuffer
from strop.errors import ComponentTypeError, ConfigError, SubnetError, listed, near
from strop.registry import MODELS


class LayerCut:
    """The slice of each tensor of one layer, and the sizes that the layer then has.

    Args:
        axes: Name of a tensor -> the kept part of each cut axis: a number for the first ones, or indices.
        sizes: Attribute -> its value.
    """

    def __init__(self, axes: Mapping[str, Mapping[int, int | torch.Tensor]], sizes: Mapping[str, Any]) -> None:
        self.axes = axes
        self.sizes = sizes

    def take(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the slice of a tensor: a view where the first positions stay."""
        for axis, kept in self.axes[name].items():
            if isinstance(kept, int):
                tensor = tensor.narrow(axis, 0, kept)
            else:
                tensor = tensor.index_select(axis, kept.to(tensor.device))
        return tensor


def active_part(mutable: Any, size: int) -> int | torch.Tensor | None:
    """Return what is active of `size` channels: None for all, a number for the first ones, or indices.

    Args:
        mutable: A number, a decision that gives one when it is called (`MutableChannelUnit`, `ValueChoice`), or something
            with a boolean `current_mask`.
        size: How many channels there are.

    Raises:
        SubnetError: If it is more than there are, or nothing.

    >>> active_part(3, 8), active_part(8, 8)
    (3, None)
    """
    ranked = getattr(mutable, 'ranked', False)
    if (ranked or not callable(mutable)) and not isinstance(mutable, int):
        mask = torch.as_tensor(mutable.current_mask, dtype=torch.bool)
        if tuple(mask.shape) != (size,) or not mask.any():
            raise SubnetError(f'A mask of {size} channels has that many entries, at least one of them true; got {mask}.')
        kept = mask.nonzero()[:, 0]
        part: int | torch.Tensor = len(kept) if int(kept[-1]) == len(kept) - 1 else kept
    else:
        part = int(mutable() if callable(mutable) else mutable)
        if not 1 <= part <= size:
            raise SubnetError(f'1 to {size} channels can be active, but {part} are asked for.')
    return None if isinstance(part, int) and part == size else part


class DynamicLayer(nn.Module):
    """What the layers with an active size share; mixed into a layer of `torch.nn`.

    Attributes:
        static_class: The plain layer.
        sizes: For each size that may vary: its axes (tensor, axis) and its other names.
    """

    static_class: type[nn.Module] = nn.Module
    sizes: Mapping[str, tuple[tuple[tuple[str, int], ...], tuple[str, ...]]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Size -> the decision that it follows; decisions that are modules are found by mutators.
        self.mutable_attrs = nn.ModuleDict()
        self._plain_attrs: dict[str, Any] = {}

    @classmethod
    def convert_from(cls, module: nn.Module) -> Any:
        """Return a layer of this class with the parameters of a plain one.

        Raises:
            ComponentTypeError: If `module` is no such layer.

        >>> DynamicLinear.convert_from(nn.Linear(4, 2)).to_static_op()
        Linear(in_features=4, out_features=2, bias=True)
        """
        if not isinstance(module, cls.static_class):
            raise ComponentTypeError(f'{cls.__name__} is made of a {cls.static_class.__name__}, not a {type(module).__name__}.')
        made = cls.__new__(cls)
        made.__dict__.update(module.__dict__)
        made._parameters, made._buffers, made._modules = dict(module._parameters), dict(module._buffers), {}
        made.mutable_attrs = nn.ModuleDict()
        made._plain_attrs = {}
        return made

    @property
    def accepted_mutable_attrs(self) -> set[str]:
        """The sizes that may vary."""
        return set(self.sizes)

    def register_mutable_attr(self, attr: str, mutable: Any) -> None:
        """Let a size follow a decision.

        Args:
            attr: 'in_channels', 'out_channels', or the layer's own name of the size.
            mutable: See `active_part`. Layers that share a decision are given the same object.

        Raises:
            ConfigError: If the layer has no such size, the decision is about another number of channels, or it is none.
        """
        known = {name: size for size, (_, names) in self.sizes.items() for name in (size, *names)}
        if attr not in known:
            raise ConfigError(f'{type(self).__name__} has no size {attr!r}.{near(attr, known)} It has {listed(known)}.')
        size = known[attr]
        channels = getattr(mutable, 'num_channels', None)
        if channels is not None and channels != self._full(size):
            raise ConfigError(f'{size!r} is {self._full(size)}, but the decision is about {channels} channels.')
        whole = isinstance(mutable, int) and not isinstance(mutable, bool)
        if not whole and not callable(mutable) and not hasattr(mutable, 'current_mask'):
            raise ConfigError(
                f'A size follows a whole number, something that gives one when it is called, or something with a current_mask, '
                f'but {size!r} was given {mutable!r}.'
            )
        # What it followed before is forgotten, whichever it was.
        self._plain_attrs.pop(size, None)
        if size in self.mutable_attrs:
            del self.mutable_attrs[size]
        if isinstance(mutable, nn.Module):
            self.mutable_attrs[size] = mutable
        else:
            self._plain_attrs[size] = mutable

    def get_mutable_attr(self, attr: str) -> Any:
        """Return the decision that a size follows; None if it follows none."""
        size = next((size for size, (_, names) in self.sizes.items() if attr == size or attr in names), attr)
        return self.mutable_attrs[size] if size in self.mutable_attrs else self._plain_attrs.get(size)

    def _full(self, size: str) -> int:
        tensor, axis = self.sizes[size][0][0]
        value = getattr(self, tensor)
        return int(getattr(self, size)) if value is None else value.shape[axis]

    def cut(self) -> LayerCut | None:
        """Return the slice of the current decisions; None at full size.

        Raises:
            NotDecidedError: If a decision was not made yet.
        """
        axes: dict[str, dict[int, int | torch.Tensor]] = {}
        sizes: dict[str, Any] = {}
        for size in (*self.mutable_attrs, *self._plain_attrs):
            part = active_part(self.get_mutable_attr(size), self._full(size))
            if part is not None:
                sizes[size] = part if isinstance(part, int) else len(part)
                for tensor, axis in self.sizes[size][0]:
                    if getattr(self, tensor) is not None:
                        axes.setdefault(tensor, {})[axis] = part
        if not sizes:
            return None
        return LayerCut({name: dict(sorted(found.items())) for name, found in axes.items()}, self._sized(sizes))

    def _sized(self, sizes: dict[str, Any]) -> dict[str, Any]:
        """Return the attributes that follow from active sizes."""
        return sizes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the layer at its active size."""
        cut = self.cut()
        if cut is None:
            return super().forward(*args, **kwargs)
        hidden = Hidden()
        try:
            for name in cut.axes:
                tensor = getattr(self, name)
                part = cut.take(name, tensor)
                if name in self._parameters:
                    self.__dict__[name] = part
                    hidden.added.append((self.__dict__, name))
                else:
                    self._buffers[name] = part
                    entry = Entry(name, self._buffers, name, [(self._buffers, name)])
                    hidden.buffers.append(HiddenBuffer(cut, entry, tensor, part))
            for attribute, value in cut.sizes.items():
                hidden.replaced.append((self.__dict__, attribute, self.__dict__[attribute]))
                self.__dict__[attribute] = value
            return super().forward(*args, **kwargs)
        finally:
            hidden.restore()

    def to_static_op(self) -> nn.Module:
        """Return the plain layer of the active size, with copies of its weights.

        >>> layer = DynamicLinear(4, 8)
        >>> layer.register_mutable_attr('out_channels', 3)
        >>> layer.to_static_op()
        Linear(in_features=4, out_features=3, bias=True)
        """
        cut = self.cut()
        static = self.static_class.__new__(self.static_class)
        static.__dict__.update({k: v for k, v in self.__dict__.items() if k != '_plain_attrs'})
        static._modules = {}
        static._parameters = {}
        static._buffers = {}
        static._parameters.update({name: self._own(cut, name, value) for name, value in self._parameters.items()})
        static._buffers.update({name: self._own(cut, name, value) for name, value in self._buffers.items()})
        if cut is not None:
            static.__dict__.update(cut.sizes)
        return static

    @staticmethod
    def _own(cut: LayerCut | None, name: str, value: Any) -> Any:
        if value is None:
            return None
        part = value.detach() if cut is None or name not in cut.axes else cut.take(name, value.detach())
        return nn.Parameter(part.clone(), value.requires_grad) if isinstance(value, nn.Parameter) else part.clone()


@MODELS.register_module()
class DynamicConv2d(DynamicLayer, nn.Conv2d):
    """A 2-D convolution with an active number of input and output channels.

    Depthwise convolutions follow `out_channels`; other grouped ones have one size.

    >>> conv = DynamicConv2d(8, 16, 3)
    >>> conv.register_mutable_attr('out_channels', 4)
    >>> conv(torch.zeros(1, 8, 5, 5)).shape
    torch.Size([1, 4, 3, 3])
    """

    static_class = nn.Conv2d
    sizes = {'in_channels': ((('weight', 1),), ()), 'out_channels': ((('weight', 0), ('bias', 0)), ())}

    def register_mutable_attr(self, attr: str, mutable: Any) -> None:
        """Let a size follow a decision; see `DynamicLayer`."""
        if self.groups > 1 and not self.groups == self.in_channels == self.out_channels:
            raise ConfigError(
                f'A convolution in {self.groups} groups has no active size here, unless each channel is a group. Trace the '
                'model and use a ChannelMutator.'
            )
        super().register_mutable_attr(attr, mutable)

    def _full(self, size: str) -> int:
        return int(getattr(self, size))

    def cut(self) -> LayerCut | None:
        """Return the slice of the current decisions; None at full size."""
        cut = super().cut()
        if cut is None or self.groups == 1:
            return cut
        # Depthwise: the one axis of channels is the first.
        part = next((part for axes in cut.axes.values() for part in axes.values()), None)
        assert part is not None, 'a cut has an axis'
        number = part if isinstance(part, int) else len(part)
        axes = {name: {0: part} for name in ('weight', 'bias') if getattr(self, name) is not None}
        return LayerCut(axes, {'in_channels': number, 'out_channels': number, 'groups': number})


@MODELS.register_module()
class DynamicLinear(DynamicLayer, nn.Linear):
    """A linear layer with an active number of input and output features.

    >>> linear = DynamicLinear(8, 4)
    >>> linear.register_mutable_attr('in_channels', 6)
    >>> linear(torch.zeros(1, 6)).shape
    torch.Size([1, 4])
    """

    static_class = nn.Linear
    sizes = {
        'in_features': ((('weight', 1),), ('in_channels',)),
        'out_features': ((('weight', 0), ('bias', 0)), ('out_channels',)),
    }


class _DynamicBatchNorm(DynamicLayer):
    sizes = {
        'num_features': (
            (('weight', 0), ('bias', 0), ('running_mean', 0), ('running_var', 0)),
            ('in_channels', 'out_channels'),
        )
    }

    def _full(self, size: str) -> int:
        return int(self.num_features)  # type: ignore[arg-type]


@MODELS.register_module()
class DynamicBatchNorm1d(_DynamicBatchNorm, nn.BatchNorm1d):
    """A 1-D batch norm with an active number of features; its statistics are updated in place."""

    static_class = nn.BatchNorm1d


@MODELS.register_module()
class DynamicBatchNorm2d(_DynamicBatchNorm, nn.BatchNorm2d):
    """A 2-D batch norm with an active number of features; its statistics are updated in place.

    >>> norm = DynamicBatchNorm2d(8)
    >>> norm.register_mutable_attr('num_features', 3)
    >>> _ = norm(torch.ones(2, 3, 4, 4))
    >>> norm.running_mean[:4]
    tensor([0.1000, 0.1000, 0.1000, 0.0000])
    """

    static_class = nn.BatchNorm2d


@MODELS.register_module()
class DynamicBatchNorm3d(_DynamicBatchNorm, nn.BatchNorm3d):
    """A 3-D batch norm with an active number of features; its statistics are updated in place."""

    static_class = nn.BatchNorm3d


@MODELS.register_module()
class DynamicLayerNorm(DynamicLayer, nn.LayerNorm):
    """A layer norm over one axis with an active length.

    >>> norm = DynamicLayerNorm(8)
    >>> norm.register_mutable_attr('num_features', 3)
    >>> norm(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """

    static_class = nn.LayerNorm
    sizes = {
        'normalized_shape': ((('weight', 0), ('bias', 0)), ('num_features', 'in_channels', 'out_channels')),
    }

    def register_mutable_attr(self, attr: str, mutable: Any) -> None:
        """Let the length follow a decision; see `DynamicLayer`."""
        if len(self.normalized_shape) != 1:
            raise ConfigError(f'A layer norm over several axes has no active size: normalized_shape={self.normalized_shape}.')
        super().register_mutable_attr(attr, mutable)

    def _full(self, size: str) -> int:
        return int(self.normalized_shape[0])

    def _sized(self, sizes: dict[str, Any]) -> dict[str, Any]:
        return {'normalized_shape': (sizes['normalized_shape'],)}
