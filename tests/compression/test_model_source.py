"""Models by name: what builds them, what rebuilds them, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from strop.compression.model_source import ModelSource, state_digest
from strop.errors import ComponentTypeError, ConfigError, UnknownTypeError, UnsafeFileError

timm = pytest.importorskip('timm')


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / 'my_nets.py').write_text(
        'from torch import nn\ndef make(width=3):\n    return nn.Linear(width, 2)\nready = nn.Linear(5, 2)\nwrong = lambda: 3\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_function_of_a_module_is_called_with_its_arguments_where_it_is_trusted(package):
    assert ModelSource.of('my_nets:make', {'width': 7}).build(trust=True).in_features == 7
    assert ModelSource.of('my_nets:ready').build(trust=True).in_features == 5
    with pytest.raises(UnsafeFileError, match='--trust'):
        ModelSource.of('my_nets:make').build()
    with pytest.raises(ConfigError, match="Did you mean 'make'"):
        ModelSource.of('my_nets:mak').build(trust=True)
    with pytest.raises(ComponentTypeError, match='gives int'):
        ModelSource.of('my_nets:wrong').build(trust=True)


def test_registered_types_are_built_and_unknown_ones_have_near_matches():
    config = {'type': 'ConvModule', 'in_channels': 3, 'out_channels': 4, 'kernel_size': 1}
    assert ModelSource.of(config).build().conv.out_channels == 4
    # What would fetch weights is left out, as wherever a model is described.
    head = {'type': 'LinearClsHead', 'num_classes': 2, 'in_channels': 3, 'init_cfg': {'type': 'Pretrained', 'checkpoint': 'x'}}
    source = ModelSource.of(head)
    assert source.build().fc.out_features == source.rebuild().fc.out_features == 2
    with pytest.raises(UnknownTypeError, match='ConvModule'):
        ModelSource.of('ConvModul').check()


@pytest.mark.parametrize(
    'given', ['strange', 'strange.Net', 'strange.nets.Net', {'type': 'PlainArchitecture', 'module': {'cfg_path': 'strange.py'}}]
)
def test_a_type_that_nobody_trusts_runs_nothing(given, package):
    (package / 'strange.py').write_text("open('ran', 'w').close()\nmodel = dict(type='torch.nn.Linear')\n")
    for call in (ModelSource.check, ModelSource.build, ModelSource.rebuild):
        with pytest.raises(UnsafeFileError, match='the recipe'):
            call(ModelSource.of(given))
    assert not (package / 'ran').exists()


@pytest.mark.parametrize('ending', ['safetensors', 'npz', 'pth'])
def test_weights_are_read_without_unpickling(package, ending):
    net = nn.Linear(3, 2)
    path = package / f'weights.{ending}'
    if ending == 'safetensors':
        save_file(net.state_dict(), path)
    elif ending == 'npz':
        np.savez(path, **{name: value.numpy() for name, value in net.state_dict().items()})
    else:
        torch.save({'state_dict': {f'module.{name}': value for name, value in net.state_dict().items()}}, path)
    built = ModelSource.of('my_nets:make', weights=str(path)).build(trust=True)
    assert torch.equal(built.weight, net.weight)
    assert state_digest(built) == state_digest(net) != state_digest(nn.Linear(3, 2))


def test_weights_of_another_model_are_refused_and_those_of_a_distributed_training_are_not(package):
    save_file(nn.Linear(4, 2).state_dict(), package / 'other.safetensors')
    with pytest.raises(ConfigError, match=r"'weight' has the shape \(2, 4\) in it"):
        ModelSource.of('my_nets:make', weights=str(package / 'other.safetensors')).build(trust=True)
    net = nn.Linear(3, 2)
    torch.save({'state_dict': {f'module.{name}': value for name, value in net.state_dict().items()}}, package / 'ddp.pth')
    assert state_digest(ModelSource.of('my_nets:make', weights=str(package / 'ddp.pth')).build(trust=True)) == state_digest(net)


def test_another_structure_with_equal_weights_is_another_digest():
    def digest(*layers):
        torch.manual_seed(0)
        return state_digest(nn.Sequential(nn.Conv2d(1, 2, 3, **layers[0]), *layers[1:]))

    first = digest({}, nn.ReLU())
    assert first == digest({}, nn.ReLU())
    assert len({first, digest({}, nn.GELU()), digest({'stride': 2}, nn.ReLU()), digest({'padding': 1}, nn.ReLU())}) == 4

    class Held(nn.Identity):
        """Prints a function with its place in memory."""

        def extra_repr(self):
            return f'by={(lambda: None)!r}'

    assert state_digest(Held()) == state_digest(Held())


def test_what_is_written_builds_the_same_again():
    source = ModelSource.of({'source': 'timm:resnet10t', 'args': {'num_classes': 4}})
    again = ModelSource.from_dict(source.to_dict())
    assert again == source
    assert again.digest() == source.digest()
    first, second = source.rebuild(), again.rebuild()
    assert state_digest(first) == state_digest(second)


@pytest.mark.parametrize(
    'given',
    [
        3, '', ':', {'sourc': 'timm:x'}, {'source': 'timm:x', 'args': 3}, {'source': None},
        {'source': 'timm:x', 'weights': True}, {'type': 'ConvModule', 'weights': 3},
    ],
)  # fmt: skip
def test_what_names_no_model_is_refused(given):
    with pytest.raises(ConfigError):
        ModelSource.of(given)


def test_a_model_of_transformers_is_rebuilt_from_its_config_alone(tmp_path):
    transformers = pytest.importorskip('transformers')
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    transformers.BertModel(config).save_pretrained(tmp_path / 'bert')
    source = ModelSource.of(f'transformers:{tmp_path / "bert"}')
    model = source.build()
    known = ModelSource.from_dict(source.known(model).to_dict())
    for file in (tmp_path / 'bert').iterdir():
        file.unlink()
    again = known.rebuild()
    assert type(again) is transformers.BertModel
    again.load_state_dict(model.state_dict())
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).last_hidden_state, model(ids).last_hidden_state)


def test_no_file_of_weights_is_read_for_timm_unless_it_is_trusted():
    with pytest.raises(UnsafeFileError, match='checkpoint_path'):
        ModelSource.of('timm:resnet10t', {'checkpoint_path': '/x.pth'}).check()


def test_recipes_of_strangers_make_transformers_unpickle_nothing(tmp_path):
    transformers = pytest.importorskip('transformers')
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    config.save_pretrained(tmp_path / 'bert')
    code = f'import pathlib; pathlib.Path({str(tmp_path / "ran")!r}).touch()'

    class Evil:
        def __reduce__(self):
            return exec, (code,)

    torch.save({'evil': Evil()}, tmp_path / 'bert' / 'pytorch_model.bin')
    name = f'transformers:{tmp_path / "bert"}'
    for args in ({'weights_only': False}, {'quantization_config': {}}, {'attn_implementation': 'someone/kernel'}):
        source = ModelSource.of(name, {'architecture': 'BertModel', **args})
        with pytest.raises(UnsafeFileError, match='none of those that are harmless'):
            source.build()
    with pytest.raises(ConfigError, match="multiple values for keyword argument 'weights_only'"):
        ModelSource.of(name, {'architecture': 'BertModel', 'weights_only': False}).build(trust=True)
    with pytest.raises(ConfigError, match='transformers cannot load'):
        ModelSource.of(name, {'architecture': 'BertModel'}).build()
    assert not (tmp_path / 'ran').exists()


def test_a_function_that_fails_is_told_with_the_place(tmp_path, monkeypatch):
    (tmp_path / 'failing_nets.py').write_text('def make(width):\n    return {}[width]\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r'failing_nets:make failed with KeyError: 3 \(.*failing_nets\.py:2\)'):
        ModelSource.of('failing_nets:make', {'width': 3}).build(trust=True)
    with pytest.raises(ConfigError, match=r'failing_nets:make failed with TypeError: .*width'):
        ModelSource.of('failing_nets:make').build(trust=True)
