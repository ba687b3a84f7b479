from __future__ import annotations

import importlib.util
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from strop.errors import ConfigError, EstimateError
from strop.estimators import Latency
from strop.estimators.latency import Machine
from strop.estimators.sessions import openvino_core
from strop.export.layer_times import layer_times
from strop.export.runtime_times import RuntimeFile, RuntimeTime, RuntimeTimes, _size_of, measure_runtimes
from strop.quantization import quantize
from strop.report import CompressionResult

ROWS = torch.rand(4, 8)


def _net(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3)).eval()


@pytest.fixture(scope='module')
def measured() -> RuntimeTimes:
    """Two nets in ONNX Runtime and OpenVINO, one of them quantized too."""
    pytest.importorskip('onnxruntime')
    pytest.importorskip('openvino')
    small, large = _net(), _net(16)
    integers = quantize(small, [ROWS], backend='openvino', activation='min_max', check=False)
    return measure_runtimes(
        {'source': large, 'prune': [small, integers]}, ROWS, batches=(1, 4), only=('onnxruntime', 'openvino'),
        rounds=5, seconds=2, score=lambda model: float(model(ROWS).double().sum()), memory=False,
    )  # fmt: skip


def has_bf16() -> bool:
    return 'BF16' in openvino_core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


def test_every_model_is_measured_in_each_precision_of_each_runtime_and_batch(measured: RuntimeTimes) -> None:
    found = {(row.stage, row.runtime, row.precision, row.batch) for row in measured.rows}
    floats = {('onnxruntime', 'f32'), ('openvino', 'f32')} | ({('openvino', 'bf16')} if has_bf16() else set())
    wanted = {(stage, *each, batch) for stage in ('source', 'prune') for each in floats for batch in (1, 4)}
    assert found == wanted | {('prune', 'openvino', 'int8', batch) for batch in (1, 4)}
    reasons = [entry['reason'] for entry in measured.missing]
    assert all('computes no bf16 on this processor' in reason for reason in reasons)
    assert len(reasons) == (0 if has_bf16() else 2)
    assert all(len(row.latency.samples_ms) == 5 for row in measured.rows)


def test_scores_are_of_what_the_runtime_computes(measured: RuntimeTimes) -> None:
    whole = float(_net()(ROWS).detach().double().sum())
    scores = {(row.runtime, row.precision): row.score for row in measured.rows if row.stage == 'prune'}
    assert scores['onnxruntime', 'f32'] == pytest.approx(whole, abs=1e-4)
    assert scores['openvino', 'f32'] == pytest.approx(whole, abs=1e-4)
    # Quantization and short floats change the sum, each in its own way.
    assert len(set(scores.values())) >= (3 if has_bf16() else 2)
    assert scores['openvino', 'int8'] == pytest.approx(whole, abs=0.1)


def test_files_have_their_size(measured: RuntimeTimes) -> None:
    sizes = {(row.stage, row.precision): row.bytes for row in measured.rows if row.runtime == 'openvino'}
    assert sizes['source', 'f32'] > sizes['prune', 'f32'] > 4 * (8 * 8 + 8 + 8 * 3 + 3)  # type: ignore[operator]


def test_files_of_quantized_and_plain_models_lie_beside_each_other() -> None:
    pytest.importorskip('openvino')
    integers = quantize(_net(), [ROWS], backend='openvino', activation='min_max', check=False)
    times = measure_runtimes(
        {'int8': integers, 'float': _net(4096)}, ROWS, batches=(1,), only=('openvino',), precisions=('f32',), rounds=2,
        memory=False,
    )  # fmt: skip
    sizes = {row.stage: row.bytes for row in times.rows}
    assert sizes['int8'] < 4 * (8 * 4096 + 4096 + 4096 * 3 + 3) < sizes['float']  # type: ignore[operator]


def test_rows_and_speedups_are_what_a_result_takes(measured: RuntimeTimes) -> None:
    found = measured.to_dict()
    content = {'version': 1, 'measurements': found['measurements'], 'ratios': measured.speedups('source', 'prune')}
    result = CompressionResult.from_dict({**content, 'missing': found['missing'], 'environment': found['machine']})
    assert len(result.measurements) == len(measured.rows)
    assert result.measurements[0].rounds == 5


def test_eager_and_compiled_models_are_measured_beside_each_other() -> None:
    times = measure_runtimes({'net': _net()}, {'input': ROWS}, batches=(4,), only=('eager', 'compile'), rounds=5, seconds=1)
    assert [(row.runtime, row.precision) for row in times.rows] == [
        ('eager', 'f32'), ('eager', 'bf16'), ('compile', 'f32'), ('compile', 'bf16'),
    ]  # fmt: skip
    assert {row.bytes for row in times.rows} == {None}


class Imitated(nn.Module):
    """It takes its time in short floats, as a processor that has none."""

    def __init__(self, ms: float) -> None:
        super().__init__()
        self.layer, self.ms = nn.Linear(8, 4), ms

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled('cpu'):
            time.sleep(1e-3 * self.ms)
        return self.layer(x)


@pytest.mark.parametrize(('ms', 'measured'), [(120, ['f32']), (10, ['f32', 'bf16'])])
def test_a_float_that_is_only_imitated_is_left_out_with_the_reason(ms: float, measured: list[str]) -> None:
    times = measure_runtimes({'a': Imitated(ms), 'b': _net()}, ROWS, batches=(1, 4), only=('eager',), rounds=2, seconds=1)
    for stage in ('a', 'b'):
        assert [row.precision for row in times.rows if (row.stage, row.batch) == (stage, 1)] == measured
    reasons = [entry['reason'] for entry in times.missing]
    assert len(reasons) == 2 - len(measured)
    assert all(re.fullmatch(r'bf16 takes [\d.]+ times as long as f32 there \(a, batch 4\)', reason) for reason in reasons)


def test_a_float_that_is_imitated_is_prepared_for_one_model_only() -> None:
    lower = []

    class Seen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            lower.append(torch.is_autocast_enabled('cpu'))
            return x + 1

    models = {'a': Imitated(120), 'b': Seen()}
    # However the precisions are given: the first is judged by 32-bit floats.
    times = measure_runtimes(models, ROWS, batches=(1,), only=('eager',), precisions=('bf16', 'f32'), rounds=1, seconds=1)
    assert [(row.stage, row.precision) for row in times.rows] == [('a', 'f32'), ('b', 'f32')]
    assert lower
    assert not any(lower)


def test_keyword_arguments_reach_every_runtime_under_their_names() -> None:
    pytest.importorskip('onnxruntime')

    class Difference(nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return first - 2 * second

    times = measure_runtimes(
        {'net': Difference()}, {'second': ROWS, 'first': 3 * ROWS}, batches=(4,), only=('eager', 'onnxruntime'),
        precisions=('f32',), rounds=2, memory=False,
        score=lambda model: float(model(first=5 * ROWS, second=ROWS).double().sum()),
    )  # fmt: skip
    assert [row.score for row in times.rows] == [pytest.approx(3 * float(ROWS.double().sum()))] * 2


@pytest.mark.parametrize('threads', [1, 2])
def test_every_compiled_model_is_compiled_once(threads: int) -> None:
    # Beyond its limit of programs torch.compile would run in eager, and say so in a log only.
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # outside the rounds, too, programs run with the threads of the rounds
    try:
        with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
            times = measure_runtimes(
                {'a': _net(4), 'b': _net(5)}, ROWS, batches=(4,), only=('compile',), precisions=('f32',), rounds=2, seconds=1,
                threads=threads, score=lambda model: float(model(ROWS[:4]).double().sum()),
            )  # fmt: skip
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert times.missing == ()
    assert [row.stage for row in times.rows] == ['a', 'b']


def test_a_file_is_measured_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip('onnxruntime')
    from strop.export import export_onnx

    path = export_onnx(_net(), ROWS, tmp_path / 'net.onnx', check=False).path
    files = [RuntimeFile(path, 'onnxruntime', 'f32'), RuntimeFile(path, 'openvino', 'f32')]
    times = measure_runtimes({'net': files}, ROWS, batches=(1,), only=('onnxruntime',), rounds=2, memory=False)
    assert [(row.runtime, row.precision, row.bytes) for row in times.rows] == [('onnxruntime', 'f32', path.stat().st_size)]


def test_a_runtime_that_is_not_installed_is_listed_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'openvino' else find(name))
    times = measure_runtimes({'net': _net()}, ROWS, batches=(1,), only=('eager', 'openvino'), precisions=('f32',), rounds=2)
    assert [row.runtime for row in times.rows] == ['eager']
    assert times.missing == ({'runtime': 'openvino', 'reason': 'openvino is not installed', 'extra': 'openvino'},)


def test_what_a_runtime_does_not_take_is_listed_and_stops_nothing() -> None:
    pytest.importorskip('onnxruntime')

    class Looks(nn.Module):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return given if given.sum() > 0 else -given

    times = measure_runtimes(
        {'looks': Looks(), 'net': _net()}, ROWS, batches=(1,), only=('eager', 'onnxruntime'), precisions=('f32',), rounds=2,
        memory=False,
    )  # fmt: skip
    assert {(row.stage, row.runtime) for row in times.rows} == {('looks', 'eager'), ('net', 'eager'), ('net', 'onnxruntime')}
    assert [(entry['runtime'], entry['extra']) for entry in times.missing] == [('onnxruntime', '')]
    assert times.missing[0]['reason'].startswith('looks in f32: ')


def test_the_models_stay_as_they_are() -> None:
    model = _net().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    measure_runtimes({'net': model}, ROWS, batches=(2,), only=('eager',), rounds=2)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_how_far_the_preparation_is_is_told() -> None:
    told: list[tuple[int, int]] = []
    measure_runtimes({'net': _net()}, ROWS, batches=(1,), only=('eager',), rounds=2, tell=lambda *at: told.append(at))
    assert told == [(0, 2), (1, 2), (2, 2)]


def _row(stage: str, runtime: str, precision: str, *samples: float, batch: int = 1) -> RuntimeTime:
    return RuntimeTime(stage, runtime, precision, batch, 1, Latency(stage, samples))


def test_speedups_pair_the_same_runtime_and_the_fastest_with_the_fastest_float() -> None:
    rows = (
        _row('a', 'eager', 'f32', 8.0, 8.0), _row('a', 'openvino', 'bf16', 4.0, 4.0), _row('a', 'openvino', 'int8', 3.0, 3.0),
        _row('b', 'eager', 'f32', 4.0, 4.0), _row('b', 'openvino', 'int8', 1.0, 1.0),
        _row('b', 'eager', 'f32', 9.0, 9.0, batch=8),
    )  # fmt: skip
    times = RuntimeTimes(rows, (), Machine.here(1))
    found = {entry['what']: entry['value'] for entry in times.speedups('a', 'b')}
    assert found == {
        'b beside a, both f32 in eager, batch 1': 2.0,
        'b beside a, both int8 in openvino, batch 1': 3.0,
        'b (int8 in openvino) beside the fastest float of a (bf16 in openvino), batch 1': 4.0,
    }
    assert times.fastest('a', 1) is rows[2]
    assert times.fastest('a', 1, ('f32', 'bf16')) is rows[1]
    assert times.fastest('c', 1) is None
    assert len(times.table().rows) == 6


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(only=('onnxruntim',)), "Did you mean 'onnxruntime'"),
        (dict(only=('tensorrt',)), "but got 'tensorrt'"),
        (dict(precisions=('bf61',)), "Did you mean 'bf16'"),
        (dict(batches=(0,)), r'`batches\[0\]` must be a positive integer'),
        (dict(models={}), 'There is no model'),
        (dict(models={'a': 'net'}), "'a' is a str"),
        (dict(models={'a': RuntimeFile(Path('a.onnx'), 'openvin')}), "Did you mean 'openvino'"),
    ],
)
def test_arguments_are_looked_over_first(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        measure_runtimes(**{'models': {'net': _net()}, 'inputs': ROWS, **options})


def test_one_file_is_not_two_models(tmp_path: Path) -> None:
    file = RuntimeFile(tmp_path / 'net.onnx', 'onnxruntime')
    again = RuntimeFile(tmp_path / 'sub' / '..' / 'net.onnx', 'onnxruntime')
    with pytest.raises(ConfigError, match="as 'source' and as 'quantize', but a file holds one model"):
        measure_runtimes({'source': file, 'quantize': again}, ROWS)


def test_two_models_of_one_name_are_not_measured_alike(tmp_path: Path) -> None:
    file = RuntimeFile(tmp_path / 'net.onnx', 'onnxruntime', 'f32')
    with pytest.raises(ConfigError, match=r"'net' has several models for onnxruntime in f32, .*: give each a name"):
        measure_runtimes({'net': [_net(), file]}, ROWS)


class Weighted(nn.Module):
    """A model that tells its arguments apart."""

    def __init__(self) -> None:
        super().__init__()
        self.plus, self.minus = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.plus(first) - 2 * self.minus(second)


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_keyword_arguments_reach_a_quantized_file_as_it_was_calibrated(runtime: str) -> None:
    pytest.importorskip(runtime)
    torch.manual_seed(0)
    model = Weighted().eval()
    one, two = torch.rand(4, 8), 3 * torch.rand(4, 8)
    integers = quantize(model, [{'first': one, 'second': two}], backend=runtime, activation='min_max', check=False)
    times = measure_runtimes(
        {'net': integers}, {'second': two, 'first': one}, batches=(4,), only=(runtime,), rounds=2, seconds=1,
        score=lambda model: float(model(first=one, second=two).double().sum()), memory=False,
    )  # fmt: skip
    whole, swapped = (float(model(*each).detach().double().sum()) for each in ((one, two), (two, one)))
    assert [row.score for row in times.rows] == [pytest.approx(whole, abs=0.1 * abs(whole - swapped))]
    layers = layer_times(model, {'second': two, 'first': one}, quantized=integers, rounds=2, warmup=0)
    assert list(layers) == ['plus', 'minus']


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise RuntimeError('holds a socket')


def test_a_model_that_cannot_be_copied_stops_nothing() -> None:
    masked = _net()
    prune.l1_unstructured(masked[0], 'weight', 0.5)
    models = {'a': _net(), 'b': masked, 'c': Uncopyable(8, 3)}
    times = measure_runtimes(models, ROWS, batches=(4,), only=('eager',), precisions=('f32',), rounds=2, seconds=1)
    assert [row.stage for row in times.rows] == ['a', 'b']
    assert times.missing == ({'runtime': 'eager', 'reason': 'c cannot be copied: RuntimeError: holds a socket', 'extra': ''},)
    with pytest.raises(EstimateError, match='holds a socket'):
        layer_times(models['c'], ROWS)
    assert list(layer_times(masked, ROWS, rounds=2, warmup=0)) == ['0', '2']


def test_a_score_that_fails_says_where() -> None:
    with pytest.raises(EstimateError, match='net as eager computes it in f32: ZeroDivisionError'):
        measure_runtimes({'net': _net()}, ROWS, batches=(1,), only=('eager',), rounds=1, score=lambda model: 1 / 0)


def test_a_model_of_other_inputs_is_measured_and_scored_on_them() -> None:
    pytest.importorskip('onnxruntime')
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = torch.rand(2, 1, 16, 16)
    seen: dict[str, list[int]] = {'whole': [], 'half': []}

    def judge(name: str, side: int) -> Any:
        def score(model: nn.Module) -> float:
            seen[name].append(side)
            return float(model(images[..., :side, :side]).sum())

        return score

    times = measure_runtimes(
        {'whole': pooled, 'half': pooled}, images, inputs_of={'half': images[..., :8, :8]}, batches=(1,),
        only=('eager', 'onnxruntime'), precisions=('f32',), rounds=2, memory=False,
        score={'whole': judge('whole', 16), 'half': judge('half', 8)},
    )  # fmt: skip
    assert times.missing == ()
    scores = {(row.stage, row.runtime): row.score for row in times.rows}
    for stage, side in (('whole', 16), ('half', 8)):
        expected = float(pooled(images[..., :side, :side]).detach().sum())
        assert scores[stage, 'eager'] == pytest.approx(expected, abs=1e-5)
        assert scores[stage, 'onnxruntime'] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ConfigError, match="`inputs_of` names 'hal'"):
        measure_runtimes({'half': pooled}, images, inputs_of={'hal': images}, rounds=1)


def test_weights_beside_a_file_count(tmp_path: Path) -> None:
    (tmp_path / 'a.onnx').write_bytes(b'12345')
    assert _size_of(tmp_path / 'a.onnx') == 5
    (tmp_path / 'a.onnx.data').write_bytes(b'1234567')
    assert _size_of(tmp_path / 'a.onnx') == 12
