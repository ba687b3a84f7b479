"""What a run has come to: which figures are compared with the budget."""

from __future__ import annotations

import pytest

from strop.compression import Recipe
from strop.compression.outcome import outcome_of
from strop.report import compression_result as results


def stage(name, accuracy, macs=100, kind=None):
    return results.Stage(
        name, kind or name, scores={'accuracy': accuracy}, resources=results.StageResources(macs, 10, 1.0, 2.0)
    )  # fmt: skip


def time_of(name, precision, milliseconds):
    return results.Measurement(name, 'onnxruntime', precision, 1, 1, milliseconds, milliseconds, milliseconds, 5)


def outcome(budget, stages, alone=(), after=('prune', {'quantize': {'backend': 'onnxruntime'}})):
    recipe = Recipe.of({'model': 'timm:resnet10t', 'data': 'digits', 'stages': list(after), 'budget': budget})
    return outcome_of(recipe, results.CompressionResult(stages=list(stages)), 'source', 'accuracy', list(alone))


def test_without_a_budget_nothing_is_judged():
    assert outcome({'threads': 1}, [stage('source', 0.9)], after=['export']).met is None


def test_shares_are_of_the_original_and_the_integers_of_what_came_out():
    stages = [stage('source', 0.9), stage('prune', 0.8, 40), stage('quantize', 0.85, 40)]
    alone = [
        time_of('source', 'f32', 8.0),
        time_of('source', 'int8', 4.0),
        time_of('prune', 'f32', 5.0),
        time_of('quantize', 'int8', 2.0),
    ]
    of_floats = outcome({'latency': 0.3, 'runtime': 'onnxruntime', 'accuracy_drop': 6.0}, stages, alone)
    assert of_floats.met is True
    assert '2 ms of 2.4 ms' in of_floats.sentences[0]
    assert '5 points of 6 points' in of_floats.sentences[1]
    of_integers = outcome({'latency': 0.3, 'runtime': 'onnxruntime', 'relative_to': 'quantized'}, stages, alone)
    assert of_integers.met is False
    assert '2 ms of 1.2 ms' in of_integers.sentences[0]
    assert of_integers.sentences[-1].startswith('The nearest that could be reached')


def test_a_model_that_nothing_was_taken_from_is_the_quantized_original():
    stages = [stage('source', 0.9), stage('prune', 0.9), stage('quantize', 0.9)]
    found = outcome(
        {'latency': 0.9, 'runtime': 'onnxruntime', 'relative_to': 'quantized'}, stages, [time_of('quantize', 'int8', 2.0)]
    )
    assert found.met is False
    assert '2 ms of 1.8 ms' in found.sentences[0]


@pytest.mark.parametrize('stages', [['source'], ['source', 'export']])
def test_the_time_of_a_model_that_stays_as_it_is_counts(stages):
    entries = [stage(name, 0.9) for name in stages]
    alone = [time_of('source', 'f32', 8.0)]
    assert outcome({'latency_ms': 9, 'runtime': 'onnxruntime'}, entries, alone, after=['export']).met is True
    found = outcome({'latency_ms': 7, 'runtime': 'onnxruntime'}, entries, alone, after=['export'])
    assert found.met is False
    assert '8 ms of 7 ms' in found.sentences[0]
    # Not where another one came out, which could not be measured.
    other = outcome({'latency_ms': 9, 'runtime': 'onnxruntime'}, [*entries, stage('prune', 0.9)], alone)
    assert other.met is False
    assert 'could not be judged' in other.sentences[0]


def test_a_runtime_that_could_not_be_measured_is_no_success():
    found = outcome({'latency': 0.9, 'runtime': 'onnxruntime'}, [stage('source', 0.9), stage('prune', 0.9)])
    assert found.met is False
    assert 'could not be judged' in found.sentences[0]


@pytest.mark.parametrize(('runtime', 'points'), [('onnxruntime', '10'), ('openvino', '20')])
def test_of_several_files_that_for_the_runtime_of_the_budget_counts(runtime, points):
    stages = [stage('source', 0.9), stage('quantize', 0.8), stage('quantize-2', 0.7, kind='quantize')]
    after = [{'quantize': {'backend': 'onnxruntime'}}, {'quantize': {'backend': 'openvino'}}]
    found = outcome({'accuracy_drop': 30.0, 'runtime': runtime}, stages, after=after)
    assert f'{points} points of 30 points' in found.sentences[0]
