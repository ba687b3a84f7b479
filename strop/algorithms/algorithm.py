"""The trainable wrapper of an architecture, from which every algorithm inherits."""

from __future__ import annotations

import functools
import inspect
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Union

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from strop.algorithms.plain_architecture import PlainArchitecture, check_mode
from strop.engine import checkpoint
from strop.errors import ComponentTypeError, ConfigError, NotDecidedError, TrainingError, listed
from strop.mutables import mutables_of
from strop.mutators import BaseMutator
from strop.registry import MODELS

# So that `init_cfg=dict(type='Pretrained', ...)` never unpickles, whichever door the algorithm was imported by.
checkpoint.install()

LossResults = dict[str, torch.Tensor]
TensorResults = Union[tuple[torch.Tensor, ...], torch.Tensor]
PredictResults = list[Any]
ForwardResults = Union[LossResults, TensorResults, PredictResults]


@MODELS.register_module()
class BaseAlgorithm(BaseModel):
    """Train an architecture; override `loss` (and rarely more) to train it otherwise.

    Args:
        architecture: A config, an MMEngine `BaseModel`, or any `nn.Module` together with `loss` and `metric`. MMRazor 0.x's
            wrapping, `dict(type='MMClsArchitecture', model=dict(...))`, is unwrapped.
        data_preprocessor: MMEngine's data preprocessor; the architecture's own by default.
        init_cfg: MMEngine's initialization config, for example `dict(type='Pretrained', checkpoint=...)`.
        mutator: A mutator or its config, bound to the architecture.
        distiller: A distiller or its config, kept as `self.distiller`.
        pruner: A pruner or its config, kept as `self.pruner`.
        retraining: The architecture is (or is made, by `mutable_cfg`) one fixed subnet that is trained as it is.
        mutable_cfg: A subnet (file or mapping) to which the architecture is fixed at once.
        channel_cfg: Not supported; for MMRazor 0.x's configs it may be None.
        module_inplace: True or False makes all activations of the architecture work in place, or none of them; by default
            they stay as they are.
        loss: Loss function of a plain `nn.Module`; see `PlainArchitecture`. A method may shadow the name, so it is
            also accepted as `loss_function`.
        metric: Metric function of a plain `nn.Module`.

    Raises:
        ComponentTypeError: If the architecture or a component is of the wrong class.

    >>> algorithm = BaseAlgorithm(nn.Linear(4, 2))
    >>> optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
    >>> log = algorithm.train_step((torch.zeros(3, 4), torch.tensor([0, 1, 0])), optimizer)
    >>> bool(log['loss'] > 0)
    True
    """

    #: Whether batch norms take the statistics of their own batch under `eval()` too; algorithms that offer it set it.
    norm_training = False

    def __init__(
        self,
        architecture: BaseModel | nn.Module | Mapping[str, Any],
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        *,
        mutator: BaseMutator | Mapping[str, Any] | None = None,
        distiller: nn.Module | Mapping[str, Any] | None = None,
        pruner: nn.Module | Mapping[str, Any] | None = None,
        retraining: bool = False,
        mutable_cfg: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        channel_cfg: Any = None,
        module_inplace: bool | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
        loss_function: Callable[[Any, Any], Any] | None = None,
        metric: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        if channel_cfg is not None:
            raise ConfigError(
                '`channel_cfg` of MMRazor 0.x is not read. Files of widths as its 1.x wrote them are `channel_cfg_paths` of a '
                'SlimmableNetwork; one subnet of a supernet is retrained by giving its subnet file as `mutable_cfg`.'
            )
        built = build_architecture(architecture, loss or loss_function, metric)
        if data_preprocessor is None:
            data_preprocessor = getattr(built, 'data_preprocessor', None)
        elif isinstance(data_preprocessor, Mapping):
            # Built here, since without a default scope MMEngine would not look among ours.
            data_preprocessor = MODELS.build({'type': 'BaseDataPreprocessor', **data_preprocessor})
        super().__init__(data_preprocessor, init_cfg)
        self.architecture = built
        if module_inplace is not None:
            for module in built.modules():
                if isinstance(getattr(module, 'inplace', None), bool):
                    module.inplace = module_inplace  # type: ignore[assignment]
        self.retraining = retraining
        self.step = 0
        self._wrapper: weakref.ref[nn.Module] | None = None
        self._inside = False
        self._draws = (0, 0)
        self._users_step = type(self).train_step.__module__.split('.')[0] != 'strop'
        if self._users_step:
            self.data_preprocessor.register_forward_hook(_unpackable)
        self._bad_losses = 0
        self.mutator: Any = None
        if mutable_cfg is not None:
            BaseMutator(built).load_fix_subnet(mutable_cfg)
        if retraining and mutables_of(built):
            raise ConfigError(
                'retraining=True trains one fixed subnet, but the architecture still has decisions. Give the subnet as '
                '`mutable_cfg`, or an architecture of type sub_model with `fix_subnet`.'
            )
        if mutator is not None and not retraining:
            self.mutator = self._build_mutator(mutator)
            # Mutators of channels put their decisions into a model that has none.
            decides = bool(mutables_of(built)) or getattr(self.mutator, 'makes_decisions', False)
            if decides and self.mutator._model is None:
                self.mutator.prepare_from_supernet(built)
        if self.mutator is not None and not mutables_of(built):
            raise ConfigError(
                f'A mutator is given, but the {type(built).__name__} has nothing to decide. '
                + ('It was fixed by `mutable_cfg`: set retraining=True. ' if mutable_cfg is not None else '')
                + 'Put LayerChoice, ValueChoice or OneShotMutableOP into the architecture, or take a ChannelMutator.'
            )
        self.distiller: Any = self._build('distiller', distiller)
        self.pruner: Any = self._build('pruner', pruner)

    def _build_mutator(self, mutator: BaseMutator | Mapping[str, Any]) -> BaseMutator:
        built = MODELS.build(dict(mutator)) if isinstance(mutator, Mapping) else mutator
        if not isinstance(built, BaseMutator):
            raise ComponentTypeError(
                f'`mutator` must be a config or an instance of BaseMutator (OneShotMutator, RandomMutator, ...), '
                f'but got {type(built).__name__}.'
            )
        return built

    @staticmethod
    def _build(name: str, component: Any) -> Any:
        built = MODELS.build(dict(component)) if isinstance(component, Mapping) else component
        if built is not None and not isinstance(built, nn.Module):
            raise ComponentTypeError(f'`{name}` must be a config or an nn.Module, but got {type(built).__name__}.')
        return built

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get('train_step')
        if own is not None and 'optim_wrapper' not in inspect.signature(own).parameters:
            # MMEngine passes `optim_wrapper` by keyword; code written for MMRazor 0.x names it `optimizer`.
            def train_step(self: BaseAlgorithm, data: Any, optim_wrapper: Any) -> Any:
                return own(self, data, optim_wrapper)

            cls.train_step = functools.wraps(own)(train_step)  # type: ignore[method-assign]
        written: Any = cls.__dict__.get('forward')
        names = () if written is None else inspect.signature(written).parameters
        if 'batch_inputs' in names and 'inputs' not in names:
            # Batches of today's data preprocessors name their `inputs`; code written for MMRazor 0.x has another name.
            def forward(self: BaseAlgorithm, *args: Any, **kwargs: Any) -> Any:
                if 'inputs' in kwargs:
                    kwargs['batch_inputs'] = kwargs.pop('inputs')
                return written(self, *args, **kwargs)

            cls.forward = functools.wraps(written)(forward)  # type: ignore[method-assign]

    # -- subnets ---------------------------------------------------------------------------

    def sample_subnet(self) -> Mapping[str, Any]:
        """Draw a subnet, as the mutator does.

        Raises:
            ConfigError: If there is no mutator; so do the others.
        """
        return self._deciding().sample_subnet()  # type: ignore[no-any-return]

    def set_subnet(self, subnet: Mapping[str, Any]) -> None:
        """Make a subnet current."""
        self._deciding().set_subnet(subnet)

    def set_max_subnet(self) -> None:
        """Make the largest subnet current."""
        self._deciding().set_max_subnet()

    def set_min_subnet(self) -> None:
        """Make the smallest subnet current."""
        self._deciding().set_min_subnet()

    def _deciding(self) -> Any:
        if self.mutator is None:
            raise ConfigError(f'{type(self).__name__} has no subnets to choose from: it was given no `mutator`.')
        return self.mutator

    def _drawn(self) -> int:
        """Return how many subnets were drawn before in this step; counted on where nothing counts steps."""
        step, count = self._draws
        self._draws = (self.step, count + 1 if step == self.step else 1)
        return self._draws[1] - 1

    # -- forward ---------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward.

        Where a training step of the user's calls it under DDP, it goes through the wrapper, or gradients would not be reduced.
        """
        wrapper = self._wrapper() if self._wrapper is not None and self._users_step else None
        if wrapper is None or self._inside or not self.training or not torch.is_grad_enabled():
            return super().__call__(*args, **kwargs)
        with self._inside_wrapper():
            return wrapper(*args, **kwargs)

    @contextmanager
    def _inside_wrapper(self) -> Iterator[None]:
        """Let calls reach the forward itself."""
        before, self._inside = self._inside, True
        try:
            yield
        finally:
            self._inside = before

    def forward(self, inputs: Any = ..., data_samples: Any = None, mode: str = 'tensor', batch_inputs: Any = ...) -> Any:
        """Compute one of three things.

        Args:
            inputs: A batch of inputs, as the data preprocessor gives it.
            data_samples: Labels or data samples of the batch.
            mode: 'loss' for a dict of losses, 'tensor' for raw outputs, 'predict' for a list of predictions.
            batch_inputs: Another name of `inputs`.

        Raises:
            ModeError: For any other mode.
            ConfigError: If there are no inputs.
        """
        check_mode(mode)
        inputs = batch_inputs if inputs is ... else inputs
        if inputs is ...:
            raise ConfigError(f'{type(self).__name__} needs a batch of `inputs`.')
        method = {'loss': self.loss, 'tensor': self._forward, 'predict': self._predict}[mode]
        return method(inputs, data_samples) if _takes_two(method) else method(inputs)  # type: ignore[call-arg]

    def loss(self, batch_inputs: Any, data_samples: Any = None) -> LossResults:
        """Return the architecture's losses; the method to override."""
        return self.architecture(batch_inputs, data_samples, mode='loss')

    def _forward(self, batch_inputs: Any, data_samples: Any = None) -> TensorResults:
        """Return the architecture's raw outputs."""
        return self.architecture(batch_inputs, data_samples, mode='tensor')

    def _predict(self, batch_inputs: Any, data_samples: Any = None) -> PredictResults:
        """Return the architecture's predictions."""
        return self.architecture(batch_inputs, data_samples, mode='predict')

    # -- training --------------------------------------------------------------------------

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        """Compute the losses of a batch and update the parameters.

        Args:
            data: A batch, before the data preprocessor.
            optim_wrapper: MMEngine's `OptimWrapper`, or a plain `torch.optim.Optimizer`.

        Returns:
            The losses by name, their sum under 'loss'.

        Raises:
            TrainingError: If the loss is not finite; the message has the step and the subnet.
        """
        if isinstance(optim_wrapper, torch.optim.Optimizer):
            optim_wrapper = OptimWrapper(optim_wrapper)
        if not isinstance(optim_wrapper, OptimWrapper) or isinstance(optim_wrapper, OptimWrapperDict):
            raise ComponentTypeError(
                f'train_step of {type(self).__name__} needs one OptimWrapper or torch optimizer, but got '
                f'{type(optim_wrapper).__name__}. Rates of their own for parts of the model go into `paramwise_cfg`.'
            )
        with optim_wrapper.optim_context(self._wrapper() if self._wrapper is not None else self):
            batch = self.data_preprocessor(data, True)
            losses = self._run_forward(batch, mode='loss')
        total, log = self.parse_losses(losses)
        self._check_finite(total, log, optim_wrapper)
        optim_wrapper.update_params(total)
        self.step += 1
        return log

    def _run_forward(self, data: Any, mode: str) -> Any:
        # Under DDP, the forward must go through the wrapper, or gradients are not reduced.
        wrapper = self._wrapper() if self._wrapper is not None and mode == 'loss' else None
        if wrapper is None:
            return super()._run_forward(data, mode)
        with self._inside_wrapper():
            return wrapper(**data, mode=mode) if isinstance(data, dict) else wrapper(*data, mode=mode)

    def train(self, mode: bool = True) -> BaseAlgorithm:
        """Set the mode; with `norm_training`, batch norms of the architecture stay in training mode."""
        super().train(mode)
        if self.norm_training and not mode:
            for module in self.architecture.modules():
                if isinstance(module, _BatchNorm):
                    module.training = True
        return self

    def set_wrapper(self, wrapper: nn.Module) -> None:
        """Tell the algorithm which distributed wrapper its training forward must go through."""
        self._wrapper = weakref.ref(wrapper)

    def _check_finite(self, total: torch.Tensor, log: Mapping[str, torch.Tensor], optim_wrapper: Any) -> None:
        if torch.isfinite(total.detach()):
            self._bad_losses = 0
            return
        self._bad_losses += 1
        # A dynamic loss scale may skip a few steps; it is not meant to skip them all.
        if getattr(optim_wrapper, 'loss_scaler', None) is not None and self._bad_losses <= 10:
            return
        parts = ', '.join(f'{name}={float(value.detach()):.4g}' for name, value in log.items())
        raise TrainingError(
            f'The loss of step {self.step} is not finite ({parts}){self._subnet_text()}. Training stops before the weights are '
            'spoiled. Usual causes: a learning rate that is too high, a missing warm-up, or NaN in the inputs.'
        )

    def _subnet_text(self) -> str:
        if self.mutator is None:
            return ''
        try:
            return f' with the subnet {dict(self.mutator.current_subnet())}'
        except NotDecidedError:
            return ''

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_wrapper': None}


def build_architecture(
    architecture: Any, loss: Callable[[Any, Any], Any] | None = None, metric: Callable[[Any, Any], Any] | None = None
) -> BaseModel:
    """Return an architecture that has MMEngine's three modes, from a config or a module.

    Raises:
        ComponentTypeError: If it is neither.
        ConfigError: If the config has no 'type'.
    """
    architecture = built_model(architecture)
    if isinstance(architecture, BaseModel):
        if loss is not None or metric is not None:
            raise ConfigError(
                f'`loss` and `metric` are for plain modules; a {type(architecture).__name__} computes its own losses. '
                'Leave them out.'
            )
        return architecture
    if isinstance(architecture, nn.Module):
        return PlainArchitecture(architecture, loss, metric)
    raise ComponentTypeError(
        f'`architecture` must be a config, a BaseModel or an nn.Module, but got {type(architecture).__name__}.'
    )


def built_model(architecture: Any) -> Any:
    """Return the model of a config; anything else as it is.

    Raises:
        ConfigError: If the config has no 'type'.
    """
    if isinstance(architecture, Mapping):
        config = dict(architecture)
        if 'type' not in config and 'cfg_path' not in config:
            raise ConfigError(
                f"The config of a model needs the key 'type' or 'cfg_path', but has {listed(config) or 'nothing'}."
            )
        if isinstance(config.get('model'), Mapping) and str(config.get('type', '')).split('.')[-1].endswith('Architecture'):
            print_log(f'`architecture` is wrapped in {config["type"]!r}; its `model` is taken.', logger='current')
            config = dict(config['model'])
        return MODELS.build(config)
    return architecture


class _Batch(dict[str, Any]):
    """A batch of `inputs` and `data_samples` that can be unpacked into these two, as MMRazor's preprocessors gave them."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())


def _unpackable(preprocessor: nn.Module, args: Any, batch: Any) -> Any:
    return _Batch(batch) if type(batch) is dict and list(batch) == ['inputs', 'data_samples'] else batch


def _takes_two(method: Callable[..., Any]) -> bool:
    """Tell whether an overridden `loss(self, batch_inputs)` also wants the data samples."""
    parameters = inspect.signature(method).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
