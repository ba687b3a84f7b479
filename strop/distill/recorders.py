"""Recorders: what a module, method or function takes and gives, kept while a `with` block runs.

The model's code and class are not touched. Outside of the block there is no hook; the next block begins with nothing.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from strop.distill.interception import Interception, Target, function_target, method_target
from strop.distill.sources import find_module, find_parameter
from strop.errors import ComponentTypeError, ConfigError, TrainingError, listed, near
from strop.registry import TASK_UTILS


class BaseRecorder(ABC):
    """Keep what a source gives while recording, one entry for each call.

    It may be entered again while it records (nested forwards): the entries go on, and the outermost exit ends it.

    Args:
        source: What to record; see the sub-classes.
        clone: Keep copies. Needed only where the model changes a recorded tensor in place afterwards, which is said.

    Raises:
        ConfigError: If the source is no name.
    """

    def __init__(self, source: str, clone: bool = False) -> None:
        if not isinstance(source, str):
            raise ConfigError(f"`source` must be a dotted name such as 'backbone.layer4', but got {source!r}.")
        self.source = source
        self.clone = clone
        self._buffer: list[Any] = []
        self._versions: list[Any] = []
        self._depth = 0
        self._thread = 0
        self._warned = False
        self._prepared = False
        #: Whether calls are passed over for now.
        self.muted = False

    @property
    def hears_everyone(self) -> bool:
        """Whether it records calls of any model, not only of the one that it was initialized with."""
        return False

    # -- what a sub-class does -----------------------------------------------------------------

    @abstractmethod
    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Find the source.

        Raises:
            ConfigError: If it is not there; the message names near matches.
        """

    def start(self) -> None:  # noqa: B027
        """Begin to listen; called by the outermost entry."""

    def stop(self) -> None:  # noqa: B027
        """Stop listening; called by the outermost exit."""

    # -- recording -----------------------------------------------------------------------------

    def initialize(self, model: nn.Module | None = None) -> None:
        """Find the source in a model, before anything is recorded.

        Raises:
            ConfigError: If it is not there; the message names near matches.
        """
        self.prepare_from_model(model)
        self._prepared = True
        self.clear()

    @property
    def recording(self) -> bool:
        """Whether it records now."""
        return self._depth > 0

    @property
    def data_buffer(self) -> list[Any]:
        """The entries of the last recording, in the order of the calls."""
        return self._buffer

    def record(self, data: Any) -> None:
        """Keep one entry, if recording in this thread."""
        if not self._depth or self.muted:
            return
        # The compiler follows an append, but neither threads nor versions.
        compiling = torch.compiler.is_compiling()
        if not compiling and threading.get_ident() != self._thread:
            return
        if self.clone:
            data = mapped(data, torch.Tensor.clone)
        self._buffer.append(data)
        self._versions.append(None if compiling else _versions(data))

    def clear(self) -> None:
        """Forget all entries."""
        self._buffer = []
        self._versions = []

    reset_data_buffer = clear

    def detach(self) -> None:
        """Keep the entries without their history, so that no gradient flows into what gave them."""
        self._buffer = [mapped(data, torch.Tensor.detach) for data in self._buffer]

    def get_record_data(self, record_idx: int = 0, data_idx: int | str | None = None) -> Any:
        """Return what one call gave.

        Args:
            record_idx: Number of the call in the forward, from 0; -1 is the last.
            data_idx: Index (or key) in what the call gave, where that is a sequence or mapping.

        Raises:
            TrainingError: If nothing was recorded, or less than asked for; the message says what and why that may be.
            ConfigError: If `data_idx` does not fit what was recorded.
        """
        count = len(self._buffer)
        if not count:
            raise TrainingError(f'{self._described()} recorded nothing{self._why_nothing()}')
        if not -count <= record_idx < count:
            raise TrainingError(
                f'{self._described()} recorded {count} call{"s" * (count > 1)}, so `record_idx` must be within 0..{count - 1}, '
                f'not {record_idx}.'
            )
        data = self._buffer[record_idx]
        version = self._versions[record_idx]
        if version is not None and not self._warned and version != _versions(data):
            self._warned = True
            print_log(
                f'What {self._described()} recorded was changed in place before it was used, for example by an activation with '
                'inplace=True. Set inplace=False there, or clone=True in the recorder, to get what the source gave.',
                logger='current',
                level=30,
            )
        return data if data_idx is None else self._part(data, data_idx)

    def _part(self, data: Any, index: int | str) -> Any:
        if isinstance(data, Mapping) and index in data:
            return data[index]
        whole = isinstance(index, int) and (isinstance(data, (tuple, list)) or hasattr(data, 'to_tuple'))
        if whole and -len(data) <= index < len(data):  # type: ignore[operator]
            return data[index]
        if isinstance(data, torch.Tensor):
            raise ConfigError(
                f'`data_idx` is {index!r}, but {self._described()} recorded a tensor of shape {tuple(data.shape)}. Omit it.'
            )
        if isinstance(data, Mapping):
            raise ConfigError(f'{self._described()} recorded {listed(data)}, and no {index!r}.{near(index, data)}')
        size = f' of {len(data)}' if hasattr(data, '__len__') else ''
        raise ConfigError(f'{self._described()} recorded a {type(data).__name__}{size}, which has no part {index!r}.')

    def _described(self) -> str:
        return f'{type(self).__name__}({self.source!r})'

    def _why_nothing(self) -> str:
        if not self._prepared:
            return ', since it was not initialized with a model: call initialize(model), or prepare_from_student and _teacher.'
        return (
            ': it was not called while recording (or what it gave was used already and forgotten). Is it run in this forward, '
            'and is the forward inside the `with` block?'
        )

    def __enter__(self) -> BaseRecorder:
        if not self._prepared:
            raise TrainingError(f'{self._described()} cannot record{self._why_nothing()}')
        if self._depth == 0:
            self.clear()
            self._thread = threading.get_ident()
            self.start()
        self._depth += 1
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.stop()
            if kind is not None:
                self.clear()

    def __getstate__(self) -> dict[str, Any]:
        # A copy records for itself; what was recorded belongs to this one's step.
        return {**self.__dict__, '_buffer': [], '_versions': [], '_depth': 0}


@TASK_UTILS.register_module()
class ModuleOutputsRecorder(BaseRecorder):
    """Record the outputs of a module.

    Args:
        source: Path of the module in the model, as in `model.named_modules()`; an empty one is the model. Wrappers at its
            front (`module.` of DDP) may be left out.
        clone: See `BaseRecorder`.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> recorder = ModuleOutputsRecorder('0')
    >>> recorder.initialize(net)
    >>> with recorder:
    ...     _ = net(torch.ones(1, 2))
    >>> recorder.get_record_data().shape
    torch.Size([1, 3])
    """

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Find the module."""
        if not isinstance(model, nn.Module):
            raise ConfigError(f'{self._described()} needs the model, but got {type(model).__name__}.')
        self.module = find_module(model, self.source)
        if isinstance(self.module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)):
            raise ConfigError(
                f'{self.source!r} is a {type(self.module).__name__}, which is never called itself. Name one of its children: '
                f'{listed([f"{self.source}.{name}" for name, _ in self.module.named_children()])}.'
            )
        compiled = [module for module in model.modules() if getattr(module, '_compiled_call_impl', None) is not None]
        compiled += [inner for module in model.modules() if isinstance(inner := getattr(module, '_orig_mod', None), nn.Module)]
        self._compiled = any(child is self.module for module in compiled for child in module.modules())

    def start(self) -> None:
        """Hook the module."""
        self._handle = self.module.register_forward_hook(self._hook, with_kwargs=True)

    def stop(self) -> None:
        """Remove the hook."""
        self._handle.remove()

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.record(output)

    def _why_nothing(self) -> str:
        why = super()._why_nothing()
        if getattr(self, '_compiled', False):
            why += (
                ' It is inside a torch.compile-d module, which does not see hooks that come after its first call: record '
                'in its very first call, or compile after distillation, or only the parts between the sources.'
            )
        return why


@TASK_UTILS.register_module()
class ModuleInputsRecorder(ModuleOutputsRecorder):
    """Record what a module is called with: a tuple in the order of its forward's arguments, keywords among them.

    Args:
        source: Path of the module in the model; see `ModuleOutputsRecorder`.
        clone: See `BaseRecorder`.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> recorder = ModuleInputsRecorder('1')
    >>> recorder.initialize(net)
    >>> with recorder:
    ...     _ = net(torch.ones(1, 2))
    >>> recorder.get_record_data(data_idx=0).shape
    torch.Size([1, 3])
    """

    def start(self) -> None:
        """Hook the module."""
        # Before its forward, so that inputs are seen even if the forward fails or changes them.
        self._handle = self.module.register_forward_pre_hook(self._pre_hook, with_kwargs=True)

    def _pre_hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.record(_arguments(Target(module, 'forward'), args, kwargs) if kwargs else args)


@TASK_UTILS.register_module()
class FunctionOutputsRecorder(BaseRecorder):
    """Record the outputs of a function.

    Args:
        source: Import path of the function. The path of its own module means all calls, also of modules that did `from module
            import function`; any other path (that of a module which imported it) means the calls through that name.
        clone: See `BaseRecorder`.

    >>> recorder = FunctionOutputsRecorder('torch.nn.functional.relu')
    >>> recorder.initialize()
    >>> with recorder:
    ...     _ = nn.ReLU()(torch.tensor([-1.0, 2.0]))
    >>> recorder.get_record_data().tolist()
    [0.0, 2.0]
    """

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Find the function."""
        self._listening = Interception(function_target(self.source), self._around)

    @property
    def hears_everyone(self) -> bool:
        """Whether it records calls of any model: so for functions, and for methods of a class."""
        return isinstance(self._listening.target.owner, (str, type))

    def start(self) -> None:
        """Stand before the function."""
        self._listening.start()

    def stop(self) -> None:
        """Leave the function alone."""
        self._listening.stop()

    def _around(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = call(*args, **kwargs)
        self.record(output)
        return output

    def _why_nothing(self) -> str:
        why = super()._why_nothing()
        target = getattr(getattr(self, '_listening', None), 'target', None)
        if target is not None and isinstance(target.owner, str) and not target.everywhere:
            home = getattr(getattr(target.holder, target.name), '__module__', None)
            why += f' Only calls as {target} are seen' + (f"; '{home}.{target.name}' would see all." if home else '.')
        return why


@TASK_UTILS.register_module()
class FunctionInputsRecorder(FunctionOutputsRecorder):
    """Record what a function is called with: a tuple in the order of its arguments, keywords and defaults among them.

    Args:
        source: Import path of the function; see `FunctionOutputsRecorder`.
        clone: See `BaseRecorder`.

    >>> recorder = FunctionInputsRecorder('torch.nn.functional.relu')
    >>> recorder.initialize()
    >>> with recorder:
    ...     _ = nn.functional.relu(torch.tensor([-1.0, 2.0]))
    >>> recorder.get_record_data(data_idx=1)
    False
    """

    def _around(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.record(_arguments(self._listening.target, args, kwargs))
        return call(*args, **kwargs)


@TASK_UTILS.register_module()
class MethodOutputsRecorder(FunctionOutputsRecorder):
    """Record the outputs of a method.

    Args:
        source: Import path of a method, as 'package.module.Class.method', for the calls of all objects of the class; or the
            path of a method in the model, as 'head.forward_features', for the calls of that one module.
        clone: See `BaseRecorder`.

    >>> recorder = MethodOutputsRecorder('torch.nn.Linear.forward')
    >>> recorder.initialize()
    >>> with recorder:
    ...     _ = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))(torch.ones(1, 2))
    >>> recorder.get_record_data(record_idx=1).shape
    torch.Size([1, 4])
    """

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Find the method."""
        self._listening = Interception(method_target(self.source, model), self._around)


@TASK_UTILS.register_module()
class MethodInputsRecorder(MethodOutputsRecorder):
    """Record what a method is called with: a tuple as that of `FunctionInputsRecorder`, without `self`.

    Args:
        source: The method; see `MethodOutputsRecorder`.
        clone: See `BaseRecorder`.

    >>> recorder = MethodInputsRecorder('torch.nn.Linear.forward')
    >>> recorder.initialize()
    >>> with recorder:
    ...     _ = nn.Linear(2, 3)(torch.ones(1, 2))
    >>> recorder.get_record_data()
    (tensor([[1., 1.]]),)
    """

    def _around(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target = self._listening.target
        self.record(_arguments(target, args[1:] if target.receives_self else args, kwargs))
        return call(*args, **kwargs)


@TASK_UTILS.register_module()
class ParameterRecorder(BaseRecorder):
    """Give a parameter or buffer of a model, as it is when it is asked for.

    Args:
        source: Its path in the model, as in `model.named_parameters()`.
        clone: Not used: a parameter is given itself.

    >>> recorder = ParameterRecorder('0.bias')
    >>> recorder.initialize(nn.Sequential(nn.Linear(2, 3)))
    >>> recorder.get_record_data().shape
    torch.Size([3])
    """

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Find the parameter."""
        if not isinstance(model, nn.Module):
            raise ConfigError(f'{self._described()} needs the model, but got {type(model).__name__}.')
        self._place = find_parameter(model, self.source)

    @property
    def data_buffer(self) -> list[Any]:
        """The parameter, as the one entry."""
        return [getattr(*self._place)] if self._prepared else []

    def get_record_data(self, record_idx: int = 0, data_idx: int | str | None = None) -> Any:
        """Return the parameter.

        Raises:
            ConfigError: If an index other than the first record is asked for.
            TrainingError: If the recorder was not initialized.
        """
        if not self._prepared:
            raise TrainingError(f'{self._described()} recorded nothing{self._why_nothing()}')
        if record_idx not in (0, -1) or data_idx is not None:
            raise ConfigError(f'{self._described()} is one tensor: leave `record_idx` and `data_idx` out.')
        return getattr(*self._place)


class RecorderManager:
    """Named recorders that are entered and left together.

    Args:
        recorders: name -> recorder or its config. The ending `Recorder` of a type may be left out.

    Raises:
        ConfigError: If there is no such type of recorder, or its arguments are wrong.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> manager = RecorderManager(dict(feature=dict(type='ModuleOutputs', source='0')))
    >>> manager.initialize(net)
    >>> with manager:
    ...     _ = net(torch.ones(1, 2))
    >>> manager.get_recorder('feature').get_record_data().shape
    torch.Size([1, 3])
    """

    def __init__(self, recorders: Mapping[str, Any] | None = None) -> None:
        if not isinstance(recorders or {}, Mapping):
            raise ConfigError(f'Recorders are a mapping name -> config, but got {type(recorders).__name__}.')
        self.recorders = {name: _build(name, config) for name, config in (recorders or {}).items()}
        #: The model that the recorders were initialized with.
        self.model: nn.Module | None = None

    def initialize(self, model: nn.Module | None = None) -> None:
        """Find all sources in a model.

        Raises:
            ConfigError: If one is not there; the message names the recorder and near matches.
        """
        for name, recorder in self.recorders.items():
            try:
                recorder.initialize(model)
            except ConfigError as error:
                raise ConfigError(f'Recorder {name!r}: {error}') from error
        self.model = model

    def get_recorder(self, name: str) -> BaseRecorder:
        """Return a recorder.

        Raises:
            ConfigError: If there is none of that name; the message names near matches.
        """
        if name not in self.recorders:
            raise ConfigError(
                f'There is no recorder {name!r}.{near(name, self.recorders)} There is {listed(self.recorders) or "none"}.'
            )
        return self.recorders[name]

    def clear(self) -> None:
        """Forget what all recorders have recorded."""
        for recorder in self.recorders.values():
            recorder.clear()

    def detach(self) -> None:
        """Keep what was recorded without its history."""
        for recorder in self.recorders.values():
            recorder.detach()

    def __enter__(self) -> RecorderManager:
        entered: list[BaseRecorder] = []
        try:
            for recorder in self.recorders.values():
                recorder.__enter__()
                entered.append(recorder)
        except BaseException as error:
            for recorder in reversed(entered):
                recorder.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for recorder in reversed(self.recorders.values()):
            recorder.__exit__(kind, error, trace)


def _build(name: str, config: Any) -> BaseRecorder:
    return build_listener('Recorder', name, config, BaseRecorder)


def build_listener(ending: str, name: str, config: Any, kind: type) -> Any:
    """Build a recorder or delivery from its config, in whose type the ending may be left out.

    Raises:
        ConfigError: If it is no config, or its type or arguments are wrong; the message has its name.
    """
    if isinstance(config, kind):
        return config
    if not isinstance(config, Mapping) or 'type' not in config:
        raise ConfigError(f"{ending} {name!r} must be a config with the key 'type', but got {config!r}.")
    config = {key: value for key, value in config.items() if key != '_scope_'}
    cls = config.pop('type')
    if isinstance(cls, str):
        full = cls if cls.endswith(ending) else cls + ending
        found = TASK_UTILS.get(full) if full in TASK_UTILS else TASK_UTILS.get(cls) if cls in TASK_UTILS else None
        if found is None:
            known = [key.removesuffix(ending) for key in TASK_UTILS.module_dict if key.endswith(ending)]
            raise ConfigError(
                f'{ending} {name!r} is of type {cls!r}, which there is not.{near(cls, known)} There is {listed(sorted(known))}.'
            )
        cls = found
    try:
        built = cls(**config)
    except TypeError as error:
        raise ConfigError(f'{ending} {name!r} ({cls.__name__}): {error}.') from error
    if not isinstance(built, kind):
        raise ComponentTypeError(f'{ending} {name!r} must be a {kind.__name__}, not a {type(built).__name__}.')
    return built


def _arguments(target: Target, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of a call in the order of the signature, with defaults where it can be told."""
    signature = target.parameters()
    if signature is None:
        return (*args, *kwargs.values())
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return (*bound.args, *bound.kwargs.values())


def _versions(data: Any) -> Any:
    """Return how often the tensors of an entry have been changed in place."""
    if isinstance(data, torch.Tensor):
        return None if data.is_inference() else data._version
    if isinstance(data, (tuple, list)):
        return [_versions(item) for item in data if isinstance(item, torch.Tensor)]
    return None


def mapped(data: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return what was recorded with a function of tensors applied to each tensor in it.

    >>> mapped((torch.ones(1), {'a': torch.ones(1)}, 3), torch.Tensor.neg)
    (tensor([-1.]), {'a': tensor([-1.])}, 3)
    """
    if isinstance(data, torch.Tensor):
        return function(data)
    if isinstance(data, Mapping):
        return {key: mapped(value, function) for key, value in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str):
        return tuple(mapped(item, function) for item in data)
    return data
