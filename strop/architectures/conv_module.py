"""Layers built from configs, and `ConvModule`: a convolution, its norm and its activation, without mmcv.

Parameter names are those of mmcv (`conv.weight`, `bn.weight`), so checkpoints trained with it load.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any, cast

import torch
from mmengine.model import constant_init, kaiming_init
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from strop.errors import ConfigError, UnknownTypeError, listed, near
from strop.registry import FUNCTIONS, MODELS

Cfg = dict[str, Any]

#: Defaults of the blocks. They are copied before use, never changed.
BN: Cfg = {'type': 'BN'}
RELU: Cfg = {'type': 'ReLU'}
RELU6: Cfg = {'type': 'ReLU6'}
CONV2D: Cfg = {'type': 'Conv2d'}


class HSigmoid(nn.Module):
    """`clamp((x + bias) / divisor, min_value, max_value)`.

    Args:
        bias: Added first.
        divisor: Divided by.
        min_value: Lower bound.
        max_value: Upper bound.

    >>> HSigmoid()(torch.tensor([-4.0, 0.0, 4.0])).tolist()
    [0.0, 0.5, 1.0]

    Reference: Howard et al., Searching for MobileNetV3, https://arxiv.org/abs/1905.02244
    """

    def __init__(self, bias: float = 3.0, divisor: float = 6.0, min_value: float = 0.0, max_value: float = 1.0) -> None:
        super().__init__()
        if divisor == 0:
            raise ConfigError('divisor of HSigmoid must not be 0.')
        self.bias, self.divisor, self.min_value, self.max_value = bias, divisor, min_value, max_value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the piecewise linear sigmoid of `x`."""
        return ((x + self.bias) / self.divisor).clamp(self.min_value, self.max_value)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of `(batch, channels, height, width)`.

    >>> LayerNorm2d(3)(torch.rand(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise every pixel over its channels."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


_CONVS: dict[str, type[nn.Module]] = {
    'Conv': nn.Conv2d,
    'Conv1d': nn.Conv1d,
    'Conv2d': nn.Conv2d,
    'Conv3d': nn.Conv3d,
}
_NORMS: dict[str, type[nn.Module]] = {
    'BN': nn.BatchNorm2d,
    'BN1d': nn.BatchNorm1d,
    'BN2d': nn.BatchNorm2d,
    'BN3d': nn.BatchNorm3d,
    'SyncBN': nn.SyncBatchNorm,
    'GN': nn.GroupNorm,
    'LN': nn.LayerNorm,
    'LN2d': LayerNorm2d,
    'IN': nn.InstanceNorm2d,
    'IN1d': nn.InstanceNorm1d,
    'IN2d': nn.InstanceNorm2d,
    'IN3d': nn.InstanceNorm3d,
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    'ReLU': nn.ReLU,
    'LeakyReLU': nn.LeakyReLU,
    'PReLU': nn.PReLU,
    'RReLU': nn.RReLU,
    'ReLU6': nn.ReLU6,
    'ELU': nn.ELU,
    'Sigmoid': nn.Sigmoid,
    'Tanh': nn.Tanh,
    'SiLU': nn.SiLU,
    'Swish': nn.SiLU,
    'Mish': nn.Mish,
    'GELU': nn.GELU,
    'HSwish': nn.Hardswish,
    'Hardswish': nn.Hardswish,
    'HSigmoid': HSigmoid,
    'Hardsigmoid': nn.Hardsigmoid,
}
for _table in (_CONVS, _NORMS, _ACTIVATIONS):
    for _name, _class in _table.items():
        MODELS.register_module(name=_name, module=_class)


def _class_of(cfg: Cfg, kind: str, table: dict[str, type[nn.Module]]) -> tuple[type[nn.Module], Cfg]:
    """Split a layer config into its class and its other keys."""
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise ConfigError(f"{kind}_cfg must be a dict with a 'type', such as {{'type': {next(iter(table))!r}}}; got {cfg!r}.")
    options = dict(cfg)
    name = options.pop('type')
    if inspect.isclass(name):
        return cast(type[nn.Module], name), options
    try:
        return MODELS.get(name), options
    except UnknownTypeError as error:
        raise UnknownTypeError(
            f'{kind}_cfg has type={name!r}, which is no registered layer.{near(name, table)} Built in are '
            f'{listed(table, limit=20)}; a layer of your own has to be registered in strop.registry.MODELS first.'
        ) from error


def _made(kind: str, cfg: Cfg, make: type[nn.Module], *args: Any, **options: Any) -> nn.Module:
    try:
        return make(*args, **options)
    except TypeError as error:
        raise ConfigError(f'{kind}_cfg={cfg!r} does not fit {make.__name__}{inspect.signature(make)}: {error}') from error
    except ValueError as error:
        given = ', '.join([*map(repr, args), *(f'{name}={value!r}' for name, value in options.items())])
        raise ConfigError(f'{kind}_cfg={cfg!r} does not fit {make.__name__}({given}): {error}') from error


def build_conv_layer(cfg: Cfg | None, *args: Any, **kwargs: Any) -> nn.Module:
    """Build a convolution from a config.

    Args:
        cfg: `type` and options; None means `dict(type='Conv2d')`.
        args: Positional arguments of the layer.
        kwargs: Keyword arguments of the layer; those of `cfg` are added.

    Raises:
        UnknownTypeError: If the type is not registered; the message names near matches.
        ConfigError: If the config has no type or does not fit the layer.

    >>> build_conv_layer(None, 3, 8, kernel_size=3)
    Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    cfg = CONV2D if cfg is None else cfg
    make, options = _class_of(cfg, 'conv', _CONVS)
    return _made('conv', cfg, make, *args, **{**kwargs, **options})


def norm_short_name(norm: type[nn.Module]) -> str:
    """Return the attribute name that a norm of this class gets: `bn`, `gn`, `ln`, `in`, or what `_abbr_` says.

    >>> norm_short_name(nn.BatchNorm2d), norm_short_name(nn.GroupNorm)
    ('bn', 'gn')
    """
    if hasattr(norm, '_abbr_'):
        return str(norm._abbr_)
    # Instance norm comes first: it derives from the same class as batch norm.
    for short, classes in (('in', _InstanceNorm), ('bn', _BatchNorm), ('gn', nn.GroupNorm), ('ln', nn.LayerNorm)):
        if issubclass(norm, classes):
            return short
    name = norm.__name__.lower()
    for short, word in (('bn', 'batch'), ('gn', 'group'), ('ln', 'layer'), ('in', 'instance')):
        if word in name:
            return short
    return 'norm_layer'


@FUNCTIONS.register_module()
def build_norm_layer(cfg: Cfg, num_features: int, postfix: int | str = '') -> tuple[str, nn.Module]:
    """Build a norm from a config, with the attribute name it should get.

    Args:
        cfg: `type` and options; `requires_grad=False` freezes its parameters; `eps` is 1e-5 unless given.
        num_features: Channels.
        postfix: Appended to the name.

    Returns:
        Name and layer.

    Raises:
        UnknownTypeError: If the type is not registered; the message names near matches.
        ConfigError: If the config has no type, or a group norm has no `num_groups`.

    >>> name, layer = build_norm_layer({'type': 'GN', 'num_groups': 2}, 8, postfix=1)
    >>> name, layer.num_groups
    ('gn1', 2)
    """
    make, options = _class_of(cfg, 'norm', _NORMS)
    trainable = options.pop('requires_grad', True)
    options.setdefault('eps', 1e-5)
    if issubclass(make, nn.GroupNorm):
        if 'num_groups' not in options:
            raise ConfigError(f'norm_cfg of a group norm needs num_groups; got {cfg!r}.')
        layer = _made('norm', cfg, make, num_channels=num_features, **options)
    else:
        layer = _made('norm', cfg, make, num_features, **options)
    for parameter in layer.parameters():
        parameter.requires_grad = trainable
    return f'{norm_short_name(make)}{postfix}', layer


def build_activation_layer(cfg: Cfg, inplace: bool | None = None) -> nn.Module:
    """Build an activation from a config.

    Args:
        cfg: `type` and options.
        inplace: Used where the layer has such an option and `cfg` doesn't set it; None leaves the layer's default.

    Raises:
        UnknownTypeError: If the type is not registered; the message names near matches.
        ConfigError: If the config has no type or does not fit the layer.

    >>> build_activation_layer({'type': 'ReLU'}, inplace=True)
    ReLU(inplace=True)
    >>> build_activation_layer({'type': 'GELU'}, inplace=True)
    GELU(approximate='none')
    """
    make, options = _class_of(cfg, 'act', _ACTIVATIONS)
    if inplace is not None and 'inplace' in inspect.signature(make).parameters:
        options.setdefault('inplace', inplace)
    return _made('act', cfg, make, **options)


@MODELS.register_module()
class ConvModule(nn.Module):
    """A convolution, a norm and an activation, in a chosen order.

    The sub-modules are `conv`, the norm under its short name (`bn`, `gn`, ...; also reached as `norm`) and `activate`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: As in `nn.Conv2d`.
        stride: As in `nn.Conv2d`.
        padding: As in `nn.Conv2d`.
        dilation: As in `nn.Conv2d`.
        groups: As in `nn.Conv2d`.
        bias: `'auto'` gives the convolution a bias exactly where no norm is.
        conv_cfg: Config of the convolution; None means `nn.Conv2d`.
        norm_cfg: Config of the norm; None means none.
        act_cfg: Config of the activation; None means none.
        inplace: Whether the activation works in place, where it can.
        with_spectral_norm: Divide the weight by its largest singular value.
        padding_mode: 'zeros', 'reflect', 'replicate' or 'circular'.
        order: A permutation of 'conv', 'norm', 'act'.

    Raises:
        ConfigError: If `order` or `padding_mode` is unknown or a config does not fit.
        UnknownTypeError: If a type is not registered.

    >>> module = ConvModule(3, 8, 3, padding=1, norm_cfg={'type': 'BN'})
    >>> [name for name, _ in module.named_parameters()]
    ['conv.weight', 'bn.weight', 'bn.bias']
    >>> module(torch.rand(2, 3, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    _abbr_ = 'conv_block'

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool | str = 'auto',
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = RELU,
        inplace: bool = True,
        with_spectral_norm: bool = False,
        padding_mode: str = 'zeros',
        order: tuple[str, str, str] = ('conv', 'norm', 'act'),
    ) -> None:
        super().__init__()
        if sorted(order) != ['act', 'conv', 'norm']:
            raise ConfigError(f"order must be a permutation of ('conv', 'norm', 'act'); got {order!r}.")
        modes = ('zeros', 'reflect', 'replicate', 'circular')
        if padding_mode not in modes:
            raise ConfigError(f'padding_mode must be one of {listed(modes)}; got {padding_mode!r}.{near(padding_mode, modes)}')
        self.conv_cfg, self.norm_cfg, self.act_cfg = conv_cfg, norm_cfg, act_cfg
        self.inplace, self.order = inplace, tuple(order)
        self.with_spectral_norm, self.padding_mode = with_spectral_norm, padding_mode
        self.with_norm, self.with_activation = norm_cfg is not None, act_cfg is not None
        self.with_bias = not self.with_norm if bias == 'auto' else bool(bias)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation

        # A registered convolution need not know the option, so it gets it only when it matters.
        extra = {} if padding_mode == 'zeros' else {'padding_mode': padding_mode}
        self.conv = build_conv_layer(
            conv_cfg,
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=self.with_bias,
            **extra,
        )
        self.norm_name: str | None = None
        if norm_cfg is not None:
            after = self.order.index('norm') > self.order.index('conv')
            self.norm_name, norm = build_norm_layer(norm_cfg, out_channels if after else in_channels)
            self.add_module(self.norm_name, norm)
            if self.with_bias and isinstance(norm, (_BatchNorm, _InstanceNorm)):
                warnings.warn('The bias of a convolution before a batch or instance norm has no effect.', stacklevel=2)
        if act_cfg is not None:
            self.activate = build_activation_layer(act_cfg, inplace=inplace)
        self.init_weights()
        # A parent's init_cfg should win over the default above when it walks its children.
        self.is_init = True
        if with_spectral_norm:
            self.conv = nn.utils.spectral_norm(self.conv)

    @property
    def norm(self) -> nn.Module | None:
        """The norm, or None."""
        return getattr(self, self.norm_name) if self.norm_name else None

    def init_weights(self) -> None:
        """Initialise the convolution after He et al. for the activation, and the norm to the identity."""
        if not hasattr(self.conv, 'init_weights'):
            leaky = self.act_cfg is not None and self.act_cfg.get('type') == 'LeakyReLU'
            slope = self.act_cfg.get('negative_slope', 0.01) if leaky and self.act_cfg is not None else 0
            kaiming_init(self.conv, a=slope, nonlinearity='leaky_relu' if leaky else 'relu')
        if self.norm is not None:
            constant_init(self.norm, 1, bias=0)

    def forward(self, x: torch.Tensor, activate: bool = True, norm: bool = True) -> torch.Tensor:
        """Apply the three in order.

        Args:
            x: Shape `(batch, in_channels, height, width)`.
            activate: False leaves the activation out.
            norm: False leaves the norm out.
        """
        for step in self.order:
            if step == 'conv':
                x = self.conv(x)
            elif step == 'norm' and norm and self.norm_name:
                x = getattr(self, self.norm_name)(x)
            elif step == 'act' and activate and self.with_activation:
                x = self.activate(x)
        return x


@MODELS.register_module()
class DepthwiseSeparableConvModule(nn.Module):
    """A depthwise `ConvModule` and a pointwise one: `pointwise_conv(depthwise_conv(x))`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Of the depthwise convolution.
        stride: Of the depthwise convolution.
        padding: Of the depthwise convolution.
        dilation: Of the depthwise convolution.
        norm_cfg: Norm of both.
        act_cfg: Activation of both.
        dw_norm_cfg: Norm of the depthwise one, where it differs.
        dw_act_cfg: Activation of the depthwise one, where it differs; None means none.
        pw_norm_cfg: Norm of the pointwise one, where it differs.
        pw_act_cfg: Activation of the pointwise one, where it differs; None means none.
        kwargs: Further arguments of both.

    Raises:
        ConfigError: If `groups` is given.

    >>> DepthwiseSeparableConvModule(4, 8, 3, padding=1)(torch.rand(1, 4, 6, 6)).shape
    torch.Size([1, 8, 6, 6])

    Reference: Howard et al., MobileNets, https://arxiv.org/abs/1704.04861
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = RELU,
        dw_norm_cfg: Cfg | str | None = 'default',
        dw_act_cfg: Cfg | str | None = 'default',
        pw_norm_cfg: Cfg | str | None = 'default',
        pw_act_cfg: Cfg | str | None = 'default',
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if 'groups' in kwargs:
            raise ConfigError(
                'A depthwise separable convolution sets groups itself (the input channels, then 1); leave it out.'
            )

        def given(cfg: Cfg | str | None, default: Cfg | None) -> Any:
            return default if cfg == 'default' else cfg

        self.depthwise_conv = ConvModule(
            in_channels,
            in_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=in_channels,
            norm_cfg=given(dw_norm_cfg, norm_cfg),
            act_cfg=given(dw_act_cfg, act_cfg),
            **kwargs,
        )
        self.pointwise_conv = ConvModule(
            in_channels, out_channels, 1, norm_cfg=given(pw_norm_cfg, norm_cfg), act_cfg=given(pw_act_cfg, act_cfg), **kwargs
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Filter every channel, then mix the channels."""
        return self.pointwise_conv(self.depthwise_conv(x))
