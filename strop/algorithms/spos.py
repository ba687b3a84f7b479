"""SPOS: a supernet trained one random path at a time.

Guo, Zhang, Mu, Heng, Liu, Wei, Sun: Single Path One-Shot Neural Architecture Search with Uniform Sampling, ECCV 2020,
https://arxiv.org/abs/1904.00420. Official code: https://github.com/megvii-model/SinglePathOneShot.

Implemented here: uniform single-path training, and batch-norm handling for scoring. The evolution search over the
trained supernet is `strop.engine.EvolutionSearchLoop`. Differs from the paper: subnets are drawn from a generator that
is a function of (seed, step), so that all ranks agree and a killed run repeats itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModel
from torch import nn

from strop.algorithms.algorithm import BaseAlgorithm, LossResults
from strop.errors import ConfigError
from strop.estimators import SpaceEstimator
from strop.mutators import BaseMutator
from strop.randomness import seeded
from strop.registry import MODELS


@MODELS.register_module()
class SPOS(BaseAlgorithm):
    """Sample one subnet for each training step and train its weights.

    Args:
        architecture: A supernet: its config, a `BaseModel`, or any `nn.Module` with choices in it.
        mutator: Draws the subnets; `OneShotMutator` by default. All of its verbs may be overridden.
        norm_training: Score subnets with the statistics of their own batch: batch norms stay in training mode under
            `eval()`. The alternative is recalibration before a subnet is scored (`calibrate_sample_num` of the loops).
        seed: Seed of the sampled paths; the runner's seed by default (0 without a runner).
        input_shape: Shape of one batch, for the MACs of subnets.
        kwargs: `retraining`, `mutable_cfg`, `loss`, `metric`, `data_preprocessor`, `init_cfg`: see `BaseAlgorithm`.

    With `retraining=True` nothing is sampled: the architecture is one subnet and is trained as it is.

    >>> import torch
    >>> from strop.mutables import LayerChoice
    >>> supernet = nn.Sequential(LayerChoice([nn.Linear(4, 2), nn.Linear(4, 2, bias=False)]))
    >>> spos = SPOS(supernet)
    >>> optimizer = torch.optim.SGD(spos.parameters(), lr=0.1)
    >>> log = spos.train_step((torch.zeros(3, 4), torch.tensor([0, 1, 0])), optimizer)
    >>> spos.get_subnet_flops({'module.0': 1}, input_shape=(1, 4))
    8
    """

    def __init__(
        self,
        architecture: BaseModel | nn.Module | Mapping[str, Any],
        mutator: BaseMutator | Mapping[str, Any] | None = None,
        norm_training: bool = False,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        *,
        seed: int | None = None,
        input_shape: Sequence[int] = (1, 3, 224, 224),
        **kwargs: Any,
    ) -> None:
        if mutator is None:
            mutator = {'type': 'strop.OneShotMutator'}
        super().__init__(architecture, data_preprocessor, init_cfg, mutator=mutator, **kwargs)
        self.norm_training = norm_training
        self.seed = seed
        self.input_shape = tuple(input_shape)
        self._estimator: Any = None

    @property
    def samples_subnets(self) -> bool:
        """Whether each training step draws a subnet."""
        return self.mutator is not None and not self.retraining

    def sample_subnet(self) -> Mapping[str, Any]:
        """Draw the subnet of the current step, and then others."""
        number = self._drawn()
        with seeded(self.seed or 0, f'subnet/{number}' if number else 'subnet', self.step, gpus=False):
            return self._deciding().sample_subnet()  # type: ignore[no-any-return]

    def loss(self, batch_inputs: Any, data_samples: Any = None) -> LossResults:
        """Draw a subnet, make it current, and return its losses."""
        if self.samples_subnets and self.training:
            self.set_subnet(self.sample_subnet())
        return super().loss(batch_inputs, data_samples)

    # -- resources -------------------------------------------------------------------------

    def _init_flops(self) -> None:
        """Prepare what `get_subnet_flops` needs, one trace of the supernet; override both to count otherwise."""
        binding = self.mutator.binding if self.mutator is not None else None
        self._estimator = SpaceEstimator(self.architecture, input_shape=self.input_shape, binding=binding)

    def get_subnet_flops(self, subnet: Mapping[str, Any] | None = None, input_shape: Sequence[int] | None = None) -> int:
        """Return the MACs (multiply-adds) of a subnet for one batch of `input_shape`.

        Args:
            subnet: Any form of a subnet; the current one by default.
            input_shape: Shape of the inputs; the last one used by default.

        Raises:
            ConfigError: If `_init_flops` was overridden without calling the original one, and this method was not.
        """
        shape = self.input_shape if input_shape is None else tuple(input_shape)
        if self._estimator is None or shape != self.input_shape:
            self.input_shape = shape
            self._init_flops()
            if self._estimator is None:
                raise ConfigError(
                    f'{type(self).__name__} overrides _init_flops. Let it call super()._init_flops(), or override '
                    'get_subnet_flops as well.'
                )
        if subnet is None:
            subnet = {} if self.mutator is None else self.mutator.current_subnet()
        return int(self._estimator.estimate(subnet, ['macs'])['macs'])
