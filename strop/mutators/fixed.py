"""Fixed architectures: the subnet of a file, a mapping or the trial's parameters becomes the model, for good."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Union
from warnings import warn

import torch
from torch import nn

from strop.errors import BindingError, SubnetError, UnknownKeyError, listed, near
from strop.mutables import (
    AnyOf,
    InputChoice,
    LayerChoice,
    Mutable,
    Repeat,
    SearchSpaceFile,
    Space,
    Subnet,
    choices_of,
    fix,
    read_document,
    space_of,
)
from strop.mutables.domain import plain
from strop.mutators.mutator import Mutator
from strop.search.trial_side import FOLDER_VARIABLE, generating, get_current_parameter, leave, trial_folder

FixedLike = Union[str, os.PathLike[str], Mapping[str, Any]]

# The names that NNI's program-wide counter gave to choices without a key.
_COUNTED = re.compile(r'(LayerChoice|InputChoice)\d+')
# One of these in a mapping says that it is a choice as tuners spell it.
_SPELLED = frozenset({'_value', '_idx', '_idex'})


class FixedArchitecture(Mutator):
    """A mutator that always decides the same: the architecture of a file or a mapping.

    The choices stay in the model; `apply_fixed_architecture` removes them.

    Args:
        model: A model with decisions.
        fixed_arc: What `apply_fixed_architecture` takes.
        strict: With False, keys that the model does not have are left out instead of refused.

    Raises:
        SubnetError: If the architecture does not fit the model.
        BindingError: If the model is bound to another mutator.

    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.Identity()], key='act'))
    >>> mutator = FixedArchitecture(model, {'act': 1})
    >>> mutator.reset()
    >>> mutator.export()
    {'act': tensor([False,  True])}
    """

    def __init__(self, model: nn.Module, fixed_arc: FixedLike, strict: bool = True) -> None:
        super().__init__(model)
        try:
            self._fixed = self._read(fixed_arc, strict)
        except Exception:
            self.release()
            raise

    def sample_search(self) -> dict[str, Any]:
        """Return the architecture: key -> mask."""
        return dict(self._fixed.masks())

    def sample_final(self) -> dict[str, Any]:
        """Return the architecture: key -> mask."""
        return self.sample_search()

    @property
    def subnet(self) -> Subnet:
        """The architecture, as a subnet of the model's space."""
        return self._fixed

    def _read(self, given: FixedLike, strict: bool) -> Subnet:
        if isinstance(given, Subnet):
            return self.space.subnet(given)
        where = ''
        if isinstance(given, (str, os.PathLike)):
            where = f'{os.fspath(given)}: '
            given = read_document(given, 'a fixed architecture')
        try:
            choices = choices_of(given, {*self.space, *self.space.paths})
            if not strict:
                choices = {name: choice for name, choice in choices.items() if name in self.space or name in self.space.paths}
            _check_keys(self.space, choices)
            spelled = {
                name: choice for name, choice in choices.items() if isinstance(choice, Mapping) and _SPELLED & set(choice)
            }
            if spelled:
                kept = {name: choice for name, choice in choices.items() if name not in spelled}
                choices = {**kept, **SearchSpaceFile.of(self.model).decisions_in(spelled)}
            return self.space.subnet({name: self._understood(name, choice) for name, choice in choices.items()})
        except SubnetError as error:
            raise type(error)(f'{where}{error}') from None

    def _understood(self, name: str, choice: Any) -> Any:
        mutable = self.binding.by_key[self.space.key_of(name)][0]
        several = isinstance(choice, (list, tuple))
        if several and not choice and isinstance(mutable, LayerChoice):
            # NNI writes [] for a LayerChoice of which nothing is used, such as an operation on an edge that was cut.
            return torch.zeros(len(mutable.domain), dtype=torch.bool)
        if isinstance(mutable, InputChoice) and len(set(mutable.choose_from)) == len(mutable.choose_from):
            # NNI writes the name of an input wherever names differ, also '' for the only one that has none.
            names = list(choice) if several else [choice]
            if names and all(isinstance(each, str) and each in mutable.choose_from for each in names):
                places = [mutable.choose_from.index(each) for each in names]
                labels = [plain(mutable.domain.labels[place]) for place in places]
                return labels if several else labels[0]
        return choice


def apply_fixed_architecture(model: nn.Module, fixed_arc: FixedLike) -> nn.Module:
    """Make an architecture the model itself, in place: every choice is replaced by what was chosen.

    The choices of layers, of inputs and of values are gone afterwards, and so are the candidates that were not
    chosen; what is left is PyTorch and your own classes, and a pickle of it needs nothing of Strop (`extract` tells the
    exceptions). Weights of the supernet may be loaded before the call or after it: `load_state_dict` of the fixed model
    also takes the supernet's state dict (all of it), and keeps what belongs to the chosen candidates.

    Args:
        model: A model with decisions that no mutator is bound to.
        fixed_arc: A JSON or YAML file, or a mapping key -> choice. A choice is a name, an index, a list of these, one
            boolean for each candidate, one weight (float) for each candidate, `{'_value': ..., '_idx': ...}`, or for a
            `LayerChoice` also `[]`, which uses none of them.

    Returns:
        `model`.

    Raises:
        SubnetError: If the architecture does not fit; of one for another model it names the keys that differ. The model
            is as it was then.
        BindingError: If a mutator is bound to the model, or the model is itself a choice, which cannot be replaced in
            place.
        FileNotFoundError: If there is no such file.

    >>> model = nn.Sequential(LayerChoice([nn.Linear(2, 2), nn.Identity()], key='op'), nn.ReLU())
    >>> apply_fixed_architecture(model, {'op': [False, True]})
    Sequential(
      (0): Identity()
      (1): ReLU()
    )
    """
    if isinstance(model, (Mutable, Repeat)):
        raise BindingError(
            f'The model is itself a {type(model).__name__} and cannot be replaced in place; use '
            'strop.mutables.extract(model, subnet), which returns a new one.'
        )
    mutator = FixedArchitecture(model, fixed_arc)
    mutator.apply_on_model(mutator.subnet)
    mutator.release()
    before = model.state_dict(keep_vars=True)
    fix(model)
    _take_weights_of_supernet(model, before)
    return model


def get_and_apply_next_architecture(model: nn.Module) -> None:
    """Ask the search for the architecture of this trial and make it the model, in place.

    Inside a trial the parameters come from the trial's folder; hyper-parameters among them are left to
    `get_next_parameter`, which may be called before or after. In a script that runs standalone, every choice is its
    first candidate (and an `InputChoice` of any number takes all inputs). Where the environment variable
    `NNI_GEN_SEARCH_SPACE` names a file (`strop ss-gen` sets it), the search space of the model is written to it and the
    process ends.

    Args:
        model: A model with decisions that no mutator is bound to.

    Raises:
        SubnetError: If the parameters do not fit the model; of those of another model the keys are named.
        BindingError: As in `apply_fixed_architecture`.

    >>> import warnings
    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.Identity()], key='act'))
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter('ignore')
    ...     get_and_apply_next_architecture(model)
    >>> model
    Sequential(
      (0): ReLU()
    )
    """
    target = generating()
    if target is not None:
        SearchSpaceFile.of(model).write(target)
        leave()
    if trial_folder() is None:
        warn(
            f'{FOLDER_VARIABLE} is not set, so this script runs standalone, outside of any search: every choice is the first '
            'candidate.',
            stacklevel=2,
        )
        decisions = _first_candidates(model)
    else:
        decisions = SearchSpaceFile.of(model).decisions_in(get_current_parameter())
    apply_fixed_architecture(model, decisions)


def _first_candidates(model: nn.Module) -> dict[str, Any]:
    first = {}
    for key, domain in space_of(model).items():
        first[key] = domain.format(tuple(range(len(domain))) if isinstance(domain, AnyOf) else domain.first())
    return first


def _check_keys(space: Space, choices: Mapping[str, Any]) -> None:
    """Refuse an architecture with other keys than the model's; name all that differ."""
    unknown = [name for name in choices if name not in space and name not in space.paths]
    given = {space.key_of(name) for name in choices if name not in unknown}
    absent = [key for key in space if key not in given and not space.conditions.get(key)]
    if not unknown and not absent:
        return
    parts = []
    if unknown:
        parts.append(f'has {listed(unknown)}, which the model does not have{_hint(unknown, absent or space)}')
    if absent:
        parts.append(f'lacks {listed(absent)}')
    text = f'The architecture does not fit the model: it {", and it ".join(parts)}. The model decides {listed(space)}.'
    if any(_COUNTED.fullmatch(name) for name in unknown):
        text += (
            ' Names such as LayerChoice1 come from a counter of NNI: here a choice without key=... is named by its path. '
            'Give the choices of the model these names as keys.'
        )
    raise UnknownKeyError(text) if unknown else SubnetError(text)


def _hint(unknown: Iterable[str], options: Iterable[str]) -> str:
    options = list(options)
    words = [near(name, options, prefix=f' ({name!r}: did you mean ').removesuffix('?') for name in unknown]
    return ''.join([f'{word}?)' for word in words if word][:3])


def _take_weights_of_supernet(model: nn.Module, before: Mapping[str, Any]) -> None:
    """Let `model.load_state_dict` also read state dicts with the names in `before`."""
    old_names = {id(value): name for name, value in reversed(list(before.items()))}
    after = model.state_dict(keep_vars=True)
    renamed = {name: old_names.get(id(value)) for name, value in after.items()}
    kept = {name: old for name, old in renamed.items() if old is not None}
    if len(kept) == len(renamed) and set(before) != set(after):
        model.register_load_state_dict_pre_hook(_SupernetNames(kept, frozenset(before)))


class _SupernetNames:
    """A hook of `load_state_dict` that renames a supernet's tensors; other state dicts pass as they are.

    Args:
        renamed: Name in the fixed model -> name in the supernet.
        known: Every name in the supernet.
    """

    def __init__(self, renamed: Mapping[str, str], known: frozenset[str]) -> None:
        self._renamed, self._known = dict(renamed), known

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        if all(prefix + name in state_dict for name in self._known):
            values = {prefix + new: state_dict[prefix + old] for new, old in self._renamed.items()}
            for name in self._known:
                del state_dict[prefix + name]
            state_dict.update(values)

    def __deepcopy__(self, memo: dict[int, Any]) -> _SupernetNames:
        return self

    def __reduce__(self) -> Any:
        # A pickled model shall need nothing of Strop: there the hook is one that takes anything and does nothing.
        return functools.partial, (itertools.chain,)
