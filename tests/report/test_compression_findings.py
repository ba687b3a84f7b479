from __future__ import annotations

import pytest

from strop.report.compression_findings import Findings, budget_lines, changed_layers
from strop.report.compression_result import (
    Asked,
    CompressionResult,
    LayerChange,
    LayerState,
    Measurement,
    Stage,
    StageResources,
    Tried,
)  # fmt: skip


def _time(stage: str, runtime: str, precision: str, median: float, batch: int = 1) -> Measurement:
    return Measurement(stage, runtime, precision, batch, 1, median, 0.9 * median, 1.1 * median, 10)


def _result(**changes: object) -> CompressionResult:
    stages = [
        Stage('source', 'source', resources=StageResources(1000, 100), scores={'accuracy': 0.9}),
        Stage('prune', 'prune', resources=StageResources(500, 50), scores={'accuracy': 0.7}),
        Stage('distill', 'distill', resources=StageResources(500, 50), scores={'accuracy': 0.89}),
        Stage('quantize', 'quantize', resources=StageResources(500, 50), scores={'accuracy': 0.88}),
        Stage('export', 'export'),
    ]
    measurements = [
        _time('source', 'eager', 'f32', 8.0), _time('source', 'openvino', 'f32', 4.0), _time('source', 'openvino', 'bf16', 3.0),
        _time('source', 'openvino', 'int8', 2.0), _time('distill', 'eager', 'f32', 7.9),
        _time('distill', 'openvino', 'f32', 2.0), _time('quantize', 'openvino', 'int8', 0.5),
        _time('quantize', 'openvino', 'int8', 9.0, batch=8),
    ]  # fmt: skip
    return CompressionResult(**{'stages': stages, 'measurements': measurements, **changes})  # type: ignore[arg-type]


def test_before_and_after_are_paired_by_runtime_and_precision() -> None:
    pairs = {(pair.runtime, pair.precision): pair for pair in Findings(_result()).pairs(1)}
    assert pairs['openvino', 'f32'].speedup == 2.0
    assert pairs['openvino', 'int8'].speedup == 4.0
    assert pairs['openvino', 'bf16'].after is None
    assert pairs['openvino', 'bf16'].speedup is None


def test_the_headline_is_of_what_a_budget_is_judged_by_and_not_of_bfloat16() -> None:
    result = _result()
    result.measurements.append(_time('distill', 'openvino', 'bf16', 0.1))
    headline = Findings(result).headline()
    assert headline is not None
    assert (headline.precision, headline.after.stage) == ('int8', 'quantize')
    result.measurements = [entry for entry in result.measurements if entry.precision != 'int8']
    headline = Findings(result).headline()
    assert headline is not None
    assert (headline.precision, headline.speedup) == ('f32', 2.0)


def test_a_stage_that_gave_nothing_has_no_part_in_the_speed_of_another() -> None:
    result = _result()
    result.stages.insert(3, Stage('quantize-other', 'quantize'))
    result.stages.insert(4, Stage('left-out', 'prune', 'skipped'))
    parts = {part.stage.name: part for part in Findings(result).parts()}
    assert parts['quantize'].speedup == 4.0
    assert parts['quantize'].since == ()


def test_a_share_of_the_quantized_model_is_called_that() -> None:
    assert budget_lines({'latency': 0.66, 'relative_to': 'quantized'})[0] == ('latency', '0.66 × the quantized original')


def test_of_several_models_after_the_last_counts() -> None:
    result = _result()
    result.measurements.insert(0, _time('prune', 'eager', 'f32', 1.0))
    pair = next(pair for pair in Findings(result).pairs(1) if pair.runtime == 'eager')
    assert pair.after is not None
    assert pair.after.stage == 'distill'


def test_the_baseline_is_the_first_stage_that_was_measured() -> None:
    result = _result()
    result.measurements = [entry for entry in result.measurements if entry.stage != 'source']
    findings = Findings(result)
    assert (findings.baseline, findings.final) == ('distill', 'quantize')
    assert findings.first is result.stages[2]


def test_the_headline_is_the_given_float_model_beside_the_fastest_form_of_the_result() -> None:
    findings = Findings(_result())
    headline = findings.headline()
    assert headline is not None
    assert (headline.runtime, headline.precision, headline.speedup) == ('openvino', 'int8', 8.0)
    assert findings.last is findings.result.stages[3]


def test_the_runtime_of_the_budget_is_where_the_whole_is_judged() -> None:
    findings = Findings(_result(asked=Asked({}, {'latency': 0.5, 'runtime': 'eager'})))
    headline = findings.headline()
    assert headline is not None
    assert (headline.runtime, headline.precision) == ('eager', 'f32')
    assert findings.last is findings.result.stages[2]  # what was measured there is the float model
    nested = Findings(_result(asked=Asked({}, {'latency_ms': {'value': 1.0, 'runtime': 'eager'}})))
    assert nested.runtime == 'eager'
    assert Findings(_result(asked=Asked({}, {'runtime': 'executorch'}))).runtime == 'openvino'


def test_each_stage_has_its_part_of_the_gain_and_the_parts_add_up() -> None:
    parts = {part.stage.name: part for part in Findings(_result()).parts()}
    assert parts['distill'].speedup == 2.0
    assert parts['distill'].since == ('prune', 'distill')
    assert parts['quantize'].speedup == 4.0
    assert parts['quantize'].since == ()
    assert parts['source'].speedup is parts['prune'].speedup is parts['export'].speedup is None
    assert parts['distill'].share == pytest.approx(1 / 3)
    assert parts['quantize'].share == pytest.approx(2 / 3)


def test_the_fastest_float_is_looked_for_on_every_runtime() -> None:
    fastest = Findings(_result()).fastest(1, floats=True, before=True)
    assert fastest is not None
    assert (fastest.runtime, fastest.precision, fastest.median_ms) == ('openvino', 'bf16', 3.0)


def test_fewer_macs_without_a_gain_are_warned_of() -> None:
    assert Findings(_result()).warnings() == [
        'MACs fell by 50 %, but at batch 1 this is not faster in PyTorch eager f32 (8.00 ms → 7.90 ms).'
    ]
    result = _result()
    result.stages[3].resources.macs = 950
    assert Findings(result).warnings() == []


def test_integers_without_a_gain_are_warned_of() -> None:
    result = _result()
    result.stages[3].resources.macs = 950
    result.measurements += [_time('distill', 'openvino', 'bf16', 8.8, batch=8), _time('distill', 'eager', 'f32', 1.0, batch=8)]
    assert Findings(result).warnings() == [
        'Integers are no gain in OpenVINO at batch 8: quantize takes 9.00 ms in int8, distill 8.80 ms in bf16.'
    ]
    result.measurements[-2] = _time('distill', 'openvino', 'bf16', 9.5, batch=8)
    assert Findings(result).warnings() == []


def test_layers_with_fewer_macs_that_take_as_long_are_warned_of() -> None:
    result = _result(measurements=[])
    before = LayerState([8], 100, 8, 1.0)
    result.stages[1].layers = [
        LayerChange('a', 'Conv2d', before, LayerState([4], 50, 4, 0.99)),
        LayerChange('b', 'Conv2d', before, LayerState([4], 50, 4, 0.5)),
        LayerChange('c', 'Conv2d', before, LayerState([8], 100, 8, 1.2)),
        LayerChange('d', 'Conv2d', before, None),
        LayerChange('e', 'Conv2d', before, LayerState([4], 50, 4)),
    ]
    assert Findings(result).warnings() == ['prune: fewer MACs, but not less time in 1 layers: a.']
    assert [change.name for change in changed_layers(result.stages[1].layers)] == ['a', 'b', 'd', 'e']


def test_stages_that_did_not_end_are_told() -> None:
    result = CompressionResult(stages=[Stage('prune', 'prune', 'failed', warnings=['Why.']), Stage('b', 'prune', 'running')])
    assert Findings(result).warnings() == [
        'prune: Why.',
        'The stage prune failed; what is shown is what was finished before it.',
        'The stage b has not ended; what is shown is what was finished before it.',
    ]


def test_nothing_follows_from_nothing() -> None:
    findings = Findings(CompressionResult())
    assert findings.first is findings.last is findings.metric is findings.headline() is None
    assert findings.parts() == findings.warnings() == findings.batches == []
    assert findings.tried() == ('macs', [])


def test_what_was_tried_is_shown_by_the_cost_that_most_have() -> None:
    result = CompressionResult(tried=[Tried('a', 's', 10, score=0.5), Tried('b', 's', 5, latency_ms=1.0, score=0.4)])
    assert Findings(result).tried() == ('latency_ms', [result.tried[1]])
    result.tried.append(Tried('c', 's', 7, score=0.45))
    assert Findings(result).tried() == ('macs', result.tried)
    result.tried.append(Tried('d', 's', 7))
    assert Findings(result).tried() == ('macs', result.tried[:3])


def test_budgets_are_put_into_words() -> None:
    budget = {'latency_ms': {'value': 3, 'runtime': 'openvino'}, 'macs': 5e8, 'size_mb': 2.5, 'params': '50%', 'strict': True}
    assert budget_lines(budget) == [
        ('latency', 'value 3, runtime openvino'), ('macs', '500 M'), ('size', '2.50 MB'), ('params', '50%'), ('strict', 'True'),
    ]  # fmt: skip
