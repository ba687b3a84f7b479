"""A pruned model comes back bit by bit from a fresh model of the original class, without another trace."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from strop.errors import ConfigError, ExportError, UnsafeFileError
from strop.export import load_recipe, load_slim, read_recipe, save_slim
from strop.export.cut import Cut
from strop.graph import channel_units
from strop.mutables import LayerChoice, extract
from strop.pruning import PruneRecord, prune, remove_blocks
from tests.scripts import run_script

timm = pytest.importorskip('timm')


class Closed(nn.Module):
    """Keeps its sizes in a closure, in a dict and in a tensor outside the state."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 2 * width)
        self.leave = nn.Linear(2 * width, 3)
        self.sizes = {'split': [2, width]}
        self.split = lambda x: x.reshape(x.shape[0], 2, width)
        self.shift = torch.linspace(-1, 1, width)
        self.register_buffer('scale', torch.linspace(1, 2, width), persistent=False)

    def forward(self, x):
        x = self.split(self.enter(x)) * self.scale + self.shift
        return self.leave(x.reshape(x.shape[0], self.sizes['split'][0] * self.sizes['split'][1]))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, 12, num_layers=2, batch_first=True)
        self.back = nn.Linear(12, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens):
        return self.out(self.back(self.lstm(self.table(tokens))[0]))


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x):
        return x + self.body(x)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.same, self.leave = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.again = self.same

    def forward(self, x):
        return self.leave(self.again(self.same(self.enter(x)).relu()).relu())


def parametrized() -> nn.Module:
    weight_norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), weight_norm(nn.Conv2d(8, 4, 3)))


def blocks() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), *[Block() for _ in range(4)], nn.Linear(8, 2))


def plain(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3))


def choices() -> nn.Module:
    return nn.Sequential(LayerChoice({'narrow': nn.Linear(4, 8), 'wide': nn.Linear(4, 8)}), nn.ReLU(), nn.Linear(8, 2))


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MODELS = {
    'resnet18': (lambda: timm.create_model('resnet18'), lambda: torch.randn(2, 3, 32, 32)),
    'vit_tiny': (
        lambda: timm.create_model('vit_tiny_patch16_224', depth=2, img_size=32),
        lambda: torch.randn(2, 3, 32, 32),
    ),
    'mobilenetv2': (lambda: timm.create_model('mobilenetv2_050'), lambda: torch.randn(2, 3, 32, 32)),
    'closed': (Closed, lambda: torch.randn(2, 6)),
    'twice': (Twice, lambda: torch.randn(2, 3, 8, 8)),
    'parametrized': (parametrized, lambda: torch.randn(2, 3, 8, 8)),
    'encoder': (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), lambda: torch.randn(2, 5, 16)),
    'recurrent': (Recurrent, lambda: torch.arange(10).reshape(2, 5)),
}


def outputs(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(inputs)


def edit(folder: Path, **changes: object) -> None:
    path = folder / 'recipe.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# -- what comes back is what was saved --------------------------------------------------------------------


@pytest.mark.parametrize('name', MODELS)
def test_a_pruned_model_comes_back_bit_by_bit(name, tmp_path):
    make, give = MODELS[name]
    torch.manual_seed(0)
    original, inputs = make(), give()
    slim, record = prune(original, inputs, ratio=0.4)
    written = save_slim(slim, tmp_path / 'slim', original=original, record=record, example_inputs=inputs)
    assert written.max_abs_error == 0.0
    torch.manual_seed(1)
    fresh = make()
    before = copy.deepcopy(fresh.state_dict())
    loaded = load_slim(tmp_path / 'slim', fresh)
    assert torch.equal(outputs(loaded, inputs), outputs(slim, inputs))
    assert str(loaded) == str(slim.eval())
    assert not loaded.training
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
    assert sum(p.numel() for p in loaded.parameters()) == record.params[1] < record.params[0]


def test_tied_weights_are_written_once_and_stay_tied(tmp_path):
    original = Recurrent()
    slim = prune(original, torch.arange(10).reshape(2, 5), ratio=0.5).model
    save_slim(slim, tmp_path / 'slim', original=original)
    assert read_recipe(tmp_path / 'slim')['weights']['tensors']['out.weight']['same_as'] == 'table.weight'
    loaded = load_slim(tmp_path / 'slim', Recurrent)
    assert loaded.out.weight is loaded.table.weight
    assert loaded.table.embedding_dim == 4
    assert all(any(weight is p for p in loaded.parameters()) for weight in loaded.lstm._flat_weights)


def test_tensors_outside_the_state_come_along(tmp_path):
    original = Closed()
    slicing = channel_units(original, torch.randn(2, 6)).slicing({})
    (unit,) = [name for name, unit in slicing.graph.units.items() if unit.size == 8]
    kept = [1, 2, 5]
    slim = slicing.graph.shrink(original, {unit: kept})
    save_slim(slim, tmp_path / 'slim', original=original)
    loaded = load_slim(tmp_path / 'slim', Closed())
    assert sorted(read_recipe(tmp_path / 'slim')['cut']['extra']) == ['scale', 'shift']
    assert torch.equal(loaded.scale, torch.linspace(1, 2, 8)[kept])
    assert torch.equal(loaded.shift, torch.linspace(-1, 1, 8)[kept])
    assert loaded.sizes['split'][1] == 3


def test_pruned_trained_and_pruned_again(tmp_path):
    original = plain()
    first = prune(original, IMAGE, ratio=0.25)
    optimizer = torch.optim.SGD(first.model.parameters(), lr=0.1)
    first.model.train()(IMAGE).square().mean().backward()
    optimizer.step()
    second = prune(first.model, IMAGE, ratio=0.5)
    save_slim(second.model, tmp_path / 'slim', original=original, record=[first, second.record], example_inputs=IMAGE)
    cut = read_recipe(tmp_path / 'slim')['cut']
    (change,) = [item for item in cut['attributes'] if item['module'] == '0' and item['keys'] == ['out_channels']]
    assert (change['old'], change['new']) == (8, 3)
    assert [PruneRecord.from_dict(entry) for entry in cut['history']] == [first.record, second.record]
    assert torch.equal(outputs(load_slim(tmp_path / 'slim', plain), IMAGE), outputs(second.model, IMAGE))


def test_slicings_are_enough_where_the_original_is_gone(tmp_path):
    inputs = torch.randn(2, 6)
    model = Closed()
    slicings = []
    for kept in ([0, 2, 3, 5, 6, 7], [1, 2, 4]):
        graph = channel_units(model, inputs)
        (unit,) = [name for name, unit in graph.units.items() if unit.size > 3]
        slicings.append(graph.slicing({unit: kept}))
        slicings[-1].apply(model, inplace=True)
    save_slim(model, tmp_path / 'slim', record=slicings)
    assert torch.equal(outputs(load_slim(tmp_path / 'slim', Closed), inputs), outputs(model, inputs))
    with pytest.raises(ExportError, match='does not lead to the given Closed'):
        save_slim(Closed(), tmp_path / 'other', record=slicings[-1])


def test_removed_blocks_stay_removed(tmp_path):
    original, inputs = blocks(), torch.randn(2, 4)
    shorter, first = remove_blocks(original, inputs, count=2)
    slim, second = prune(shorter, inputs, ratio=0.5)
    save_slim(slim, tmp_path / 'slim', original=original, record=[first, second])
    assert list(read_recipe(tmp_path / 'slim')['cut']['removed']) == list(first.removed)
    loaded = load_slim(tmp_path / 'slim', blocks)
    assert [type(module).__name__ for module in loaded].count('Identity') == 2
    assert torch.equal(outputs(loaded, inputs), outputs(slim, inputs))


def test_a_pruned_subnet_of_a_supernet(tmp_path):
    supernet, inputs = choices(), torch.randn(2, 4)
    subnet = {'0': 'wide'}
    slim, record = prune(extract(supernet, subnet), inputs, ratio=0.5)
    save_slim(slim, tmp_path / 'slim', factory=choices, subnet=subnet, record=record, example_inputs=inputs)
    loaded = load_recipe(tmp_path / 'slim', allow=__name__.partition('.')[0])
    assert torch.equal(outputs(loaded, inputs), outputs(slim, inputs))
    with pytest.raises(ExportError, match='needs the subnet'):
        save_slim(slim, tmp_path / 'other', factory=choices)
    # The same without building it again: by the supernet, or by the plain model that was pruned.
    for original in (supernet, extract(supernet, subnet)):
        save_slim(slim, tmp_path / 'slim', original=original, factory=choices, subnet=subnet, record=record, check=False)
        assert read_recipe(tmp_path / 'slim')['choices'] == subnet
        assert torch.equal(outputs(load_recipe(tmp_path / 'slim', trust=True), inputs), outputs(slim, inputs))


def test_another_precision_stays(tmp_path):
    original = plain()
    slim = prune(original, IMAGE, ratio=0.5).model.bfloat16()
    save_slim(slim, tmp_path / 'slim', original=original)
    loaded = load_slim(tmp_path / 'slim', plain)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(outputs(loaded, IMAGE.bfloat16()), outputs(slim, IMAGE.bfloat16()))


def test_a_fresh_process_builds_it_from_the_named_factory(tmp_path):
    (tmp_path / 'nets.py').write_text(
        'from torch import nn\n\n\ndef make(width=8):\n'
        '    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3))\n'
    )
    original = plain(12)
    slim, record = prune(original, IMAGE, ratio=0.5)
    save_slim(
        slim, tmp_path / 'slim', original=original, factory='nets:make', factory_args={'width': 12}, record=record, check=False
    )
    torch.save({'inputs': IMAGE, 'outputs': outputs(slim, IMAGE)}, tmp_path / 'expected.pt')
    assert '`nets:make` with `width=12` builds' in (tmp_path / 'slim' / 'README.md').read_text()
    code = """
        import torch
        from strop.errors import UnsafeFileError
        from strop.export import load_recipe
        try:
            load_recipe('slim')
        except UnsafeFileError as error:
            assert 'nets' in str(error)
        else:
            raise SystemExit('it was not asked')
        expected = torch.load('expected.pt')
        with torch.no_grad():
            found = load_recipe('slim', allow='nets')(expected['inputs'])
        assert torch.equal(found, expected['outputs'])
        print('equal')
    """
    done = run_script(code, cwd=tmp_path)
    assert done.stdout == 'equal\n', done.stderr


def test_what_is_loaded_lies_in_plain_order_whatever_built_it(tmp_path):
    """Kernels are chosen by how weights lie, and round differently; a folder does not say how they lay."""

    def build():
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        with torch.no_grad():
            for index, parameter in enumerate(net.parameters()):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter) * (1 + index))
        return net.to(memory_format=torch.channels_last)

    images = torch.rand(2, 3, 19, 19)
    smaller, record = prune(build(), images, ratio=0.5, round_to=4)
    assert not build()[0].weight.is_contiguous()
    save_slim(smaller, tmp_path / 'slim', original=build(), record=record, example_inputs=images)
    loaded = load_recipe(tmp_path / 'slim', factory=lambda **_: build())
    assert loaded[0].weight.stride() == (27, 9, 3, 1)
    assert loaded[2].weight.stride() == (8, 1, 1, 1)
    plain = copy.deepcopy(smaller).to(memory_format=torch.contiguous_format)
    assert torch.equal(loaded(images), plain(images))


def test_the_files_are_data_for_people_too(tmp_path):
    original = plain()
    slim, record = prune(original, IMAGE, ratio=0.5)
    save_slim(slim, tmp_path / 'slim', original=original, record=record, note={'task': 'demo'})
    assert sorted(path.name for path in (tmp_path / 'slim').iterdir()) == ['README.md', 'model.safetensors', 'recipe.json']
    text = (tmp_path / 'slim' / 'recipe.json').read_text()
    assert '"0.weight": [8, 3, 3, 3]' in text
    recipe = read_recipe(tmp_path / 'slim')
    assert recipe['version'] == 2
    assert recipe['note'] == {'task': 'demo'}
    assert recipe['weights']['tensors']['0.weight']['shape'] == [4, 3, 3, 3]
    assert len(recipe['cut']['history'][0]['steps'][0]['kept']['0']) == 4
    assert 'load_slim' in (tmp_path / 'slim' / 'README.md').read_text()


# -- what does not fit is refused ------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    original = plain()
    save_slim(prune(original, IMAGE, ratio=0.5).model, tmp_path / 'slim', original=original)
    return tmp_path / 'slim'


def test_another_model_is_refused_and_left_alone(saved):
    other = plain(16)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ExportError, match=r"'0.weight' has shape \(16, 3, 3, 3\) in the given model"):
        load_slim(saved, other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    with pytest.raises(ExportError, match='before any pruning'):
        load_slim(saved, prune(plain(), IMAGE, ratio=0.5).model)
    with pytest.raises(ExportError, match='missing in the given model'):
        load_slim(saved, nn.Sequential(nn.Conv2d(3, 8, 3)))
    with pytest.raises(ExportError, match='missing in the given model'):
        load_slim(saved, nn.ReLU())


def test_an_int_of_another_value_is_refused(tmp_path):
    inputs = torch.randn(2, 6)
    original = Closed()
    save_slim(prune(original, inputs, ratio=0.5).model, tmp_path / 'slim', original=original)
    other = Closed()
    other.sizes = {'split': [2, 4]}
    with pytest.raises(ExportError, match=r'sizes.split.1 is 4, and was 8'):
        load_slim(tmp_path / 'slim', other)
    other.sizes = {}
    with pytest.raises(ExportError, match=r'it has no .*sizes.split.1'):
        load_slim(tmp_path / 'slim', other)


def test_a_missing_tensor_outside_the_state_is_refused(tmp_path):
    original, other = Closed(), Closed()
    save_slim(prune(original, torch.randn(2, 6), ratio=0.5).model, tmp_path / 'slim', original=original)
    other.shift = 1.0
    with pytest.raises(ExportError, match="keeps no tensors 'shift' outside its state"):
        load_slim(tmp_path / 'slim', other)
    loaded = load_slim(tmp_path / 'slim', other, strict=False)
    assert loaded.shift == 1.0
    assert other.scale.shape == (8,)


def test_a_missing_block_is_refused(tmp_path):
    original, inputs = blocks(), torch.randn(2, 4)
    save_slim(remove_blocks(original, inputs, names=['4']).model, tmp_path / 'slim', original=original)
    with pytest.raises(ExportError, match="no blocks '4'"):
        load_slim(tmp_path / 'slim', blocks()[:4])


def test_not_strict_loads_what_fits(saved):
    other = plain()
    other[3] = nn.Conv2d(8, 5, 3)
    with pytest.raises(ExportError, match='is not like the model'):
        load_slim(saved, other)
    loaded = load_slim(saved, other, strict=False)
    assert torch.equal(loaded[0].weight, load_slim(saved, plain)[0].weight)
    edit(saved, weights={**read_recipe(saved)['weights'], 'sha256': '0' * 64})
    with pytest.raises(ExportError, match='checksum'):
        load_slim(saved, plain)
    load_slim(saved, plain, strict=False)


def test_what_is_needed_to_save_is_said(tmp_path):
    original = plain()
    slim, record = prune(original, IMAGE, ratio=0.5)
    with pytest.raises(ConfigError, match='give original='):
        save_slim(slim, tmp_path / 'slim', record=record)
    with pytest.raises(ConfigError, match='got str'):
        save_slim(slim, tmp_path / 'slim', original=original, record=['record.json'])
    with pytest.raises(ExportError, match='was not pruned from the given Sequential'):
        save_slim(slim, tmp_path / 'slim', original=nn.Sequential(original[0], nn.BatchNorm2d(8, affine=False), *original[2:]))
    changed = copy.deepcopy(slim)
    changed[2] = nn.GELU()
    with pytest.raises(ExportError, match="a GELU at '2', where the original has a ReLU"):
        save_slim(changed, tmp_path / 'slim', original=original)
    with pytest.raises(ExportError, match="nothing at '3'"):
        save_slim(slim[:3], tmp_path / 'slim', original=original)
    assert list(tmp_path.iterdir()) == []


def test_a_factory_that_builds_another_model_leaves_no_folder(tmp_path):
    original = plain(12)
    slim = prune(original, IMAGE, ratio=0.5).model
    with pytest.raises(ExportError, match='is not like the model that was pruned'):
        save_slim(slim, tmp_path / 'slim', original=original, factory=plain)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_depends_on_something_else_is_found_by_its_outputs(tmp_path):
    class Scaled(nn.Sequential):
        factor = 1.0

        def forward(self, x):
            return super().forward(x) * self.factor

    original = Scaled(*plain())
    slim = prune(original, IMAGE, ratio=0.5).model
    slim.factor = 2.0
    with pytest.raises(ExportError, match='neither in its weights nor in its arguments'):
        save_slim(slim, tmp_path / 'slim', original=original, example_inputs=IMAGE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('changes', 'error', 'said'),
    [
        ({'version': 3}, ExportError, 'version 3'),
        ({'cut': {'original': {}}}, ExportError, "'attributes' is a required property"),
        ({'cut': {'original': {}, 'attributes': [], 'removed': {'0': {'type': 'os.system'}}}}, ExportError, 'schema'),
        (
            {'cut': {'original': {}, 'attributes': [{'module': '', 'keys': [], 'old': 1, 'new': 2}]}},
            ExportError,
            'schema',
        ),
    ],
)
def test_a_damaged_recipe(saved, changes, error, said):
    edit(saved, **changes)
    with pytest.raises(error, match=said):
        load_slim(saved, plain)


def test_a_recipe_without_factory_says_how_to_load_it(saved):
    with pytest.raises(ExportError, match='load_slim'):
        load_recipe(saved)
    with pytest.raises(ConfigError, match='got dict'):
        load_slim(saved, {})
    (saved / 'recipe.json').write_bytes(b'\x80\x04N.')
    with pytest.raises(UnsafeFileError, match='pickle'):
        load_slim(saved, plain)


def test_keys_that_json_does_not_hold():
    original, slim = plain(), plain()
    original.table, slim.table = {(0, 1): 8}, {(0, 1): 4}
    with pytest.raises(ExportError, match=r'the key \(0, 1\) is a tuple'):
        Cut.between(original, slim).to_dict()
