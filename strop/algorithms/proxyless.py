r"""ProxylessNAS and its relatives: paths that are drawn, so that a step costs a path or two, whatever the number of candidates.

Cai, Zhu, Han: ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware, ICLR 2019,
https://arxiv.org/abs/1812.00332. Official code: https://github.com/mit-han-lab/proxylessnas.

Implemented here: warm-up of the weights, weights and architecture in turns, binary gates over two paths with the shift that
keeps the probabilities of the others, and the expected cost in the loss (section 3.3). With a `GumbelMutator` the same trainer
is the search of GDAS or SNAS. Differs from the official code: the cost of an architecture is a table of costs for each
candidate, measured or estimated by whoever asks, not a predictor of one phone's latency; half of the training data trains the
architecture, where the official code sets a part of ImageNet aside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from strop.algorithms.darts import check_differentiable
from strop.algorithms.second_order import architecture_gradient, scaled
from strop.engine.callbacks import LRSchedulerCallback
from strop.engine.trainer import Trainer
from strop.errors import ConfigError, UnknownKeyError, near
from strop.mutators import DifferentiableMutator, ProxylessMutator

Costs = Mapping[str, Sequence[float]]


def expected_cost(mutator: DifferentiableMutator, costs: Costs) -> torch.Tensor:
    r"""Return the expected cost of the architecture: :math:`\sum_k \sum_i \mathrm{softmax}(\alpha_k)_i\, c_{k,i}`.

    Args:
        mutator: A mutator with architecture parameters.
        costs: Key -> one cost for each alternative, in any unit.

    Raises:
        UnknownKeyError: If a key has no architecture parameters.
        ConfigError: If the number of costs is not that of the alternatives.

    >>> from strop.mutables import LayerChoice
    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.Identity()], key='act'))
    >>> round(float(expected_cost(ProxylessMutator(model, init_std=0.0), {'act': [4.0, 2.0]}).detach()), 4)
    3.0
    """
    total: Any = 0.0
    for key, values in costs.items():
        if key not in mutator.choices:
            raise UnknownKeyError(f'`costs` has {key!r}, which has no architecture parameters.{near(key, mutator.choices)}')
        logits = mutator.logits(key)
        if len(values) != len(mutator.space[key]):
            raise ConfigError(
                f'{key!r} has {len(mutator.space[key])} alternatives, but `costs` gives {len(values)} numbers for it.'
            )
        weights = torch.softmax(logits, 0)[: len(values)]
        total = total + (weights * torch.as_tensor(values, dtype=weights.dtype, device=weights.device)).sum()
    return torch.as_tensor(total)


class ProxylessTrainer(Trainer):
    """Train weights on drawn paths, and after a warm-up the architecture in turns with them.

    Args:
        model: The model with the choices.
        loss: `loss(outputs, labels) -> Tensor`.
        metrics: `metrics(outputs, labels) -> dict` of numbers.
        optimizer: Optimizer of the model's weights.
        num_epochs: Number of epochs, the warm-up included.
        dataset_train: Data, which are split in two halves unless `dataset_arch` is given.
        dataset_valid: Data to validate on; may be None.
        mutator: A differentiable mutator that draws paths; `ProxylessMutator(model)` by default, `GumbelMutator` for GDAS.
        batch_size: Batch size of each half and each process.
        workers: Worker processes of each data loader.
        device: Device; a GPU if there is one by default.
        log_frequency: Log every so many steps.
        callbacks: See `strop.engine.callbacks`.
        warmup_epochs: Epochs in which the weights alone are trained.
        arc_learning_rate: Learning rate of Adam for the architecture parameters.
        costs: Key -> one cost for each candidate, for the expected cost in the architecture's loss.
        cost_weight: Weight of the expected cost.
        arch_every: Train the architecture after every so many steps of the weights.
        dataset_arch: Data that train the architecture; by default a half of `dataset_train`.
        clip_grad: Greatest norm of the weights' gradient; None for any.
        kwargs: `work_dir`, `seed`, `precision`, `launcher`, ...: see `Trainer`.

    Raises:
        ComponentTypeError: If the mutator is not differentiable.
        DataError: If a half of the data is empty.
        ConfigError: If `warmup_epochs` is not within 0..num_epochs, or the costs do not fit the choices.

    >>> from strop.mutables import LayerChoice
    >>> model = nn.Sequential(LayerChoice([nn.Linear(4, 2), nn.Linear(4, 2, bias=False)], key='op'))
    >>> data = [(torch.randn(4), index % 2) for index in range(8)]
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> trainer = ProxylessTrainer(model, nn.CrossEntropyLoss(), None, sgd, 1, data, data, workers=0)
    >>> trainer.train_one_epoch(0)
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
        *,
        warmup_epochs: int = 0,
        arc_learning_rate: float = 1.0e-3,
        costs: Costs | None = None,
        cost_weight: float = 0.1,
        arch_every: int = 1,
        dataset_arch: Any = None,
        clip_grad: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model, ProxylessMutator(model) if mutator is None else mutator, loss, metrics, optimizer, num_epochs, dataset_train,
            dataset_valid, batch_size, workers, device, log_frequency, callbacks, **kwargs,
        )  # fmt: skip
        check_differentiable(self.mutator, type(self).__name__)
        if not 0 <= warmup_epochs <= num_epochs:
            raise ConfigError(f'`warmup_epochs` must be within 0..{num_epochs}, but got {warmup_epochs!r}.')
        self.warmup_epochs = warmup_epochs
        self.costs = dict(costs or {})
        self.cost_weight = cost_weight
        self.clip_grad = clip_grad
        expected_cost(self.mutator, self.costs)
        self.ctrl_optim = torch.optim.Adam(self.mutator.parameters(), arc_learning_rate, betas=(0.0, 0.999))
        if arch_every < 1:
            raise ConfigError(f'`arch_every` must be a positive number of steps, but got {arch_every!r}.')
        self.arch_every = arch_every
        if dataset_arch is None:
            self.train_loader, self.valid_loader = self.halves(dataset_train)
        else:
            self.train_loader, self.valid_loader = self.loader(dataset_train), self.loader(dataset_arch)
        self.test_loader = self.loader(dataset_valid, shuffle=False) if dataset_valid is not None else None

    def train_one_epoch(self, epoch: int) -> None:
        """Train weights on one drawn path and, after the warm-up, the architecture on two, in turns."""
        self.model.train()
        self.mutator.train()
        for step, (train_batch, valid_batch) in self.steps(self.train_loader, self.valid_loader):
            x, y = self.pair(train_batch)
            with torch.no_grad():
                self.mutator.reset()
            with self.autocast():
                outputs = self.network(x)
                loss = self.loss(outputs, y)
            self.update(self.optimizer, loss, self.clip_grad)
            self.log(loss=loss, **self.metrics(outputs.detach(), y))
            if epoch >= self.warmup_epochs and (step + 1) % self.arch_every == 0:
                self.log(arch_loss=self._learn_architecture(valid_batch))

    def _learn_architecture(self, batch: Any) -> torch.Tensor:
        x, y = self.pair(batch)
        gates = self.mutator.binary_gates() if isinstance(self.mutator, ProxylessMutator) else nullcontext()
        with gates:
            self.mutator.reset()
        with self.autocast():
            # Not through the distributed wrapper: the gradients of the logits are averaged below.
            loss = self.loss(self.model(x), y)
        if self.costs:
            loss = loss + self.cost_weight * expected_cost(self.mutator, self.costs)
        self.check_finite(loss)
        arch = list(self.mutator.parameters())
        gradients = architecture_gradient(scaled(loss, self.wrapper_of(self.ctrl_optim)), arch)
        for parameter, gradient in zip(arch, gradients):
            parameter.grad = gradient
        self.step(self.ctrl_optim)
        if isinstance(self.mutator, ProxylessMutator) and not self.costs:
            self.mutator.rescale()
        return loss

    def validate_one_epoch(self, epoch: int) -> Mapping[str, float] | None:
        """Validate the architecture that would be exported now."""
        if self.test_loader is None:
            return None
        self.mutator.apply_on_model(self.mutator.sample_final())
        return self.evaluate(self.test_loader)


#: Learning rate that the warm-up of the official code begins with.
_WARMUP_LR = 0.05

# Option of NNI's trainer -> its default, and what to do instead of giving another value.
_NNI_OPTIONS: dict[str, tuple[Any, str]] = {
    'binary_mode': ('full_v2', 'two drawn paths are compared in each step of the architecture'),
    'arch_init_type': ('normal', 'logits start from a normal law; arch_init_ratio is its standard deviation'),
    'arch_valid_frequency': (1, 'the architecture is validated after each epoch'),
    'load_ckpt': (False, 'call train(resume=True), which goes on from the furthest checkpoint of work_dir'),
    'ckpt_path': (None, 'checkpoints are in work_dir'),
    'arch_path': (None, 'call export(file) after training'),
}


class ProxylessNasTrainer(ProxylessTrainer):
    """`ProxylessTrainer` under the name, and with the arguments, of NNI 1.9: loaders, cross-entropy, warm-up first.

    Args:
        model: The model with the choices.
        model_optim: Optimizer of the model's weights.
        device: Device.
        train_loader: Loader of the data that train weights.
        valid_loader: Loader of the data that train the architecture, and on which it is validated.
        label_smoothing: Of the cross-entropy.
        n_epochs: Number of epochs after the warm-up.
        init_lr: Learning rate of the weights when the search begins. It falls to 0 on a cosine, from epoch to epoch. The
            warm-up has a cosine of its own, from 0.05. So it is in the official code, where rates fall from batch to batch.
        arch_init_ratio: Standard deviation of the logits at the start.
        arch_optim_lr: Learning rate of Adam for the architecture parameters.
        arch_weight_decay: Its weight decay.
        grad_update_arch_param_every: Train the architecture after every so many steps of the weights.
        warmup: Whether there is a warm-up.
        warmup_epochs: Epochs of the warm-up, in which the weights alone are trained.
        callbacks: See `strop.engine.callbacks`.
        kwargs: `work_dir`, `seed`, `costs`, ...: see `ProxylessTrainer`. Of NNI's, `binary_mode`, `arch_init_type`,
            `arch_valid_frequency`, `load_ckpt`, `ckpt_path` and `arch_path` are taken with NNI's own defaults.

    Raises:
        ConfigError: If one of those has another value; it says what does the same here.
    """

    def __init__(
        self,
        model: nn.Module,
        model_optim: torch.optim.Optimizer,
        device: str | torch.device | None,
        train_loader: Any,
        valid_loader: Any,
        label_smoothing: float = 0.1,
        n_epochs: int = 120,
        init_lr: float = 0.025,
        *,
        arch_init_ratio: float = 1.0e-3,
        arch_optim_lr: float = 1.0e-3,
        arch_weight_decay: float = 0.0,
        grad_update_arch_param_every: int = 5,
        warmup: bool = True,
        warmup_epochs: int = 25,
        callbacks: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, (default, instead) in _NNI_OPTIONS.items():
            if (value := kwargs.pop(name, default)) != default:
                raise ConfigError(f'ProxylessNasTrainer has no `{name}`, but got {value!r}: {instead}.')
        before = warmup_epochs if warmup else 0
        total = before + n_epochs
        for group in model_optim.param_groups:
            group['lr'] = init_lr

        def share(epoch: int) -> float:
            if epoch < before:
                return _WARMUP_LR / max(init_lr, 1e-12) * 0.5 * (1 + math.cos(math.pi * epoch / before))
            return 0.5 * (1 + math.cos(math.pi * (epoch - before) / max(n_epochs, 1)))

        schedule = LRSchedulerCallback(torch.optim.lr_scheduler.LambdaLR(model_optim, share))
        super().__init__(
            model,
            nn.CrossEntropyLoss(label_smoothing=label_smoothing),
            lambda outputs, labels: {'acc1': (outputs.argmax(1) == labels).float().mean()},
            model_optim,
            total,
            train_loader,
            valid_loader,
            ProxylessMutator(model, init_std=arch_init_ratio),
            device=device,
            callbacks=[schedule, *(callbacks or ())],
            warmup_epochs=before,
            arc_learning_rate=arch_optim_lr,
            arch_every=grad_update_arch_param_every,
            dataset_arch=valid_loader,
            **kwargs,
        )
        for group in self.ctrl_optim.param_groups:
            group['weight_decay'] = arch_weight_decay
