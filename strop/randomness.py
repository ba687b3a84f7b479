"""Counter-based randomness: what is drawn at step `i` depends on (seed, purpose, i) and on nothing else.

Processes agree on a draw without talking, and a run that was killed repeats itself.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, counter: int = 0) -> int:
    """Return a 63-bit seed that is a function of (`seed`, `purpose`, `counter`).

    >>> derive_seed(0, 'subnet', 1) == derive_seed(0, 'subnet', 1)
    True
    >>> derive_seed(0, 'subnet', 1) == derive_seed(0, 'subnet', 2)
    False
    """
    digest = hashlib.blake2b(f'{seed}|{purpose}|{counter}'.encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1


def counter_rng(seed: int, purpose: str, counter: int = 0) -> np.random.Generator:
    """Return a NumPy generator for (`seed`, `purpose`, `counter`).

    >>> int(counter_rng(0, 'proposal', 3).integers(100)) == int(counter_rng(0, 'proposal', 3).integers(100))
    True
    """
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, purpose, counter)))


def seed_everything(seed: int) -> None:
    """Seed the global generators of `random`, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def gpus_begin_with(seed: int) -> Iterator[None]:
    """Let GPUs that this process does not use yet, if there are any, begin with a seed inside a block, and as before behind."""
    if torch.cuda.is_initialized() or not _gpus():
        yield
        return
    usual = torch.initial_seed()
    torch.cuda.manual_seed_all(seed)  # remembered until they are used, the last one alone
    try:
        yield
    finally:
        torch.cuda.manual_seed_all(usual)


@cache
def _gpus() -> int:
    return torch.cuda.device_count()


@contextmanager
def seeded(seed: int, purpose: str, counter: int = 0, *, gpus: bool = True) -> Iterator[None]:
    """Run a block with the global generators seeded, and put their former states back afterwards.

    User code that draws from `random`, `numpy.random` or torch's generators (of the CPU, and of GPUs that are in use) becomes a
    function of (`seed`, `purpose`, `counter`) inside the block and leaves no trace outside it.

    Args:
        seed: The seed.
        purpose: What is drawn.
        counter: Which time.
        gpus: Whether that is so of GPUs, too; what is called for every sample has no time for it.

    >>> with seeded(0, 'a', 1):
    ...     first = torch.rand(1)
    >>> with seeded(0, 'a', 1):
    ...     bool(torch.rand(1) == first)
    True
    """
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    derived = derive_seed(seed, purpose, counter)
    random.seed(derived)
    np.random.seed(derived % 2**32)
    torch.default_generator.manual_seed(derived)
    # Only what is in use: to ask for more would begin to use it, and a process that does cannot be forked.
    cuda = torch.cuda.get_rng_state_all() if gpus and torch.cuda.is_initialized() else None
    if cuda is not None:
        torch.cuda.manual_seed_all(derived)
    metal = torch.mps.get_rng_state() if gpus and torch.backends.mps.is_available() else None
    if metal is not None:
        torch.mps.manual_seed(derived)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if metal is not None:
            torch.mps.set_rng_state(metal)
