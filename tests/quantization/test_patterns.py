import pytest
from torch import nn

from strop.errors import ConfigError
from strop.quantization import prepare_qat, quantizable, quantize_weights
from strop.quantization.layers import matching
from strop.quantization.patterns import matched, patterns_of


def test_a_pattern_takes_a_layer_a_module_around_it_and_ops_of_it():
    assert matched('blocks.0.mlp.fc', ['blocks.1', 'blocks.?.mlp']) == 'blocks.?.mlp'
    assert matched('blocks.0:matmul', ['*:matmul']) == '*:matmul'
    assert matched('blocks.0:matmul', ['blocks.0']) == 'blocks.0'
    assert matched('blocks.01', ['blocks.0']) is None


def test_the_first_pattern_counts():
    assert matched('head', ['h*', 'head']) == 'h*'


@pytest.mark.parametrize('given', [3, [3], [''], [None]])
def test_anything_but_patterns_is_refused(given):
    with pytest.raises(ConfigError, match='`ignored` is a pattern of names'):
        patterns_of('ignored', given)


def test_all_that_quantizes_chooses_alike():
    model = nn.ModuleDict({'a': nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 'b': nn.Linear(4, 4)})
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for patterns in ('a', ['a.0'], ['*.1', 'b'], ['?.?']):
        left = list(matching(patterns, names))
        assert [name for name in names if name not in quantizable(model, patterns)] == left
        assert sorted(quantize_weights(model, ignored=patterns).record.left) == sorted(left)
    for call in (prepare_qat, quantize_weights):
        with pytest.raises(ConfigError, match='`ignored` is a pattern of names'):
            call(model, ignored=3)
