"""Deliveries: what a function or method gave the teacher is handed to the student, in the same order.

Where a model draws at random (crops, sampled boxes, mixed labels), teacher and student would see different draws. A delivery
keeps the teacher's and gives them to the student instead of new ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log

from strop.distill.interception import Interception, Target, function_target, method_target
from strop.distill.recorders import build_listener
from strop.errors import ConfigError, TrainingError
from strop.registry import TASK_UTILS


class DistillDelivery(ABC):
    """Keep the outputs of a callable in one block, hand them out in the order they came in the next.

    Args:
        max_keep_data: How many outputs one forward of the teacher gives at most.

    Raises:
        ConfigError: If `max_keep_data` is no whole number, 1 or more.
    """

    def __init__(self, max_keep_data: int) -> None:
        if not isinstance(max_keep_data, int) or isinstance(max_keep_data, bool) or max_keep_data < 1:
            raise ConfigError(f'`max_keep_data` must be a whole number, 1 or more, but got {max_keep_data!r}.')
        self.max_keep_data = max_keep_data
        #: False keeps what the callable gives; True hands out what was kept, and does not run the callable.
        self.override_data = False
        #: What was kept, in the order of the calls.
        self.data_queue: list[Any] = []
        self._handed = 0
        self._depth = 0
        self._warned = False
        self._listening = Interception(self.find(), self._around)

    @abstractmethod
    def find(self) -> Target:
        """Return the callable."""

    def clear(self) -> None:
        """Forget what was kept."""
        self.data_queue = []
        self._handed = 0

    def __enter__(self) -> DistillDelivery:
        if self._depth == 0:
            if self.override_data:
                # From the start again: each of several students gets the same.
                self._handed = 0
            else:
                self.clear()
            self._listening.start()
        self._depth += 1
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._listening.stop()
        if kind is not None:
            self.clear()
        elif self.override_data and self._handed < len(self.data_queue) and not self._warned:
            self._warned = True
            print_log(
                f'{self} kept {len(self.data_queue)} outputs of the teacher, and the student asked for {self._handed}. Those '
                'it got are the first ones; is that what they belong to?',
                logger='current',
                level=30,
            )

    def _around(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.override_data:
            if self._handed >= len(self.data_queue):
                raise TrainingError(
                    f'{self} kept {len(self.data_queue)} outputs of the teacher, but the student, or another teacher, asks for '
                    'one more. All must call it equally often; and the teacher goes first, with `override_data` False.'
                )
            self._handed += 1
            return self.data_queue[self._handed - 1]
        output = call(*args, **kwargs)
        if len(self.data_queue) >= self.max_keep_data:
            raise TrainingError(
                f'{self} keeps at most {self.max_keep_data} outputs (`max_keep_data`), but the teacher calls it more often. '
                'Raise it to the number of calls in one forward.'
            )
        self.data_queue.append(output)
        return output

    def __str__(self) -> str:
        return f'{type(self).__name__}({str(self._listening.target)!r})'

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, 'data_queue': [], '_handed': 0, '_depth': 0}


@TASK_UTILS.register_module()
class FunctionOutputsDelivery(DistillDelivery):
    """Hand the outputs of a function on to the student.

    Args:
        func_path: Import path of the function; see `FunctionOutputsRecorder`.
        max_keep_data: How many outputs one forward of the teacher gives at most.

    >>> import random
    >>> delivery = FunctionOutputsDelivery(func_path='random.betavariate', max_keep_data=1)
    >>> with delivery:
    ...     drawn = random.betavariate(1, 1)
    >>> delivery.override_data = True
    >>> with delivery:
    ...     again = random.betavariate(1, 1)
    >>> drawn == again
    True
    """

    def __init__(self, func_path: str, max_keep_data: int) -> None:
        self.func_path = func_path
        super().__init__(max_keep_data)

    def find(self) -> Target:
        """Return the function."""
        return function_target(self.func_path)


@TASK_UTILS.register_module()
class MethodOutputsDelivery(DistillDelivery):
    """Hand the outputs of a method on to the student.

    Args:
        method_path: Import path of the method, as 'package.module.Class.method'.
        max_keep_data: How many outputs one forward of the teacher gives at most.

    >>> import random
    >>> delivery = MethodOutputsDelivery(method_path='random.Random.gauss', max_keep_data=2)
    >>> with delivery:
    ...     drawn = [random.Random(0).gauss(0, 1), random.Random(1).gauss(0, 1)]
    >>> delivery.override_data = True
    >>> with delivery:
    ...     drawn == [random.Random().gauss(0, 1), random.Random().gauss(0, 1)]
    True
    """

    def __init__(self, method_path: str, max_keep_data: int) -> None:
        self.method_path = method_path
        super().__init__(max_keep_data)

    def find(self) -> Target:
        """Return the method."""
        return method_target(self.method_path)


class DistillDeliveryManager:
    """Named deliveries that are entered, left and switched together.

    Args:
        deliveries: name -> delivery or its config. The ending `Delivery` of a type may be left out.

    Raises:
        ConfigError: If there is no such type of delivery, or its arguments are wrong.

    >>> manager = DistillDeliveryManager(dict(noise=dict(type='FunctionOutputs', func_path='torch.randn', max_keep_data=1)))
    >>> import torch
    >>> with manager:
    ...     drawn = torch.randn(2)
    >>> manager.override_data = True
    >>> with manager:
    ...     bool((torch.randn(2) == drawn).all())
    True
    """

    def __init__(self, deliveries: Mapping[str, Any] | None = None) -> None:
        if not isinstance(deliveries or {}, Mapping):
            raise ConfigError(f'Deliveries are a mapping name -> config, but got {type(deliveries).__name__}.')
        self.deliveries: dict[str, DistillDelivery] = {
            name: build_listener('Delivery', name, config, DistillDelivery) for name, config in (deliveries or {}).items()
        }
        self._override = False

    @property
    def override_data(self) -> bool:
        """Whether the deliveries hand out what was kept (the student's turn) or keep (the teacher's)."""
        return self._override

    @override_data.setter
    def override_data(self, override: bool) -> None:
        self._override = override
        for delivery in self.deliveries.values():
            delivery.override_data = override

    def clear(self) -> None:
        """Forget what all deliveries have kept."""
        for delivery in self.deliveries.values():
            delivery.clear()

    def __enter__(self) -> DistillDeliveryManager:
        entered: list[DistillDelivery] = []
        try:
            for delivery in self.deliveries.values():
                delivery.__enter__()
                entered.append(delivery)
        except BaseException as error:
            for delivery in reversed(entered):
                delivery.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for delivery in reversed(self.deliveries.values()):
            delivery.__exit__(kind, error, trace)
