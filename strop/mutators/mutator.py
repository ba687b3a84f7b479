"""Mutators: bound to exactly one model, they draw subnets, apply them, and export the final one.

`BaseMutator` is the space of one model plus the verbs that work on it. The verbs of three generations of
toolkits sit on the same few steps: `sample_subnet` / `set_subnet` / `mutation` / `crossover`,
`sample_choices` / `set_choices` / `current_choices`, and (in `Mutator`) `reset` / `export`.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import nn

from strop.errors import BindingError, ComponentTypeError, ConfigError, SpaceError, listed, near
from strop.mutables import (
    Binding,
    InputChoice,
    Keyed,
    LayerChoice,
    Mutable,
    MutableScope,
    Repeat,
    Space,
    Subnet,
    Weights,
    bind,
    choices_of,
    chosen,
    fix,
    load_subnet,
)
from strop.mutables.domain import AnyOf, Choice, Domain, KOf, plain
from strop.registry import MODELS


def _free(domain: Domain) -> dict[str, Any]:
    """Return what `get_random_mask` needs to draw from all of a domain."""
    number = domain.k if isinstance(domain, KOf) else None if isinstance(domain, AnyOf) else 1
    return {'space_mask': torch.ones(len(domain)), 'num_chosen': number}


@MODELS.register_module()
class BaseMutator(BaseModule):
    """The decisions of one model, and the verbs to draw, apply and export them.

    Override `sample_subnet` to draw otherwise, or `on_forward_layer_choice` and `on_forward_input_choice` to run
    the choices otherwise; a forward that is not overridden stays with the model and costs nothing.

    Args:
        model: The model to bind; leave it out and call `prepare_from_supernet` later.
        init_cfg: MMEngine's initialization config, for mutators with parameters.
        custom_groups: Lists of keys or module paths that are to be one decision.

    Raises:
        BindingError: If the model (or a part of it) is bound to another mutator already.
        SpaceError: If its mutables do not form a space.

    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.Identity()], key='act'))
    >>> mutator = BaseMutator(model)
    >>> mutator.set_subnet({'act': 1})
    >>> mutator.current_choices
    {'act': 1}
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        custom_groups: Sequence[Sequence[str]] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.custom_groups = custom_groups or ()
        # In __dict__, so that the model's parameters do not become the mutator's.
        self.__dict__['_model'] = None
        self._binding: Binding | None = None
        self._search_spaces: dict[str, dict[str, Any]] | None = None
        if model is not None:
            self.prepare_from_supernet(model)

    # -- binding ---------------------------------------------------------------------------

    def prepare_from_supernet(self, supernet: nn.Module) -> None:
        """Bind `supernet`: find its mutables, give them keys, and mark them as this mutator's.

        Raises:
            BindingError: If this mutator or the model is bound already.
            SpaceError: If the mutables do not form a space.
        """
        if self._model is not None:
            raise BindingError(
                f'This {type(self).__name__} is bound to a {type(self._model).__name__} already. A mutator belongs to exactly '
                'one model: make another mutator, or call release() on this one first.'
            )
        if not self._bind(supernet).keyed:
            print_log(
                f'{type(supernet).__name__} has no mutable that is a registered sub-module: this {type(self).__name__} has '
                'nothing to decide.',
                logger='current',
                level=logging.WARNING,
            )

    def _bind(self, model: nn.Module) -> Binding:
        for module in model.modules() if isinstance(model, nn.Module) else ():
            owner = module.owner if isinstance(module, Keyed) else None
            if owner is not None and owner is not self:
                raise BindingError(
                    f'{module.key!r} is bound to a {type(owner).__name__} already. A model takes one mutator: call release() '
                    'on that one first, or bind a deepcopy of the model.'
                )
        binding = bind(model, self.custom_groups)
        reference = weakref.ref(self)
        handler = type(self)._handler
        for module in binding.keyed:
            module._owner = reference
            if isinstance(module, Mutable) and self._takes_over(module):
                module._callback = lambda: None if reference() is None else handler.__get__(reference())
        self.__dict__['_model'] = model
        self._binding = binding
        return binding

    def _takes_over(self, mutable: Mutable) -> bool:
        cls = type(self)
        if isinstance(mutable, LayerChoice):
            return cls.on_forward_layer_choice is not BaseMutator.on_forward_layer_choice
        if isinstance(mutable, InputChoice):
            return cls.on_forward_input_choice is not BaseMutator.on_forward_input_choice
        return False

    def _handler(self, mutable: Mutable, *args: Any, **kwargs: Any) -> Any:
        if isinstance(mutable, LayerChoice):
            verb, result = 'on_forward_layer_choice', self.on_forward_layer_choice(mutable, *args, **kwargs)
        elif isinstance(mutable, InputChoice):
            verb, result = 'on_forward_input_choice', self.on_forward_input_choice(mutable, mutable.inputs(*args, **kwargs))
        else:
            return mutable.run(*args, **kwargs)
        # A tensor would unpack, too, into its first two rows.
        if not isinstance(result, tuple) or len(result) != 2:
            raise ComponentTypeError(
                f'{verb} must return (output, mask), but {type(self).__name__} returned a {type(result).__name__}.'
            )
        return mutable.returned(*result)

    def release(self) -> None:
        """Give the model back: it keeps its decisions and may be bound by another mutator."""
        if self._binding is not None:
            for module in self._binding.keyed:
                if module.owner is self:
                    module._owner = module._callback = module._group = None
        self.__dict__['_model'] = None
        self._binding = None
        self._search_spaces = None

    @property
    def model(self) -> nn.Module:
        """The bound model."""
        if self._model is None:
            raise BindingError(
                f'This {type(self).__name__} is bound to no model yet. Give it one when it is made, '
                f'{type(self).__name__}(model), or call prepare_from_supernet(model).'
            )
        return self._model

    @property
    def binding(self) -> Binding:
        """The mutables of the bound model and their space."""
        if self._binding is None:
            # A copy of a mutator arrives here where its model, which holds it, was not copied yet.
            return self._bind(self.model)
        return self._binding

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'model':
            raise BindingError('The model of a mutator cannot be exchanged. Make another mutator for another model.')
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_binding': None, '_search_spaces': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # The model came along unbound. Where it holds this mutator it may not be rebuilt yet; `binding` then does it.
        if self._model is not None and '_modules' in self._model.__dict__:
            self._bind(self._model)

    @property
    def space(self) -> Space:
        """The search space of the bound model."""
        return self.binding.space

    @property
    def mutables(self) -> list[Keyed]:
        """Every mutable and scope, in the order of registration, the first one of each key."""
        first: dict[tuple[bool, str], Keyed] = {}
        for module in self.undedup_mutables:
            first.setdefault((isinstance(module, Mutable), module.key), module)
        return list(first.values())

    @property
    def undedup_mutables(self) -> list[Keyed]:
        """Every mutable and scope, those of equal key included."""
        return self.binding.keyed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a mutator is called through its verbs, the model is called itself.

        Raises:
            BindingError: Always.
        """
        raise BindingError('A mutator has no forward. Call the model itself; mutator.reset() decides what it computes.')

    # -- running the choices ---------------------------------------------------------------

    def on_forward_layer_choice(self, mutable: LayerChoice, *args: Any, **kwargs: Any) -> tuple[Any, torch.Tensor]:
        """Compute a `LayerChoice`; return its output and the mask. Override to run candidates otherwise."""
        return mutable.compute(*args, **kwargs), mutable.mask()

    def on_forward_input_choice(self, mutable: InputChoice, tensor_list: list[Any]) -> tuple[Any, torch.Tensor]:
        """Compute an `InputChoice`; return its output and the mask. Override to combine inputs otherwise."""
        return mutable.compute(tensor_list), mutable.mask()

    def enter_mutable_scope(self, mutable_scope: MutableScope) -> None:
        """Called before a scope's forward."""

    def exit_mutable_scope(self, mutable_scope: MutableScope) -> None:
        """Called after a scope's forward, also if it raised."""

    # -- drawing and applying subnets ------------------------------------------------------

    @property
    def search_spaces(self) -> dict[str, dict[str, Any]]:
        """For each key: its 'modules', the 'space_mask' of alternatives that may be drawn, and 'num_chosen'.

        Editing a `space_mask` narrows what `sample_subnet` and `mutation` draw. `num_chosen` is None for any number.
        """
        if self._search_spaces is None:
            self._search_spaces = {key: self._space_info(key) for key in self.space}
        return self._search_spaces

    def _space_info(self, key: str) -> dict[str, Any]:
        modules = self.binding.by_key[key]
        info: dict[str, Any] = {'modules': modules, **_free(self.space[key])}
        probabilities = getattr(modules[0], 'choice_probs', None)
        if probabilities is not None:
            info['probs'] = torch.tensor(probabilities)
        return info

    @staticmethod
    def get_random_mask(space_info: Mapping[str, Any]) -> torch.Tensor:
        """Draw a 0/1 mask with `num_chosen` ones among the alternatives that `space_mask` allows.

        Args:
            space_info: `space_mask` (1-D tensor of 0 and 1), `num_chosen` (an integer, or None for any number), and
                optionally `probs`, one probability for each alternative.

        Returns:
            A tensor like `space_mask`. It is drawn from torch's global generator.

        Raises:
            SpaceError: If fewer alternatives are allowed, with a probability above 0, than are to be chosen.

        >>> BaseMutator.get_random_mask({'space_mask': torch.tensor([0.0, 1.0]), 'num_chosen': 1})
        tensor([0., 1.])
        """
        space_mask = space_info['space_mask']
        number = space_info['num_chosen']
        # Lists, because a handful of numbers is read faster from them than from tensors.
        allowed = [index for index, value in enumerate(space_mask.tolist()) if value]
        mask = torch.zeros_like(space_mask)
        if number is None:
            taken = [index for index, draw in enumerate(torch.rand(len(allowed)).tolist()) if draw < 0.5]
            mask[[allowed[index] for index in taken]] = 1
            return mask
        if number > len(allowed):
            raise SpaceError(f'{number} alternatives are to be chosen, but `space_mask` allows only {len(allowed)}.')
        if 'probs' in space_info:
            probabilities = space_info['probs'][allowed]
            if (likely := int((probabilities > 0).sum())) < number:
                raise SpaceError(
                    f'{number} alternatives are to be chosen, but only {likely} of the {len(allowed)} that `space_mask` allows '
                    'have a probability above 0.'
                )
            taken = torch.multinomial(probabilities, number).tolist()
        else:
            taken = torch.randperm(len(allowed)).tolist()[:number]
        for index in taken:
            mask[allowed[index]] = 1
        return mask

    def sample_subnet(self) -> dict[str, torch.Tensor]:
        """Draw a random subnet: key -> 0/1 mask. `set_subnet` takes it."""
        return {key: self.get_random_mask(info) for key, info in self.search_spaces.items()}

    def set_subnet(self, subnet_dict: Mapping[str, Any]) -> None:
        """Make a subnet current: masks, choices in any form of `Domain.parse`, or a `Subnet`.

        Raises:
            SubnetError: If it does not fit the model; nothing is changed then.
        """
        self.apply_on_model(subnet_dict)

    def apply_on_model(self, decisions: Mapping[str, Any]) -> None:
        """Write decisions into the mutables; they stay in effect until the next call.

        Float tensors are kept with their gradient. All of them are checked before any is written.

        Raises:
            SubnetError: If an active decision is missing, a key is unknown or a choice does not fit.
        """
        self.binding.apply(decisions)

    def mutation(self, subnet_dict: Mapping[str, Any], prob: float = 0.1) -> dict[str, torch.Tensor]:
        """Redraw each decision of a subnet with probability `prob`; return masks.

        Raises:
            ConfigError: If `prob` is not within [0, 1].
        """
        if not 0 <= prob <= 1:
            raise ConfigError(f'`prob` is a probability in [0, 1], but got {prob}.')
        masks = self._masks(subnet_dict)
        return {
            key: self.get_random_mask(info) if key not in masks or float(torch.rand(())) < prob else masks[key]
            for key, info in self.search_spaces.items()
        }

    @staticmethod
    def crossover(subnet_dict1: Mapping[str, Any], subnet_dict2: Mapping[str, Any]) -> dict[str, Any]:
        """Take each decision from the first or the second subnet, with equal probability.

        Where a `Subnet` is given, decisions that were inactive in both, but may not be in the child, are drawn.

        >>> sorted(BaseMutator.crossover({'a': 0, 'b': 0}, {'a': 0, 'b': 0}).items())
        [('a', 0), ('b', 0)]
        """
        first, second = (
            subnet.masks() if isinstance(subnet, Subnet) else dict(subnet) for subnet in (subnet_dict1, subnet_dict2)
        )
        child = {}
        for key in [*first, *(key for key in second if key not in first)]:
            sources = [parent[key] for parent in (first, second) if key in parent]
            child[key] = sources[-1] if float(torch.rand(())) < 0.5 else sources[0]
        for subnet in (subnet_dict1, subnet_dict2):
            if isinstance(subnet, Subnet):
                inactive = (key for key in subnet.space if key not in child)
                child.update({key: BaseMutator.get_random_mask(_free(subnet.space[key])) for key in inactive})
        return child

    @staticmethod
    def reset_in_subnet(m: nn.Module, in_subnet: bool = True) -> None:
        """Mark a module as part of the current subnet or not, in `m.__in_subnet__`; for `model.apply`.

        >>> layer = nn.ReLU()
        >>> BaseMutator.reset_in_subnet(layer, in_subnet=False)
        >>> layer.__in_subnet__
        False
        """
        m.__in_subnet__ = in_subnet  # type: ignore[assignment]

    def set_chosen_subnet(self, subnet_dict: Mapping[str, Any]) -> None:
        """Fix a subnet for good: the candidates that were not chosen are removed from the model, in place.

        The mutator is released afterwards; there is nothing left to decide.

        Raises:
            SubnetError: If it does not fit the model.
            BindingError: If the model itself is a choice, which cannot be replaced in place; use `extract`.
        """
        model = self.model
        if isinstance(model, (Mutable, Repeat)):
            raise BindingError(
                f'The bound model is itself a {type(model).__name__} and cannot be replaced in place; use '
                'strop.mutables.extract(model, subnet).'
            )
        self.apply_on_model(subnet_dict)
        self.release()
        fix(model)

    def _masks(self, subnet: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        masks: dict[str, torch.Tensor] = {}
        for name, choice in (subnet.choices if isinstance(subnet, Subnet) else subnet).items():
            key = self.space.key_of(name)
            domain = self.space[key]
            if isinstance(choice, torch.Tensor):
                masks[key] = choice
            else:
                parsed = choice if isinstance(subnet, Subnet) else domain.parse(choice)
                masks[key] = domain.mask(parsed).to(self.search_spaces[key]['space_mask'].dtype)
        return masks

    # -- MMRazor 1.x's verbs ---------------------------------------------------------------

    @property
    def search_groups(self) -> dict[int, list[Mutable]]:
        """Number -> the mutables that are one decision."""
        return dict(enumerate(self.binding.by_key.values()))

    def sample_choices(self, kind: str = 'random') -> dict[str, Any]:
        """Return a subnet as readable choices: key -> name or value.

        Args:
            kind: 'random', 'max' or 'min': the alternatives of most or fewest parameters, the greatest or smallest value.

        Raises:
            ConfigError: If `kind` is none of these.
        """
        if kind == 'random':
            return dict(self.space.subnet(self.sample_subnet()))
        if kind in ('max', 'min'):
            return dict(self.space.extreme(largest=kind == 'max'))
        kinds = ('random', 'max', 'min')
        raise ConfigError(f'`kind` must be one of {listed(kinds)}, but got {kind!r}.{near(kind, kinds)}')

    def set_choices(self, choices: Mapping[str, Any]) -> None:
        """Make readable choices current; the same as `set_subnet`."""
        self.set_subnet(choices)

    @property
    def current_choices(self) -> dict[str, Any]:
        """The current subnet as readable choices."""
        return dict(self.current_subnet())

    def current_subnet(self) -> Subnet:
        """Return the current decisions as a `Subnet`.

        Raises:
            NotDecidedError: If none was applied yet.
        """
        space = self.space
        choices: dict[str, Any] = {}
        for key in space.order:
            if space.is_active(key, choices):
                choices[key] = self.binding.by_key[key][0].choice()
        return space.from_picks(choices)

    def set_max_subnet(self) -> None:
        """Make the largest subnet current."""
        self.set_choices(self.sample_choices('max'))

    def set_min_subnet(self) -> None:
        """Make the smallest subnet current."""
        self.set_choices(self.sample_choices('min'))

    def export_fix_subnet(self) -> dict[str, dict[str, Any]]:
        """Return the current subnet in the form of MMRazor's exported YAML: key -> chosen and meta."""
        subnet = self.current_subnet()
        return {
            key: {'chosen': choice, 'meta': {'all_choices': self.space[key].to_dict()['labels']}}
            for key, choice in subnet.items()
        }

    def load_fix_subnet(self, fix_subnet: str | os.PathLike[str] | Mapping[str, Any]) -> None:
        """Fix the subnet of a file or mapping (any form that `load_subnet` reads) for good; see `set_chosen_subnet`."""
        if isinstance(fix_subnet, (str, os.PathLike)):
            self.set_chosen_subnet(load_subnet(fix_subnet, self.space))
        else:
            known = {*self.space, *self.space.paths}
            self.set_chosen_subnet(fix_subnet if isinstance(fix_subnet, Subnet) else choices_of(fix_subnet, known))


@MODELS.register_module()
class Mutator(BaseMutator):
    """A mutator that says how to draw in search and at the end: write `sample_search` and `sample_final`.

    Both return key -> mask: a BoolTensor marks the chosen alternatives, a FloatTensor weights them.

    >>> class First(Mutator):
    ...     def sample_search(self):
    ...         return {m.key: torch.arange(m.length) == 0 for m in self.mutables}
    ...
    ...     sample_final = sample_search
    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.Identity()], key='act'))
    >>> mutator = First(model)
    >>> mutator.reset()
    >>> model(torch.tensor([-1.0]))
    tensor([0.])
    >>> mutator.export()
    {'act': tensor([ True, False])}
    """

    def sample_search(self) -> dict[str, Any]:
        """Draw the subnet of the next training step; a sub-class must write it."""
        raise BindingError(f'{type(self).__name__} must define sample_search(), which returns key -> mask for every mutable.')

    def sample_final(self) -> dict[str, Any]:
        """Draw the subnet to keep; a sub-class must write it."""
        raise BindingError(f'{type(self).__name__} must define sample_final(), which returns key -> mask for every mutable.')

    def sample_subnet(self) -> dict[str, Any]:
        """Draw a subnet by `sample_search`."""
        return self.sample_search()

    def reset(self) -> None:
        """Draw a subnet and make it current: it stays in effect until the next reset."""
        self.apply_on_model(self.sample_search())

    def export(self, readable: bool = False) -> dict[str, Any]:
        """Draw the final subnet and return it, changing nothing in the model.

        Args:
            readable: Return names and indices for a file, instead of tensors.

        Returns:
            key -> BoolTensor or FloatTensor of shape `(alternatives,)`; if readable, key -> the name, index or value
            of the one that is chosen, a list of them where it is not one, or a list of weights.

        Raises:
            SubnetError: If `sample_final` returns a key that is unknown, leaves one out, or a mask does not fit.
        """
        final = self.sample_final()
        space = self.space
        subnet = space.subnet(final)
        given = {space.key_of(name): value for name, value in final.items()}
        if not readable:
            return {key: self._tensor(key, value) for key, value in given.items()}
        return {key: self._readable(key, choice) for key, choice in subnet.choices.items()}

    def _readable(self, key: str, choice: Choice) -> Any:
        several = chosen(choice)
        if isinstance(choice, Weights) and not (several and all(choice[index] == 1 for index in several)):
            return list(choice)
        labels = [plain(self.space[key].labels[index]) for index in several]
        return labels[0] if len(labels) == 1 else labels

    def _tensor(self, key: str, value: Any) -> torch.Tensor:
        if isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.float32):
            return value.detach().clone()
        return self.space[key].mask(self.space[key].parse(value))

    def status(self) -> dict[str, list[float]]:
        """Return the current decisions: key -> one number for each alternative."""
        return {
            key: [float(weight) for weight in mutables[0].mask().tolist()]
            for key, mutables in self.binding.by_key.items()
            if mutables[0].decision is not None
        }
