"""Mutators bind a search space to a model: draw subnets, apply them, export the final one."""

from strop.mutators.mutator import BaseMutator, Mutator
from strop.mutators.random import NasMutator, OneShotModuleMutator, OneShotMutator, RandomMutator

__all__ = ['BaseMutator', 'Mutator', 'NasMutator', 'OneShotModuleMutator', 'OneShotMutator', 'RandomMutator']
