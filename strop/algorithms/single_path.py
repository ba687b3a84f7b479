"""Single-path training of a supernet: one architecture for each step, drawn by the mutator.

Guo, Zhang, Mu, Heng, Liu, Wei, Sun: Single Path One-Shot Neural Architecture Search with Uniform Sampling, ECCV 2020,
https://arxiv.org/abs/1904.00420. Official code: https://github.com/megvii-model/SinglePathOneShot.

Implemented here: the training of the supernet, as a trainer; uniform sampling, and sampling that is uniform in FLOPs as in
the official code. The search over the trained supernet is `strop.search` (`SPOSEvolution`); the same training as an algorithm
for configs is `strop.algorithms.SPOS`. Differs from the paper: architectures are a function of (seed, step), so that all
processes agree and a run that was killed repeats itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from strop.engine.trainer import Trainer
from strop.errors import ConfigError
from strop.mutators import BaseMutator, RandomMutator
from strop.registry import MODELS


class SinglePathTrainer(Trainer):
    """Train the weights of one drawn architecture in each step.

    Args:
        model: The model with the choices.
        loss: `loss(outputs, labels) -> Tensor`.
        metrics: `metrics(outputs, labels) -> dict` of numbers.
        optimizer: Optimizer of the model's weights.
        num_epochs: Number of epochs.
        dataset_train: Data to train on: a data set or a `DataLoader`.
        dataset_valid: Data to validate on, likewise; may be None.
        mutator: Draws the architectures; `RandomMutator(model)` by default.
        batch_size: Batch size of each process.
        workers: Worker processes of each data loader.
        device: Device; a GPU if there is one by default.
        log_frequency: Log every so many steps.
        callbacks: See `strop.engine.callbacks`.
        clip_grad: Greatest norm of the gradient; None for any.
        kwargs: `work_dir`, `seed`, `precision`, `launcher`, ...: see `Trainer`.

    >>> from strop.mutables import LayerChoice
    >>> model = nn.Sequential(LayerChoice([nn.Linear(4, 2), nn.Linear(4, 2, bias=False)], key='op'))
    >>> data = [(torch.randn(4), index % 2) for index in range(8)]
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> trainer = SinglePathTrainer(model, nn.CrossEntropyLoss(), None, sgd, 1, data, data, workers=0)
    >>> trainer.train_one_epoch(0)
    >>> sorted(trainer.validate())
    ['loss']
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
        mutator: BaseMutator | None = None,
        batch_size: int = 64,
        workers: int = 4,
        device: str | torch.device | None = None,
        log_frequency: int | None = None,
        callbacks: Sequence[Any] | None = None,
        *,
        clip_grad: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model, RandomMutator(model) if mutator is None else mutator, loss, metrics, optimizer, num_epochs, dataset_train,
            dataset_valid, batch_size, workers, device, log_frequency, callbacks, **kwargs,
        )  # fmt: skip
        self.clip_grad = clip_grad
        self.train_loader = self.loader(dataset_train)
        self.valid_loader = self.loader(dataset_valid, shuffle=False) if dataset_valid is not None else None

    def train_one_epoch(self, epoch: int) -> None:
        """Train one drawn architecture for each batch."""
        self.model.train()
        for _, batch in self.steps(self.train_loader):
            x, y = self.pair(batch)
            self.mutator.reset()
            with self.autocast():
                outputs = self.network(x)
                loss = self.loss(outputs, y)
            self.update(self.optimizer, loss, self.clip_grad)
            self.log(loss=loss, **self.metrics(outputs.detach(), y))

    def validate_one_epoch(self, epoch: int) -> Mapping[str, float] | None:
        """Validate one drawn architecture, with the batch-norm statistics that it has; a coarse sign of progress."""
        if self.valid_loader is None:
            return None
        self.mutator.reset()
        return self.evaluate(self.valid_loader)


class SPOSSupernetTrainer(SinglePathTrainer):
    """`SinglePathTrainer` under the name, and with the arguments, of NNI 1.9: it takes data loaders.

    Args:
        model: The model with the choices.
        loss: `loss(outputs, labels) -> Tensor`.
        metrics: `metrics(outputs, labels) -> dict` of numbers.
        optimizer: Optimizer of the model's weights.
        num_epochs: Number of epochs.
        train_loader: Loader of the data to train on.
        valid_loader: Loader of the data to validate on.
        mutator: Draws the architectures; `RandomMutator(model)` by default.
        kwargs: See `SinglePathTrainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], torch.Tensor],
        metrics: Callable[[Any, Any], Mapping[str, Any]] | None,
        optimizer: torch.optim.Optimizer,
        num_epochs: int,
        train_loader: Any,
        valid_loader: Any,
        mutator: BaseMutator | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, loss, metrics, optimizer, num_epochs, train_loader, valid_loader, mutator, *args, **kwargs)


@MODELS.register_module()
class SPOSSupernetTrainingMutator(RandomMutator):
    """Draw architectures whose FLOPs are spread evenly over a range: first a bin of the range, then one that falls into it.

    Args:
        model: The model to bind.
        flops_func: `flops_func(candidate) -> number` of a drawn candidate (key -> mask); None draws uniformly.
        flops_lb: Lower end of the range.
        flops_ub: Upper end of the range.
        flops_bin_num: Number of bins.
        flops_sample_timeout: So many candidates are drawn for one bin; the last one is then taken, with a warning.

    Raises:
        ConfigError: If the range is not given with `flops_func`, or is empty.

    >>> from strop.mutables import LayerChoice
    >>> model = nn.Sequential(*(LayerChoice([nn.Identity(), nn.ReLU(), nn.Tanh()], key=str(i)) for i in range(4)))
    >>> cost = lambda candidate: sum(int(mask.nonzero()) for mask in candidate.values())
    >>> mutator = SPOSSupernetTrainingMutator(model, cost, 6, 8, flops_bin_num=2)
    >>> cost(mutator.sample_search()) >= 6
    True
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        flops_func: Callable[[Mapping[str, torch.Tensor]], float] | None = None,
        flops_lb: float | None = None,
        flops_ub: float | None = None,
        flops_bin_num: int = 7,
        flops_sample_timeout: int = 500,
    ) -> None:
        if flops_func is not None:
            if flops_lb is None or flops_ub is None or flops_ub <= flops_lb or flops_bin_num < 1:
                raise ConfigError(
                    '`flops_func` needs a range flops_lb < flops_ub and at least one bin, but got '
                    f'{flops_lb!r}, {flops_ub!r} and {flops_bin_num} bins.'
                )
        self._flops_func = flops_func
        self._flops_range = (float(flops_lb or 0), float(flops_ub or 0))
        self._flops_bin_num = flops_bin_num
        self._flops_sample_timeout = flops_sample_timeout
        super().__init__(model)

    def sample_search(self) -> dict[str, Any]:
        """Draw a bin, and candidates until one is in it."""
        candidate = super().sample_search()
        if self._flops_func is None:
            return candidate
        low, high = self._flops_range
        width = (high - low) / self._flops_bin_num
        start = low + width * int(torch.randint(self._flops_bin_num, ()))
        for _ in range(self._flops_sample_timeout):
            if start <= self._flops_func(candidate) <= start + width:
                return candidate
            candidate = super().sample_search()
        print_log(
            f'None of {self._flops_sample_timeout} candidates had FLOPs within [{start:.6g}, {start + width:.6g}]; the last '
            'one is taken. Make the range smaller or the bins fewer.',
            logger='current',
            level=logging.WARNING,
        )
        return candidate
