"""What holds for all tests."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Have the garbage collector leave alone what the imports made.

    It would look at a million objects of PyTorch and others at every collection, and a measurement of latency begins with one.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter end as usual."""
    gc.unfreeze()
