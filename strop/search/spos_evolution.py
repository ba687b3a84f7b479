"""NNI's SPOS tuner: the evolution of SPOS behind the tuner contract, with its checkpoint files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from strop.errors import ConfigError
from strop.files import atomic_write
from strop.mutables import Subnet
from strop.search.constraints import Constraint
from strop.search.evolution import SPOSEvolution
from strop.search.trial import Trial
from strop.search.tuner import NoMoreTrialError, StrategyTuner


class SPOSTuner(StrategyTuner):
    """The `SPOSEvolution` of NNI: rounds of a population, written to `checkpoints` as they end.

    After each round the `num_select` best architectures so far are written to `checkpoints/<round>_<rank>.json`, key -> one
    boolean for each candidate, which `apply_fixed_architecture` reads. After `max_epochs` rounds it has no more trials.
    Override `_is_legal` to bound FLOPs or anything else.

    Args:
        max_epochs: Number of rounds.
        num_select: How many of the best are parents.
        num_population: Trials of a round.
        m_prob: Probability with which a mutation redraws each decision.
        num_crossover: Crossovers in a round.
        num_mutation: Mutations in a round.
        optimize_mode: `'maximize'` or `'minimize'`.
        seed: Seed of all that is random.
        checkpoints: The folder of the files; None to write none.

    Reference:
        Guo et al., "Single path one-shot neural architecture search with uniform sampling", 2020,
        https://arxiv.org/abs/1904.00420.

    Differs from NNI's: every kind of decision is searched, a failed trial is not one of value 0, an architecture is
    evaluated once, and a space smaller than the population ends the search.

    >>> tuner = SPOSTuner(max_epochs=2, num_population=4, num_crossover=2, num_mutation=2, checkpoints=None)
    >>> tuner.update_search_space({'op': {'_type': 'layer_choice', '_value': ['conv', 'pool', 'skip']}})
    >>> tuner.generate_parameters(0)['op']['_value'] in ('conv', 'pool', 'skip')
    True
    """

    def __init__(
        self,
        max_epochs: int = 20,
        num_select: int = 10,
        num_population: int = 50,
        m_prob: float = 0.1,
        num_crossover: int = 25,
        num_mutation: int = 25,
        *,
        optimize_mode: str = 'maximize',
        seed: int = 0,
        checkpoints: str | os.PathLike[str] | None = 'checkpoints',
    ) -> None:
        if max_epochs < 1:
            raise ConfigError(f'`max_epochs` must be at least 1, but got {max_epochs}.')
        strategy = SPOSEvolution(
            population=num_population, top_k=num_select, mutations=num_mutation, crossovers=num_crossover, mutate_prob=m_prob
        )
        super().__init__(strategy, optimize_mode, seed=seed)
        self.max_epochs, self.num_select, self.num_population = max_epochs, num_select, num_population
        self.checkpoints = None if checkpoints is None else Path(checkpoints)

    def _is_legal(self, cand: dict[str, Any]) -> bool:
        """Tell whether an architecture may be proposed; override it.

        Args:
            cand: key -> `{'_value': ..., '_idx': ...}`, as it would be proposed.
        """
        return True

    def bounds(self) -> Iterable[Constraint]:
        """Return the constraint that `_is_legal` sets, where it is overridden."""
        if type(self)._is_legal is SPOSTuner._is_legal:
            return ()
        return (Constraint('illegal', self._illegal, high=0.5),)

    def generate_parameters(self, parameter_id: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the parameters of a trial.

        Raises:
            NoMoreTrialError: After `max_epochs` rounds, or if the search space has been gone through.
        """
        if self._next >= self.max_epochs * self.num_population:
            raise NoMoreTrialError(f'The {self.max_epochs} rounds of {self.num_population} trials are over.')
        return super().generate_parameters(parameter_id, **kwargs)

    def _illegal(self, subnet: Subnet) -> float:
        return 0.0 if self._is_legal(self._space().parameters(subnet, complete=True)) else 1.0

    def _tell(self, trial: Trial) -> None:
        super()._tell(trial)
        if len(self._known) % self.num_population == 0:
            self._write(len(self._known) // self.num_population - 1)

    def _write(self, epoch: int) -> None:
        if self.checkpoints is None:
            return
        for rank, trial in enumerate(self.strategy.ranked()[: self.num_select]):
            atomic_write(self.checkpoints / f'{epoch:03d}_{rank:03d}.json', json.dumps(one_hot(trial.subnet), indent=2) + '\n')


def one_hot(subnet: Subnet) -> dict[str, Any]:
    """Return a subnet as NNI's SPOS checkpoints hold it: key -> one boolean for each alternative; numbers as they are.

    >>> from strop.mutables import OneOf, Space
    >>> one_hot(Space({'op': OneOf(('conv', 'pool'))}).subnet({'op': 'pool'}))
    {'op': [False, True]}
    """
    space = subnet.space
    return {
        key: space[key].mask(choice).tolist() if len(space[key]) else space[key].format(choice)
        for key, choice in subnet.choices.items()
    }
