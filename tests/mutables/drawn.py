"""Hypothesis strategies: random nested spaces, and random float64 models that have decisions of every kind."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import nn

from strop.mutables import (
    AnyOf,
    Guard,
    InputChoice,
    KOf,
    LayerChoice,
    OneOf,
    Ordered,
    Repeat,
    Space,
    ValueChoice,
)

WIDTH = 3

names = st.text(st.characters(codec='utf-8', exclude_categories=('Cs', 'Cc')), min_size=1, max_size=4)
numbers = st.integers(-3, 9) | st.floats(-4, 4).map(lambda x: round(x, 2))


def _key(label: object) -> str:
    return repr(float(label) + 0.0) if isinstance(label, (int, float)) and not isinstance(label, bool) else repr(label)


@st.composite
def domains(draw: st.DrawFn, largest: int = 4) -> OneOf | KOf | AnyOf:
    kind = draw(st.sampled_from(['one', 'layers', 'ordered', 'k', 'any']))
    label = {'ordered': numbers | st.tuples(st.integers(1, 9), st.integers(1, 9)), 'layers': names}.get(
        kind, names | st.integers(0, 9)
    )
    labels = tuple(draw(st.lists(label, min_size=1, max_size=largest, unique_by=_key)))
    if kind == 'k':
        return KOf(labels, k=draw(st.integers(0, len(labels))))
    if kind == 'any':
        return AnyOf(labels)
    return Ordered(labels) if kind == 'ordered' else OneOf(labels, mixable=kind == 'layers')


@st.composite
def spaces(draw: st.DrawFn, most: int = 5) -> Space:
    """Spaces in which later decisions may depend on one or two earlier ones, in one or two ways."""
    keys = draw(st.lists(names, min_size=1, max_size=most, unique=True))
    chosen = {key: draw(domains()) for key in keys}
    conditions = {}
    for position, key in enumerate(keys):
        if not position or draw(st.booleans()):
            continue
        rules = []
        for _ in range(draw(st.integers(1, 2))):
            parents = draw(st.lists(st.sampled_from(keys[:position]), min_size=1, max_size=2, unique=True))
            combinations = st.tuples(*(st.integers(0, len(chosen[parent]) - 1) for parent in parents))
            rules.append((Guard(tuple(parents), draw(st.frozensets(combinations, max_size=4))),))
        conditions[key] = tuple(rules)
    return Space(chosen, conditions)


class Scaled(nn.Module):
    """Multiply by a chosen value and by an expression over it."""

    def __init__(self, values: list[float], key: str | None) -> None:
        super().__init__()
        self.factor = ValueChoice(values, key=key)
        self.twice = self.factor * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor() + self.twice()


class Joined(nn.Module):
    """Feed branches' outputs to an InputChoice."""

    def __init__(self, branches: list[nn.Module], n_chosen: int | None, reduction: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.pick = InputChoice(n_candidates=len(branches), n_chosen=n_chosen, reduction=reduction)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        picked = self.pick([branch(x) for branch in self.branches])
        return x if picked is None else x + picked


@st.composite
def models(draw: st.DrawFn, depth: int = 2) -> nn.Module:
    """Modules from float64 (N, 3) to (N, 3), with nested decisions."""
    kinds = ['linear', 'scaled'] if depth == 0 else ['linear', 'scaled', 'layers', 'layers', 'repeat', 'joined', 'sequence']
    kind = draw(st.sampled_from(kinds))
    inner = models(depth=depth - 1)
    if kind == 'linear':
        return nn.Sequential(nn.Linear(WIDTH, WIDTH).double(), nn.Tanh())
    if kind == 'scaled':
        return Scaled([1.0, 0.5, 2.0], draw(st.none() | st.just('shared_factor')))
    if kind == 'layers':
        candidates = draw(st.lists(inner, min_size=1, max_size=3))
        return LayerChoice(candidates, reduction=draw(st.sampled_from(['sum', 'mean'])))
    if kind == 'repeat':
        values = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
        return Repeat([draw(inner) for _ in range(max(values))], ValueChoice(values))
    if kind == 'joined':
        branches = draw(st.lists(inner, min_size=1, max_size=3))
        return Joined(branches, draw(st.none() | st.integers(0, len(branches))), draw(st.sampled_from(['sum', 'mean'])))
    return nn.Sequential(*draw(st.lists(inner, min_size=1, max_size=3)))
