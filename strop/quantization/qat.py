"""Quantization-aware training: fake quantizers on the layers of any model, which stays what it is.

`prepare_qat` puts one on the weight and one on the input of each convolution and linear layer. Names of parameters, classes
and code of the model stay as they are: while a layer's forward runs, its weight is hidden by the quantized one. `convert`
takes the result apart again and gives layers with integer weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from strop.errors import ConfigError, DataError, listed, near
from strop.graph.forward import training_mode_kept
from strop.quantization.batches import Batches, taken_by
from strop.quantization.fake_quantize import FakeQuantizer
from strop.quantization.learned_step import LearnableFakeQuantize
from strop.quantization.patterns import matched, patterns_of
from strop.quantization.qconfig import QConfig

#: Names under which a layer holds its fake quantizers.
WEIGHT, INPUT = 'weight_fake_quant', 'input_fake_quant'


class _Hide:
    """Before a layer's forward: quantize its input, and hide its weight by the quantized one."""

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        weight = getattr(layer, WEIGHT, None)
        if weight is not None:
            # Elastic widths hide weights in the same place.
            shown = [layer.__dict__['weight']] if 'weight' in layer.__dict__ else []
            full = layer.weight
            layer.__dict__.setdefault('_hidden_weights', []).append(shown)
            layer.__dict__['weight'] = weight(full)
        quantizer = getattr(layer, INPUT, None)
        given = args[0] if args else kwargs.get('input')
        if quantizer is None or not isinstance(given, Tensor) or not given.is_floating_point():
            return None
        if args:
            return (quantizer(given), *args[1:]), kwargs
        return args, {**kwargs, 'input': quantizer(given)}


class _Show:
    """After a layer's forward, also where it failed: show the weight again."""

    def __call__(self, layer: nn.Module, args: Any, output: Any) -> None:
        hidden = layer.__dict__.get('_hidden_weights')
        if hidden:
            shown = hidden.pop()
            layer.__dict__.pop('weight', None)
            if shown:
                layer.__dict__['weight'] = shown[0]


def quantizable(model: nn.Module, ignored: str | Iterable[str] = ()) -> dict[str, nn.Module]:
    """Return name -> layer of the convolutions and linear layers, in the order in which the model holds them.

    Args:
        model: The model.
        ignored: Patterns (`fnmatch`) of names of layers, or of modules that hold some, to be left out.

    >>> list(quantizable(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(2, 2)), ignored=['2']))
    ['0']
    """
    patterns = patterns_of('ignored', ignored)
    found: dict[str, nn.Module] = {}
    # Attention reads the weight of its output layer without calling it.
    inner = {id(child) for module in model.modules() if isinstance(module, nn.MultiheadAttention) for child in module.modules()}
    for name, module in model.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear)) and id(module) not in inner and not matched(name, patterns):
            found[name] = module
    return found


def fake_quantizers(model: nn.Module) -> dict[str, FakeQuantizer]:
    """Return name -> fake quantizer of a prepared model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantizer)}


def prepare_qat(
    model: nn.Module,
    qconfig: str | QConfig = 'int8',
    *,
    overrides: Mapping[str, str | QConfig | None] | None = None,
    ignored: str | Iterable[str] = (),
    first_last: str | QConfig | None = 'auto',
    inplace: bool = False,
) -> nn.Module:
    """Put fake quantizers on the layers of a model, to train it with them.

    Batch norms stay apart: weights are quantized before them, and `convert` folds them exactly, since a factor for each
    channel goes into that channel's step.

    Args:
        model: A float model; or a prepared and calibrated one, whose steps are taken over where codes and channels agree.
        qconfig: A `QConfig`, or a name such as 'int8', 'lsq4' (see `QConfig.of`).
        overrides: Pattern (`fnmatch`, of a layer or of a module around it) -> other qconfig, or None to leave it in float. The
            first that matches counts.
        ignored: Patterns of layers left in float.
        first_last: What the first and the last layer (in the order in which the model holds them) take. 'auto': 8 bits of the
            same method where the others have fewer, as the paper of LSQ does; None: the same as the others.
        inplace: Prepare the model itself instead of a copy.

    Raises:
        ConfigError: If a pattern matches no layer, there is nothing to quantize, or a layer's weight is computed from other
            parameters.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    >>> prepared = prepare_qat(model, 'lsq4')
    >>> {name: quantizer.quant_max for name, quantizer in fake_quantizers(prepared).items() if 'weight' in name}
    {'0.weight_fake_quant': 127, '2.weight_fake_quant': 7, '4.weight_fake_quant': 127}
    >>> list(prepared.state_dict())[:2]
    ['0.weight', '0.bias']
    """
    chosen = QConfig.of(qconfig)
    overrides, ignored = dict(overrides or {}), patterns_of('ignored', ignored)
    every = quantizable(model)
    if not every:
        raise ConfigError(f'{type(model).__name__} has no convolution or linear layer to quantize.')
    for pattern in (*overrides, *ignored):
        if not any(matched(name, [pattern]) for name in every):
            raise ConfigError(f'No layer to quantize matches {pattern!r}.{near(pattern, every)} There are {listed(every, 4)}.')
    ends = _ends(chosen, qconfig, first_last)
    others = {pattern: None if other is None else QConfig.of(other) for pattern, other in overrides.items()}
    names = list(every)
    owns: dict[str, QConfig | None] = {}
    for name, layer in every.items():
        own: QConfig | None = ends if ends is not None and name in (names[0], names[-1]) else chosen
        found = matched(name, others)
        owns[name] = None if matched(name, ignored) else own if found is None else others[found]
        _check_weight(name, layer, quantized=owns[name] not in (None, QConfig()), copied=not inplace)
    if not inplace:
        model = copy.deepcopy(model)
        every = quantizable(model)
    plan = {name: {} if own is None else built_for(every[name], own) for name, own in owns.items()}
    if not any(plan.values()):
        raise ConfigError('Nothing is left to quantize: every layer is ignored, or has None in `overrides`.')
    for name, quantizers in plan.items():
        attach(every[name], quantizers)
    if not any(getattr(hook, 'hook', hook) is _check_forms for hook in model._load_state_dict_pre_hooks.values()):
        model.register_load_state_dict_pre_hook(_check_forms)
    return model


def _check_weight(name: str, layer: nn.Module, *, quantized: bool, copied: bool) -> None:
    """Refuse a layer whose weight is computed from others, and so cannot be hidden, or not even copied."""
    if is_parametrized(layer):
        if quantized:
            raise ConfigError(
                f'The weight of a quantized layer is a parameter, but {name!r} has parametrizations. Call '
                'torch.nn.utils.parametrize.remove_parametrizations on it first, or ignore the layer.'
            )
        return
    weight = layer.__dict__.get('weight')
    if layer._parameters.get('weight') is None and (
        quantized or (copied and isinstance(weight, Tensor) and not weight.is_leaf)
    ):
        raise ConfigError(
            f'The weight of {name!r} is no parameter, but computed from others before each forward. Call '
            'torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove on it first.'
        )


def _ends(chosen: QConfig, given: str | QConfig, first_last: str | QConfig | None) -> QConfig | None:
    if first_last is None or first_last != 'auto':
        return None if first_last is None else QConfig.of(first_last)
    if chosen.bits >= 8:
        return None
    if isinstance(given, str):
        return QConfig.of(given.rstrip('0123456789') + '8')
    sides = [None if spec is None else replace(spec, bits=8) for spec in (chosen.weight, chosen.input)]
    return QConfig(*sides)


def built_for(layer: nn.Module, qconfig: QConfig) -> dict[str, FakeQuantizer]:
    """Return the fake quantizers of one layer by name, with the steps of those that it has where they fit.

    Raises:
        ConfigError: If each channel of the input is to have a step.
    """
    axis = 1 if isinstance(layer, _ConvTransposeNd) else 0
    weight = layer.weight
    assert isinstance(weight, Tensor), 'layers that are quantized have one'
    found = {}
    for name, spec in ((WEIGHT, qconfig.weight), (INPUT, qconfig.input)):
        if spec is None:
            continue
        quantizer = spec.build(is_weight=name == WEIGHT, ch_axis=axis if name == WEIGHT else 1)
        if name == WEIGHT:
            quantizer.resize(weight)
        elif quantizer.is_per_channel:
            raise ConfigError(
                'The input of a layer has one step for the whole tensor, since integers whose steps differ cannot be summed '
                'over channels; but `input` of the qconfig has one for each channel. Set per_channel=False in its QuantSpec, '
                'or name an observer without PerChannel in `a_observer`.'
            )
        found[name] = quantizer.to(weight.device).train(layer.training)
        old = getattr(layer, name, None)
        if isinstance(old, FakeQuantizer) and bool(old.observed):
            _take_over(quantizer, old)
    return found


def attach(layer: nn.Module, quantizers: Mapping[str, FakeQuantizer]) -> None:
    """Put fake quantizers on one layer in the place of those that it had."""
    detach(layer)
    for name, quantizer in quantizers.items():
        layer.add_module(name, quantizer)
    if quantizers:
        layer.register_forward_pre_hook(_Hide(), with_kwargs=True)
        layer.register_forward_hook(_Show(), always_call=True)


def _take_over(new: FakeQuantizer, old: FakeQuantizer) -> None:
    """Begin with the steps of another quantizer of the same codes and channels."""
    if new.form[:3].tolist() != old.form[:3].tolist():
        return
    if type(new) is type(old) and torch.equal(new.form, old.form):
        new.load_state_dict(old.state_dict())
    elif hasattr(new, 'begin'):
        begin: Callable[..., None] = new.begin  # type: ignore[assignment]
        begin(*old.calculate_qparams())


def detach(layer: nn.Module) -> None:
    """Take the fake quantizers of one layer off."""
    for name in (WEIGHT, INPUT):
        layer._modules.pop(name, None)
    for hooks, options, kind in (
        (layer._forward_pre_hooks, layer._forward_pre_hooks_with_kwargs, _Hide),
        (layer._forward_hooks, layer._forward_hooks_always_called, _Show),
    ):
        for key in [key for key, hook in hooks.items() if isinstance(hook, kind)]:
            del hooks[key]
            options.pop(key, None)


_FORM = ('lowest code', 'highest code', 'step for each channel', 'symmetric', 'kind')


def _check_forms(model: nn.Module, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
    """Refuse a checkpoint of another qconfig before anything of it is loaded."""
    # A state dict has a module that is shared under all its names.
    own = {
        f'{prefix}{name}': module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, FakeQuantizer)
    }
    stored = {
        name.removesuffix('.form'): value
        for name, value in state_dict.items()
        if name.startswith(prefix) and name.endswith(('_fake_quant.form',))
    }
    if not stored:
        return  # weights alone, of a float model
    different = []
    for name in dict.fromkeys((*own, *stored)):
        if name not in own or name not in stored:
            different.append(f'{name} is only in {"the checkpoint" if name in stored else "the model"}')
            continue
        pairs = zip(_FORM, stored[name].tolist(), own[name].form.tolist(), strict=True)
        parts = [f'{what} {theirs}, not {ours}' for what, theirs, ours in pairs if theirs != ours]
        if parts:
            different.append(f'{name} has {", ".join(parts)}')
    if different:
        shown = '; '.join(different[:3])
        raise ConfigError(
            f'The checkpoint is of another qconfig: {len(different)} of {len(own)} quantizers differ. {shown}. '
            'Build the model with the qconfig that it was trained with, or load its weights alone into the float model.'
        )


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """Let the fake quantizers of a model look at data in any mode, and pass it on unrounded.

    So what later layers see is what the float model gives them.

    >>> model = prepare_qat(nn.Sequential(nn.Linear(2, 2)), 'lsq8').eval()
    >>> with calibrating(model):
    ...     _ = model(torch.ones(1, 2))
    >>> model(torch.ones(1, 2)).shape
    torch.Size([1, 2])
    """
    quantizers = list(fake_quantizers(model).values())
    for quantizer in quantizers:
        quantizer.calibrating = True
    try:
        with float_again(model):
            yield
    finally:
        for quantizer in quantizers:
            quantizer.calibrating = False


@torch.no_grad()
def calibrate(model: nn.Module, data: Any, steps: int | None = None) -> nn.Module:
    """Find the steps of a prepared model from data alone: post-training quantization.

    Observers that have seen other data take these into account, too; learned steps that have begun stay as they are.

    Args:
        model: What `prepare_qat` returned; it is changed and returned.
        data: Batches, as `Batches.of` takes them.
        steps: Use at most this many of them.

    Raises:
        ConfigError: If the model was not prepared, or all its quantizers of inputs keep their steps: switched off, or begun.
        DataError: If there are no batches, they are not finite, the model does not take them, or a layer was not reached.

    >>> model = prepare_qat(nn.Sequential(nn.Linear(2, 2)), 'lsq8')
    >>> out = calibrate(model, [torch.rand(4, 2)])(torch.rand(3, 2))
    """
    if not fake_quantizers(model):
        raise ConfigError('This model has no fake quantizers: call prepare_qat first.')
    device = next((parameter.device for parameter in model.parameters()), None)
    batches = Batches.of(data, steps, device)
    with training_mode_kept(model), calibrating(model):
        model.eval()
        check_looks(model)
        for index, (args, kwargs) in enumerate(batches):
            with taken_by(type(model).__name__, (args, kwargs), index):
                model(*args, **kwargs)
    check_calibrated(model)
    return model


def check_looks(model: nn.Module) -> None:
    """Refuse a calibration that would change nothing."""
    quantizers = list(fake_quantizers(model).values())
    of_data = [quantizer for quantizer in quantizers if not quantizer.is_weight] or quantizers
    if any(quantizer.observes() for quantizer in of_data):
        return
    if not all(quantizer.observer_enabled for quantizer in of_data):
        raise ConfigError(
            'Calibration would change nothing, since the observers are switched off, as by `disable_observer_begin` of a '
            'schedule: call `enable_observer()` of each of fake_quantizers(model) first.'
        )
    raise ConfigError(
        'Calibration would change nothing: learned steps begin with the first data, and all of these have begun. Train the '
        'model on, or begin again with other data by preparing the float model.'
    )


def check_calibrated(model: nn.Module) -> None:
    """Check that all fake quantizers have seen data.

    Raises:
        DataError: If one has not.
    """
    unseen = [name for name, quantizer in fake_quantizers(model).items() if not quantizer.observed]
    if unseen:
        raise DataError(
            f'Calibration did not reach {listed(unseen, 3)}: the model does not call these layers, or gives them empty '
            'tensors only. Give them to `ignored`.'
        )


def freeze_batch_norms(model: nn.Module) -> None:
    """Keep the statistics of batch norms from now on, until `train()` is called again."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in groups for an optimizer, learned steps and offsets without weight decay.

    Decay would pull a step to zero, and with it the range that its codes cover: no simpler model, but a clipped one.

    Args:
        model: What `prepare_qat` returned, or a module that has it inside.
        weight_decay: For all other parameters, the levels of PACT among them, whose paper regularizes them so.

    >>> model = prepare_qat(nn.Sequential(nn.Linear(2, 2)), 'lsq8')
    >>> optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), lr=0.1)
    >>> [(len(group['params']), group['weight_decay']) for group in optimizer.param_groups]
    [(2, 0.0001), (2, 0.0)]
    """
    learned = [quantizer for quantizer in fake_quantizers(model).values() if isinstance(quantizer, LearnableFakeQuantize)]
    own = {id(parameter) for quantizer in learned for parameter in quantizer.parameters()}
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for parameter in model.parameters():
        groups[id(parameter) in own].append(parameter)
    return [
        {'params': parameters, 'weight_decay': 0.0 if free else weight_decay}
        for free, parameters in groups.items()
        if parameters
    ]


def apply_schedule(
    model: nn.Module,
    epoch: int,
    *,
    fake_quant_begin: int = -1,
    disable_observer_begin: int = -1,
    freeze_bn_begin: int = -1,
) -> None:
    """Set the switches of a prepared model for an epoch (or a step); call it after `model.train()`.

    Each argument names the first epoch, counted from 1, from which something holds; -1 is for never, or from the start for
    rounding. It is a function of the epoch alone, so that a resumed run does the same.

    Args:
        model: What `prepare_qat` returned, or a module that has it inside.
        epoch: The epoch, from 1.
        fake_quant_begin: Rounding begins; before it, observers look at the float model.
        disable_observer_begin: Observed steps stay as they are. Learned ones go on learning.
        freeze_bn_begin: Statistics of batch norms stay as they are.

    >>> model = prepare_qat(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), 'lsq8').train()
    >>> apply_schedule(model, 3, freeze_bn_begin=3)
    >>> model[1].training
    False
    """
    for quantizer in fake_quantizers(model).values():
        quantizer.enable_fake_quant(fake_quant_begin < 0 or epoch >= fake_quant_begin)
        quantizer.enable_observer(not 0 <= disable_observer_begin <= epoch)
    if 0 <= freeze_bn_begin <= epoch:
        freeze_batch_norms(model)


@contextmanager
def float_again(model: nn.Module) -> Iterator[None]:
    """Let a prepared model compute in float with its trained weights.

    >>> model = prepare_qat(nn.Sequential(nn.Linear(2, 2)), 'lsq8')
    >>> with float_again(model):
    ...     _ = model.eval()(torch.ones(1, 2))
    """
    before = [(quantizer, quantizer.fake_quant_enabled.clone()) for quantizer in fake_quantizers(model).values()]
    for quantizer, _ in before:
        quantizer.disable_fake_quant()
    try:
        yield
    finally:
        for quantizer, enabled in before:
            quantizer.fake_quant_enabled.copy_(enabled)
