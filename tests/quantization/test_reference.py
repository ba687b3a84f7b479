import copy
import math

import pytest
import torch

from strop.errors import BudgetError, ConfigError
from strop.quantization.backends import backend
from strop.quantization.batches import Batches
from strop.quantization.flow import capture
from strop.quantization.layers import name_layers
from strop.quantization.quantizing import _Job, float_graph
from strop.quantization.reference import Partly, layer_sqnr, output_sqnr, sqnr_db
from strop.quantization.scheme import Scheme
from strop.quantization.sensitivity import fewest_in_float, measured, sensitivity
from tests.quantization.nets import fragile_net, image_batches, sqnr

pytest.importorskip('torchao')
pytest.importorskip('onnxscript')


@pytest.fixture(scope='module')
def job():
    net, batches = fragile_net(), Batches.of(image_batches())
    graph = capture(net, batches.example())
    name_layers(graph)
    entry = backend('tensorrt')
    return _Job(entry, Scheme().on(entry), graph, batches, False)


@pytest.fixture(scope='module')
def graphs(job):
    return float_graph(copy.deepcopy(job.graph)), job.converted((), fold=False)[0], job.batches


def test_equal_outputs_have_an_infinite_ratio():
    assert sqnr_db([torch.ones(2)], [torch.ones(2)]) == math.inf
    assert sqnr_db([torch.ones(2)], [torch.full((2,), float('nan'))]) == -math.inf


def test_the_float_graph_computes_what_the_model_does(graphs):
    reference, _, batches = graphs
    images = batches[0][0][0]
    assert sqnr(reference(images), Partly(graphs[1], set())(images)) > 100


def test_all_layers_quantized_is_the_converted_graph(graphs, job):
    images = graphs[2][0][0][0]
    folded = job.converted(())[0]
    assert torch.equal(Partly(graphs[1])(images), graphs[1](images))
    torch.testing.assert_close(Partly(graphs[1])(images), folded(images), rtol=1e-5, atol=1e-6)


def test_one_layer_quantized_is_between(graphs):
    reference, unfolded, batches = graphs
    one = output_sqnr(reference, Partly(unfolded, {'block1.conv1'}), batches)
    assert output_sqnr(reference, unfolded, batches) < one < math.inf


def test_the_worst_layer_is_ranked_first(graphs):
    found = sensitivity(*graphs[:2], graphs[2])
    assert next(iter(found)) == 'block1.conv2'
    assert [cost.sqnr_db for cost in found.values()] == sorted(cost.sqnr_db for cost in found.values())
    assert 'block1.conv2' in str(found)


def test_a_metric_ranks_by_its_own_drop(graphs):
    reference, unfolded, batches = graphs
    truth = reference(batches[0][0][0])

    def metric(model):
        return -float((model(batches[0][0][0]) - truth).abs().mean())

    found = sensitivity(reference, unfolded, batches, metric)
    drops = [cost.drop for cost in found.values()]
    assert drops == sorted(drops, reverse=True)
    assert drops[0] > 0


def test_the_fewest_layers_that_reach_a_level_stay_float(graphs):
    reference, unfolded, batches = graphs
    ranking = list(sensitivity(reference, unfolded, batches))

    def metric(model):
        return output_sqnr(reference, model, batches)

    levels = [metric(Partly(unfolded, set(ranking[count:]))) for count in range(len(ranking))]
    count, level = fewest_in_float(unfolded, ranking, metric, levels[1] - 1e-9)
    assert (count, level) == (1, levels[1])
    with pytest.raises(BudgetError, match='Even with all'):
        fewest_in_float(unfolded, ranking, lambda model: 0.0, 1.0)


def test_the_ratio_of_each_layer_falls_with_its_depth(graphs):
    levels = layer_sqnr(*graphs[:2], graphs[2])
    assert levels['stem'] > levels['block2.conv2']


@pytest.mark.parametrize('value', [float('nan'), 'good', None])
def test_a_metric_that_is_no_number_is_refused(value):
    with pytest.raises(ConfigError, match='metric'):
        measured(lambda model: value, copy.copy)
