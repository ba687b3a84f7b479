from __future__ import annotations

import gc
import json
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from strop.errors import ConfigError, EstimateError
from strop.estimators.latency import Latency, Measurements, measure, ratio


class Clock:
    """Time that passes only when something is called."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[str] = []

    def __call__(self) -> int:
        return self.now

    def entry(self, name: str, *milliseconds: float):
        durations = list(milliseconds)

        def call() -> None:
            self.calls.append(name)
            self.now += int(1e6 * durations[(self.calls.count(name) - 1) % len(durations)])

        return call


def test_rounds_are_interleaved_and_rotate():
    clock = Clock()
    entries = {name: clock.entry(name, 1) for name in 'ABC'}
    measure(entries, runs=4, warmup=2, settle=0, clock=clock)
    assert ''.join(clock.calls) == 'AABBCC' + 'ABC' + 'BCA' + 'CAB' + 'ABC'


def test_each_sample_follows_an_untimed_call_of_its_entry_if_there_are_others():
    clock = Clock()
    entries = {'a': clock.entry('a', 9, 9, 1, 9, 2), 'b': clock.entry('b', 9, 9, 3, 9, 4)}
    times = measure(entries, runs=2, warmup=1, clock=clock)
    assert ''.join(clock.calls) == 'ab' + 'aabb' + 'bbaa'
    assert (times['a'].samples_ms, times['b'].samples_ms) == ((1.0, 2.0), (3.0, 4.0))
    alone = Clock()
    measure({'a': alone.entry('a', 1)}, runs=2, warmup=1, settle=3, clock=alone)
    assert len(alone.calls) == 3


def test_with_several_threads_an_entry_is_called_until_those_of_others_sleep():
    clock = Clock()
    entries = {'a': clock.entry('a', 8), 'b': clock.entry('b', 30)}
    measure(entries, runs=1, warmup=0, threads=2, clock=clock)
    assert ''.join(clock.calls) == 'a' * 8 + 'a' + 'bb' + 'b'  # eight calls of 8 ms are the first that last 60
    for options, calls in (
        ({'threads': 2, 'settle_ms': 0}, 'aabb'),
        ({'settle_ms': 40}, 'aaaaaabbb'),
        ({'settle_ms': 40, 'settle': 0}, 'ab'),
        ({'threads': 2, 'settle': 9}, 'a' * 10 + 'b' * 10),
    ):
        clock.calls.clear()
        measure(entries, runs=1, warmup=0, clock=clock, **options)
        assert ''.join(clock.calls) == calls, options


def test_samples_are_in_the_order_of_rounds_and_warm_up_is_left_out():
    clock = Clock()
    times = measure(
        {'a': clock.entry('a', 100, 1, 2, 3, 4), 'b': clock.entry('b', 100, 2, 4, 6, 8)},
        runs=4, warmup=1, settle=0, clock=clock,
    )  # fmt: skip
    assert times['a'].samples_ms == (1.0, 2.0, 3.0, 4.0)
    assert times['b'].samples_ms == (2.0, 4.0, 6.0, 8.0)
    assert times['a'].median_ms == 2.5
    assert times['a'].iqr_ms == 1.5
    assert times.ratio('b', 'a').value == 2.0
    assert times.ratio('b', 'a').low == times.ratio('b', 'a').high == 2.0


def test_several_calls_make_one_sample():
    clock = Clock()
    times = measure({'a': clock.entry('a', 1, 3)}, runs=2, warmup=0, calls=2, clock=clock)
    assert times['a'].samples_ms == (2.0, 2.0)
    assert len(clock.calls) == 4


def test_a_ratio_and_its_interval():
    rng = np.random.default_rng(0)
    base = rng.uniform(5, 50, size=400)  # a machine whose speed varies tenfold
    noise = rng.normal(1, 0.02, size=400)
    first, second = Latency('a', tuple(1.3 * base * noise)), Latency('b', tuple(base))
    result = ratio(first, second)
    assert result.low < 1.3 < result.high
    assert result.high - result.low < 0.02
    assert ratio(first, second) == ratio(first, second)
    wide, narrow = ratio(first, second, confidence=0.99), ratio(first, second, confidence=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert '95 %' in str(result)


def test_models_are_timed_as_they_are_and_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train()
    threads = torch.get_num_threads()
    times = measure({'one': (model, torch.zeros(2, 4)), 'two': (model, (torch.zeros(2, 4),), 'eager')}, runs=3, warmup=1)
    assert model.training
    assert torch.get_num_threads() == threads
    assert gc.isenabled()
    assert all(sample > 0 for latency in times.values() for sample in latency.samples_ms)
    assert times.ratio('one', 'two').value > 0
    content = json.loads(json.dumps(times.to_dict(samples=True)))
    assert content['protocol'] == {
        'runs': 3,
        'warmup': 1,
        'settle': 1,
        'settle_ms': 0.0,
        'calls': 1,
        'order': 'interleaved, rotating',
        'runtime': 'eager',
        'precision': 'f32',
    }
    assert len(content['latency']['one']['samples_ms']) == 3
    assert content['machine']['threads'] == 1
    assert content['machine']['versions']['torch'] == torch.__version__.partition('+')[0]
    assert content['machine']['cores'] >= 1
    console = Console(width=120, record=True, file=open('/dev/null', 'w'))  # noqa: SIM115
    console.print(times.table())
    assert 'median ms' in console.export_text()


def test_threads_hold_inside_and_are_put_back():
    before = torch.get_num_threads()
    seen: list[int] = []
    measure({'a': lambda: seen.append(torch.get_num_threads())}, runs=1, warmup=1, threads=2)
    assert seen == [2, 2]
    assert torch.get_num_threads() == before


def test_what_raises_is_named():
    def broken() -> None:
        raise ValueError('the reason')

    with pytest.raises(EstimateError, match="'broken' failed while it was measured: ValueError: the reason"):
        measure({'fine': lambda: None, 'broken': broken}, runs=1)
    with pytest.raises(EstimateError, match="'model' failed"):
        measure({'model': (nn.Linear(4, 4), torch.zeros(2, 5))}, runs=1)
    assert gc.isenabled()


def test_wrong_input():
    with pytest.raises(ConfigError, match='mapping of names'):
        measure({})
    with pytest.raises(ConfigError, match='function without arguments'):
        measure({'a': nn.ReLU()})
    with pytest.raises(ConfigError, match='`runs` must be a positive'):
        measure({'a': lambda: None}, runs=0)
    with pytest.raises(ConfigError, match='`warmup`'):
        measure({'a': lambda: None}, warmup=-1)
    with pytest.raises(ConfigError, match='`settle` must be a number of calls, 0 or more, but got -1'):
        measure({'a': lambda: None}, settle=-1)
    with pytest.raises(ConfigError, match='`settle_ms` must be milliseconds, 0 or more, but got nan'):
        measure({'a': lambda: None}, settle_ms=float('nan'))
    with pytest.raises(ConfigError, match="Did you mean 'eager'"):
        measure({'a': (nn.ReLU(), torch.zeros(1), 'eagr')})
    with pytest.raises(ConfigError, match='in one call of `measure`'):
        ratio(Latency('a', (1.0,)), Latency('b', (1.0, 2.0)))
    with pytest.raises(ConfigError, match='`confidence`'):
        ratio(Latency('a', (1.0,)), Latency('b', (1.0,)), confidence=1.5)
    times: Measurements = measure({'alpha': lambda: None}, runs=1)
    with pytest.raises(ConfigError, match="Did you mean 'alpha'"):
        times.ratio('alpha', 'alpa')


def test_gpus_are_waited_for_before_and_after_each_sample(monkeypatch):
    order = []
    monkeypatch.setattr('strop.estimators.latency.synchronize', lambda: order.append('wait'))
    measure({'f': lambda: order.append('call')}, runs=3, warmup=0, settle=0)
    assert order[-9:] == ['wait', 'call', 'wait'] * 3


@pytest.mark.parametrize('kind', ['cuda', 'mps'])
def test_what_is_waited_for_is_the_device_in_use(monkeypatch, kind):
    waited = []
    runtimes = sys.modules['strop.estimators.runtimes']  # the function of this name hides it
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: kind == 'cuda')
    monkeypatch.setattr(runtimes, '_has_metal', lambda: kind == 'mps')
    monkeypatch.setattr(torch.mps, 'current_allocated_memory', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: waited.append(device.type))
    monkeypatch.setattr(torch.mps, 'synchronize', lambda: waited.append('mps'))
    runtimes.synchronize()
    runtimes.synchronize([torch.device(kind)])
    assert waited == [kind, kind]


def test_the_protocol_says_what_models_compute_in():
    x = torch.zeros(2, 4)

    def precision(*models, **options):
        entries = {str(index): (model, x.to(model.weight.dtype)) for index, model in enumerate(models)}
        return measure(entries, runs=1, warmup=0, **options).to_dict()['protocol']['precision']

    assert precision(nn.Linear(4, 4)) == 'f32'
    assert precision(nn.Linear(4, 4).double()) == 'float64'
    assert precision(nn.Linear(4, 4), nn.Linear(4, 4).bfloat16()) == 'bfloat16'
    assert precision(nn.Linear(4, 4), precision='bf16') == 'bf16'
    with pytest.raises(ConfigError, match='float64'):
        precision(nn.Linear(4, 4).double(), precision='f32')
