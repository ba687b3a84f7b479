from __future__ import annotations

import json
import pickle
import random
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from strop.algorithms import SPOS, PlainArchitecture
from strop.engine import sub_model
from strop.errors import ConfigError, ExportError, SubnetError, UnknownKeyError, UnsafeFileError
from strop.export import load_recipe, plain_subnet, read_recipe, recipe_schema, save_recipe
from strop.mutables import LayerChoice, Repeat, ValueChoice, apply_subnet, bind, dump_subnet, extract, mutables_of, space_of

from .conftest import CLASSIFIER, MOBILENET, draw, supernet


class TiedNet(nn.Module):
    """A supernet with tied parameters, a view, a tensor that is not contiguous, and several dtypes."""

    def __init__(self, width: int = 6, tied: bool = True) -> None:
        super().__init__()
        self.choice = LayerChoice([nn.Linear(width, width), nn.Sequential(nn.Linear(width, width), nn.ReLU())])
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        if tied:
            self.second.weight = self.first.weight
        self.register_buffer('both', torch.arange(2.0 * width).reshape(2, width))
        self.register_buffer('row', self.both[1])
        self.register_buffer('count', torch.tensor(7))
        self.register_buffer('flags', torch.tensor([True, False]))
        self.register_buffer('empty', torch.zeros(0, 3))
        self.turned = nn.Parameter(torch.randn(3, width).t())

    def forward(self, x):
        return self.second(self.first(self.choice(x) + self.row)) @ self.turned


def make_repeat(depths=(1, 2, 3)) -> nn.Module:
    return nn.Sequential(
        Repeat(lambda index: LayerChoice([nn.Linear(4, 4), nn.Tanh()]), ValueChoice(list(depths), key='depth')),
        nn.Linear(4, 2),
    )


def make_two() -> nn.Module:
    return nn.Sequential(*(LayerChoice([nn.Linear(3, 3), nn.Tanh()]) for _ in range(2)))


def make_nothing() -> str:
    return 'no module'


def plain_factory() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))


HERE = __name__
TOP = __name__.partition('.')[0]


def states_equal(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return list(a) == list(b) and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def edit(folder, **changes):
    path = folder / 'recipe.json'
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(content))


@pytest.fixture
def saved(tmp_path):
    model = supernet()
    folder = tmp_path / 'net'
    save_recipe(model, draw(model), folder, factory=CLASSIFIER)
    return folder


# -- what comes back is what was saved --------------------------------------------------------------------


@pytest.mark.parametrize('config', [CLASSIFIER, MOBILENET], ids=['shufflenet', 'mobilenet'])
@pytest.mark.parametrize('seed', range(3))
def test_a_random_subnet_comes_back_bit_by_bit(config, seed, tmp_path, images):
    model = supernet(config, seed)
    subnet = draw(model, seed)
    result = save_recipe(model, subnet, tmp_path / 'net', factory=config, example_inputs=images)
    expected = extract(model, subnet).eval()
    loaded = load_recipe(tmp_path / 'net')
    assert states_equal(loaded, expected)
    assert not loaded.training
    assert not mutables_of(loaded)
    with torch.no_grad():
        outputs, wanted = loaded(images), expected(images)
    assert all(torch.equal(a, b) for a, b in zip(outputs, wanted, strict=True))
    assert result.max_abs_error == 0.0
    assert result.size_bytes == sum(file.stat().st_size for file in (tmp_path / 'net').iterdir())


def test_saving_changes_neither_the_supernet_nor_any_random_state(tmp_path):
    model = supernet()
    apply_subnet(model, space_of(model).first())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decisions = [mutable.choice() for mutable in mutables_of(model)]
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    save_recipe(model, draw(model, 5), tmp_path / 'net', factory=CLASSIFIER)
    load_recipe(tmp_path / 'net')
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert model.training
    assert [mutable.choice() for mutable in mutables_of(model)] == decisions
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_subnet_that_was_trained_further_keeps_its_weights(tmp_path, images):
    model = supernet()
    subnet = draw(model, 1)
    plain = extract(model, subnet).train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    plain(images, torch.tensor([0, 1]), mode='loss')['loss'].backward()
    optimizer.step()
    save_recipe(plain, subnet, tmp_path / 'net', factory=CLASSIFIER, example_inputs=images)
    assert plain.training
    assert states_equal(load_recipe(tmp_path / 'net'), plain)
    with pytest.raises(ExportError, match='needs the subnet'):
        save_recipe(plain, None, tmp_path / 'other', factory=CLASSIFIER)
    assert [path.name for path in tmp_path.iterdir()] == ['net']


def test_tied_viewed_turned_and_empty_tensors(tmp_path):
    model = TiedNet()
    save_recipe(
        model, {'choice': 1}, tmp_path / 'net', factory=TiedNet, factory_args={'width': 6}, example_inputs=torch.randn(3, 6)
    )
    table = read_recipe(tmp_path / 'net')['weights']['tensors']
    assert table['second.weight'] == {'dtype': 'float32', 'shape': [6, 6], 'same_as': 'first.weight'}
    assert table['row'] == {'dtype': 'float32', 'shape': [6]}
    assert 'second.weight' not in load_file(tmp_path / 'net' / 'model.safetensors')
    loaded = load_recipe(tmp_path / 'net', allow=TOP)
    assert states_equal(loaded, extract(model, {'choice': 1}))
    assert loaded.second.weight is loaded.first.weight


def test_other_dtypes_come_back_as_they_were(tmp_path):
    model = TiedNet().to(torch.bfloat16)
    model.first.bias.data[0] = float('nan')
    save_recipe(model, {'choice': 0}, tmp_path / 'net', factory=TiedNet)
    loaded = load_recipe(tmp_path / 'net', allow=TOP)
    assert loaded.turned.dtype == torch.bfloat16
    assert loaded.count.dtype == torch.int64
    assert loaded.second.weight is loaded.first.weight
    assert torch.equal(loaded.first.bias, model.first.bias) is False  # NaN
    assert torch.equal(loaded.first.bias.view(torch.int16), model.first.bias.view(torch.int16))


def test_nested_decisions_and_mixtures(tmp_path):
    model = make_repeat()
    subnet = space_of(model).subnet({'depth': 2, '0.0': 0, '0.1': 1})
    save_recipe(
        model,
        subnet,
        tmp_path / 'net',
        factory=make_repeat,
        factory_args={'depths': (1, 2, 3)},
        example_inputs=torch.randn(2, 4),
    )
    assert read_recipe(tmp_path / 'net')['choices'] == {'depth': 2, '0.0': 0, '0.1': 1}
    assert states_equal(load_recipe(tmp_path / 'net', allow=[TOP]), extract(model, subnet))
    mixture = {'depth': 1, '0.0': torch.tensor([0.25, 0.75])}
    save_recipe(model, mixture, tmp_path / 'mix', factory=make_repeat, example_inputs=torch.randn(2, 4))
    x = torch.randn(3, 4)
    assert torch.equal(load_recipe(tmp_path / 'mix', trust=True)(x), extract(model, mixture).eval()(x))


def test_a_model_without_decisions(tmp_path):
    model = plain_factory()
    save_recipe(model, None, tmp_path / 'net', factory=f'{HERE}:plain_factory')
    assert read_recipe(tmp_path / 'net')['choices'] == {}
    assert states_equal(load_recipe(tmp_path / 'net', allow=[HERE]), model)


def test_loaded_models_compile_without_a_graph_break(saved, images):
    loaded = load_recipe(saved)
    torch._dynamo.reset()
    compiled = torch.compile(loaded, backend='eager', fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(images), loaded(images))


def test_loaded_models_train(saved, images):
    loaded = load_recipe(saved).train()
    loaded(images, torch.tensor([0, 1]), mode='loss')['loss'].backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


# -- algorithms, configs and subnet files -----------------------------------------------------------------


def test_algorithms_and_their_configs_are_unwrapped(tmp_path, images):
    config = {'type': 'mmrazor.SPOS', 'architecture': CLASSIFIER, 'mutator': {'type': 'OneShotMutator'}}
    algorithm = SPOS(supernet())
    subnet = draw(algorithm.architecture)
    dump_subnet(subnet, tmp_path / 'best.yaml')
    save_recipe(algorithm, tmp_path / 'best.yaml', tmp_path / 'net', factory=config, example_inputs=images)
    assert read_recipe(tmp_path / 'net')['supernet']['config']['type'] == 'ImageClassifier'
    assert states_equal(load_recipe(tmp_path / 'net'), extract(algorithm.architecture, subnet))


def test_a_retrained_sub_model_takes_its_subnet_from_the_config(tmp_path, images):
    subnet = draw(supernet(), 2)
    dump_subnet(subnet, tmp_path / 'best.yaml')
    architecture = {
        'type': 'sub_model',
        'cfg': CLASSIFIER,
        'fix_subnet': str(tmp_path / 'best.yaml'),
        'init_weight_from_supernet': False,
    }
    algorithm = SPOS(dict(architecture), retraining=True)
    save_recipe(algorithm, None, tmp_path / 'net', factory={'type': 'SPOS', 'architecture': architecture, 'retraining': True})
    assert read_recipe(tmp_path / 'net')['choices'] == dict(subnet)
    assert states_equal(load_recipe(tmp_path / 'net'), algorithm.architecture)


def test_a_sub_model_inside_a_config_travels_with_its_subnet(tmp_path, images):
    backbone = {**CLASSIFIER['backbone'], 'init_cfg': {'type': 'Pretrained', 'checkpoint': 'nowhere.pth'}}
    file = tmp_path / 'best.json'
    dump_subnet(draw(supernet(CLASSIFIER['backbone']), 3), file)
    config = {**CLASSIFIER, 'backbone': {'type': 'sub_model', 'cfg': backbone, 'fix_subnet': str(file)}, 'pretrained': None}
    from strop.registry import MODELS

    model = MODELS.build(config)
    save_recipe(model, None, tmp_path / 'net', factory=config, example_inputs=images)
    file.unlink()
    assert 'nowhere.pth' not in (tmp_path / 'net' / 'recipe.json').read_text()
    assert states_equal(load_recipe(tmp_path / 'net'), model)


def test_keys_of_a_wrapped_module_fit_the_bare_one(tmp_path):
    algorithm = SPOS(TiedNet())
    algorithm.mutator.set_subnet({'module.choice': 1})
    save_recipe(algorithm, algorithm.mutator.current_subnet(), tmp_path / 'net', factory=TiedNet)
    save_recipe(algorithm, None, tmp_path / 'decided', factory=TiedNet)
    for name in ('net', 'decided'):
        assert read_recipe(tmp_path / name)['choices'] == {'choice': 1}
    assert isinstance(load_recipe(tmp_path / 'net', factory=TiedNet), TiedNet)
    wrapped = PlainArchitecture(TiedNet())
    assert isinstance(plain_subnet(wrapped, {'choice': 0}), TiedNet)


def test_groups_of_a_mutator_are_written_out(tmp_path):
    model = make_two()
    bind(model, groups=[['0', '1']])
    assert list(space_of(model)) == ['0']
    save_recipe(model, {'0': 1}, tmp_path / 'net', factory=make_two)
    assert read_recipe(tmp_path / 'net')['choices'] == {'0': 1, '1': 1}
    assert states_equal(load_recipe(tmp_path / 'net', allow=TOP), extract(model, {'0': 1}))


def test_sub_model_and_recipe_agree(saved, images):
    torch.manual_seed(0)
    other = sub_model(supernet(), read_recipe(saved)['choices']).eval()
    with torch.no_grad():
        assert torch.equal(other(images), load_recipe(saved)(images))


# -- what is written --------------------------------------------------------------------------------------


def test_files_and_schema(saved):
    import jsonschema

    assert sorted(path.name for path in saved.iterdir()) == ['README.md', 'model.safetensors', 'recipe.json']
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    jsonschema.validate(json.loads((saved / 'recipe.json').read_text()), recipe_schema())
    recipe = read_recipe(saved)
    assert recipe['versions']['torch'] == torch.__version__
    assert list(recipe['weights']['tensors']) == list(load_recipe(saved).state_dict())


def test_the_readme_loads_the_model(tmp_path, monkeypatch, images):
    model = TiedNet()
    save_recipe(
        model, {'choice': 1}, tmp_path / 'net', factory=TiedNet, example_inputs={'x': torch.randn(2, 6)}, note={'by': 'a test'}
    )
    readme = (tmp_path / 'net' / 'README.md').read_text()
    code = re.search(r'```python\n(.*?)```', readme, re.DOTALL)[1]
    assert len(code.strip().splitlines()) == 3
    names = {'inputs': torch.randn(4, 6)}
    monkeypatch.chdir(tmp_path)
    exec(code.replace('path/to/this/folder', 'net'), names)
    assert names['outputs'].shape == (4, 3)
    assert '`x` (2, 6) float32' in readme


def test_a_factory_that_no_other_program_finds_is_told(tmp_path, monkeypatch):
    """A function inside another one: the README says that it has to be given, and so does the log."""
    told = []
    monkeypatch.setattr('strop.export.factory.print_log', lambda text, **_: told.append(text))

    def make():
        return TiedNet()

    save_recipe(TiedNet(), {'choice': 1}, tmp_path / 'net', factory=make)
    readme = (tmp_path / 'net' / 'README.md').read_text()
    assert "model = load_recipe('path/to/this/folder', factory=...)" in readme
    assert 'by which another program could import it' in readme
    assert len(told) == 1
    assert 'cannot be imported by other programs' in told[0]
    assert load_recipe(tmp_path / 'net', factory=make)(torch.randn(2, 6)).shape == (2, 3)
    save_recipe(TiedNet(), {'choice': 1}, tmp_path / 'other', factory=TiedNet)
    assert len(told) == 1
    assert 'factory=' not in (tmp_path / 'other' / 'README.md').read_text()


def test_an_older_recipe_is_replaced_and_other_files_are_not(tmp_path):
    model = TiedNet()
    for number in (0, 1):
        save_recipe(model, {'choice': number}, tmp_path / 'net', factory=TiedNet)
        assert read_recipe(tmp_path / 'net')['choices'] == {'choice': number}
    (tmp_path / 'net' / 'thesis.tex').write_text('mine')
    with pytest.raises(ConfigError, match=r'thesis\.tex'):
        save_recipe(model, {'choice': 0}, tmp_path / 'net', factory=TiedNet)
    assert (tmp_path / 'net' / 'thesis.tex').read_text() == 'mine'
    (tmp_path / 'file').write_text('x')
    with pytest.raises(ConfigError, match='is a file'):
        save_recipe(model, {'choice': 0}, tmp_path / 'file', factory=TiedNet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'net']


# -- what cannot be saved ---------------------------------------------------------------------------------


class Stateful(nn.Module):
    def __init__(self, extra=None, size=3, scale=1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(size, 2)
        self.extra = extra
        self.scale = scale
        self.register_buffer('table', torch.full((2,), scale), persistent=False)

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state) -> None:
        self.extra = state

    def forward(self, x):
        return self.linear(x) * self.scale


def test_state_that_is_no_tensor(tmp_path):
    with pytest.raises(ExportError, match=r"'_extra_state' .* is a dict"):
        save_recipe(Stateful({'a': 1}), None, tmp_path / 'net', factory=Stateful)
    model = Stateful(torch.tensor([1.0, 2.0]))
    with pytest.raises(ExportError, match='_extra_state'):
        save_recipe(model, None, tmp_path / 'net', factory=Stateful)
    assert not list(tmp_path.iterdir())


class Tensorful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.extra = torch.zeros(2)

    get_extra_state = Stateful.get_extra_state
    set_extra_state = Stateful.set_extra_state


def test_extra_state_that_is_a_tensor(tmp_path):
    model = Tensorful()
    model.extra = torch.tensor([1.0, 2.0])
    save_recipe(model, None, tmp_path / 'net', factory=Tensorful)
    assert torch.equal(load_recipe(tmp_path / 'net', allow=TOP).extra, model.extra)


def test_lazy_and_meta_weights(tmp_path):
    for model in (nn.Sequential(nn.LazyLinear(3)), nn.Linear(2, 2, device='meta')):
        with pytest.raises(ExportError, match='no values yet'):
            save_recipe(model, None, tmp_path / 'net', factory=plain_factory, check=False)


def test_a_factory_that_builds_something_else(tmp_path):
    model = Stateful(size=4, scale=2.0)
    model.extra = None

    def save(**kwargs):
        save_recipe(model, None, tmp_path / 'net', **kwargs)

    plain = nn.Linear(3, 2)
    for factory, args, message in [
        ('torch.nn:Linear', {'in_features': 3, 'out_features': 1}, r"'weight' has shape \(2, 3\)"),
        ('torch.nn:Linear', {'in_features': 3, 'out_features': 2, 'bias': False}, "not known to the rebuilt model: 'bias'"),
        (f'{HERE}:make_nothing', None, 'returned a str'),
        (f'{HERE}:plain_factry', None, "Did you mean 'plain_factory'"),
        ('not_there.models:build', None, 'cannot be imported'),
        ('torch.nn:Linear', {'width': 3}, 'unexpected keyword argument'),
    ]:
        with pytest.raises(ExportError, match=message):
            save_recipe(plain, None, tmp_path / 'net', factory=factory, factory_args=args)
    assert not list(tmp_path.iterdir())


class Hidden(nn.Module):
    def __init__(self, scale=1.0, table=1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.scale = scale
        self.register_buffer('table', torch.full((2,), table), persistent=False)

    def forward(self, x):
        return self.linear(x) * self.scale


def test_what_is_neither_in_weights_nor_arguments_is_noticed(tmp_path):
    with pytest.raises(ExportError, match=r"buffer 'table' is not persistent"):
        save_recipe(Hidden(table=2.0), None, tmp_path / 'net', factory=Hidden)
    with pytest.raises(ExportError, match='same weights and other outputs: output differs by'):
        save_recipe(Hidden(scale=2.0), None, tmp_path / 'net', factory=Hidden, example_inputs=torch.randn(2, 3))
    save_recipe(Hidden(2.0, 3.0), None, tmp_path / 'net', factory=Hidden, factory_args={'scale': 2.0, 'table': 3.0})
    assert load_recipe(tmp_path / 'net', allow=HERE).scale == 2.0


@pytest.mark.parametrize(
    ('factory', 'args', 'message'),
    [
        (TiedNet, {'width': np.float32(6)}, r"factory_args\['width'\] is a float32"),
        (TiedNet, {'width': float('inf')}, 'factory_args'),
        (TiedNet, {'width': {1: 2}}, 'keys in a recipe are strings'),
        ('no colon', None, "named 'module:function'"),
        ('os:system; ls', None, "named 'module:function'"),
        (3, None, '`factory` is'),
        ({'arch': 1}, None, "needs the key 'type'"),
        ({'type': 'ReLU'}, {'a': 1}, '`factory_args`'),
        ({'type': 'SPOS', 'architecture': nn.ReLU()}, None, 'not a config'),
    ],
)
def test_factories_that_cannot_be_written_down(factory, args, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        save_recipe(TiedNet(), {'choice': 0}, tmp_path / 'net', factory=factory, factory_args=args)
    assert not list(tmp_path.iterdir())


def test_subnets_that_do_not_fit(tmp_path):
    model = TiedNet()
    with pytest.raises(UnknownKeyError, match="Did you mean 'choice'"):
        save_recipe(model, {'choise': 0}, tmp_path / 'net', factory=TiedNet)
    with pytest.raises(SubnetError):
        save_recipe(model, {'choice': 9}, tmp_path / 'net', factory=TiedNet)
    with pytest.raises(ExportError, match='still has decisions to make'):
        save_recipe(model, None, tmp_path / 'net', factory=TiedNet)
    with pytest.raises(ConfigError, match='note'):
        save_recipe(model, {'choice': 0}, tmp_path / 'net', factory=TiedNet, note={object()})
    assert not list(tmp_path.iterdir())


# -- damaged and foreign folders --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('content', 'error', 'message'),
    [
        ('{"strop": "recipe", ', ExportError, 'is not JSON'),
        ('[]', ExportError, 'breaks the schema'),
        ('[' * 100_000, ExportError, 'is not JSON'),
        ('{"strop": "recipe", "version": NaN}', ExportError, 'NaN is no JSON'),
        ('{"strop": "recipe", "version": 3}', ExportError, 'version 3; this Strop reads up to version 2'),
        ('{"strop": "recipe", "version": 1}', ExportError, "'supernet' is a required property"),
        ('{"strop": "subnet", "version": 1, "choices": {}}', ExportError, 'breaks the schema'),
        (pickle.dumps({'strop': 'recipe'}), UnsafeFileError, 'never unpickled'),
        (b'\xff\xfe\x00', UnsafeFileError, 'not UTF-8'),
    ],
)
def test_damaged_recipes(content, error, message, saved):
    (saved / 'recipe.json').write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(error, match=message):
        load_recipe(saved)


@pytest.mark.parametrize(
    ('key', 'value', 'error', 'message'),
    [
        ('choices', {'backbone.layers.0.0': 'k7'}, SubnetError, 'k7'),
        ('choices', {'backbone.layer.0.0': 'k3'}, UnknownKeyError, 'Did you mean'),
        ('choices', {}, SubnetError, 'backbone.layers.0.0'),
        ('supernet', {}, ExportError, 'schema'),
        ('supernet', {'config': {'type': 'ImageClasifier'}}, KeyError, "Did you mean 'ImageClassifier'"),
        ('supernet', {'factory': 'nonsense'}, ExportError, "named 'module:function'"),
        ('version', 0, ExportError, 'schema'),
        ('extra', 1, ExportError, 'schema'),
    ],
)
def test_recipes_with_wrong_parts(key, value, error, message, saved):
    edit(saved, **{key: value})
    with pytest.raises(error, match=message):
        load_recipe(saved)


def test_recipes_that_decide_for_a_model_without_decisions(tmp_path):
    save_recipe(plain_factory(), None, tmp_path / 'net', factory=plain_factory)
    edit(tmp_path / 'net', choices={'a': 1})
    with pytest.raises(SubnetError, match=r'recipe\.json: .* has nothing to decide'):
        load_recipe(tmp_path / 'net', allow=HERE)


def test_missing_files(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match='no recipe'):
        load_recipe(tmp_path / 'nowhere')
    (saved / 'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='weights of the recipe are missing'):
        load_recipe(saved)


@pytest.mark.parametrize('cut', [0, 4, 100, -1])
def test_truncated_weights(cut, saved):
    path = saved / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ExportError, match='not a whole safetensors file'):
        load_recipe(saved)


def test_a_pickle_in_the_place_of_weights(saved, tmp_path):
    bomb = tmp_path / 'exploded'

    class Bomb:
        def __reduce__(self):
            return (open, (str(bomb), 'w'))

    (saved / 'model.safetensors').write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ExportError, match='not a whole safetensors file'):
        load_recipe(saved)
    torch.save({'a': Bomb()}, saved / 'model.safetensors')
    with pytest.raises(ExportError, match='not a whole safetensors file'):
        load_recipe(saved)
    assert not bomb.exists()


def test_weights_of_another_model(saved, tmp_path):
    other = supernet()
    subnet = space_of(other).extreme()
    mine = read_recipe(saved)
    save_recipe(other, subnet, tmp_path / 'other', factory=CLASSIFIER)
    shutil.copy(tmp_path / 'other' / 'model.safetensors', saved / 'model.safetensors')
    with pytest.raises(ExportError, match='holds other weights than'):
        load_recipe(saved)
    edit(saved, weights=read_recipe(tmp_path / 'other')['weights'])
    with pytest.raises(ExportError, match='of another model than the rebuilt ImageClassifier'):
        load_recipe(saved)
    assert mine['choices'] != dict(subnet)


def test_weights_renamed_reshaped_retyped_or_changed(saved, capsys):
    path = saved / 'model.safetensors'
    tensors = load_file(path)
    name = (
        'head.fc.weight'
        if 'head.fc.weight' in tensors
        else next(key for key in tensors if key.startswith('head') and key.endswith('weight'))
    )

    def rewrite(**changes):
        save_file({key: value for key, value in {**tensors, **changes}.items() if value is not None}, path)

    rewrite(**{name: None, name.replace('weight', 'weigth'): tensors[name]})
    with pytest.raises(
        ExportError, match=rf"missing in the file: '{name}' \(did you mean '{name.replace('weight', 'weigth')}'\?\)"
    ):
        load_recipe(saved)
    rewrite(**{name: tensors[name][:-1]})
    with pytest.raises(ExportError, match=rf"'{name}' has shape \(9, 64\) in the file and \(10, 64\) in the recipe"):
        load_recipe(saved)
    rewrite(**{name: tensors[name].double()})
    with pytest.raises(ExportError, match=rf"'{name}' is torch.float64 in the file and float32 in the recipe"):
        load_recipe(saved)
    rewrite(**{name: tensors[name] + 1})
    with pytest.raises(ExportError, match='another checksum'):
        load_recipe(saved)
    loaded = load_recipe(saved, strict=False)
    assert torch.equal(loaded.state_dict()[name], tensors[name] + 1)


def test_what_fits_is_loaded_where_that_is_asked(saved):
    recipe = read_recipe(saved)
    config = json.loads(json.dumps(recipe['supernet']['config']))
    config['head']['num_classes'] = 4
    edit(saved, supernet={'config': config})
    with pytest.raises(ExportError, match=r'has shape \(10, 64\) in the weights and \(4, 64\) in the rebuilt model'):
        load_recipe(saved)
    loaded = load_recipe(saved, strict=False)
    tensors = load_file(saved / 'model.safetensors')
    assert all(torch.equal(value, tensors[name]) for name, value in loaded.state_dict().items() if name.startswith('backbone'))


def test_tied_parameters_with_two_values(tmp_path):
    model = TiedNet(tied=False)
    save_recipe(model, {'choice': 0}, tmp_path / 'net', factory=TiedNet, factory_args={'tied': False})
    recipe = read_recipe(tmp_path / 'net')
    edit(tmp_path / 'net', supernet={**recipe['supernet'], 'args': {'tied': True}})
    with pytest.raises(ExportError, match='tied parameters with different values'):
        load_recipe(tmp_path / 'net', allow=TOP)
