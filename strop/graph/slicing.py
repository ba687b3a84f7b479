"""The one slicing function: which positions of which tensors stay, and which attributes have to follow."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from strop.errors import GraphError
from strop.graph.sizes import Cell, read_attribute, write_attribute
from strop.graph.terms import Atom, Term, atoms, kept

if TYPE_CHECKING:
    from strop.graph.units import ChannelGraph


class Change(NamedTuple):
    """An int that a module keeps and that follows a length.

    Args:
        module: Path of the module.
        keys: What leads from the module to the int.
        old: Its value.
        new: The value that it gets.
    """

    module: str
    keys: tuple[Any, ...]
    old: int
    new: int

    def __str__(self) -> str:
        keys = '.'.join(f'<{key.name}>' if isinstance(key, Cell) else str(key) for key in self.keys)
        return f'{self.module}.{keys}: {self.old} -> {self.new}'


class Slicing:
    """What has to be cut and mended for some units to keep some of their indices.

    Made by `ChannelGraph.slicing` and `ChannelGraph.prefix`.

    Args:
        graph: The graph.
        indices: The kept indices of each unit that is cut.
        cut: The same by atom, with the axes that no parameter has.
        attributes: The ints of modules that follow.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        indices: Mapping[str, torch.Tensor],
        cut: Mapping[Atom, torch.Tensor],
        attributes: tuple[Change, ...],
    ) -> None:
        self.graph = graph
        self.indices = dict(indices)
        self.cut = dict(cut)
        self.attributes = attributes
        self._positions: dict[Any, torch.Tensor | int | None] = {}
        self._whole = {atom for atom, index in self.cut.items() if _is_whole(index, atom.size)}

    @property
    def lengths(self) -> dict[str, int]:
        """The length of every unit."""
        return {name: len(self.indices[name]) if name in self.indices else unit.size for name, unit in self.graph.units.items()}

    @property
    def touched(self) -> list[str]:
        """Names of the tensors that change."""
        return [name for name, terms in self.graph.tensors.items() if any(self._moves(term) for term in terms)]

    def _moves(self, term: Term) -> bool:
        return any(atom in self.cut and atom not in self._whole for atom in atoms(term))

    def positions(self, term: Term) -> torch.Tensor | int | None:
        """Return what stays of an axis: None for all, a number for the first ones, or the positions."""
        key = id(term)
        if key not in self._positions:
            found: torch.Tensor | int | None = None
            if self._moves(term):
                found = kept(term, self.cut)
                if _is_whole(found, len(found)):
                    found = len(found)
            self._positions[key] = found
        return self._positions[key]

    def take(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the slice of a parameter or buffer: a view where the first positions stay, a copy elsewhere.

        Differentiable. For a tensor that does not change it is the tensor itself.

        Raises:
            GraphError: If the tensor has not the shape of the traced one.
        """
        if tuple(tensor.shape) != self.graph.shapes[name]:
            raise GraphError(
                f'{name!r} had shape {self.graph.shapes[name]} when it was traced and has {tuple(tensor.shape)} now.'
            )
        for dim, term in enumerate(self.graph.tensors[name]):
            found = self.positions(term)
            if found is None:
                continue
            if isinstance(found, int):
                tensor = tensor.narrow(dim, 0, found)
            else:
                tensor = tensor.index_select(dim, found.to(tensor.device))
        return tensor

    def mask(self, name: str) -> list[torch.Tensor | None]:
        """Return for each axis of a tensor which positions go, as booleans; None where all stay."""
        gone: list[torch.Tensor | None] = []
        for term in self.graph.tensors[name]:
            found = self.positions(term)
            if found is None:
                gone.append(None)
            else:
                stay = torch.zeros(term.size, dtype=torch.bool, device='cpu')
                stay[torch.arange(found, device='cpu') if isinstance(found, int) else found] = True
                gone.append(~stay)
        return gone

    # -- models ----------------------------------------------------------------------------

    def apply(self, model: nn.Module, *, optimizer: torch.optim.Optimizer | None = None, inplace: bool = False) -> nn.Module:
        """Return `model` cut by this slicing: plain modules with smaller parameters.

        Args:
            model: The model that was traced, or another of the same structure.
            optimizer: An optimizer of `model`; the state that it keeps for each parameter is cut along.
            inplace: Whether to change `model` itself; its parameters stay the same objects.

        Raises:
            GraphError: If the model's tensors are not those of the graph, or it is inside DistributedDataParallel, or an
                optimizer is given without `inplace` or keeps state of another shape than the parameters'. Nothing is
                changed then.
        """
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise GraphError('A model inside DistributedDataParallel cannot be cut. Cut it first (model.module), then wrap it.')
        model = getattr(model, '_orig_mod', model)
        if optimizer is not None and not inplace:
            raise GraphError('An optimizer belongs to the given model: cut that one (inplace=True), or make a new optimizer.')
        tensors = self._tensors_of(model)
        self._check(tensors)
        if optimizer is not None:
            self._check_state(tensors, optimizer)
        new = {name: _like(self.take(name, tensor.detach()), tensor) for name, tensor in tensors.items()}
        if inplace:
            cut: set[int] = set()
            for name in self.touched:
                tensor = tensors[name]
                if id(tensor) not in cut:
                    _cut_in_place(tensor, new[name], lambda value, name=name: self.take(name, value), optimizer)
                    cut.add(id(tensor))
            slim = model
        else:
            memo: dict[int, Any] = {}
            for name, tensor in tensors.items():
                if id(tensor) not in memo:
                    value = new[name].clone(memory_format=torch.preserve_format)
                    if isinstance(tensor, nn.Parameter):
                        value = nn.Parameter(value, requires_grad=tensor.requires_grad)
                    memo[id(tensor)] = value
            slim = copy.deepcopy(model, memo)
        self.mend(slim)
        return slim

    def mend(self, model: nn.Module) -> None:
        """Set the ints of the modules of `model` that follow the lengths, given that its tensors are cut."""
        modules = dict(model.named_modules())
        for change in self.attributes:
            module = modules[change.module]
            if read_attribute(module, change.keys) != change.new:
                write_attribute(module, change.keys, change.new)
        paths = dict.fromkeys(_layer_of(name) for name in self.touched)
        for path in paths:
            if path in modules:
                mend_layer(modules[path])

    @contextmanager
    def mended(self, model: nn.Module) -> Iterator[None]:
        """Set the ints that follow the lengths for a while."""
        modules = dict(model.named_modules())
        before = [(modules[change.module], change.keys[0]) for change in self.attributes]
        values = [module.__dict__[key] for module, key in before]
        try:
            for change in self.attributes:
                write_attribute(modules[change.module], change.keys, change.new)
            yield
        finally:
            for (module, key), value in zip(before[::-1], values[::-1]):
                module.__dict__[key] = value

    def _tensors_of(self, model: nn.Module) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        found.update(model.named_parameters(remove_duplicate=False))
        found.update(model.named_buffers(remove_duplicate=False))
        modules = dict(model.named_modules())
        for name, path in self.graph.kept_attributes.items():
            found[name] = read_attribute(modules[path.module], path.keys)
        return {name: tensor for name, tensor in found.items() if name in self.graph.tensors}

    def _check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, shape in self.graph.shapes.items():
            if name not in tensors:
                raise GraphError(f'The model has no {name!r}, which the traced one had.')
            if tuple(tensors[name].shape) != shape:
                raise GraphError(
                    f'{name!r} had shape {shape} when the model was traced and has {tuple(tensors[name].shape)} now. '
                    'Trace the model again.'
                )

    def _check_state(self, tensors: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        for name in self.touched:
            tensor = tensors[name]
            for key, value in (optimizer.state.get(tensor) or {}).items():
                if isinstance(value, torch.Tensor) and value.numel() > 1 and value.shape != tensor.shape:
                    raise GraphError(
                        f'{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for {name!r} of shape '
                        f'{tuple(tensor.shape)}: it cannot be cut along. Cut the model, then make a new optimizer.'
                    )

    def to_dict(self) -> dict[str, Any]:
        """Return the kept indices and the mended attributes as plain data."""
        return {
            'units': {name: index.tolist() for name, index in self.indices.items()},
            'attributes': [
                {'module': change.module, 'keys': [_key(key) for key in change.keys], 'old': change.old, 'new': change.new}
                for change in self.attributes
            ],
        }


def _key(key: Any) -> Any:
    return {'cell': key.name} if isinstance(key, Cell) else key


def _layer_of(name: str) -> str:
    """Return the path of the layer that has a tensor; a parametrized one has it two modules further down.

    >>> _layer_of('a.conv.weight'), _layer_of('a.conv.parametrizations.weight.original0')
    ('a.conv', 'a.conv')
    """
    return name.partition('.parametrizations.')[0] if '.parametrizations.' in name else name.rpartition('.')[0]


def _like(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Return a slice in the memory format of what it was taken from."""
    if new is old or new.shape == old.shape:
        return new
    for dims, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if old.dim() == dims and old.is_contiguous(memory_format=layout) and not old.is_contiguous():
            return new.contiguous(memory_format=layout)
    return new.contiguous()


def _is_whole(index: torch.Tensor, size: int) -> bool:
    return len(index) == size and bool((index == torch.arange(size, device=index.device)).all())


def _cut_in_place(tensor: torch.Tensor, new: torch.Tensor, take: Any, optimizer: torch.optim.Optimizer | None) -> None:
    old = tensor.shape
    state = optimizer.state.get(tensor) if optimizer is not None else None
    cut = {
        key: take(value).clone()
        for key, value in (state or {}).items()
        if isinstance(value, torch.Tensor) and value.shape == old
    }
    grad = None if tensor.grad is None else take(tensor.grad).clone()
    put_data(tensor, new.clone() if new.data_ptr() == tensor.data_ptr() else new)  # what was cut off is freed
    tensor.grad = grad
    if state:
        state.update(cut)


def put_data(tensor: torch.Tensor, data: torch.Tensor) -> None:
    """Give a tensor other memory of perhaps another shape; its gradient is gone.

    A loss that is still alive holds what accumulates the gradient, and that remembers the shape. It is made anew where the
    kind of number changes.

    >>> weight = nn.Parameter(torch.zeros(3))
    >>> loss = weight.sum()
    >>> put_data(weight, torch.ones(2))
    >>> weight.sum().backward()
    >>> weight.grad
    tensor([1., 1.])
    """
    tensor.grad = None
    if tensor.is_floating_point() and data.shape != tensor.shape:
        other = torch.float32 if tensor.dtype == torch.float64 else torch.float64
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = data


def mend_layer(module: Any) -> None:
    """Set the sizes that layers of torch.nn keep to those of their parameters.

    >>> layer = nn.Linear(4, 3)
    >>> layer.weight.data = layer.weight.data[:2]
    >>> mend_layer(layer)
    >>> layer
    Linear(in_features=4, out_features=2, bias=True)
    """
    kind = type(module)
    layer: Any = module  # the checkers know some of these attributes under other types
    weight = getattr(layer, 'weight', None)
    if issubclass(kind, nn.modules.conv._ConvNd) and isinstance(weight, torch.Tensor):
        sizes = weight.shape[1] * layer.groups, weight.shape[0]
        if layer.transposed:
            sizes = weight.shape[0], weight.shape[1] * layer.groups
        layer.in_channels, layer.out_channels = sizes
    elif issubclass(kind, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif issubclass(kind, (nn.Embedding, nn.EmbeddingBag)):
        layer.num_embeddings, layer.embedding_dim = layer.weight.shape
    elif issubclass(kind, nn.modules.batchnorm._NormBase):
        for tensor in (layer.weight, layer.running_mean):
            if isinstance(tensor, torch.Tensor):
                layer.num_features = tensor.shape[0]
    elif issubclass(kind, (nn.LayerNorm, getattr(nn, 'RMSNorm', ()))):
        if isinstance(weight, torch.Tensor):
            layer.normalized_shape = tuple(weight.shape)
    elif issubclass(kind, nn.GroupNorm):
        if isinstance(weight, torch.Tensor):
            layer.num_channels = weight.shape[0]
    elif issubclass(kind, nn.PReLU):
        layer.num_parameters = layer.weight.shape[0]
    elif issubclass(kind, nn.RNNBase):
        gates = {'LSTM': 4, 'GRU': 3}.get(layer.mode, 1)
        layer.hidden_size = layer.weight_ih_l0.shape[0] // gates
        layer.input_size = layer.weight_ih_l0.shape[1]
        if layer.proj_size:
            layer.proj_size = layer.weight_hh_l0.shape[1]
    elif issubclass(kind, nn.RNNCellBase):
        layer.hidden_size, layer.input_size = layer.weight_hh.shape[1], layer.weight_ih.shape[1]
    elif issubclass(kind, nn.MultiheadAttention):
        layer.head_dim = layer.embed_dim // layer.num_heads
    elif issubclass(kind, nn.Bilinear):
        layer.out_features, layer.in1_features, layer.in2_features = layer.weight.shape
