"""Strop: search, prune, distil and quantize PyTorch models, and get plain PyTorch models back.

The names below are the public core; each room (`strop.search`, `strop.estimators`, ...) has more. They are imported
when they are first used, so that `import strop` and the command line start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strop.algorithms import SPOS, BaseAlgorithm, Darts, DartsTrainer, ProxylessTrainer, SinglePathTrainer
    from strop.compression import compress, load
    from strop.distill import ConfigurableDistiller, distiller_for
    from strop.elastic import ElasticWidths
    from strop.engine import Trainer
    from strop.errors import StropError
    from strop.estimators import SpaceEstimator, count, measure
    from strop.graph import ChannelGraph, channel_units, prove
    from strop.mutables import (
        InputChoice,
        LayerChoice,
        MutableScope,
        OneShotMutableOP,
        Repeat,
        Space,
        Subnet,
        ValueChoice,
        apply_subnet,
        concat,
        current_subnet,
        dump_subnet,
        extract,
        load_subnet,
        maximum,
        minimum,
        space_of,
    )
    from strop.mutators import (
        BaseMutator,
        ChannelMutator,
        DartsMutator,
        DifferentiableMutator,
        GumbelMutator,
        Mutator,
        OneShotChannelMutator,
        OneShotMutator,
        ProxylessMutator,
        RandomMutator,
        apply_fixed_architecture,
        get_and_apply_next_architecture,
    )
    from strop.pruning import Pruner, prune
    from strop.quantization import quantize

__version__ = '0.1.0'

_HOMES = {
    'algorithms': ('BaseAlgorithm', 'Darts', 'DartsTrainer', 'ProxylessTrainer', 'SPOS', 'SinglePathTrainer'),
    'compression': ('compress', 'load'),
    'distill': ('ConfigurableDistiller', 'distiller_for'),
    'elastic': ('ElasticWidths',),
    'engine': ('Trainer',),
    'errors': ('StropError',),
    'estimators': ('SpaceEstimator', 'count', 'measure'),
    'graph': ('ChannelGraph', 'channel_units', 'prove'),
    'mutables': (
        'InputChoice',
        'LayerChoice',
        'MutableScope',
        'OneShotMutableOP',
        'Repeat',
        'Space',
        'Subnet',
        'ValueChoice',
        'apply_subnet',
        'concat',
        'current_subnet',
        'dump_subnet',
        'extract',
        'load_subnet',
        'maximum',
        'minimum',
        'space_of',
    ),
    'mutators': (
        'BaseMutator',
        'ChannelMutator',
        'DartsMutator',
        'DifferentiableMutator',
        'GumbelMutator',
        'Mutator',
        'OneShotChannelMutator',
        'OneShotMutator',
        'ProxylessMutator',
        'RandomMutator',
        'apply_fixed_architecture',
        'get_and_apply_next_architecture',
    ),
    'pruning': ('Pruner', 'prune'),
    'quantization': ('quantize',),
}
_ROOMS = {name: room for room, names in _HOMES.items() for name in names}

__all__ = [
    'BaseAlgorithm',
    'BaseMutator',
    'ChannelGraph',
    'ChannelMutator',
    'ConfigurableDistiller',
    'Darts',
    'DartsMutator',
    'DartsTrainer',
    'DifferentiableMutator',
    'ElasticWidths',
    'GumbelMutator',
    'InputChoice',
    'LayerChoice',
    'MutableScope',
    'Mutator',
    'OneShotChannelMutator',
    'OneShotMutableOP',
    'OneShotMutator',
    'ProxylessMutator',
    'ProxylessTrainer',
    'Pruner',
    'RandomMutator',
    'Repeat',
    'SPOS',
    'SinglePathTrainer',
    'Space',
    'SpaceEstimator',
    'StropError',
    'Subnet',
    'Trainer',
    'ValueChoice',
    'apply_fixed_architecture',
    'apply_subnet',
    'channel_units',
    'compress',
    'concat',
    'count',
    'current_subnet',
    'distiller_for',
    'dump_subnet',
    'extract',
    'get_and_apply_next_architecture',
    'load',
    'load_subnet',
    'maximum',
    'measure',
    'minimum',
    'prove',
    'prune',
    'quantize',
    'space_of',
    '__version__',
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f'strop has no {name!r}. Its public names are in strop.__all__.')
    value = getattr(import_module(f'strop.{_ROOMS[name]}'), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
