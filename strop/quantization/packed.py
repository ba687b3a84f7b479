"""Linear layers whose weights stay packed in 2 to 8 bits, and the files that they are kept in."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from strop.errors import ConfigError, UnsafeFileError, listed, near
from strop.files import atomic_path
from strop.quantization.grouping import Grid, Rounded, dequantized

FORMAT = 'strop.weight_only/1'
# Weights that are unpacked at once in a forward: 2 MB of floats.
_CHUNK = 1 << 19
_LAYOUT = ('bits', 'group size', 'inputs', 'outputs', 'symmetric', 'transposed')


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return codes packed without gaps: `(rows, n)` uint8 -> `(rows, ceil(n / 8) * bits)` uint8.

    The bits of a code are cut into parts of 4, 2 and 1 (3 bits are 2 + 1), so that every part fills bytes evenly.

    >>> pack(torch.tensor([[1, 2, 3, 0, 0, 0, 0, 0]], dtype=torch.uint8), 2)
    tensor([[13,  2]], dtype=torch.uint8)
    >>> unpack(pack(torch.arange(8, dtype=torch.uint8)[None], 3), 3, 8)
    tensor([[0, 1, 2, 3, 4, 5, 6, 7]], dtype=torch.uint8)
    """
    if codes.shape[1] % 8:
        codes = F.pad(codes, (0, -codes.shape[1] % 8))
    parts, shift = [], 0
    for width in _parts(bits):
        part = (codes >> shift) & (2**width - 1)
        shift += width
        # Byte i holds the codes i, i + m, i + 2m, ...: unpacking then joins whole runs instead of interleaving.
        runs = part.chunk(8 // width, dim=1)
        byte = runs[0].clone()
        for place, run in enumerate(runs[1:], 1):
            byte |= run << (place * width)
        parts.append(byte)
    return torch.cat(parts, dim=1)


def unpack(packed: Tensor, bits: int, number: int) -> Tensor:
    """Return the first `number` codes of each row that `pack` wrote, uint8."""
    eighth = packed.shape[1] // bits
    codes, begin, shift = None, 0, 0
    for width in _parts(bits):
        byte = packed[:, begin : begin + eighth * width]
        begin += eighth * width
        mask = 2**width - 1
        runs = [byte & mask if place == 0 else (byte >> (place * width)) & mask for place in range(8 // width)]
        part = torch.cat(runs, dim=1) if len(runs) > 1 else runs[0]
        codes = part if codes is None else codes | (part << shift)
        shift += width
    if codes is None:  # pragma: no cover - every number of bits has parts
        raise ConfigError(f'{bits} bits have no parts.')
    return codes[:, :number]


def _parts(bits: int) -> list[int]:
    return [width for width in (8, 4, 2, 1) if bits & width]


class PackedLinear(nn.Module):
    """A linear layer that keeps its weight packed, and unpacks it in each forward.

    It stands for an `nn.Linear`, or for transformers' `Conv1D` (`transposed`). `weight` gives the rounded weight in the shape
    of the original layer, computed anew at each access, for code that reads it.

    The state dict holds plain tensors: `codes` (uint8), `scales`, `zeros` (packed, too; none if symmetric), `bias`, and
    `layout`, the configuration, so that a checkpoint of another one is refused.

    Args:
        rounded: The rounded weight, `(outputs, inputs)`.
        bias: The bias, or None.
        dtype: The dtype that the weight is unpacked to.
        transposed: Whether the original layer keeps its weight as `(inputs, outputs)`.

    >>> from strop.quantization.grouping import round_weight
    >>> weight = torch.tensor([[-1.0, 0.0, 1.0, 2.0]])
    >>> layer = PackedLinear(round_weight(weight, Grid(2)), None, torch.float32)
    >>> layer(torch.ones(1, 4)), layer.codes.numel()
    (tensor([[2.]]), 2)
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    layout: Tensor
    bias: nn.Parameter | None

    def __init__(self, rounded: Rounded, bias: Tensor | None, dtype: torch.dtype, transposed: bool = False) -> None:
        super().__init__()
        self.grid = rounded.grid
        self.out_features, self.in_features = rounded.codes.shape
        self.transposed = transposed
        self.dtype = dtype
        self.register_buffer('codes', pack(rounded.codes, self.grid.bits))
        self.register_buffer('scales', rounded.scales.clone())
        self.register_buffer('zeros', None if rounded.zeros is None else pack(rounded.zeros, self.grid.bits))
        self.register_buffer('layout', self._layout_on(rounded.codes.device))
        own = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.register_parameter('bias', own)

    @property
    def weight(self) -> Tensor:
        """The rounded weight, in the shape of the original layer's."""
        weight = self.rounded_weight()
        return weight.t() if self.transposed else weight

    def rounded_weight(self, rows: slice = slice(None)) -> Tensor:
        """Return the rounded weight, `(out_features, in_features)`, or some of its rows."""
        rounded = self.rounded(rows)
        return dequantized(rounded.codes, rounded.scales, rounded.zeros, self.grid, self.dtype)

    def rounded(self, rows: slice = slice(None)) -> Rounded:
        """Return codes, scales and zeros unpacked, of all outputs or of some."""
        bits = self.grid.bits
        zeros = None if self.zeros is None else unpack(self.zeros[rows], bits, self.grid.groups(self.in_features))
        return Rounded(self.grid, unpack(self.codes[rows], bits, self.in_features), self.scales[rows], zeros)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs @ weight.T + bias`, inputs `(..., in_features)`."""
        # A part of the rows at a time stays in the cache; compiled code needs no such help.
        rows = max(1, _CHUNK // self.in_features)
        if rows >= self.out_features or torch.compiler.is_compiling():
            return self._product(inputs, slice(None))
        parts = [self._product(inputs, slice(begin, begin + rows)) for begin in range(0, self.out_features, rows)]
        return torch.cat(parts, dim=-1)

    def _product(self, inputs: Tensor, rows: slice) -> Tensor:
        weight: Tensor = self.rounded_weight(rows)
        bias: Tensor | None = None if self.bias is None else self.bias[rows]
        if inputs.dtype != weight.dtype and not torch.is_autocast_enabled(inputs.device.type):
            weight, bias = weight.to(inputs.dtype), None if bias is None else bias.to(inputs.dtype)
        return F.linear(inputs, weight, bias)

    def extra_repr(self) -> str:
        """Return what the layer is, for its printed form."""
        return f'in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {self.grid}'

    def _layout_on(self, device: torch.device) -> Tensor:
        return torch.tensor(self._layout(), dtype=torch.int32, device=device)

    def _layout(self) -> list[int]:
        size = self.grid.group_size or 0
        return [self.grid.bits, size, self.in_features, self.out_features, int(bool(self.grid.symmetric)), int(self.transposed)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        # `model.half()` or `.to(torch.bfloat16)` changes what weights are unpacked to; the scales keep their own precision.
        scales = self.scales
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=scales.device)).dtype
        # Those of the meta device have no numbers that could be brought along.
        self._buffers['scales'] = self.scales.to(scales.dtype) if scales.is_meta else scales.to(self.scales.device)
        self._buffers['layout'] = self._layout_on(self.codes.device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = state_dict.get(f'{prefix}layout')
        if isinstance(given, Tensor) and given.tolist() != self._layout():
            error_msgs.append(f'{prefix.rstrip(".")} was packed in another way: {_difference(self._layout(), given.tolist())}.')
            return
        scales = state_dict.get(f'{prefix}scales')
        if isinstance(scales, Tensor) and scales.is_floating_point():  # copied into half precision they would be others
            self._buffers['scales'] = self.scales.to(scales.dtype)
        super()._load_from_state_dict(
            dict(state_dict), prefix, dict(local_metadata), strict, missing_keys, unexpected_keys, error_msgs
        )


def packed_layers(model: nn.Module) -> dict[str, PackedLinear]:
    """Return the packed layers of a model by their paths."""
    return {path: module for path, module in model.named_modules() if isinstance(module, PackedLinear)}


def unpacked(model: nn.Module) -> nn.Module:
    """Return a copy with plain `nn.Linear` layers of the rounded weights: more memory, the speed of the float model.

    >>> from strop.quantization import quantize_weights
    >>> packed, _ = quantize_weights(nn.Sequential(nn.Linear(8, 2)), bits=4)
    >>> unpacked(packed)
    Sequential(
      (0): Linear(in_features=8, out_features=2, bias=True)
    )
    """
    memo: dict[int, Any] = {}
    for layer in packed_layers(model).values():
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device='meta')
        plain.weight = nn.Parameter(layer.rounded_weight().contiguous())
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.detach().clone())
        memo[id(layer)] = plain.train(layer.training)
    return copy.deepcopy(model, memo) if id(model) not in memo else memo[id(model)]  # type: ignore[no-any-return]


def save_packed(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the state of a packed model to a safetensors file; tensors that several names share are written once.

    Raises:
        ConfigError: If the model has no packed layers.
    """
    if not packed_layers(model):
        raise ConfigError('This model has no packed layers. `quantize_weights(model, ...)` makes one.')
    first: dict[tuple[int, tuple[int, ...], torch.dtype], str] = {}
    tensors, metadata = {}, {'format': 'pt', 'strop': FORMAT}
    for name, value in model.state_dict().items():
        key = (value.data_ptr(), tuple(value.shape), value.dtype)
        if value.numel() and key in first:
            metadata[f'same:{name}'] = first[key]
            continue
        first[key] = name
        tensors[name] = value.detach().to('cpu').contiguous()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_packed(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Return a copy of `model` with the packed layers and the weights of a file that `save_packed` wrote.

    Args:
        model: A model of the original's class and sizes, float or packed in the same way; it stays as it is. Its own weights
            don't matter.
        path: The file. Nothing in it is unpickled.

    Raises:
        ConfigError: If the file belongs to another model, or the model is packed in another way.
        UnsafeFileError: If it is no safetensors file.

    >>> import tempfile
    >>> from strop.quantization import quantize_weights
    >>> packed, _ = quantize_weights(nn.Sequential(nn.Linear(16, 4)), bits=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_packed(packed, f'{folder}/packed.safetensors')
    ...     again = load_packed(nn.Sequential(nn.Linear(16, 4)), f'{folder}/packed.safetensors')
    >>> bool((again[0].weight == packed[0].weight).all())
    True
    """
    state = _read(path)
    layers = dict(model.named_modules(remove_duplicate=False))
    memo: dict[int, Any] = {}
    found = [name.removesuffix('layout').rstrip('.') for name in state if name.split('.')[-1] == 'layout']
    for layer_path in found:
        layer = layers.get(layer_path)
        if layer is None:
            raise ConfigError(
                f'{path} holds a packed layer {layer_path!r}, which this model does not have.{near(layer_path, layers)} '
                'Give a model of the class and the sizes of the one that was packed.'
            )
        if id(layer) not in memo:
            memo[id(layer)] = _empty(layer, layer_path, state, path)
    for layer_path in packed_layers(model):
        if layer_path not in found:
            raise ConfigError(f'{layer_path!r} is packed in this model, but not in {path}.')
    result = memo[id(model)] if id(model) in memo else copy.deepcopy(model, memo)
    wanted = result.state_dict()
    missing, extra = [name for name in wanted if name not in state], [name for name in state if name not in wanted]
    if missing or extra:
        said = [f'it lacks {listed(missing)}'] if missing else []
        said += [f'it also has {listed(extra)}'] if extra else []
        raise ConfigError(f'{path} belongs to another model: {"; ".join(said)}.')
    wrong = [name for name in wanted if wanted[name].shape != state[name].shape]
    if wrong:
        name = wrong[0]
        raise ConfigError(
            f'{path} belongs to a model of other sizes: {name!r} is {tuple(state[name].shape)} there and '
            f'{tuple(wanted[name].shape)} here ({len(wrong)} tensors differ).'
        )
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in wanted.items():
        first = seen.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name) if tensor.numel() else name
        if not torch.equal(state[first], state[name]):
            raise ConfigError(
                f'{path} belongs to another model: {first!r} and {name!r} are one tensor in this model, and two in the file.'
            )
    result.load_state_dict(state)
    return result  # type: ignore[no-any-return]


# -- internals ----------------------------------------------------------------------------------------------


def _read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework='pt') as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise UnsafeFileError(f'{path} is not a safetensors file: {error}. Nothing else is read here.') from error
    if metadata.get('strop', FORMAT) != FORMAT:
        raise ConfigError(f'{path} is of the format {metadata["strop"]!r}, but this version reads {FORMAT!r}.')
    for name, original in metadata.items():
        if name.startswith('same:'):
            state[name.removeprefix('same:')] = state[original]
    if not any(name.split('.')[-1] == 'layout' for name in state):
        raise ConfigError(f'{path} holds no packed layers. Was it written by `save_packed`?')
    return state


def _empty(layer: nn.Module, path: str, state: Mapping[str, Tensor], file: Any) -> PackedLinear:
    prefix = f'{path}.' if path else ''
    given = state[f'{prefix}layout'].tolist()
    if len(given) != len(_LAYOUT):
        raise ConfigError(f'The layout of {path!r} in {file} is malformed: {given}.')
    bits, size, inputs, outputs, symmetric, transposed = given
    if isinstance(layer, PackedLinear):
        if layer._layout() != given:
            raise ConfigError(f'{path!r} was packed in another way: {_difference(layer._layout(), given)}.')
        return copy.deepcopy(layer)
    shape = tuple(getattr(getattr(layer, 'weight', None), 'shape', ()))
    if shape != ((inputs, outputs) if transposed else (outputs, inputs)):
        raise ConfigError(
            f'{path!r} is a packed linear layer of {inputs} inputs and {outputs} outputs in {file}, but a '
            f'{type(layer).__name__} with a weight of {shape} in this model.'
        )
    grid = Grid(bits, size or None, bool(symmetric))
    groups = grid.groups(inputs)
    scales = state.get(f'{prefix}scales')
    bias = state.get(f'{prefix}bias')
    if (getattr(layer, 'bias', None) is None) != (bias is None):
        raise ConfigError(f'{path!r} has {"a" if bias is not None else "no"} bias in {file}, unlike in this model.')
    rounded = Rounded(
        grid,
        torch.zeros(outputs, inputs, dtype=torch.uint8),
        torch.zeros(outputs, groups, dtype=torch.float32 if scales is None else scales.dtype),
        None if symmetric else torch.zeros(outputs, groups, dtype=torch.uint8),
    )
    weight: Any = layer.weight
    bias = None if bias is None else bias.to(layer.bias.dtype)  # type: ignore[arg-type]
    return PackedLinear(rounded, bias, weight.dtype, bool(transposed)).to(weight.device).train(layer.training)


def _difference(here: list[int], there: list[int]) -> str:
    if len(here) != len(there):
        return f'layout {there} there, {here} here'
    return ', '.join(f'{name} {b} there and {a} here' for name, a, b in zip(_LAYOUT, here, there) if a != b)
