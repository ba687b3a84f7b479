"""What quantization-aware training gives: layers that hold integers, with the steps that were learned or observed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from strop.errors import ConfigError, VerificationError, listed
from strop.graph.forward import evaluated
from strop.quantization.fake_quantize import FakeQuantizer
from strop.quantization.flow import pt2e
from strop.quantization.qat import INPUT, WEIGHT, detach, fake_quantizers


def _called(layer: nn.Module, args: Any) -> None:
    """Do nothing, as a hook: where there is none, transformer layers of torch compute without calling the layers in them."""


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose weight is integers, and whose input is rounded as in training.

    It computes `layer(dequantize(quantize(x)), weight=(codes - zero) * step)` with the quantize and dequantize operators of
    exported graphs, which backends replace, together with the layer, by integer kernels. Sizes and settings (`in_features`,
    `stride`, ...) are those of the layer under the same names, for code that reads them.

    Args:
        layer: A layer with fake quantizers that have seen data.

    Raises:
        MissingDependencyError: If torchao, which brings the operators, is absent.

    >>> from strop.quantization import calibrate, prepare_qat
    >>> prepared = calibrate(prepare_qat(nn.Sequential(nn.Linear(4, 2)), 'int8'), [torch.rand(8, 4)]).eval()
    >>> layer, x = QuantizedLayer(prepared[0]), torch.rand(3, 4)
    >>> layer.codes.dtype, torch.equal(layer(x), prepared(x))
    (torch.int8, True)
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    input_scale: Tensor
    input_zero_point: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        pt2e()
        self.axis = 1 if isinstance(layer, _ConvTransposeNd) else 0
        weight: FakeQuantizer | None = getattr(layer, WEIGHT, None)
        entry: FakeQuantizer | None = getattr(layer, INPUT, None)
        bare = copy.deepcopy(layer)
        detach(bare)
        self.weight_range = self.input_range = (0, 0)
        self.has_codes, self.rounds_input = weight is not None, entry is not None
        if weight is not None:
            full = layer.weight
            assert isinstance(full, Tensor), 'layers that are quantized have one'
            scale, zero_point = weight.calculate_qparams()
            number = full.shape[self.axis]
            self.register_buffer('codes', weight.codes(full.detach()))
            # A step for each channel, also where they are all the same: what kernels of backends take.
            self.register_buffer('scale', scale.float().expand(number).clone())
            self.register_buffer('zero_point', zero_point.to(torch.int64).expand(number).clone())
            self.weight_range = (weight.quant_min, weight.quant_max)
            del bare._parameters['weight']
        if entry is not None:
            scale, zero_point = entry.calculate_qparams()
            self.register_buffer('input_scale', scale.float().reshape(1).clone())
            self.register_buffer('input_zero_point', zero_point.to(torch.int64).reshape(1).clone())
            self.input_range = (entry.quant_min, entry.quant_max)
            self.input_dtype = torch.uint8 if entry.dtype in (torch.uint8, torch.quint8) else torch.int8
        self.layer = bare
        for name in getattr(bare, '__constants__', ()):
            setattr(self, name, getattr(bare, name))
        self.register_forward_pre_hook(_called)

    @property
    def weight(self) -> Tensor:
        """The weight that the codes stand for, in float."""
        if not self.has_codes:
            return self.layer.weight  # type: ignore[return-value]
        lowest, highest = self.weight_range
        return torch.ops.quantized_decomposed.dequantize_per_channel(
            self.codes, self.scale, self.zero_point, self.axis, lowest, highest, self.codes.dtype
        )

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer."""
        return self.layer.bias  # type: ignore[return-value]

    def reduce_range(self) -> bool:
        """Round the weight to 7 bits if two products of it could exceed 16 bits, and return whether that was so."""
        if not (self.has_codes and self.rounds_input) or self.codes.dtype != torch.int8 or bool(self.zero_point.any()):
            return False
        largest = max(map(abs, self.input_range))
        if 2 * largest * int(self.codes.int().abs().max()) < 2**15:
            return False
        self.codes = (self.codes.float() * (63 / 127)).round().to(torch.int8)
        self.scale = self.scale * (127 / 63)
        self.weight_range = (-64, 63)
        return True

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute the layer."""
        x = input  # by that name layers of torch take it as a keyword
        if self.rounds_input:
            grid = (self.input_scale, self.input_zero_point, *self.input_range, self.input_dtype)
            half = None if x.dtype == torch.float32 else x.dtype
            codes = torch.ops.quantized_decomposed.quantize_per_tensor.tensor(x if half is None else x.float(), *grid)
            x = torch.ops.quantized_decomposed.dequantize_per_tensor.tensor(codes, *grid)
            x = x if half is None else x.to(half)
        if not self.has_codes:
            return self.layer(x, *args, **kwargs)
        weight = self.weight if x.dtype == torch.float32 else self.weight.to(x.dtype)
        return torch.func.functional_call(self.layer, {'weight': weight}, (x, *args), kwargs)

    def fold(self, norm: _BatchNorm) -> bool:
        """Take a batch norm's factors and shifts into the steps and the bias, exactly; tell whether that is possible."""
        variance, mean = norm.running_var, norm.running_mean
        if not self.has_codes or variance is None or mean is None or bool(self.zero_point.any()):
            return False
        factor = (variance + norm.eps).rsqrt() * (norm.weight if norm.weight is not None else 1.0)
        shape = [-1 if axis == self.axis else 1 for axis in range(self.codes.dim())]
        if factor.numel() != self.scale.numel():
            return False  # a transposed convolution in groups
        negative = (factor < 0).reshape(shape)
        if bool((negative & (self.codes == torch.iinfo(torch.int8).min)).any()):
            return False  # its negative has no code
        with torch.no_grad():
            self.codes.copy_(torch.where(negative, -self.codes, self.codes))
            # In double precision, so that the product is rounded once.
            self.scale.copy_(self.scale.double() * factor.double().abs())
            bias = self.layer.bias
            shift = (bias if isinstance(bias, Tensor) else torch.zeros_like(mean)) - mean
            folded = shift * factor + (norm.bias if norm.bias is not None else 0.0)
        self.weight_range = (min(self.weight_range[0], -self.weight_range[1]), max(self.weight_range[1], -self.weight_range[0]))
        self.weight_range = (max(self.weight_range[0], -128), min(self.weight_range[1], 127))
        self.layer.bias = nn.Parameter(folded.detach().clone())  # type: ignore[assignment]
        return True

    def extra_repr(self) -> str:
        """Return what the module's repr shows."""
        parts = [f'weight codes {self.weight_range[0]}..{self.weight_range[1]}'] if self.has_codes else []
        return ', '.join(parts + ([f'input codes {self.input_range[0]}..{self.input_range[1]}'] if self.rounds_input else []))


def convert(model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """Return a model with integer weights from one that was trained (or calibrated) with fake quantizers; that one stays as it
    is.

    Without `example_inputs` it gives the same outputs as the fake-quantized model in `eval` mode. With them, batch norms that
    directly follow a convolution are found by one forward and folded into its steps: the codes stay the same, so only the
    rounding of floats differs. The outputs for `example_inputs` are compared before the model is returned.

    Args:
        model: What `prepare_qat` returned, trained or calibrated.
        example_inputs: A tensor, or a tuple or mapping of arguments, of one forward; folds batch norms.

    Raises:
        ConfigError: If the model was not prepared, or a layer has seen no data; the message has its name.
        VerificationError: If folding changed the outputs.

    >>> from strop.quantization import calibrate, prepare_qat
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    >>> x = torch.rand(4, 1, 8, 8)
    >>> prepared = calibrate(prepare_qat(model, 'int8'), [x]).eval()
    >>> integers = convert(prepared, x)
    >>> print(integers[1], integers[0].codes.dtype, torch.allclose(integers(x), prepared(x), atol=1e-5))
    Identity() torch.int8 True
    """
    quantizers = fake_quantizers(model)
    if not quantizers:
        raise ConfigError('This model has no fake quantizers: call prepare_qat first.')
    unseen = [name for name, quantizer in quantizers.items() if not quantizer.observed]
    if unseen:
        raise ConfigError(
            f'{listed(unseen, 3)} has seen no data, so it has no steps. Train or calibrate the model first; a layer that the '
            'model never calls is left out by `ignored`.'
        )
    # The memo of the copy puts each in the place of its layer under all names that this has.
    memo: dict[int, Any] = {
        id(layer): QuantizedLayer(layer) for layer in model.modules() if WEIGHT in layer._modules or INPUT in layer._modules
    }
    if id(model) in memo:
        return evaluated(memo[id(model)])  # type: ignore[no-any-return]
    twin = evaluated(copy.deepcopy(model, memo))
    twin._load_state_dict_pre_hooks.clear()
    if example_inputs is not None:
        _fold_batch_norms(twin, example_inputs)
    return evaluated(twin)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, Sequence) and not isinstance(inputs, Tensor) else model(inputs)


@torch.no_grad()
def _fold_batch_norms(model: nn.Module, inputs: Any) -> None:
    """Fold the batch norms that take exactly what one quantized layer gives, each layer and norm being called once."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    outputs: list[tuple[Tensor, QuantizedLayer]] = []
    inlets: list[tuple[Tensor, _BatchNorm]] = []

    def enter(norm: _BatchNorm, args: Any, kwargs: Any) -> None:
        inlets.append((args[0] if args else kwargs.get('input'), norm))

    handles = [layer.register_forward_hook(lambda layer, args, out: outputs.append((out, layer))) for layer in layers]
    handles += [
        norm.register_forward_pre_hook(enter, with_kwargs=True) for norm in model.modules() if isinstance(norm, _BatchNorm)
    ]
    rounds = [layer.rounds_input for layer in layers]
    try:
        # Without rounding, since a code that tips over would hide or feign a difference.
        for layer in layers:
            layer.rounds_input = False
        before = _call(model, inputs)
        for handle in handles:
            handle.remove()
        used = [id(module) for _, module in (*outputs, *inlets)]
        for tensor, norm in inlets:
            givers = [layer for out, layer in outputs if out is tensor]
            if len(givers) != 1 or used.count(id(givers[0])) != 1 or used.count(id(norm)) != 1:
                continue
            kept = copy.deepcopy(givers[0])
            if givers[0].fold(norm):
                folded = nn.Identity()
                _replace(model, norm, folded)
                if not _close(before, _call(model, inputs)):
                    # Something else reads what the convolution gives.
                    _replace(model, folded, norm)
                    _replace(model, givers[0], kept)
                    layers[layers.index(givers[0])] = kept
        if not _close(before, _call(model, inputs)):
            raise VerificationError('Folding batch norms changed the outputs. Convert without `example_inputs`.')
    finally:
        for handle in handles:
            handle.remove()
        for layer, rounded in zip(layers, rounds, strict=True):
            layer.rounds_input = rounded


def _close(first: Any, second: Any) -> bool:
    pairs = zip(tree_leaves(first), tree_leaves(second), strict=True)
    return all(
        bool((a - b).abs().max() <= 1e-3 * a.abs().max().clamp_min(1e-6))
        for a, b in pairs
        if isinstance(a, Tensor) and a.is_floating_point()
    )
