"""Connectors: what makes the feature maps of student and teacher meet, trained along with the student.

Here are the general ones: a convolution, a norm, any function or module of torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import nn

from strop.errors import ComponentTypeError, ConfigError, listed, near
from strop.registry import FUNCTIONS, MODELS

Cfg = dict[str, Any]

#: Default of an argument. It is copied before use, never changed.
RELU: Cfg = {'type': 'ReLU'}


def check_channels(feature: Any, channels: int, owner: nn.Module, argument: str, axes: int = 4) -> torch.Tensor:
    """Return `feature` if it is a batch of feature maps with so many channels.

    Args:
        feature: What was recorded.
        channels: Channels that the connector was made for.
        owner: The connector, named in the message.
        argument: Its argument that says the channels.
        axes: How many axes the feature has: 4 for `(batch, channels, height, width)`.

    Raises:
        ComponentTypeError: If it is no tensor.
        ConfigError: If its shape is another.

    >>> check_channels(torch.zeros(2, 3, 4, 4), 3, nn.Identity(), 'in_channels').shape
    torch.Size([2, 3, 4, 4])
    """
    check_tensor(feature, owner)
    if feature.ndim != axes or feature.shape[1] != channels:
        fits = f' {argument}={feature.shape[1]} would fit.' if feature.ndim == axes else ''
        sizes = {3: ', length', 4: ', height, width', 5: ', depth, height, width'}.get(axes, '')
        raise ConfigError(
            f'{type(owner).__name__} with {argument}={channels} takes features of shape (batch, {channels}{sizes}), but got '
            f'{tuple(feature.shape)}.{fits}'
        )
    return feature


def check_tensor(feature: Any, owner: nn.Module) -> torch.Tensor:
    """Return `feature` if it is one tensor.

    Raises:
        ComponentTypeError: If it is not; the message says how to choose one of several.
    """
    if not isinstance(feature, torch.Tensor):
        raise ComponentTypeError(
            f'{type(owner).__name__} takes one tensor, but the record is a {type(feature).__name__}. Choose an item of it with '
            '`data_idx`.'
        )
    return feature


@MODELS.register_module()
class BaseConnector(BaseModule):
    """Base of all connectors: override `forward_train`.

    Args:
        init_cfg: MMEngine's initialization config; `dict(type='Pretrained', checkpoint=..., prefix=...)` loads a connector
            that was trained before.

    >>> class Halve(BaseConnector):
    ...     def forward_train(self, feature):
    ...         return feature / 2
    >>> Halve()(torch.ones(2)).tolist()
    [0.5, 0.5]
    """

    def __init__(self, init_cfg: Cfg | list[Cfg] | None = None) -> None:
        super().__init__(init_cfg)

    def forward(self, feature: Any) -> Any:
        """Return what the loss gets in the place of `feature`."""
        return self.forward_train(feature)

    def forward_train(self, feature: Any) -> Any:
        """Compute it; a sub-class has to.

        Raises:
            ComponentTypeError: If it does not.
        """
        raise ComponentTypeError(
            f'{type(self).__name__} has no forward_train(feature). Write one that returns what the loss should get.'
        )


@MODELS.register_module()
class ConvModuleConnector(BaseConnector):
    """A convolution, a norm and an activation, in a chosen order: `ConvModule` as a connector.

    With its defaults it is the 1x1 regressor by which FitNets brings the student's channels to the teacher's.

    Args:
        in_channel: Channels of the feature.
        out_channel: Channels of the result.
        kernel_size: Of the convolution.
        stride: Of the convolution.
        padding: Of the convolution.
        dilation: Of the convolution.
        groups: Of the convolution.
        bias: 'auto' gives a bias exactly where no norm is.
        conv_cfg: Config of the convolution; None means `nn.Conv2d`.
        norm_cfg: Config of the norm; None means none.
        act_cfg: Config of the activation; None means none.
        inplace: Whether the activation works in place, on the convolution's own output.
        with_spectral_norm: Divide the weight by its largest singular value.
        padding_mode: As in `nn.Conv2d`.
        order: A permutation of 'conv', 'norm', 'act'.
        init_cfg: MMEngine's initialization config.

    Raises:
        ConfigError: If an argument breaks a rule of `ConvModule`, or a feature has other channels.

    >>> ConvModuleConnector(8, 16)(torch.rand(2, 8, 5, 7)).shape
    torch.Size([2, 16, 5, 7])

    Reference: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, https://arxiv.org/abs/1412.6550
    """

    def __init__(
        self,
        in_channel: int,
        out_channel: int,
        kernel_size: int | tuple[int, int] = 1,
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
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channel = in_channel
        # An activation that comes first would work on what was recorded, so it must not do so in place.
        inplace = inplace and tuple(order)[:1] != ('act',)
        self.conv_module = conv_module(
            in_channel,
            out_channel,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
            inplace=inplace,
            with_spectral_norm=with_spectral_norm,
            padding_mode=padding_mode,
            order=order,
        )

    def forward_train(self, feature: torch.Tensor) -> torch.Tensor:
        """Return the projected feature, of shape `(batch, out_channel, height, width)`."""
        axes: Any = self.conv_module.get_submodule('conv').weight.ndim
        return self.conv_module(check_channels(feature, self.in_channel, self, 'in_channel', axes))


def conv_module(in_channels: int, out_channels: int, kind: str = 'ConvModule', **options: Any) -> nn.Module:
    """Build the registered `ConvModule`, or another block with its first two arguments.

    >>> conv_module(3, 4, kernel_size=1, act_cfg=None)(torch.zeros(1, 3, 2, 2)).shape
    torch.Size([1, 4, 2, 2])
    """
    return MODELS.build({'type': f'strop.{kind}', 'in_channels': in_channels, 'out_channels': out_channels, **options})


@MODELS.register_module()
class NormConnector(BaseConnector):
    """A norm: batch norm without parameters standardises the features of both sides, as PKD wants them.

    Args:
        in_channels: Channels of the feature.
        norm_cfg: Config of the norm, for example `dict(type='BN', affine=False, track_running_stats=False)`.
        init_cfg: MMEngine's initialization config.

    Raises:
        ConfigError: If the config has no type or does not fit the norm.
        UnknownTypeError: If its type is not registered.

    >>> norm = NormConnector(3, dict(type='BN', affine=False, track_running_stats=False))
    >>> standard = norm(5 + 2 * torch.randn(4, 3, 9, 9))
    >>> bool(standard.mean().abs() < 1e-4), round(standard.std(correction=0).item(), 3)
    (True, 1.0)

    Reference: Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient,
    NeurIPS 2022, https://arxiv.org/abs/2207.02039
    """

    def __init__(self, in_channels: int, norm_cfg: Cfg, init_cfg: Cfg | list[Cfg] | None = None) -> None:
        super().__init__(init_cfg)
        self.in_channels = in_channels
        self.norm = FUNCTIONS.get('strop.build_norm_layer')(norm_cfg, in_channels)[1]

    def forward_train(self, feature: torch.Tensor) -> torch.Tensor:
        """Return the normalised feature, of the same shape."""
        shape = check_tensor(feature, self).shape
        axes = next((axes for ending, axes in (('2d', 4), ('3d', 5)) if type(self.norm).__name__.endswith(ending)), None)
        # Norms without a dimension in their name take the channels second, but layer norms last.
        if axes is not None or self.in_channels not in shape[1:]:
            check_channels(feature, self.in_channels, self, 'in_channels', axes or 4)
        return self.norm(feature)


@cache
def torch_functions() -> dict[str, Callable[..., torch.Tensor]]:
    """Return the public functions of `torch.nn.functional` that compute something new from a tensor.

    Functions that work in place are left out: they would change what student or teacher still need.

    >>> 'interpolate' in torch_functions(), 'relu_' in torch_functions()
    (True, False)
    """
    homes = ('torch', 'torch.nn.functional', 'torch._C', 'torch._C._nn')
    machinery = ('assert_int_or_pair', 'handle_torch_function', 'has_torch_function', 'boolean_dispatch')
    return {
        name: function
        for name, function in vars(F).items()
        if callable(function)
        and not inspect.isclass(function)
        and not name.startswith(('_', 'has_torch_function'))
        and not name.endswith('_')
        and name not in machinery
        and (getattr(function, '__module__', None) or 'torch') in (*homes, 'torch._jit_internal')
    }


@cache
def torch_modules() -> dict[str, type[nn.Module]]:
    """Return the public module classes of `torch.nn`.

    >>> 'AdaptiveAvgPool2d' in torch_modules(), 'Parameter' in torch_modules()
    (True, False)
    """
    return {
        name: found
        for name, found in vars(nn).items()
        if inspect.isclass(found) and issubclass(found, nn.Module) and not name.startswith('_') and found is not nn.Module
    }


def _checked_args(name: str, args: Mapping[str, Any] | None, kind: str) -> dict[str, Any]:
    if args is not None and not isinstance(args, Mapping):
        raise ConfigError(f'{kind} must be a dict of keyword arguments of {name}; got {args!r}.')
    given = dict(args or {})
    if given.get('inplace'):
        raise ConfigError(
            f'{kind} of {name} has inplace=True, which would change what the model has recorded and still needs. Leave it out.'
        )
    return given


@MODELS.register_module()
class TorchFunctionalConnector(BaseConnector):
    """A function of `torch.nn.functional`: `function(feature, **func_args)`.

    Args:
        function_name: Its name, for example 'interpolate' or 'adaptive_avg_pool2d'.
        func_args: Its further arguments.
        init_cfg: MMEngine's initialization config.

    Raises:
        ConfigError: If there is no public function of this name (the message names near matches), it does not take these
            arguments, or it would work in place.

    >>> half = TorchFunctionalConnector('interpolate', dict(scale_factor=0.5))
    >>> half(torch.rand(1, 3, 8, 6)).shape
    torch.Size([1, 3, 4, 3])
    """

    def __init__(
        self,
        function_name: str | None = None,
        func_args: Mapping[str, Any] | None = None,
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if function_name not in torch_functions():
            raise ConfigError(
                f'function_name must be a public function of torch.nn.functional; got {function_name!r}.'
                f'{near(function_name, torch_functions())}'
            )
        self.function_name = str(function_name)
        self.func_args = _checked_args(self.function_name, func_args, 'func_args')
        self._check_signature()

    def _check_signature(self) -> None:
        try:
            signature = inspect.signature(torch_functions()[self.function_name])
        except (TypeError, ValueError):
            return  # a builtin says what is wrong when it is called
        try:
            signature.bind(torch.empty(0), **self.func_args)
        except TypeError as error:
            raise ConfigError(
                f'func_args={self.func_args!r} does not fit {self.function_name}{signature}: {error}. The feature is the first '
                'argument, func_args has the others.'
            ) from error

    def forward_train(self, feature: torch.Tensor) -> torch.Tensor:
        """Return the function of the feature."""
        try:
            return torch_functions()[self.function_name](feature, **self.func_args)
        except TypeError as error:
            raise ConfigError(f'{self.function_name} cannot be called with func_args={self.func_args!r}: {error}') from error

    def extra_repr(self) -> str:
        """Return the call as text."""
        return f'{self.function_name}(feature, **{self.func_args})'


@MODELS.register_module()
class TorchNNConnector(BaseConnector):
    """A module of `torch.nn`.

    Args:
        module_name: The name of its class, for example 'AdaptiveAvgPool2d'.
        module_args: The arguments of its class.
        init_cfg: MMEngine's initialization config.

    Raises:
        ConfigError: If there is no public module of this name (the message names near matches), it does not take these
            arguments, or it would work in place.

    >>> TorchNNConnector('AvgPool2d', dict(kernel_size=2))(torch.rand(1, 3, 8, 8)).shape
    torch.Size([1, 3, 4, 4])
    """

    def __init__(
        self,
        module_name: str | None = None,
        module_args: Mapping[str, Any] | None = None,
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if module_name not in torch_modules():
            raise ConfigError(
                f'module_name must be a public module class of torch.nn; got {module_name!r}.'
                f'{near(module_name, torch_modules())} With a type of your own, build it as a BaseConnector.'
            )
        made = torch_modules()[str(module_name)]
        args = _checked_args(str(module_name), module_args, 'module_args')
        try:
            self.func = made(**args)
        except (TypeError, ValueError) as error:
            parameters = [name for name in inspect.signature(made).parameters if name not in ('args', 'kwargs')]
            raise ConfigError(
                f'module_args={args!r} does not fit {module_name}, which takes {listed(parameters, 20)}: {error}'
            ) from error

    def forward_train(self, feature: torch.Tensor) -> Any:
        """Return the module's output."""
        return self.func(feature)
