"""The stage that removes channels and blocks: by a ratio, by a counted budget, or by a plan made against measured latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strop.compression.automatic import Planner, most_steps
from strop.compression.budget import Budget
from strop.compression.calling import as_batches, call, main_output
from strop.compression.scoring import with_better_norms
from strop.compression.stage import Outcome, StageSettings, State, Surroundings, resources_of
from strop.errors import BudgetError, ConfigError, listed, near
from strop.pruning import IMPORTANCES, build_importance, prune, recalibrate, remove_blocks
from strop.pruning import Budget as PruningBudget
from strop.pruning.ranking import Selection, check_ratio

HOW = ('automatic', 'uniform', 'global')


@dataclass(frozen=True)
class PruneStage(StageSettings):
    """Remove channels of a model, everywhere where they are coupled.

    How far is said by `ratio`, by `budget` or `blocks`, or else by the budget of the recipe.

    Args:
        ratio: Share of the channels to remove.
        budget: `macs` and `params`, as `strop.prune` takes them, in place of the recipe's.
        blocks: First take out so many residual blocks.
        how: `automatic` measures which layers take the time and which units matter, and chooses a length for each unit;
            `uniform` takes the same share of each; `global` ranks all indices together. By default automatic where a latency is
            limited, else uniform for `l1` and the like and global for importances that estimate the loss.
        importance: What indices are ranked by: `l1`, `taylor`, ..., or one with options, such as `{type: l1, reduce: max}`; see
            `strop.prune`.
        round_to: Lengths are multiples of this; kernels for integers are fastest at multiples of 8 or 16.
        ignored: Patterns of units, layers or parameters whose channels stay.
        limits: pattern -> ratio, or (least, most).
        max_ratio: No unit loses more than this share.
        recalibrate: Measure batch-norm statistics again; the automatic plan takes them if they do better on the validation
            samples.
        depth: Whether the automatic plan may take out residual blocks as well.
        resolution: Whether the automatic plan may make the images smaller as well, down to half a side. The model and its files
            then take smaller images, which the README of the result says.
        tries: How many models of each order the automatic plan measures, beside the ends.
        rehearse: Steps that the automatic plan teaches its candidates for at first, as the next stage that trains will; the
            better ones for up to four times as many. 0 takes the one whose outputs move least.
    """

    kind: ClassVar[str] = 'prune'

    ratio: float | None = None
    budget: Any = None
    blocks: int | None = None
    how: str | None = None
    importance: Any = 'l1'
    round_to: int = 8
    ignored: Any = field(default_factory=list)
    limits: Any = field(default_factory=dict)
    max_ratio: float = 0.9
    recalibrate: bool = True
    depth: bool = True
    resolution: bool = False
    tries: int = 5
    rehearse: int = 60

    def __post_init__(self) -> None:
        if self.ratio is not None and self.budget is not None:
            raise ConfigError('Say how far the stage `prune` goes by `ratio` or by `budget`, not both.')
        if self.ratio is not None and check_ratio(self.ratio) > check_ratio(self.max_ratio, 'max_ratio'):
            raise ConfigError(f'The ratio {self.ratio} of the stage `prune` is above max_ratio={self.max_ratio}.')
        PruningBudget.of(self.budget)
        if self.budget is not None and 'latency' in self.budget:
            raise ConfigError(
                'A latency is limited by the budget of the whole recipe, which knows the runtime, not by that of a stage.'
            )
        if self.how is not None and self.how not in HOW:
            raise ConfigError(
                f'`how` of the stage `prune` must be one of {listed(HOW)}, but got {self.how!r}.{near(self.how, HOW)}'
            )
        if self.how == 'automatic' and (self.ratio is not None or self.budget is not None):
            raise ConfigError('how: automatic follows the budget of the recipe: leave `ratio` and `budget` of the stage out.')
        for name in ('blocks', 'tries'):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f'`{name}` of the stage `prune` must be a positive whole number, but got {value!r}.')
        if not isinstance(self.rehearse, int) or isinstance(self.rehearse, bool) or self.rehearse < 0:
            raise ConfigError(f'`rehearse` of the stage `prune` is a number of steps, 0 or more, but got {self.rehearse!r}.')
        for name in ('recalibrate', 'depth', 'resolution'):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f'`{name}` of the stage `prune` is true or false, but got {getattr(self, name)!r}.')
        if not isinstance(self.importance, (str, Mapping)):
            raise ConfigError(
                f'`importance` of the stage `prune` is a name ({listed(IMPORTANCES, 20)}), or {{type: NAME, ...}} with '
                f'options, but got {self.importance!r}.'
            )
        build_importance(self.importance)
        Selection(round_to=self.round_to, ignored=self.ignored, limits=self.limits or {}, max_ratio=self.max_ratio)

    def check(self, budget: Budget, learns: bool | None = None) -> None:
        """Raise if it is nowhere said how far to prune."""
        if self.ratio is None and self.budget is None and self.blocks is None and not budget.limits:
            raise ConfigError(
                'The stage `prune` is not told how far to go: give it `ratio`, `budget` or `blocks`, or the recipe a budget of '
                'macs, params, size_mb, latency or accuracy_drop.'
            )
        told = self.ratio is not None or self.budget is not None or self.blocks is not None or budget.counted
        if self.how in ('uniform', 'global') and not told and budget.size_mb is None:
            raise ConfigError(
                f'`how: {self.how}` cuts by a ratio or to counted limits, but the recipe limits only {listed(budget.limits)}: '
                'give the stage `ratio` or `budget`, the recipe macs, params or size_mb, or leave `how` to the automatic plan, '
                'which measures.'
            )
        if self.resolution and not (self.plans(budget) and (budget.timed or budget.counted or budget.size_mb is not None)):
            raise ConfigError(
                '`resolution` belongs to the automatic plan, which makes images smaller for a limit of time or size: give the '
                'recipe a budget with a latency, or `how: automatic` beside macs, params or size_mb, and leave `ratio` and '
                '`budget` of the stage out.'
            )

    def describe(self) -> str:
        """Return how far it goes."""
        if self.ratio is not None:
            return f'{self.ratio:.0%} of the channels'
        if self.budget is not None:
            return str(PruningBudget.of(self.budget))
        return f'{self.blocks} blocks' if self.blocks is not None else 'as far as the budget asks'

    def rehearsed(self, budget: Budget) -> int:
        """Return for how many steps the automatic plan teaches its candidates at the most."""
        if not self.plans(budget):
            return 0
        only_score = not budget.timed and not budget.counted and budget.size_mb is None
        return self.rehearse * max(1, self.tries) if only_score else most_steps(self.rehearse)

    def plans(self, budget: Budget) -> bool:
        """Whether the automatic plan says what is taken away."""
        if self.how is not None or self.ratio is not None or self.budget is not None:
            return self.how == 'automatic' and bool(budget.limits)
        counted = bool(budget.counted) or budget.size_mb is not None
        return budget.timed or (budget.accuracy_drop is not None and not counted and self.blocks is None)

    def sees_backends(self, budget: Budget) -> bool:
        """Whether it measures, or has to know how many bytes a parameter takes in the end."""
        return self.plans(budget) or budget.size_mb is not None

    def run(self, state: State, around: Surroundings) -> Outcome:
        """Prune, and say why."""
        model, found = state.model, Outcome()
        batches = around.calibration(model)
        if self.blocks is not None:
            model, record = remove_blocks(model, around.data.example(2), count=self.blocks, data=as_batches(batches[:4]))
            found.records.append(record)
            found.explanation.append(
                f'The blocks {", ".join(record.removed)} change what passes through them least and were taken out.'
            )
            if self.recalibrate:
                recalibrate(model, as_batches(batches))
        wanted = around.budget
        if self.ratio is not None or self.budget is not None:
            model = self._by_amount(model, around, batches, found)
        elif self.plans(wanted):
            model = self._planned(model, around, batches, found)
        elif wanted.counted or wanted.size_mb is not None:
            model = self._by_amount(model, around, batches, found)
        around.progress.done(around.name)
        found.model = model
        return found

    # -- internals -------------------------------------------------------------------------

    def _by_amount(self, model: nn.Module, around: Surroundings, batches: list[Any], found: Outcome) -> nn.Module:
        asked: dict[str, Any] = {'ratio': self.ratio} if self.ratio is not None else {'budget': self._counted(model, around)}
        if self.ratio is None and not asked['budget']:
            found.explanation.append('The model keeps the budget already; nothing was removed.')
            return model
        judged: Any = build_importance(self.importance, seed=around.seed)
        scope = 'global' if self.how == 'global' or (self.how is None and getattr(judged, 'is_loss', False)) else 'local'
        options: dict[str, Any] = {
            'importance': self.importance, 'scope': scope, 'round_to': self.round_to, 'ignored': self.ignored,
            'limits': self.limits, 'max_ratio': self.max_ratio, 'seed': around.seed,
            'recalibrate': as_batches(batches) if self.recalibrate else None,
        }  # fmt: skip
        if judged.needs_data:
            options['data'], options['loss'] = importance_data(around, model)
        example = around.data.example(2)
        whole = model
        try:
            model, record = prune(whole, example, **asked, **options)
            for _ in range(4):
                # Buffers, scales and names come on top of the parameters, the more of them the smaller the model is.
                stored = float(resources_of(model, around.data.example(1)).size_mb or 0)
                allowed = around.budget.size_mb
                if self.ratio is not None or self.budget is not None or around.backends or not allowed or stored <= allowed:
                    break
                asked['budget']['params'] = record.params[1] * (allowed / stored) ** 1.2
                model, record = prune(whole, example, **asked, **options)
        except BudgetError as error:
            # What can be reached at the least is what the largest ratio leaves.
            model, record = prune(whole, example, ratio=self.max_ratio, **options)
            found.warnings.append(
                f'{error} The smallest model that can be reached was taken: {record.macs[1] / record.macs[0]:.1%} of the MACs, '
                f'{record.params[1] / record.params[0]:.1%} of the parameters.'
            )
        found.records.append(record)
        found.explanation += [
            f'Indices were ranked by {judged.name}, '
            + ('all units together' if scope == 'global' else 'the same share from every unit')
            + f', in multiples of {self.round_to}: '
            + f'{record.channels[1]} of {record.channels[0]} channels are left.',
            _largest_cuts(record),
        ]
        return model

    def _counted(self, model: nn.Module, around: Surroundings) -> dict[str, Any]:
        """Return the counted limits that the model does not keep yet, as numbers for the traced batch."""
        now = resources_of(model, around.data.example(1))
        if self.budget is not None:
            asked = dict(self.budget)
            if asked.get('macs') is not None:  # a number is of one sample; two samples are traced
                asked['macs'] = 2 * PruningBudget(macs=asked['macs']).limit('macs', float(now.macs or 0))
            return asked
        limits = {name: limit for name, limit in around.counted_limits().items() if float(getattr(now, name) or 0) > limit}
        if 'macs' in limits:
            limits['macs'] *= 2  # two samples are traced
        return {name: max(limit, 1.001) for name, limit in limits.items()}

    def _planned(self, model: nn.Module, around: Surroundings, batches: list[Any], found: Outcome) -> nn.Module:
        judged: Any = build_importance(self.importance, seed=around.seed)
        data, loss = importance_data(around, model) if judged.needs_data else (None, None)
        planned = Planner(
            model,
            around,
            importance=self.importance,
            importance_data=data,
            importance_loss=loss,
            selection=Selection(
                round_to=self.round_to, ignored=self.ignored, limits=self.limits or {}, max_ratio=self.max_ratio
            ),
            depth=self.depth,
            resolution=self.resolution,
            tries=self.tries,
            rehearse=self.rehearse,
            recalibrate=self.recalibrate,
            calibration=batches,
        ).plan()
        found.records += planned.records
        found.explanation += planned.explanation
        found.tried += planned.tried
        found.warnings += planned.warnings
        found.latencies |= planned.latencies
        found.latencies_after |= planned.latencies_after
        found.timed_in = planned.timed_in
        found.documents['plan'] = planned.to_dict()
        found.side = planned.side
        if self.recalibrate and (planned.records or planned.side):
            view = around.at(planned.side or around.data.side)
            return with_better_norms(planned.model, view.calibration(planned.model), view.judge).model
        return planned.model


def importance_data(around: Surroundings, model: nn.Module) -> tuple[list[Any], Any]:
    """Return batches of calibration samples and a loss for importances that look at data.

    Where stages may not learn from labels, the likeliest class of the original stands for them.
    """
    judge, teacher = around.judge, around.original
    found = []
    for inputs, targets in around.data.at(None).batches('calibration'):
        if not judge.learns:
            with torch.no_grad():
                targets = main_output(call(teacher, inputs), inputs)
        found.append((around.data.seen(inputs), targets))

    def loss(pruned: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        outputs = call(pruned, inputs)
        if judge.learns:
            return judge.loss(outputs, targets, inputs)
        output = main_output(outputs, inputs)
        if judge.task == 'outputs':
            return F.mse_loss(output, targets)
        return F.cross_entropy(output.flatten(0, -2), targets.argmax(-1).flatten())

    return found, loss


def _largest_cuts(record: Any) -> str:
    cuts = sorted((unit for unit in record.units if unit.after < unit.before), key=lambda unit: unit.after / unit.before)[:5]
    return 'Most was removed from ' + ', '.join(f'{unit.name} ({unit.before} → {unit.after})' for unit in cuts) + '.'


__all__ = ['HOW', 'PruneStage', 'importance_data']
