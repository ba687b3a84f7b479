from __future__ import annotations

import contextlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strop.randomness import counter_rng, derive_seed, gpus_begin_with, seed_everything, seeded


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@given(st.integers(), st.text(st.characters(codec='utf-8')), st.integers())
def test_seeds_are_functions_of_their_arguments(seed: int, purpose: str, counter: int) -> None:
    derived = derive_seed(seed, purpose, counter)
    assert derived == derive_seed(seed, purpose, counter)
    assert 0 <= derived < 2**63
    assert derived != derive_seed(seed + 1, purpose, counter)
    assert derived != derive_seed(seed, purpose + ' ', counter)
    assert derived != derive_seed(seed, purpose, counter + 1)


def test_they_are_the_same_in_another_process() -> None:
    code = (
        'from strop.randomness import counter_rng, derive_seed\n'
        "print(derive_seed(7, 'p', 3), counter_rng(7, 'p', 3).integers(10**9))"
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(derive_seed(7, 'p', 3)), str(counter_rng(7, 'p', 3).integers(10**9))]


def test_the_streams_of_counters_are_independent() -> None:
    draws = np.stack([counter_rng(0, 'proposal', counter).standard_normal(2000) for counter in range(5)])
    correlation = np.corrcoef(draws) - np.eye(5)
    assert np.abs(correlation).max() < 0.1
    firsts = np.array([counter_rng(0, 'proposal', counter).random() for counter in range(2000)])
    # Kolmogorov-Smirnov distance from the uniform distribution at p = 0.001
    assert np.abs(np.sort(firsts) - (np.arange(2000) + 0.5) / 2000).max() < 1.95 / 2000**0.5


def test_seeded_blocks_repeat_and_leave_no_trace() -> None:
    seed_everything(1)
    expected = [draw(), draw()]
    seed_everything(1)
    outside = [draw()]
    with seeded(0, 'augmentation', 4):
        inside = draw()
    outside.append(draw())
    assert outside == expected
    with seeded(0, 'augmentation', 4):
        assert draw() == inside
    with seeded(0, 'augmentation', 5):
        assert draw() != inside


def test_states_come_back_after_an_exception() -> None:
    seed_everything(2)
    expected = draw()
    seed_everything(2)
    with pytest.raises(ZeroDivisionError), seeded(0, 'a'):
        draw()[0] / 0
    assert draw() == expected


def test_seed_everything_takes_large_seeds() -> None:
    for seed in (0, 2**40 + 1):
        seed_everything(seed)
        first = draw()
        seed_everything(seed)
        assert draw() == first


class Gpus:
    """Stands for two GPUs that are in use: notes what is done to their generators."""

    def __init__(self, monkeypatch, used=True):
        self.calls = []
        monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: used)
        monkeypatch.setattr(torch.cuda, 'get_rng_state_all', lambda: self.calls.append('kept') or ['a', 'b'])
        monkeypatch.setattr(torch.cuda, 'manual_seed_all', lambda seed: self.calls.append(seed))
        monkeypatch.setattr(torch.cuda, 'set_rng_state_all', lambda states: self.calls.append(('back', states)))


@pytest.mark.parametrize('fails', [False, True])
def test_gpus_in_use_are_seeded_and_put_back(monkeypatch, fails):
    gpus = Gpus(monkeypatch)
    with contextlib.suppress(ValueError), seeded(3, 'a', 2):
        gpus.calls.append('inside')
        if fails:
            raise ValueError
    assert gpus.calls == ['kept', derive_seed(3, 'a', 2), 'inside', ('back', ['a', 'b'])]


def test_gpus_that_are_not_in_use_or_not_wanted_are_left_alone(monkeypatch):
    gpus = Gpus(monkeypatch)
    with seeded(3, 'a', gpus=False):
        pass
    unused = Gpus(monkeypatch, used=False)
    with seeded(3, 'a'):
        pass
    assert gpus.calls == unused.calls == []


def test_gpus_that_a_process_will_use_begin_with_a_seed(monkeypatch):
    gpus = Gpus(monkeypatch, used=False)
    monkeypatch.setattr('strop.randomness._gpus', lambda: 2)
    with contextlib.suppress(ValueError), gpus_begin_with(5), seeded(9, 'a'):
        gpus.calls.append('inside')
        raise ValueError
    assert gpus.calls == [5, 'inside', torch.initial_seed()]
    monkeypatch.setattr('strop.randomness._gpus', lambda: 0)
    with gpus_begin_with(6):
        pass
    assert len(gpus.calls) == 3
