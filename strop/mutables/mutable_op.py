"""MMRazor's mutable operations: a `LayerChoice` whose candidates are configs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from strop.errors import ConfigError, SpaceError, near
from strop.mutables.choice import LayerChoice
from strop.registry import MODELS


@MODELS.register_module()
class OneShotMutableOP(LayerChoice):
    """A choice between operations that are built from configs.

    Args:
        candidates: name -> config (or module) of each operation.
        module_kwargs: Arguments given to every candidate's config, such as channels and stride.
        alias: Key of the decision; the path in the model by default.
        init_cfg: Accepted for configs; candidates carry their own.

    Raises:
        ConfigError: If `candidates` is no mapping or is empty.

    >>> op = OneShotMutableOP(dict(relu=dict(type='torch.nn.ReLU'), id=dict(type='torch.nn.Identity')), alias='act')
    >>> op.choices, op.num_choices
    (['relu', 'id'], 2)
    """

    # Declared here, so that no candidate can take their names.
    init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None
    is_fixed = False

    def __init__(
        self,
        candidates: Mapping[str, Any],
        module_kwargs: Mapping[str, Any] | None = None,
        alias: str | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        if not isinstance(candidates, (Mapping, nn.ModuleDict)) or not candidates:
            raise ConfigError(
                f'`candidates` must be a mapping name -> config of at least one operation, but got {candidates!r}.'
            )
        built = {name: self._build(name, candidate, module_kwargs or {}) for name, candidate in candidates.items()}
        super().__init__(built, key=alias)
        self.init_cfg = init_cfg

    @staticmethod
    def _build(name: str, candidate: Any, module_kwargs: Mapping[str, Any]) -> nn.Module:
        if isinstance(candidate, nn.Module):
            return candidate
        if not isinstance(candidate, Mapping):
            raise ConfigError(f'Candidate {name!r} must be a config or a module, but got {type(candidate).__name__}.')
        return MODELS.build({**copy.deepcopy(dict(candidate)), **module_kwargs})

    @property
    def alias(self) -> str | None:
        """The key that was given, if any."""
        return self._given_key

    @property
    def choices(self) -> list[str]:
        """The names of the candidates."""
        return list(self.names)

    @property
    def num_choices(self) -> int:
        """Number of candidates."""
        return len(self.names)

    @property
    def current_choice(self) -> str | list[str] | None:
        """The chosen name, or names; None before any decision. Assigning decides."""
        if self.decision is None:
            return None
        names = [self.names[index] for index, weight in enumerate(self.mask().tolist()) if weight]
        return names[0] if len(names) == 1 else names

    @current_choice.setter
    def current_choice(self, choice: Any) -> None:
        self.decide(choice)

    def fix_chosen(self, chosen: str | Sequence[str] | Mapping[str, Any]) -> None:
        """Keep the chosen candidate, delete the others, and decide for it.

        Raises:
            SpaceError: If it was fixed before, the name is unknown, or there is none.
            BindingError: If a mutator is bound to the model; its `load_fix_subnet` fixes the whole of it.
        """
        if self.is_fixed:
            raise SpaceError(f'{self.names[0]!r} is fixed already; a choice can be fixed once.')
        if isinstance(chosen, Mapping) and 'chosen' in chosen:
            chosen = chosen['chosen']
        names = [chosen] if isinstance(chosen, str) else list(chosen)
        for name in names:
            if name not in self.names:
                raise SpaceError(f'There is no candidate {name!r} among {self.names}.{near(name, self.names)}')
        if not names:
            raise SpaceError(f'At least one candidate must be kept, but none of {self.names} was named.')
        self._remove([name for name in self.names if name not in names])
        self.is_fixed = True
        self.decide(names)

    def dump_chosen(self) -> dict[str, Any]:
        """Return the choice in the form of MMRazor's exported subnets."""
        return {'chosen': self.current_choice, 'meta': {'all_choices': self.choices}}


@MODELS.register_module()
class OneShotProbMutableOP(OneShotMutableOP):
    """A `OneShotMutableOP` whose candidates are sampled with given probabilities.

    Args:
        choice_probs: One probability for each candidate; uniform by default.

    >>> candidates = dict(relu=dict(type='torch.nn.ReLU'), id=dict(type='torch.nn.Identity'))
    >>> OneShotProbMutableOP(candidates, choice_probs=[0.9, 0.1]).choice_probs
    [0.9, 0.1]
    """

    choice_probs: list[float] = []

    def __init__(self, candidates: Mapping[str, Any], choice_probs: Sequence[float] | None = None, **kwargs: Any) -> None:
        super().__init__(candidates, **kwargs)
        probabilities = [1 / len(self)] * len(self) if choice_probs is None else [float(p) for p in choice_probs]
        if len(probabilities) != len(self) or min(probabilities) < 0 or abs(sum(probabilities) - 1) > 1e-6:
            raise ConfigError(f'`choice_probs` needs {len(self)} non-negative numbers that sum to 1, but got {choice_probs}.')
        self.choice_probs = probabilities

    def _remove(self, names: Sequence[str]) -> None:
        known = dict(zip(self.names, self.choice_probs))
        super()._remove(names)
        left = [known[name] for name in self.names]
        whole = sum(left)
        self.choice_probs = [each / whole for each in left] if whole else [1 / len(left)] * len(left)
