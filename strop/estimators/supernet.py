"""Tracing a supernet once, with every alternative of every decision run and marked with the choice it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from strop.errors import EstimateError
from strop.estimators.guards import ALWAYS, AnyGuard, Conjunction, Disjunction, Slot, slots_of
from strop.estimators.recorder import CONSTANT, Recorder, Trace, record
from strop.mutables import Binding, Guard, InputChoice, LayerChoice, Mutable, Repeat, ValueChoice, intercept
from strop.mutables.choice import reduce_outputs
from strop.mutables.value import truth_table


class NotSeparableError(EstimateError):
    """The cost of a decision depends on how others are made, so a single trace cannot hold it."""


@dataclass
class SupernetTrace:
    """Every operator of a supernet once, `Op.guard` being the choices under which it runs.

    Args:
        trace: The operators and storages.
        joins: Id of the output of a choice -> (guards, id of the storage it then is) for each alternative.
        layouts: The largest number of memory layouts that the alternatives of one choice have.
    """

    trace: Trace
    joins: dict[int, list[tuple[Conjunction, int]]] = field(default_factory=dict)
    layouts: int = 1

    def structure(self) -> tuple[Any, ...]:
        """Return what must not depend on memory layouts: the operators and the storages they make and use."""
        return tuple((op.name, op.guard, op.macs, op.born, op.uses) for op in self.trace.ops), tuple(self.trace.sizes)


def trace_supernet(model: nn.Module, binding: Binding, args: Sequence[Any], kwargs: Mapping[str, Any]) -> SupernetTrace:
    """Run every alternative of every decision of `model` once, on tensors without values.

    Raises:
        NotSeparableError: If what follows a decision depends on it: alternatives of unequal output, values that a
            forward uses, an unknown kind of mutable. The message is the reason.
    """
    tracer = _Tracer(model, binding, layout=0)
    result = tracer.run(args, kwargs)
    if result.layouts > 1:
        # Where alternatives leave their output in different memory layouts, a later `reshape` may or may not copy.
        for layout in range(1, result.layouts):
            if _Tracer(model, binding, layout).run(args, kwargs).structure() != result.structure():
                raise NotSeparableError('the memory layout of an alternative changes what is computed after it')
    return result


class _Tracer:
    def __init__(self, model: nn.Module, binding: Binding, layout: int) -> None:
        self.model = model
        self.layout = layout
        self.keys = keys_of(binding)
        self.space = binding.space
        self.recorder: Recorder = None  # type: ignore[assignment]
        self.result = SupernetTrace(Trace())

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> SupernetTrace:
        try:
            self.result.trace = record(self.model, args, kwargs, around=self._around, real=False)
        except EstimateError:
            raise
        except Exception as error:
            text = str(error).strip().splitlines()
            raise NotSeparableError(
                f'the forward cannot be traced with all alternatives ({type(error).__name__}: {text[0] if text else ""})'
            ) from error
        return self.result

    @contextmanager
    def _around(self, recorder: Recorder) -> Iterator[None]:
        self.recorder = recorder
        recorder.guard = ALWAYS
        for module in self.model.modules():
            if isinstance(module, Repeat) and module.depth is not None:
                # Put back by `untouched`, inside of which every recording runs.
                module.forward = partial(self._repeat, module)  # type: ignore[method-assign]
        with intercept(self.model, self._handle):
            yield

    @contextmanager
    def _under(self, guard: AnyGuard | None) -> Iterator[None]:
        before = self.recorder.guard
        self.recorder.guard = before if guard is None else before | {guard}
        try:
            yield
        finally:
            self.recorder.guard = before

    # -- the kinds of decisions ------------------------------------------------------------

    def _handle(self, mutable: Mutable, *args: Any, **kwargs: Any) -> Any:
        if isinstance(mutable, ValueChoice):
            raise NotSeparableError(f'the value {self.keys[id(mutable)]!r} is used inside a forward')
        if not isinstance(mutable, (LayerChoice, InputChoice)):
            raise NotSeparableError(f'{self.keys[id(mutable)]!r} is a {type(mutable).__name__}, a kind that cannot be traced')
        key = self.keys[id(mutable)]
        taken = slots_of(self.space[key])
        if taken is None:
            raise NotSeparableError(f'{key!r} may choose any number of alternatives')
        outputs = []
        if isinstance(mutable, InputChoice):
            outputs = mutable.inputs(*args, **kwargs)
        else:
            for index in range(len(mutable)):
                with self._under(Guard.on(key, [index])):
                    outputs.append(mutable.run_candidate(index, *args, **kwargs))
        slots = []
        for position in range(taken):
            guards = [Slot(key, position, index) for index in range(len(outputs))]
            slots.append(self._join(key, outputs, guards))
        output = reduce_outputs(slots, mutable.reduction)
        if not mutable.return_mask:
            return output
        with self._unrecorded():
            mask = torch.zeros(len(outputs), dtype=torch.bool)
        return mutable.returned(output, mask)

    def _repeat(self, repeat: Repeat, x: Any) -> Any:
        assert repeat.depth is not None, 'only repeats with a depth to choose are handled'
        depths: set[int] = set()
        truth_table(repeat.depth, lambda value: depths.add(value) or False)  # type: ignore[func-returns-value]
        outputs = {0: x}
        for position, block in enumerate(repeat.blocks[: max(depths)]):
            with self._under(depth_guard(repeat, position, self.keys)):
                x = block(x)
            outputs[position + 1] = x
        reached = sorted(depths)
        guards = [value_guard(repeat, depth, self.keys) for depth in reached]
        return self._join(' and '.join(guards[0].keys), [outputs[depth] for depth in reached], guards)

    # -- the output of a decision ----------------------------------------------------------

    def _join(self, key: str, outputs: Sequence[Any], guards: Sequence[AnyGuard]) -> Any:
        """Return what stands for "the output of whichever alternative is chosen"."""
        flat = [tree_flatten(output) for output in outputs]
        leaves, spec = flat[0]
        for index, (others, other_spec) in enumerate(flat[1:], start=1):
            if other_spec != spec:
                raise NotSeparableError(f'alternatives 0 and {index} of {key!r} return different structures')
            for leaf, other in zip(leaves, others, strict=True):
                if _kind(leaf) != _kind(other):
                    raise NotSeparableError(
                        f'alternatives 0 and {index} of {key!r} return different outputs: {_kind(leaf)} and {_kind(other)}'
                    )
        columns = list(zip(*(others for others, _ in flat), strict=True))
        return tree_unflatten([self._join_leaf(column, guards) for column in columns], spec)

    def _join_leaf(self, leaves: Sequence[Any], guards: Sequence[AnyGuard]) -> Any:
        if not isinstance(leaves[0], torch.Tensor) or all(leaf is leaves[0] for leaf in leaves):
            return leaves[0]
        layouts = list(dict.fromkeys(leaf.stride() for leaf in leaves))
        self.result.layouts = max(self.result.layouts, len(layouts))
        like = leaves[0]
        with self._unrecorded():
            joined = torch.empty_strided(
                like.shape, layouts[min(self.layout, len(layouts) - 1)], dtype=like.dtype, device=like.device
            )
        (node,) = self.recorder.declare(joined, constant=False)
        self.recorder.trace.sizes[node] = 0  # it is one of the alternatives' storages, not one of its own
        self.result.joins[node] = [
            (frozenset({guard}), source)
            for leaf, guard in zip(leaves, guards, strict=True)
            if (source := self.recorder.node_of(leaf)) != CONSTANT
        ]
        return joined

    @contextmanager
    def _unrecorded(self) -> Iterator[None]:
        self.recorder.paused = True
        try:
            yield
        finally:
            self.recorder.paused = False


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return f'{tuple(leaf.shape)} {str(leaf.dtype).removeprefix("torch.")}'
    return leaf


def keys_of(binding: Binding) -> dict[int, str]:
    """Return id of a mutable -> the key of its decision."""
    return {id(mutable): key for key, mutables in binding.by_key.items() for mutable in mutables}


def depth_guard(repeat: Repeat, position: int, keys: Mapping[int, str]) -> Guard | None:
    """Return the guard under which the block at `position` runs; None if it always does."""
    if repeat.depth is None:
        return None
    choices, allowed = truth_table(repeat.depth, lambda value: value > position)
    combinations = 1
    for choice in choices:
        combinations *= len(choice.domain)
    if len(allowed) == combinations:
        return None
    return Guard(tuple(keys[id(choice)] for choice in choices), frozenset(allowed))


def value_guard(repeat: Repeat, depth: int, keys: Mapping[int, str]) -> Guard:
    """Return the guard that exactly `depth` blocks run."""
    assert repeat.depth is not None, 'only repeats with a depth to choose are handled'
    choices, allowed = truth_table(repeat.depth, lambda value: value == depth)
    return Guard(tuple(keys[id(choice)] for choice in choices), frozenset(allowed))


def parameter_terms(model: nn.Module, binding: Binding) -> dict[Disjunction, int]:
    """Return condition -> number of parameters that the model has where it holds.

    A parameter is there if one of its places in the model is; those that several modules share count once.
    """
    keys = keys_of(binding)
    places: dict[int, set[Conjunction]] = {}
    sizes: dict[int, int] = {}

    def visit(module: nn.Module, guards: Conjunction) -> None:
        for parameter in module._parameters.values():
            if parameter is not None:
                places.setdefault(id(parameter), set()).add(guards)
                sizes[id(parameter)] = parameter.numel()
        for name, child in module._modules.items():
            if child is None:
                continue
            guard: Guard | None = None
            if isinstance(module, LayerChoice) and name in module.names:
                guard = Guard.on(keys[id(module)], [module.names.index(name)])
            elif isinstance(module, Repeat) and name.isdigit():
                if module.depth is None and int(name) >= module.current_depth():
                    continue  # a block beyond a fixed depth is never part of the model
                guard = depth_guard(module, int(name), keys)
                if guard is not None and not guard.allowed:
                    continue
            visit(child, guards if guard is None else guards | {guard})

    visit(model, ALWAYS)
    terms: dict[Disjunction, int] = {}
    for identity, conjunctions in places.items():
        condition = frozenset({ALWAYS}) if ALWAYS in conjunctions else frozenset(conjunctions)
        terms[condition] = terms.get(condition, 0) + sizes[identity]
    return terms


def mac_terms(trace: Trace) -> dict[Disjunction, int]:
    """Return condition -> multiply-adds of the operators that run where it holds."""
    terms: dict[Disjunction, int] = {}
    for op in trace.ops:
        if op.macs:
            condition = frozenset({op.guard})
            terms[condition] = terms.get(condition, 0) + op.macs
    return terms
