"""The stage that trains a supernet, searches it under the budget, and takes the winner out with its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from strop.compression.budget import Budget
from strop.compression.calling import as_batches, call, layout_for
from strop.compression.stage import Outcome, StageSettings, State, Surroundings, resources_of
from strop.compression.training import Schedule, train
from strop.engine import kept_batch_norms
from strop.errors import BudgetError, ConfigError
from strop.estimators import SpaceEstimator
from strop.graph.forward import evaluated
from strop.mutables import Subnet, extract, space_of
from strop.mutables.binding import bind
from strop.pruning import recalibrate
from strop.randomness import counter_rng, derive_seed
from strop.report.compression_result import Tried
from strop.search import Constraint, run
from strop.search.strategy import build_strategy


@dataclass(frozen=True)
class SearchStage(StageSettings):
    """Train all subnets of a supernet in one, one drawn at each step, and search them on the validation samples.

    The training is that of Guo et al., Single Path One-Shot Neural Architecture Search with Uniform Sampling, ECCV 2020,
    https://arxiv.org/abs/1904.00420. A candidate's batch norms are measured again before it is scored.

    Args:
        epochs: Of the supernet.
        lr: Largest learning rate.
        optimizer: `sgd` or `adamw`.
        weight_decay: Of all weights.
        trials: How many subnets are scored.
        strategy: How they are proposed; see `strop.search.run`.
        checkpoint_steps: A checkpoint every so many steps; one an epoch by default.
    """

    kind: ClassVar[str] = 'search'

    epochs: int = 20
    lr: float = 0.1
    optimizer: str = 'sgd'
    weight_decay: float = 4e-5
    trials: int = 40
    strategy: Any = 'spos'
    checkpoint_steps: int | None = None

    def __post_init__(self) -> None:
        self.schedule  # noqa: B018 - it checks the values
        if not isinstance(self.trials, int) or isinstance(self.trials, bool) or self.trials < 1:
            raise ConfigError(f'`trials` of the stage `search` is a positive whole number, but got {self.trials!r}.')
        build_strategy(self.strategy)

    @property
    def schedule(self) -> Schedule:
        """How long and how fast the supernet is trained."""
        return Schedule(
            epochs=self.epochs, lr=self.lr, optimizer=self.optimizer, weight_decay=self.weight_decay,
            checkpoint_steps=self.checkpoint_steps,
        )  # fmt: skip

    def check(self, budget: Budget, learns: bool | None = None) -> None:
        """Raise if there are no labels."""
        if learns is False:
            raise ConfigError('The stage `search` trains a supernet on labels, but `labels: false` forbids them.')

    def steps(self, samples: int, batch: int) -> int:
        return self.epochs * max(1, samples // batch)

    def run(self, state: State, around: Surroundings) -> Outcome:
        """Train, search, extract."""
        supernet, judge = state.model, around.judge
        space = space_of(supernet)
        if not len(space):
            raise ConfigError(
                f'The stage `search` needs a supernet, a model with choices in it (LayerChoice, Repeat, ...), but '
                f'{type(supernet).__name__} has nothing to decide.'
            )
        binding = bind(supernet)

        def draw(step: int) -> None:
            binding.apply(space.sample(counter_rng(around.seed, 'subnet', step)))

        def objective(student: Callable[..., Any], inputs: Any, targets: Any, step: int) -> Mapping[str, Tensor]:
            draw(step)
            return {'loss': judge.loss(call(student, inputs), targets, inputs)}

        draw(0)  # an undecided supernet cannot be asked for its layout
        trained = train(
            supernet,
            around.data.loader(derive_seed(around.seed, 'order')),
            objective,
            self.schedule,
            around.work / 'supernet',
            seed=around.seed % 2**31,
            layout=layout_for(supernet, around.data.example(2), weights=True),
            tell=lambda done, total: around.tell(done, 2 * total),
        )
        example, batches = around.data.example(1), around.calibration(supernet)
        estimator = SpaceEstimator(supernet, example)
        constraints = self._constraints(around, estimator)
        finished = 0

        def evaluate(subnet: Subnet) -> float:
            binding.apply(subnet)
            with kept_batch_norms(supernet):
                recalibrate(supernet, as_batches(batches))
                return judge.score(supernet, 'validation')

        def told(trial: Any) -> None:
            nonlocal finished
            finished += 1
            around.tell(self.trials + finished, 2 * self.trials)

        around.work.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {
            'strategy': self.strategy, 'store': str(around.work / 'search.journal'), 'trials': self.trials,
            'seed': around.seed % 2**31, 'callbacks': [told],
        }  # fmt: skip
        warnings: list[str] = []
        try:
            found = run(space, evaluate, constraints=constraints, **settings)
        except BudgetError as error:
            smallest = estimator.smallest('macs')
            warnings.append(f'{error} The smallest subnet, of {smallest.value:,} MACs, was taken.')
            best, trials = smallest.subnet, []
        else:
            best, trials = found.best.subnet, found.complete
        model = evaluated(extract(supernet, best))
        recalibrate(model, as_batches(batches))
        around.progress.done(around.name)
        costs = resources_of(model, example)
        largest = estimator.largest('macs').value
        return Outcome(
            model=model,
            choices=dict(best),
            curve=trained.curve,
            tried=[self._tried(trial, best, estimator, around) for trial in trials],
            warnings=warnings,
            explanation=[
                f'The supernet holds {space.count():,} subnets; {len(trials)} were scored on the validation samples.',
                f'The winner has {costs.macs:,} MACs, {100 * (costs.macs or 0) / largest:.0f} % of the largest subnet: '
                + ', '.join(f'{key} = {value}' for key, value in best.items())[:600]
                + '.',
            ],
            documents={'subnet': {'choices': dict(best)}},
        )

    def _constraints(self, around: Surroundings, estimator: SpaceEstimator) -> list[Constraint]:
        found, limits = [], around.counted_limits()
        for name in around.budget.counted:
            limit = limits[name]
            found.append(Constraint(name, lambda subnet, name=name: estimator.estimate(subnet, [name])[name], high=limit))  # type: ignore[misc]
        return found

    def _tried(self, trial: Any, best: Any, estimator: SpaceEstimator, around: Surroundings) -> Tried:
        costs = estimator.estimate(trial.subnet, ['macs', 'params'])
        value = next(iter(trial.values.values()))
        chosen = trial.subnet == best
        return Tried(
            f'subnet {trial.number}', around.name, costs['macs'], costs['params'], None, float(value), chosen, 'validation',
            metric=around.judge.choice,
        )  # fmt: skip


__all__ = ['SearchStage']
