r"""DARTS: weights and architecture parameters trained in turns, on two halves of the data.

Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019, https://arxiv.org/abs/1806.09055.
Official code: https://github.com/quark0/darts.

The architecture parameters :math:`\alpha` descend :math:`L_{val}(w', \alpha)` with :math:`w' = w` (first order) or with
:math:`w'` the weights after one virtual step of the real optimizer on the training loss (second order). Then

.. math:: \nabla_\alpha L_{val}(w', \alpha) - \xi\, \nabla^2_{\alpha, w} L_{train}(w, \alpha)\, \nabla_{w'} L_{val}(w', \alpha)

Implemented here: both orders, as `DartsTrainer` for any model with choices and as the algorithm `Darts` for configs. Differs
from the paper: its product of the mixed second derivative and a vector is a finite difference of two gradients; here it is
computed exactly by differentiating twice, and the finite difference is an option, for operators without a second derivative.
The gradient clipping of the weights is left out of the virtual step, as in the official code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from strop.algorithms.algorithm import BaseAlgorithm, LossResults
from strop.algorithms.second_order import SECOND_ORDER, architecture_gradient, hypergradient, scaled
from strop.engine.darts_loops import SearchBatches
from strop.engine.trainer import Trainer
from strop.errors import ComponentTypeError, ConfigError, NotDecidedError, listed, near
from strop.mutators import BaseMutator, DartsMutator, DifferentiableMutator
from strop.registry import MODELS

# -- the trainer ------------------------------------------------------------------------------------


class DartsTrainer(Trainer):
    """Search by DARTS: one half of the training data trains the weights, the other the architecture.

    Args:
        model: The model with the choices.
        loss: `loss(outputs, labels) -> Tensor`.
        metrics: `metrics(outputs, labels) -> dict` of numbers.
        optimizer: Optimizer of the model's weights.
        num_epochs: Number of epochs.
        dataset_train: Data, which are split in two halves.
        dataset_valid: Data to validate on; may be None.
        mutator: A differentiable mutator of the model; `DartsMutator(model)` by default.
        batch_size: Batch size of each half and each process.
        workers: Worker processes of each data loader.
        device: Device; a GPU if there is one by default.
        log_frequency: Log every so many steps.
        callbacks: See `strop.engine.callbacks`.
        arc_learning_rate: Learning rate of Adam for the architecture parameters.
        unrolled: Use the second order.
        second_order: 'exact' or 'finite_difference'; see `hypergradient`.
        clip_grad: Greatest norm of the weights' gradient; None for any.
        kwargs: `work_dir`, `seed`, `precision`, `launcher`, ...: see `Trainer`.

    Raises:
        ComponentTypeError: If the mutator is not differentiable.
        ConfigError: If the second order is asked for with an optimizer other than SGD, or in float16.
        DataError: If a half of the data is empty.

    >>> from strop.mutables import LayerChoice
    >>> model = nn.Sequential(LayerChoice([nn.Linear(4, 2), nn.Linear(4, 2, bias=False)], key='op'))
    >>> data = [(torch.randn(4), index % 2) for index in range(8)]
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> trainer = DartsTrainer(model, nn.CrossEntropyLoss(), None, sgd, 1, data, data, workers=0)
    >>> trainer.train_one_epoch(0)
    >>> trainer.mutator.export(readable=True)['op'] in (0, 1)
    True
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor],
        metrics: Callable[[Any, Any], Mapping[str, Any]] | None,
        optimizer: torch.optim.Optimizer,
        num_epochs: int,
        dataset_train: Any,
        dataset_valid: Any,
        mutator: DifferentiableMutator | None = None,
        batch_size: int = 64,
        workers: int = 4,
        device: str | torch.device | None = None,
        log_frequency: int | None = None,
        callbacks: Sequence[Any] | None = None,
        arc_learning_rate: float = 3.0e-4,
        unrolled: bool = False,
        *,
        second_order: str = 'exact',
        clip_grad: float | None = 5.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model, DartsMutator(model) if mutator is None else mutator, loss, metrics, optimizer, num_epochs, dataset_train,
            dataset_valid, batch_size, workers, device, log_frequency, callbacks, **kwargs,
        )  # fmt: skip
        check_differentiable(self.mutator, type(self).__name__)
        if unrolled and self.precision == 'float16':
            raise ConfigError("The second order has no loss scale; use precision='bfloat16', or the first order.")
        self.unrolled = unrolled
        self.second_order = second_order
        self.clip_grad = clip_grad
        self.ctrl_optim = torch.optim.Adam(
            self.mutator.parameters(), arc_learning_rate, betas=(0.5, 0.999), weight_decay=1.0e-3
        )
        self.train_loader, self.valid_loader = self.halves(dataset_train)
        self.test_loader = self.loader(dataset_valid, shuffle=False) if dataset_valid is not None else None

    def train_one_epoch(self, epoch: int) -> None:
        """Update architecture and weights in turns, once for each batch of the first half."""
        self.model.train()
        self.mutator.train()
        for _, (train_batch, valid_batch) in self.steps(self.train_loader, self.valid_loader):
            # The architecture, on the second half of the data.
            arch = list(self.mutator.parameters())
            if self.unrolled:
                losses = partial(self._loss, train_batch), partial(self._loss, valid_batch)
                gradients, arch_loss = hypergradient(*losses, arch, self.optimizer, self.model, self.second_order)
                self.check_finite(arch_loss)
            else:
                arch_loss = self._loss(valid_batch)
                self.check_finite(arch_loss)
                gradients = architecture_gradient(scaled(arch_loss, self.wrapper_of(self.ctrl_optim)), arch)
            for parameter, gradient in zip(arch, gradients):
                parameter.grad = gradient
            self.step(self.ctrl_optim)

            # The weights, on the first half. Nothing is to be learned of the logits here.
            x, y = self.pair(train_batch)
            with torch.no_grad():
                self.mutator.reset()
            with self.autocast():
                outputs = self.network(x)
                loss = self.loss(outputs, y)
            self.update(self.optimizer, loss, self.clip_grad)
            self.log(loss=loss, arch_loss=arch_loss, **self.metrics(outputs.detach(), y))

    def _loss(self, batch: Any) -> torch.Tensor:
        # Not through the distributed wrapper, which reduces in backward(); the gradients of the logits are averaged above.
        x, y = self.pair(batch)
        self.mutator.reset()
        with self.autocast():
            return self.check_scalar(self.loss(self.model(x), y))

    def validate_one_epoch(self, epoch: int) -> Mapping[str, float] | None:
        """Validate the supernet with the weights of the current architecture parameters."""
        if self.test_loader is None:
            return None
        with torch.no_grad():
            self.mutator.reset()
        return self.evaluate(self.test_loader)


def check_differentiable(mutator: Any, name: str) -> None:
    """Raise a `ComponentTypeError` if a mutator has no parameters to train."""
    if next(mutator.parameters(), None) is None:
        raise ComponentTypeError(
            f'{name} trains the architecture parameters of its mutator, but the {type(mutator).__name__} has none. '
            "Use a differentiable one: DartsMutator(model), or dict(type='DiffModuleMutator') in a config."
        )


# -- the algorithm ----------------------------------------------------------------------------------


@MODELS.register_module()
class Darts(BaseAlgorithm):
    """DARTS for configs: `DartsEpochBasedTrainLoop` gives two batches a step, and two optimizers update their parts.

    Args:
        architecture: A supernet: its config, a `BaseModel`, or any `nn.Module` with choices in it.
        mutator: A differentiable mutator or its config; `DifferentiableMutator` by default, also where a config written for
            MMRazor 1.0 says `NasMutator`.
        unroll: Use the second order.
        norm_training: Keep batch norms in training mode under `eval()`.
        data_preprocessor: MMEngine's data preprocessor.
        init_cfg: MMEngine's initialization config.
        second_order: 'exact' or 'finite_difference'; see `hypergradient`.
        kwargs: `loss`, `metric`, `retraining`, `mutable_cfg`: see `BaseAlgorithm`.

    A single batch and a single optimizer (`train_step(batch, optimizer)`) train weights and architecture together.

    >>> from strop.mutables import LayerChoice
    >>> darts = Darts(nn.Sequential(LayerChoice([nn.Linear(4, 2), nn.Linear(4, 2, bias=False)])))
    >>> wrappers = OptimWrapperDict(
    ...     architecture=OptimWrapper(torch.optim.SGD(darts.architecture.parameters(), lr=0.1)),
    ...     mutator=OptimWrapper(torch.optim.Adam(darts.mutator.parameters(), lr=0.1)),
    ... )
    >>> batch = (torch.randn(3, 4), torch.tensor([0, 1, 0]))
    >>> sorted(darts.train_step(SearchBatches(batch, batch), wrappers))
    ['architecture.loss', 'loss', 'mutator.loss']
    """

    def __init__(
        self,
        architecture: BaseModel | nn.Module | Mapping[str, Any],
        mutator: BaseMutator | Mapping[str, Any] | None = None,
        unroll: bool = False,
        norm_training: bool = False,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        *,
        second_order: str = 'exact',
        **kwargs: Any,
    ) -> None:
        if mutator is None:
            mutator = {'type': 'strop.DifferentiableMutator'}
        elif isinstance(mutator, Mapping) and str(mutator.get('type', '')).split('.')[-1] == 'NasMutator':
            mutator = {**mutator, 'type': 'strop.DifferentiableMutator'}
        super().__init__(architecture, data_preprocessor, init_cfg, mutator=mutator, **kwargs)
        if self.mutator is not None:
            check_differentiable(self.mutator, type(self).__name__)
        if second_order not in SECOND_ORDER:
            raise ConfigError(f'`second_order` must be one of {listed(SECOND_ORDER)}.{near(second_order, SECOND_ORDER)}')
        self.unroll = unroll
        self.second_order = second_order
        self.norm_training = norm_training
        self._frozen_arch = False

    def loss(self, batch_inputs: Any, data_samples: Any = None) -> LossResults:
        """Weigh the candidates by the current architecture parameters and return the losses."""
        if self.mutator is not None and self.mutator._model is not None and self.training:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen_arch):
                self.mutator.reset()
        return super().loss(batch_inputs, data_samples)

    def _decide(self) -> None:
        if self.mutator is None or self.mutator._model is None:
            return  # the architecture is fixed
        try:
            self.mutator.current_subnet()
        except NotDecidedError:
            with torch.no_grad():
                self.mutator.reset()

    def _forward(self, batch_inputs: Any, data_samples: Any = None) -> Any:
        """Return the raw outputs of the current decisions: those of the last step, or of the architecture parameters."""
        self._decide()
        return super()._forward(batch_inputs, data_samples)

    def _predict(self, batch_inputs: Any, data_samples: Any = None) -> Any:
        """Return the predictions of the current decisions: those of the last step, or of the architecture parameters."""
        self._decide()
        return super()._predict(batch_inputs, data_samples)

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        """Update the architecture on one batch and the weights on another.

        Args:
            data: `SearchBatches(train, valid)`, or a list of two mappings; or a single batch with a single optimizer.
            optim_wrapper: An `OptimWrapperDict` with the keys `architecture` (the weights) and `mutator`.

        Returns:
            The losses of both, as `architecture.<name>` and `mutator.<name>`, and that of the weights as 'loss'.

        Raises:
            ConfigError: If one of two is missing.
            TrainingError: If a loss is not finite.
        """
        pair = isinstance(data, SearchBatches) or (
            isinstance(data, (list, tuple)) and len(data) == 2 and all(isinstance(part, Mapping) for part in data)
        )
        if not pair and not isinstance(optim_wrapper, OptimWrapperDict):
            return super().train_step(data, optim_wrapper)
        if not pair or not isinstance(optim_wrapper, OptimWrapperDict) or self.mutator is None:
            raise ConfigError(
                'DARTS in two parts needs two batches (train_cfg of type DartsEpochBasedTrainLoop or DartsIterBasedTrainLoop), '
                "two optimizers (optim_wrapper with constructor='SeparateOptimWrapperConstructor' and the keys 'architecture' "
                "and 'mutator') and a mutator; one of them is missing."
            )
        absent = [name for name in ('architecture', 'mutator') if name not in optim_wrapper.optim_wrappers]
        if absent:
            raise ConfigError(f'`optim_wrapper` needs the keys architecture and mutator, but lacks {listed(absent)}.')
        if getattr(optim_wrapper['mutator'], '_accumulative_counts', 1) != 1:
            raise ConfigError(
                'The optimizer `mutator` steps with every batch: leave its `accumulative_counts` out. That of the weights '
                '(`architecture`) may have one.'
            )
        train_batch, valid_batch = data
        log = self._learn_architecture(train_batch, valid_batch, optim_wrapper['architecture'], optim_wrapper['mutator'])
        self._frozen_arch = True
        try:
            weights = super().train_step(train_batch, optim_wrapper['architecture'])
        finally:
            self._frozen_arch = False
        return {**{f'architecture.{name}': value for name, value in weights.items()}, **log, 'loss': weights['loss']}

    def _learn_architecture(
        self, train_batch: Any, valid_batch: Any, weights: OptimWrapper, logits: OptimWrapper
    ) -> dict[str, torch.Tensor]:
        arch = [p for p in self.mutator.parameters() if p.requires_grad]

        def total(batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            # Not through the distributed wrapper, whose reduction comes with backward(); gradients are averaged here.
            with logits.optim_context(self):
                with self._inside_wrapper():
                    losses = BaseModel._run_forward(self, self.data_preprocessor(batch, True), mode='loss')
                return self.parse_losses(losses)

        if self.unroll:
            if getattr(logits, 'loss_scaler', None) is not None:
                raise ConfigError("The second order has no loss scale; use dtype='bfloat16', or unroll=False.")
            gradients, loss = hypergradient(
                lambda: total(train_batch)[0],
                lambda: total(valid_batch)[0],
                arch,
                weights.optimizer,
                self.architecture,
                self.second_order,
            )
            log = {'loss': loss}
            self._check_finite(loss, log, logits)
        else:
            loss, log = total(valid_batch)
            self._check_finite(loss, log, logits)
            gradients = architecture_gradient(scaled(loss, logits), arch)
        for parameter, gradient in zip(arch, gradients, strict=True):
            parameter.grad = gradient
        logits.step()
        logits.zero_grad()
        return {f'mutator.{name}': value.detach() for name, value in log.items()}
