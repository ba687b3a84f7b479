"""Mutators bind a search space to a model: draw subnets, apply them, export the final one."""

from strop.mutators.channel import ChannelAnalyzer, ChannelMutator, OneShotChannelMutator, SlimmableChannelMutator
from strop.mutators.differentiable import DartsMutator, DifferentiableMutator, GumbelMutator, KeyedParameters, ProxylessMutator
from strop.mutators.fixed import FixedArchitecture, apply_fixed_architecture, get_and_apply_next_architecture
from strop.mutators.mutator import BaseMutator, Mutator
from strop.mutators.random import NasMutator, OneShotModuleMutator, OneShotMutator, RandomMutator

__all__ = [
    'BaseMutator',
    'ChannelAnalyzer',
    'ChannelMutator',
    'DartsMutator',
    'DifferentiableMutator',
    'FixedArchitecture',
    'GumbelMutator',
    'KeyedParameters',
    'Mutator',
    'NasMutator',
    'OneShotChannelMutator',
    'OneShotModuleMutator',
    'OneShotMutator',
    'ProxylessMutator',
    'RandomMutator',
    'SlimmableChannelMutator',
    'apply_fixed_architecture',
    'get_and_apply_next_architecture',
]
