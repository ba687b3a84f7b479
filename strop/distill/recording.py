"""Recording teacher and student in one `with` block, with what both call told apart by whose forward is running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from strop.distill.deliveries import DistillDeliveryManager
from strop.distill.recorders import RecorderManager


@contextmanager
def recorded(
    of_teacher: RecorderManager,
    of_student: RecorderManager,
    deliveries: DistillDeliveryManager,
    teacher: nn.Module | None,
    student: nn.Module,
) -> Iterator[None]:
    """Record both models until the block ends.

    Args:
        of_teacher: The teacher's recorders, initialized.
        of_student: The student's recorders, initialized.
        deliveries: Keep during the teacher's forwards, hand out during the student's.
        teacher: The teacher, or None if the student is recorded for both.
        student: The student.
    """
    with ExitStack() as stack:
        # Left last: a failed block forgets what was kept.
        stack.enter_context(of_teacher)
        stack.enter_context(of_student)
        stack.push(lambda kind, *_: deliveries.clear() if kind is not None else None)
        if teacher is not None and teacher is not student:
            for model, recorders, override in ((teacher, of_teacher, False), (student, of_student, True)):
                turn = _Turn(recorders, deliveries, override)
                stack.callback(turn.mute, False)
                stack.callback(turn.break_off)
                turn.mute(True)
                stack.callback(model.register_forward_pre_hook(turn.begin).remove)
                stack.callback(model.register_forward_hook(turn.end, always_call=True).remove)
        yield


class _Turn:
    """The time in which a model's forward runs."""

    def __init__(self, recorders: RecorderManager, deliveries: DistillDeliveryManager, override: bool) -> None:
        self.recorders = [recorder for recorder in recorders.recorders.values() if recorder.hears_everyone]
        self.deliveries = deliveries
        self.override = override
        self.depth = 0

    def mute(self, muted: bool) -> None:
        for recorder in self.recorders:
            recorder.muted = muted

    def begin(self, *_: Any) -> None:
        self.depth += 1
        if self.depth == 1:
            self.mute(False)
            self.deliveries.override_data = self.override
            self.deliveries.__enter__()

    def end(self, *_: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.deliveries.__exit__(None, None, None)
            self.mute(True)

    def break_off(self) -> None:
        """End a forward that did not: PyTorch calls no hooks after a KeyboardInterrupt."""
        if self.depth:
            self.depth = 1
            self.end()
