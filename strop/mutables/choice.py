"""Choices between modules (`LayerChoice`) and between inputs (`InputChoice`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast
from warnings import warn

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from strop.errors import BindingError, ComponentTypeError, SpaceError, SubnetError, UnknownKeyError, listed, near
from strop.mutables.domain import AnyOf, Domain, KOf, Label, OneOf
from strop.mutables.mutable import Decision, Mutable

Reduction = Literal['sum', 'mean', 'concat', 'none']
REDUCTIONS = ('sum', 'mean', 'concat', 'none')


def check_reduction(reduction: str) -> Reduction:
    """Return `reduction` if it is one of `REDUCTIONS`, else raise a `SpaceError`."""
    if reduction not in REDUCTIONS:
        raise SpaceError(
            f'`reduction` must be one of {listed(REDUCTIONS)}, but got {reduction!r}.{near(reduction, REDUCTIONS)}'
        )
    return cast(Reduction, reduction)


def reduce_outputs(outputs: list[Any], reduction: Reduction) -> Any:
    """Combine the outputs of the chosen alternatives.

    Nothing chosen gives None (`[]` for 'none'); one output is returned as it is; several are summed, averaged
    (divided by how many were chosen, weighted or not), concatenated along axis 1, or returned as a list.

    >>> reduce_outputs([torch.tensor([1.0]), torch.tensor([3.0])], 'mean')
    tensor([2.])
    """
    if reduction == 'none':
        return outputs
    if not outputs:
        return None
    if len(outputs) == 1:
        return outputs[0]
    if reduction == 'concat':
        return torch.cat(outputs, dim=1)
    total = outputs[0]
    for output in outputs[1:]:
        total = total + output
    return total / len(outputs) if reduction == 'mean' else total


def run_chosen(decision: Decision, alternatives: Sequence[Callable[[], Any]], reduction: Reduction) -> Any:
    """Compute the alternatives that `decision` takes, apply their weights, and combine them.

    Alternatives of weight zero are not computed.
    """
    if not isinstance(decision, torch.Tensor) and decision and isinstance(decision[0], float):
        weighted = [(i, float(weight)) for i, weight in enumerate(decision) if weight]
        return reduce_outputs(
            [alternatives[i]() if weight == 1 else alternatives[i]() * weight for i, weight in weighted], reduction
        )
    if isinstance(decision, torch.Tensor):
        weights = decision.detach().tolist()
        # A weight of one that nothing learns from costs no multiplication.
        plain = [weight == 1 and not decision.requires_grad for weight in weights]
        return reduce_outputs(
            [alternatives[i]() if plain[i] else alternatives[i]() * decision[i] for i, weight in enumerate(weights) if weight],
            reduction,
        )
    return reduce_outputs([alternatives[int(i)]() for i in decision], reduction)


def _size(parameter: nn.Parameter) -> int:
    # Lazy modules do not know their shapes before the first forward.
    return 0 if is_lazy(parameter) else parameter.numel()


class LayerChoice(Mutable):
    """One of several modules, applied to the same input.

    Args:
        op_candidates: Modules, in a list (named '0', '1', ...) or an ordered mapping name -> module. They
            become direct children, so their weights are `choice.<name>.*` in the state dict.
        reduction: How several chosen (or weighted) outputs are combined: 'sum', 'mean', 'concat' (axis 1), 'none'.
        return_mask: Return `(output, mask)` instead of the output.
        key: Name of the decision; the path in the model by default.

    Raises:
        ComponentTypeError: If the candidates are neither a list nor a mapping of modules.
        SpaceError: If there are none, or a name cannot be one.

    Once made, candidates are read and replaced by number or name (`choice[-1]`, `choice['conv'] = ...`), read by slice,
    and deleted by any of these; the others keep their names.

    >>> choice = LayerChoice([nn.Identity(), nn.ReLU()], key='act')
    >>> choice.decide(1)
    >>> choice(torch.tensor([-1.0]))
    tensor([0.])
    """

    def __init__(
        self,
        op_candidates: Sequence[nn.Module] | Mapping[str, nn.Module],
        reduction: str = 'sum',
        return_mask: bool = False,
        key: str | None = None,
    ) -> None:
        super().__init__(key)
        self.reduction = check_reduction(reduction)
        self.return_mask = return_mask
        self.names: list[str] = []
        named: list[tuple[str, nn.Module]]
        self._listed = isinstance(op_candidates, (list, tuple, nn.ModuleList))
        if isinstance(op_candidates, (Mapping, nn.ModuleDict)):
            named = list(op_candidates.items())
        elif isinstance(op_candidates, (list, tuple, nn.ModuleList)):
            named = [(str(index), module) for index, module in enumerate(op_candidates)]
        else:
            raise ComponentTypeError(
                f'`op_candidates` must be a list or an OrderedDict of modules, but got {type(op_candidates).__name__}.'
            )
        if not named:
            raise SpaceError('A LayerChoice needs at least one candidate, but got none.')
        for name, module in named:
            self._add(name, module)

    def _add(self, name: str, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            raise ComponentTypeError(f'Candidate {name!r} must be an nn.Module, but got {type(module).__name__}.')
        # Looked up on the class, because asking an instance would run its properties.
        if (
            not isinstance(name, str)
            or name in ('', *self.names)
            or name[0] == '_'
            or '.' in name
            or name in self.__dict__
            or hasattr(type(self), name)
        ):
            raise SpaceError(
                f'{name!r} cannot be the name of a candidate. Names must be non-empty strings without dots or a leading '
                f'underscore that are no attribute of a {type(self).__name__}; give a list to have the candidates numbered.'
            )
        self.add_module(name, module)
        self.names.append(name)

    def make_domain(self) -> Domain:
        """Build the domain: names, or the numbers of a list; the candidates' parameters are its costs.

        Names of a mapping that are other numbers, such as sizes of kernels, stay names: a number means a position.
        """
        labels: tuple[Label, ...] = tuple(self.names)
        if self._listed or self.names == [str(index) for index in range(len(self.names))]:
            labels = tuple(int(name) for name in self.names)
        costs = tuple(float(sum(map(_size, module.parameters()))) for module in self.candidates)
        return OneOf(labels, costs, mixable=True)

    @property
    def choices(self) -> Any:
        """The candidates, under the name that NNI had given up already."""
        warn('`choices` of a LayerChoice is deprecated: iterate over it, or take `candidates`.', DeprecationWarning, 2)
        return self.candidates

    @property
    def candidates(self) -> list[nn.Module]:
        """The candidate modules, in order."""
        return [self._modules[name] for name in self.names]  # type: ignore[misc]

    @property
    def length(self) -> int:
        """Number of candidates."""
        return len(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.candidates)

    def __getitem__(self, index: int | str | slice) -> Any:
        if isinstance(index, slice):
            return self.candidates[index]
        return self._modules[self._name(index)]

    def __setitem__(self, index: int | str, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            raise ComponentTypeError(f'A candidate must be an nn.Module, but got {type(module).__name__}.')
        self._modules[self._name(index)] = module
        self._domain = None

    def __delitem__(self, index: int | str | slice) -> None:
        self._remove(self.names[index] if isinstance(index, slice) else [self._name(index)])

    def _remove(self, names: Sequence[str]) -> None:
        if self.owner is not None:
            raise BindingError(
                f'Candidates of {self.key!r} cannot be deleted while a mutator is bound to the model: its search space would '
                'change under it. Delete them before binding, or call mutator.release() first.'
            )
        if len(names) == len(self.names):
            raise SpaceError('The last candidate of a LayerChoice cannot be deleted.')
        for name in names:
            del self._modules[name]
            self.names.remove(name)
        self._domain = None
        self._decision = None

    def _name(self, index: int | str) -> str:
        if isinstance(index, str):
            if index not in self.names:
                raise UnknownKeyError(
                    f'There is no candidate {index!r}; there are {listed(self.names)}.{near(index, self.names)}'
                )
            return index
        if not isinstance(index, int):
            raise ComponentTypeError(f'A candidate is addressed by number or name, but got {index!r}.')
        if not -len(self) <= index < len(self):
            raise IndexError(f'Index {index} is out of range for {len(self)} candidates.')
        return self.names[index]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the chosen candidates to the inputs and combine their outputs."""
        return self.returned(self.compute(*args, **kwargs))

    def compute(self, *args: Any, **kwargs: Any) -> Any:
        """Return the combined output, never with the mask."""
        decision = self.decided()
        if len(decision) == 1 and isinstance(decision, tuple) and self.reduction != 'none':
            only = decision[0]
            if isinstance(only, int):
                return self.run_candidate(only, *args, **kwargs)
        calls = [lambda index=index: self.run_candidate(index, *args, **kwargs) for index in range(len(self.names))]
        return run_chosen(decision, calls, self.reduction)

    def run_candidate(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """Apply one candidate to what the choice was called with."""
        return self._modules[self.names[index]](*args, **kwargs)  # type: ignore[misc]

    def returned(self, output: Any, mask: torch.Tensor | None = None) -> Any:
        """Return `output`, or `(output, mask)` where `return_mask` asks for it."""
        if not self.return_mask:
            return output
        return output, self.mask() if mask is None else mask

    def init_weights(self) -> None:
        """Initialize the candidates that know how (MMEngine modules)."""
        for module in self.candidates:
            if callable(initialize := getattr(module, 'init_weights', None)):
                initialize()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # MMRazor's checkpoints keep candidates one level deeper, in `_candidates`.
        old = f'{prefix}_candidates.'
        for name in [name for name in state_dict if name.startswith(old)]:
            state_dict[prefix + name[len(old) :]] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class InputChoice(Mutable):
    """Some of several tensors.

    Args:
        n_candidates: Number of inputs; may be left out if `choose_from` is given.
        choose_from: For each input, the key of the mutable that makes it, or `InputChoice.NO_KEY`.
        n_chosen: How many are chosen; None means any number, none included.
        reduction: How several chosen tensors are combined: 'sum', 'mean', 'concat' (axis 1), 'none'.
        return_mask: Return `(output, mask)` instead of the output.
        key: Name of the decision; the path in the model by default.

    Raises:
        ComponentTypeError: If a number is no integer, or `choose_from` no list of keys.
        SpaceError: If the numbers do not fit each other.

    >>> choice = InputChoice(n_candidates=3, n_chosen=2, key='skip')
    >>> choice.decide([0, 2])
    >>> choice([torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([4.0])])
    tensor([5.])
    """

    NO_KEY = ''
    #: Whether the inputs came as a mapping the last time; None before any.
    named: bool | None = None

    def __init__(
        self,
        n_candidates: int | None = None,
        choose_from: Sequence[str] | None = None,
        n_chosen: int | None = None,
        reduction: str = 'sum',
        return_mask: bool = False,
        key: str | None = None,
    ) -> None:
        super().__init__(key)
        if n_candidates is None and choose_from is None:
            raise SpaceError('An InputChoice needs `n_candidates` or `choose_from`, but got neither.')
        for name, number in (('n_candidates', n_candidates), ('n_chosen', n_chosen)):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
                raise ComponentTypeError(f'`{name}` must be an integer or None, but got {number!r}.')
        if isinstance(choose_from, str) or not all(isinstance(source, str) for source in choose_from or ()):
            raise ComponentTypeError(f'`choose_from` must be a list of keys, but got {choose_from!r}.')
        sources = [self.NO_KEY] * cast(int, n_candidates) if choose_from is None else list(choose_from)
        if not sources:
            raise SpaceError('An InputChoice needs at least one candidate, but got none.')
        if n_candidates is not None and n_candidates != len(sources):
            raise SpaceError(f'`n_candidates` is {n_candidates}, but `choose_from` has {len(sources)} entries.')
        if n_chosen is not None and not 0 <= n_chosen <= len(sources):
            raise SpaceError(f'`n_chosen` must be in 0..{len(sources)} or None, but got {n_chosen}.')
        self.choose_from = sources
        self.n_candidates = len(sources)
        self.n_chosen = n_chosen
        self.reduction = check_reduction(reduction)
        self.return_mask = return_mask

    def make_domain(self) -> Domain:
        """Build the domain; inputs are named by `choose_from` where its entries are distinct keys."""
        labels: tuple[Label, ...] = tuple(range(self.n_candidates))
        if self.NO_KEY not in self.choose_from and len(set(self.choose_from)) == self.n_candidates:
            labels = tuple(self.choose_from)
        if self.n_chosen is None:
            return AnyOf(labels)
        return OneOf(labels, inputs=True) if self.n_chosen == 1 else KOf(labels, k=self.n_chosen)

    @property
    def length(self) -> int:
        """Number of candidate inputs."""
        return self.n_candidates

    def __len__(self) -> int:
        return self.n_candidates

    def __bool__(self) -> bool:
        return True

    def inputs(self, optional_inputs: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
        """Return the candidate inputs in order, from a list or a mapping by `choose_from`'s keys."""
        named = isinstance(optional_inputs, Mapping)
        if named is not self.named:
            self.named = named
        if isinstance(optional_inputs, Mapping):
            if self.NO_KEY in self.choose_from:
                raise SubnetError(
                    'Inputs can be given as a mapping only where every entry of `choose_from` is a key; this InputChoice has '
                    f'{self.choose_from}. Give a list of {self.n_candidates} tensors.'
                )
            absent = [source for source in self.choose_from if source not in optional_inputs]
            if absent:
                raise UnknownKeyError(f'The inputs lack {listed(absent)}; they have {listed(optional_inputs)}.')
            return [optional_inputs[source] for source in self.choose_from]
        if not isinstance(optional_inputs, (list, tuple)):
            raise ComponentTypeError(
                f'Inputs must be a list or a mapping of tensors, but got {type(optional_inputs).__name__}.'
            )
        if len(optional_inputs) != self.n_candidates:
            raise SubnetError(f'This InputChoice chooses among {self.n_candidates} inputs, but got {len(optional_inputs)}.')
        return list(optional_inputs)

    def run(self, optional_inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
        """Combine the chosen inputs."""
        return self.returned(self.compute(optional_inputs))

    def compute(self, optional_inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
        """Return the combined inputs, never with the mask."""
        calls = [lambda tensor=tensor: tensor for tensor in self.inputs(optional_inputs)]
        return run_chosen(self.decided(), calls, self.reduction)

    def returned(self, output: Any, mask: torch.Tensor | None = None) -> Any:
        """Return `output`, or `(output, mask)` where `return_mask` asks for it."""
        if not self.return_mask:
            return output
        return output, self.mask() if mask is None else mask
