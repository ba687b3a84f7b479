"""AutoSlim: widths trained together by the sandwich rule and in-place distillation, then searched greedily.

Yu, Huang: AutoSlim: Towards One-Shot Architecture Search for Channel Numbers, 2019, https://arxiv.org/abs/1903.11728. The
training is that of Yu, Huang: Universally Slimmable Networks and Improved Training Techniques, ICCV 2019,
https://arxiv.org/abs/1903.05134. Official code: https://github.com/JiahuiYu/slimmable_networks.

Implemented here: the training of the supernet. The search is `strop.engine.AutoSlimGreedySearchLoop`; what it finds is
retrained as any fixed subnet, by `sub_model` or `mutable_cfg`. Differs from the papers: coupled layers are found by tracing,
so a width belongs to a channel unit and not to a layer; random widths are a function of (seed, step).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.model import BaseModel
from torch import nn

from strop.algorithms.algorithm import BaseAlgorithm, LossResults
from strop.algorithms.several_subnets import SeveralSubnets
from strop.algorithms.single_teacher import check_outputs
from strop.distill import ConfigurableDistiller
from strop.errors import BindingError, ComponentTypeError, ConfigError
from strop.mutators import BaseMutator, ChannelMutator
from strop.randomness import seeded
from strop.registry import MODELS

TEACHER, STUDENT = 'teacher', 'student'


@MODELS.register_module()
class AutoSlim(SeveralSubnets):
    r"""Train the largest, the smallest and some random widths of a network on each batch.

    The largest width learns from the labels; its output is the label of all others. With the distillation losses
    :math:`D`, a step minimizes

    .. math:: L(f_{max}(x), y) + D(f_{min}(x), f_{max}(x)) + \sum_i D(f_{r_i}(x), f_{max}(x)),

    where no gradient flows into :math:`f_{max}` through :math:`D`.

    Args:
        architecture: The network: its config, a `BaseModel`, or any `nn.Module`.
        mutator: A `OneShotChannelMutator` or its config. It is bound before the distiller is prepared.
        distiller: A `ConfigurableDistiller` or its config, whose teacher and student are both the architecture.
        norm_training: Score subnets with the statistics of their own batch; see `SPOS`.
        num_random_samples: How many random widths are trained in each step; 2 by default.
        data_preprocessor: MMEngine's data preprocessor.
        init_cfg: MMEngine's initialization config.
        num_samples: The same as `num_random_samples`.
        retraining: Train one fixed subnet, as it is, from the labels; give it as `mutable_cfg`.
        mutable_cfg: The widths (a file or mapping) to which the architecture is fixed by the mutator.
        seed: Seed of the random widths; the runner's seed by default (0 without a runner).
        kwargs: `loss`, `metric`: see `BaseAlgorithm`.

    Raises:
        ComponentTypeError: If the mutator or the distiller is of another class.
        BindingError: If the distiller was prepared before the mutator was bound.
        ConfigError: If a part is missing.

    >>> import torch
    >>> logits = dict(logits=dict(type='ModuleOutputs', source='2'))
    >>> distiller = dict(
    ...     type='ConfigurableDistiller',
    ...     teacher_recorders=logits,
    ...     student_recorders=logits,
    ...     distill_losses=dict(loss_kl=dict(type='KLDivergence')),
    ...     loss_forward_mappings=dict(
    ...         loss_kl=dict(
    ...             preds_S=dict(from_student=True, recorder='logits'), preds_T=dict(from_student=False, recorder='logits')
    ...         )
    ...     ),
    ... )
    >>> mutator = dict(type='OneShotChannelMutator', parse_cfg=dict(demo_input=(2, 4)))
    >>> algorithm = AutoSlim(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), mutator, distiller)
    >>> log = algorithm.train_step((torch.ones(3, 4), torch.tensor([0, 1, 0])), torch.optim.SGD(algorithm.parameters(), lr=0.1))
    >>> sorted(log)
    ['loss', 'max_subnet.loss', 'min_subnet.loss', 'min_subnet.loss_kl', ...]
    """

    def __init__(
        self,
        architecture: BaseModel | nn.Module | Mapping[str, Any] | None = None,
        mutator: BaseMutator | Mapping[str, Any] | None = None,
        distiller: ConfigurableDistiller | Mapping[str, Any] | None = None,
        norm_training: bool = False,
        num_random_samples: int | None = None,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        *,
        num_samples: int | None = None,
        retraining: bool = False,
        mutable_cfg: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(architecture, (BaseMutator, ConfigurableDistiller)):
            raise ConfigError(
                f'AutoSlim takes the architecture, the mutator and the distiller in this order, but its first argument is a '
                f'{type(architecture).__name__}. Give them by name: AutoSlim(mutator=..., distiller=..., architecture=...).'
            )
        if architecture is None:
            raise ConfigError("AutoSlim needs an `architecture`, for example dict(type='ImageClassifier', ...).")
        super().__init__(architecture, data_preprocessor, init_cfg, **kwargs)
        self.num_samples = _samples(num_samples, num_random_samples)
        self.norm_training = norm_training
        self.seed = seed
        self.retraining = retraining
        self._role: str | None = None
        if mutable_cfg is not None or retraining:
            self._fix(mutator, mutable_cfg)
            return
        self.mutator = self._built(
            'mutator',
            mutator,
            ChannelMutator,
            "dict(type='OneShotChannelMutator', parse_cfg=dict(demo_input=(1, 3, 32, 32)))",
        )
        self.distiller = self._built('distiller', distiller, ConfigurableDistiller, "dict(type='ConfigurableDistiller', ...)")
        if self.mutator._model is None:
            if _prepared(self.distiller):
                raise BindingError(
                    'The distiller was prepared before the mutator was bound. Call mutator.prepare_from_supernet(model) first, '
                    'or give AutoSlim a distiller that is not prepared yet.'
                )
            self.mutator.prepare_from_supernet(self.architecture)
        if not _prepared(self.distiller):
            self.distiller.prepare_from_teacher(self.architecture)
            self.distiller.prepare_from_student(self.architecture)
        for recorders in (self.distiller.teacher_recorders, self.distiller.student_recorders):
            check_outputs(recorders, self.architecture)

    @staticmethod
    def _built(name: str, given: Any, kind: type, example: str) -> Any:
        if given is None:
            raise ConfigError(f'AutoSlim needs a `{name}`, for example {example}.')
        built = MODELS.build(dict(given)) if isinstance(given, Mapping) else given
        if not isinstance(built, kind):
            raise ComponentTypeError(
                f'`{name}` must be a config or an instance of {kind.__name__}, but got {type(built).__name__}.'
            )
        return built

    def _fix(self, mutator: Any, subnet: Any) -> None:
        """Become the one subnet that is retrained."""
        if subnet is not None:
            bound = self._built('mutator', mutator, ChannelMutator, "dict(type='OneShotChannelMutator', ...)")
            if bound._model is None:
                bound.prepare_from_supernet(self.architecture)
            bound.load_fix_subnet(subnet)
        self.retraining = True

    # -- widths ----------------------------------------------------------------------------

    def sample_subnet(self, number: int | None = None) -> Mapping[str, Any]:
        """Draw random widths: number `number` of the current step; by default the next ones."""
        number = self._drawn() if number is None else number
        more, own = divmod(number, max(self.num_samples, 1))
        with seeded(self.seed or 0, f'subnet/{more}' if more else 'subnet', self.step * self.num_samples + own, gpus=False):
            return self._deciding().sample_subnet()  # type: ignore[no-any-return]

    # -- training --------------------------------------------------------------------------

    def passes(self) -> Sequence[tuple[str, Callable[[], None]]]:
        """Return the sandwich: the largest width, which teaches, the smallest, and random ones."""

        def largest() -> None:
            self._role = TEACHER
            self.set_max_subnet()

        def smallest() -> None:
            self._role = STUDENT
            self.set_min_subnet()

        def random(number: int) -> Callable[[], None]:
            return lambda: self.set_subnet(self.sample_subnet(number))

        drawn = [(f'random_subnet_{number}', random(number)) for number in range(self.num_samples)]
        return [('max_subnet', largest), ('min_subnet', smallest), *drawn]

    def train_step(self, data: Any, optim_wrapper: Any) -> Any:
        """Train all widths of the sandwich on a batch and update the weights once.

        Args:
            data: A batch, before the data preprocessor.
            optim_wrapper: MMEngine's `OptimWrapper`, or a plain `torch.optim.Optimizer`. Its `accumulative_counts` counts
                widths where it is a multiple of their number, as in MMRazor's configs, and steps otherwise.

        Returns:
            The losses as 'max_subnet.<name>', 'min_subnet.<name>', 'random_subnet_<i>.<name>', the sum of all as 'loss'.

        Raises:
            TrainingError: If a loss is not finite; no parameter has changed then.
        """
        if self.retraining:
            return BaseAlgorithm.train_step(self, data, optim_wrapper)
        try:
            return super().train_step(data, optim_wrapper)
        finally:
            self._role = None
            self.distiller.clear()

    def loss(self, batch_inputs: Any, data_samples: Any = None) -> LossResults:
        """Return the losses by the labels or, for a width that learns from the largest, the distillation losses.

        Outside of a training step they are those by the labels.
        """
        if self._role is None:
            return super().loss(batch_inputs, data_samples)
        if self._role == TEACHER:
            self.distiller.set_deliveries_override(False)
            with self.distiller.teacher_recorders, self.distiller.deliveries:
                losses = super().loss(batch_inputs, data_samples)
            self.distiller.teacher_recorders.detach()
            return losses
        self.distiller.set_deliveries_override(True)
        with self.distiller.student_recorders, self.distiller.deliveries:
            super().loss(batch_inputs, data_samples)
        return self.distiller.compute_distill_losses()


def _prepared(distiller: ConfigurableDistiller) -> bool:
    return distiller.teacher_recorders.model is not None or distiller.student_recorders.model is not None


def _samples(given: int | None, old: int | None) -> int:
    if given is not None and old is not None and given != old:
        raise ConfigError(f'`num_samples` and `num_random_samples` are the same, but got {given} and {old}. Give one of them.')
    number = given if given is not None else 2 if old is None else old
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ConfigError(f'`num_samples` must be a whole number, 0 or more, but got {number!r}.')
    return number
