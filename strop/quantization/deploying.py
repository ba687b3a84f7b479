"""A model that was trained with fake quantizers, brought to a runtime with the steps that it has."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from strop.errors import ConfigError, listed
from strop.graph.forward import evaluated
from strop.quantization.backends import Backend, backends
from strop.quantization.backends import backend as backend_of
from strop.quantization.batches import Batches, Call, taken_by
from strop.quantization.fake_quantize import FakeQuantizer
from strop.quantization.flow import capture, check_copyable, switchable
from strop.quantization.layers import is_dequantize, is_quantize, name_layers, records, rename_layers
from strop.quantization.parameters import attribute
from strop.quantization.qat import INPUT, WEIGHT, detach, fake_quantizers
from strop.quantization.qat_convert import QuantizedLayer, convert
from strop.quantization.quantizing import Quantized, float_graph, other_ops
from strop.quantization.record import QuantizationRecord
from strop.quantization.reference import layer_sqnr, output_sqnr
from strop.quantization.scheme import Scheme

_WHOLE = {torch.int8: (-128, 127), torch.uint8: (0, 255)}
_DECOMPOSED = torch.ops.quantized_decomposed
#: Backends that write graphs of their own quantizers only.
_OWN_GRAPHS = ('executorch',)


def deploy(
    model: nn.Module,
    data: Any,
    *,
    backend: str | Backend = 'inductor',
    batches: int | None = 4,
    reduce_range: bool | None = None,
    check: bool = True,
) -> Quantized:
    """Bring a model that was trained (or calibrated) with fake quantizers to a runtime, and check it there.

    Nothing is measured: codes and steps are those of the fake quantizers (but see `reduce_range`), batch norms are folded
    exactly. What no fake quantizer stands on stays float. Runtimes compute with 8 bits; fewer are kept as codes of a smaller
    range.

    Args:
        model: What `prepare_qat` gave, trained or calibrated; it stays as it is.
        data: Batches, as `Batches.of` takes them, to trace the model and to compare on.
        backend: `'inductor'`, `'onnxruntime'` or `'openvino'`, which compute with the U8 inputs that named qconfigs have;
            `'tensorrt'` for S8 inputs around zero (those of `TensorRTQuantizer`).
        batches: Read at most this many batches.
        reduce_range: Round weights of 8 bits to 7 where they meet inputs of 8 bits. Processors without VNNI add pairs of such
            products in 16 bits, which they exceed. None does so where this processor is one; False keeps the codes, for files
            that run elsewhere.
        check: Write the file, run it in its runtime, and compare.

    Raises:
        ConfigError: If the model has no fake quantizers, or the backend computes with other integers.
        DataError: If the model does not take the data.
        ExportError: If the runtime computes something else.

    >>> from strop.quantization import calibrate, prepare_qat
    >>> prepared = calibrate(prepare_qat(nn.Sequential(nn.Linear(4, 2)), 'lsq8'), [torch.rand(8, 4)])
    >>> result = deploy(prepared, [torch.rand(8, 4)], backend='openvino', reduce_range=False, check=False)
    >>> [(layer.name, layer.weight_bits, layer.input_bits) for layer in result.record.layers]
    [('0', 8, 8)]
    """
    entry = backend_of(backend)
    if not fake_quantizers(model):
        raise ConfigError('This model has no fake quantizers: call prepare_qat and train, or quantize it by strop.quantize.')
    _check_codes(model, entry)
    reduces = Scheme(reduce_range=reduce_range).on(entry).reduce_range
    entry.require()
    used = Batches.of(data, batches, torch.device('cpu'))
    check_copyable(model)
    twin = evaluated(copy.deepcopy(model).cpu())
    example = used.example(twin)
    with torch.no_grad(), taken_by(type(model).__name__, example):
        twin(*example[0], **example[1])
    integers = convert(twin, _inputs(example))
    bits = {
        name: (_bits(twin.get_submodule(name), WEIGHT), _bits(twin.get_submodule(name), INPUT))
        for name, module in integers.named_modules(remove_duplicate=False)
        if isinstance(module, QuantizedLayer)
    }
    notes = []
    if reduces:
        layers = {name: integers.get_submodule(name) for name in bits}
        changed = {layer for layer in set(layers.values()) if layer.reduce_range()}  # type: ignore[operator]
        reduced = [name for name, layer in layers.items() if layer in changed]  # a layer may have several names
        bits |= {name: (7, bits[name][1]) for name in reduced}
        notes += [f'The weights of {len(reduced)} layers were rounded from 8 bits to 7.'] if reduced else []
    graph = capture(integers, example)
    name_layers(graph)
    rename_layers(graph, {f'{name}.layer': name for name in bits})
    literal_steps(graph)
    converted = switchable(graph)
    reference = float_graph(capture(_without(twin), example))
    record = QuantizationRecord(
        backend=entry.name,
        layers=records(converted, {}, layer_sqnr(reference, converted, used), bits),
        scheme={'steps': 'learned or observed in training'},
        samples=used.samples,
        sqnr_db=output_sqnr(reference, converted, used),
        other_ops=other_ops(converted),
        notes=tuple(notes),
    )
    result = Quantized(converted, record, entry, example, reference, used)
    if check:
        with tempfile.TemporaryDirectory() as folder:
            result.check = result._written(Path(folder) / f'model{entry.suffix}')
    return result


def _check_codes(model: nn.Module, entry: Backend) -> None:
    """Refuse a backend that computes with other integers than those of the fake quantizers."""
    quantizers = fake_quantizers(model)
    unfit = _unfit(quantizers, entry)
    if not unfit and entry.name not in _OWN_GRAPHS:
        return
    name, codes = next(iter(unfit.items()), ('', ''))
    why = f'computes with {entry.takes}, but {name!r} has {codes}' if unfit else 'takes graphs of its own quantizer only'
    fitting = [each.name for each in backends().values() if each.name not in _OWN_GRAPHS and not _unfit(quantizers, each)]
    raise ConfigError(
        f'{entry.name} {why}. {f"Take {listed(fitting)}, or quantize" if fitting else "Quantize"} the float model for it by '
        'strop.quantize.'
    )


def _unfit(quantizers: Mapping[str, FakeQuantizer], entry: Backend) -> dict[str, str]:
    """Return name -> codes of the quantizers that a backend does not compute with."""
    inputs, weights = (part.split()[0] for part in entry.takes.split(',')[:2])
    found = {}
    for name, quantizer in quantizers.items():
        codes = 'U8' if quantizer.dtype in (torch.uint8, torch.quint8) else 'S8'
        if codes != (weights if quantizer.is_weight else inputs):
            found[name] = f'{codes} codes'
        elif entry.symmetric == (True,) and bool(quantizer.calculate_qparams()[1].any()):
            found[name] = 'a zero point that is not 0'
    return found


def _bits(layer: nn.Module, side: str) -> int:
    quantizer = getattr(layer, side, None)
    return 32 if quantizer is None else int(quantizer.quant_max - quantizer.quant_min).bit_length()


def _inputs(example: Call) -> Any:
    args, kwargs = example
    if args and kwargs:
        raise ConfigError('A model that takes positional and keyword arguments is deployed with all of them as keywords.')
    return kwargs or args


def _without(model: nn.Module) -> nn.Module:
    """Return a copy without fake quantizers."""
    plain = copy.deepcopy(model)
    for module in list(plain.modules()):
        if WEIGHT in module._modules or INPUT in module._modules:
            detach(module)
    return plain


def literal_steps(graph: GraphModule) -> None:
    """Write the steps of inputs into the graph as numbers, and smaller ranges as a clamp; kernels of backends look for that.

    >>> from strop.quantization import calibrate, prepare_qat
    >>> prepared = calibrate(prepare_qat(nn.Sequential(nn.Linear(4, 2)), 'lsq4', first_last=None), [torch.rand(8, 4)])
    >>> graph = capture(convert(prepared), ((torch.rand(8, 4),), {}))
    >>> literal_steps(graph)
    >>> [str(node.target).split('.')[1] for node in graph.graph.nodes if node.op == 'call_function'][:3]
    ['clamp', 'quantize_per_tensor', 'dequantize_per_tensor']
    """
    forms: Mapping[Any, Any] = {
        _DECOMPOSED.quantize_per_tensor.tensor: _DECOMPOSED.quantize_per_tensor.default,
        _DECOMPOSED.dequantize_per_tensor.tensor: _DECOMPOSED.dequantize_per_tensor.default,
    }
    for node in list(graph.graph.nodes):
        if node.target in forms:
            value, scale, zero, lowest, highest, dtype = node.args[:6]
            step, middle = float(attribute(graph, scale)), int(attribute(graph, zero))
            whole = _WHOLE[dtype]
            if is_quantize(node) and (lowest, highest) != whole:
                with graph.graph.inserting_before(node):
                    ends = ((lowest - middle) * step, (highest - middle) * step)
                    clamped = graph.graph.call_function(torch.ops.aten.clamp.default, (value, *ends))
                    clamped.meta = dict(value.meta)
                value = clamped
            node.target = forms[node.target]
            node.args = (value, step, middle, *whole, dtype)
        elif is_dequantize(node):
            _widen(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _widen(node: Node) -> None:
    """Let a dequantize op take every code of its type: those that are there are within the smaller range."""
    *rest, lowest, highest, dtype = node.args
    ends: Any = _WHOLE.get(dtype, (lowest, highest))  # type: ignore[call-overload, arg-type]
    node.args = (*rest, *ends, dtype)
