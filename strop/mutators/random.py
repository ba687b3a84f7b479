"""Mutators that draw uniformly: `RandomMutator`, and the one-shot mutator of single-path supernets."""

from __future__ import annotations

from typing import Any

import torch

from strop.mutators.mutator import BaseMutator, Mutator
from strop.registry import MODELS


@MODELS.register_module()
class RandomMutator(Mutator):
    """Draw every decision uniformly, in search and at the end; handy to try a space out.

    >>> from strop.mutables import LayerChoice
    >>> model = torch.nn.Sequential(LayerChoice([torch.nn.ReLU(), torch.nn.Identity()], key='act'))
    >>> mutator = RandomMutator(model)
    >>> mutator.reset()
    >>> sum(mutator.status()['act'])
    1.0
    """

    def sample_search(self) -> dict[str, Any]:
        """Draw a BoolTensor for every key."""
        return {key: self.get_random_mask(info).bool() for key, info in self.search_spaces.items()}

    def sample_final(self) -> dict[str, Any]:
        """Draw as in search."""
        return self.sample_search()


@MODELS.register_module(name=['OneShotMutator', 'OneShotModuleMutator', 'NasMutator'])
class OneShotMutator(Mutator):
    """Draw one path of a supernet for each step: the mutator of SPOS and of evolution search over it.

    Guo et al., Single Path One-Shot Neural Architecture Search with Uniform Sampling, https://arxiv.org/abs/1904.00420.

    Every verb may be overridden (`sample_subnet`, `set_subnet`, `mutation`, `crossover`, `get_random_mask`); the
    SPOS algorithm and the search loop call them and nothing beside them.

    >>> from strop.mutables import LayerChoice
    >>> model = torch.nn.Sequential(LayerChoice([torch.nn.ReLU(), torch.nn.Identity()], key='act'))
    >>> mutator = OneShotMutator(model)
    >>> subnet = mutator.sample_subnet()
    >>> mutator.set_subnet(mutator.mutation(subnet, prob=0.5))
    """

    def sample_subnet(self) -> dict[str, torch.Tensor]:
        """Draw a random subnet: key -> 0/1 mask."""
        return BaseMutator.sample_subnet(self)

    def sample_search(self) -> dict[str, Any]:
        """Draw by `sample_subnet`."""
        return self.sample_subnet()

    def sample_final(self) -> dict[str, Any]:
        """Draw by `sample_subnet`."""
        return self.sample_subnet()


OneShotModuleMutator = OneShotMutator
NasMutator = OneShotMutator
