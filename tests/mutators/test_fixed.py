from __future__ import annotations

import copy
import io
import json
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from strop.errors import BindingError, SubnetError, UnknownKeyError
from strop.mutables import InputChoice, LayerChoice, Repeat, SearchSpaceFile, ValueChoice, extract, mutables_of, space_of
from strop.mutators import FixedArchitecture, RandomMutator, apply_fixed_architecture, get_and_apply_next_architecture
from strop.search.trial_side import get_next_parameter, write_parameters
from tests.scripts import run_script

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Choices by name and by number, one of several inputs, any of them, and a nested one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        named = OrderedDict([('conv3x3', nn.Conv2d(4, 4, 3, padding=1)), ('conv5x5', nn.Conv2d(4, 4, 5, padding=2))])
        self.op = LayerChoice(named, key='op')
        inner = LayerChoice([nn.ReLU(), nn.Tanh()], key='inner')
        self.layer = LayerChoice([nn.Conv2d(4, 4, 1), nn.Sequential(nn.BatchNorm2d(4), inner), nn.Identity()], key='layer')
        self.skip = InputChoice(n_candidates=3, n_chosen=2, key='skip')
        self.any = InputChoice(choose_from=['op', 'layer'], key='any')

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        a = self.op(x)
        b = self.layer(a)
        out = self.skip([x, a, b])
        more = self.any([a, b])
        return (out if more is None else out + more).mean((2, 3))


ARCHITECTURE = {'op': 'conv5x5', 'layer': 0, 'skip': [0, 2], 'any': ['layer']}


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def expected(architecture: dict) -> torch.Tensor:
    return extract(net(), architecture)(X)


@pytest.mark.parametrize(
    'architecture',
    [
        ARCHITECTURE,
        {'op': 1, 'layer': [0], 'skip': [2, 0], 'any': [1]},
        {'op': ['conv5x5'], 'layer': '0', 'skip': [True, False, True], 'any': 'layer'},
        {'op': [False, True], 'layer': [True, False, False], 'skip': [True, False, True], 'any': [False, True]},
        {'op': [0.0, 1.0], 'layer': [1.0, 0.0, 0.0], 'skip': [1.0, 0.0, 1.0], 'any': [0.0, 1.0]},
        {
            'op': {'_value': 'conv5x5', '_idx': 1},
            'layer': {'_value': '0', '_idx': 0},
            'skip': {'_value': ['', ''], '_idx': [0, 2]},
            'any': {'_value': ['layer'], '_idx': [1]},
        },
        {
            'op': torch.tensor([False, True]),
            'layer': np.array([True, False, False]),
            'skip': torch.tensor([1.0, 0.0, 1.0]),
            'any': torch.tensor([0, 1]),
        },
    ],
)
def test_every_form_of_an_architecture_gives_one_model(architecture: dict) -> None:
    model = net()
    assert apply_fixed_architecture(model, architecture) is model
    assert torch.equal(model(X), expected(ARCHITECTURE))
    assert mutables_of(model) == []
    assert isinstance(model.op, nn.Conv2d)
    assert model.op.kernel_size == (5, 5)


def test_a_file_of_an_exported_architecture(tmp_path: Path) -> None:
    supernet = net()
    mutator = RandomMutator(supernet)
    torch.manual_seed(1)
    mutator.reset()
    path = tmp_path / 'architecture.json'
    path.write_text(json.dumps({key: mask.tolist() for key, mask in mutator.export().items()}))
    fixed = apply_fixed_architecture(net(), path)
    assert torch.equal(fixed(X), expected(json.loads(path.read_text())))
    readable = tmp_path / 'readable.json'
    readable.write_text(json.dumps(mutator.export(readable=True)))
    assert mutables_of(apply_fixed_architecture(net(), str(readable))) == []


def test_float_weights_are_applied_by_hand() -> None:
    model = net()
    op, layer = model.op.candidates, model.layer.candidates
    apply_fixed_architecture(
        model, {'op': [0.25, 0.5], 'layer': [0.5, 0.0, 2.0], 'skip': [0.5, 0.0, 3.0], 'any': [False, False]}
    )
    with torch.no_grad():
        x = model.stem(X)
        a = 0.25 * op[0](x) + 0.5 * op[1](x)
        b = 0.5 * layer[0](a) + 2 * a
        assert torch.allclose(model(X), (0.5 * x + 3 * b).mean((2, 3)), atol=1e-6)
    model(X).sum().backward()
    assert op[0].weight.grad is not None
    assert layer[0].weight.grad is not None


def test_a_layer_choice_that_is_not_used_may_be_empty() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = LayerChoice([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)], key='a')
            self.b = LayerChoice([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)], key='b')
            self.edge = InputChoice(choose_from=['a', 'b'], n_chosen=1, key='edge')

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.edge([self.a(x), self.b(x)])

    model = Cut()
    kept = model.b[1]
    apply_fixed_architecture(model, {'a': [], 'b': 1, 'edge': 'b'})
    assert torch.equal(model(X), kept(X))
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(p.numel() for p in kept.parameters())


class TestInheritedWeights:
    def test_loaded_before(self) -> None:
        model = Net().eval()
        model.load_state_dict(net().state_dict())
        assert torch.equal(apply_fixed_architecture(model, ARCHITECTURE)(X), expected(ARCHITECTURE))

    def test_loaded_after(self) -> None:
        model = apply_fixed_architecture(Net().eval(), ARCHITECTURE)
        model.load_state_dict(net().state_dict())
        assert torch.equal(model(X), expected(ARCHITECTURE))

    def test_loaded_after_into_a_copy_and_into_a_part_of_a_model(self) -> None:
        whole = nn.Sequential(copy.deepcopy(apply_fixed_architecture(Net().eval(), ARCHITECTURE)))
        whole.load_state_dict({f'0.{name}': value for name, value in net().state_dict().items()})
        assert torch.equal(whole(X), expected(ARCHITECTURE))

    def test_the_fixed_models_own_state_dict_stays_its_own(self) -> None:
        # Candidate 1 is a Sequential: `layer.0.weight` is a name in the supernet and in the fixed model.
        architecture = {**ARCHITECTURE, 'layer': 1, 'inner': 0}
        first = apply_fixed_architecture(net(), architecture)
        second = apply_fixed_architecture(Net().eval(), architecture)
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(X), second(X))
        assert 'layer.0.weight' in first.state_dict()
        third = apply_fixed_architecture(Net().eval(), architecture)
        third.load_state_dict(net().state_dict())
        assert torch.equal(third(X), first(X))

    def test_a_state_dict_of_something_else_is_refused(self) -> None:
        model = apply_fixed_architecture(net(), ARCHITECTURE)
        state = net().state_dict()
        del state['op.conv3x3.bias']
        with pytest.raises(RuntimeError, match='Missing key'):
            model.load_state_dict(state)

    def test_a_pickled_model_needs_nothing_of_strop(self, tmp_path: Path) -> None:
        model = nn.Sequential(LayerChoice([nn.Linear(3, 3), nn.Linear(3, 3)], key='op'), nn.ReLU())
        apply_fixed_architecture(model, {'op': 1})
        assert b'strop' not in pickle.dumps(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        (tmp_path / 'model.pt').write_bytes(buffer.getvalue())
        code = (
            'import sys, torch; model = torch.load("model.pt", weights_only=False); '
            'model.load_state_dict(model.state_dict()); model(torch.zeros(1, 3)); '
            'print([name for name in sys.modules if name.startswith("strop")])'
        )
        out = run_script(code, cwd=tmp_path, environment={'PYTHONPATH': ''})
        assert out.stdout.strip() == '[]', out.stderr

    @pytest.mark.parametrize('weighted', [False, True])
    def test_what_combines_several_is_pickled_as_code(self, tmp_path: Path, weighted: bool) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.op = LayerChoice({'a': nn.Linear(3, 3), 'b': nn.Tanh(), 'c': nn.Sigmoid()}, key='op', return_mask=True)
                self.skip = InputChoice(n_candidates=3, n_chosen=2, reduction='mean', key='skip')
                self.edge = InputChoice(choose_from=['op', 'skip'], n_chosen=1, key='edge')
                self.last = InputChoice(choose_from=['op', 'skip'], n_chosen=2, reduction='concat', key='last')
                self.scale = ValueChoice([0.5, 2.0], key='scale')

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                op, mask = self.op(x)
                skip = self.skip([x, op, x * 2])
                edge = self.edge({'op': op, 'skip': skip})
                return self.last([op, edge]) * self.scale() + mask.sum()

        model = Net()
        fixed = {'op': [0.5, 0.0, 2.0] if weighted else ['a', 'c'], 'skip': [0, 2], 'edge': 'op', 'last': [0, 1], 'scale': 2.0}
        apply_fixed_architecture(model, fixed)
        x = torch.arange(6.0).reshape(2, 3)
        first, second = (0.5, 2.0) if weighted else (1.0, 1.0)
        op = first * model.op.a(x) + second * torch.sigmoid(x)
        expected = torch.cat([op, op], 1) * 2 + (2.5 if weighted else 2)
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(copy.deepcopy(model)(x), expected)
        parts = nn.ModuleDict(dict(model.named_children()))
        assert list(parts.state_dict()) == ['op.a.weight', 'op.a.bias']
        assert b'strop' not in pickle.dumps(parts)
        torch.save({'parts': parts, 'x': x, 'expected': expected}, tmp_path / 'model.pt')
        code = (
            'import sys, torch; saved = torch.load("model.pt", weights_only=False); parts, x = saved["parts"], saved["x"]; '
            'op, mask = parts["op"](x); skip = parts["skip"]([x, op, x * 2]); edge = parts["edge"]({"op": op, "skip": skip}); '
            'torch.testing.assert_close(parts["last"]([op, edge]) * parts["scale"]() + mask.sum(), saved["expected"]); '
            'print([name for name in sys.modules if name.startswith("strop")])'
        )
        out = run_script(code, cwd=tmp_path, environment={'PYTHONPATH': ''})
        assert out.stdout.strip() == '[]', out.stderr


class TestAnotherModelsArchitecture:
    def test_every_key_that_differs_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / 'other.json'
        path.write_text(json.dumps({'op': 0, 'layers': 1, 'head': 2, 'any': []}))
        model = net()
        state = model.state_dict()
        with pytest.raises(UnknownKeyError) as caught:
            apply_fixed_architecture(model, path)
        text = str(caught.value)
        assert text.startswith(str(path))
        assert "has 'layers', 'head', which the model does not have ('layers': did you mean 'layer'?)" in text
        assert "lacks 'layer', 'skip'" in text
        assert list(model.state_dict()) == list(state)
        apply_fixed_architecture(model, ARCHITECTURE)

    def test_a_missing_key_alone(self) -> None:
        with pytest.raises(SubnetError, match=r"it lacks 'any'\. The model decides"):
            apply_fixed_architecture(net(), {key: value for key, value in ARCHITECTURE.items() if key != 'any'})

    def test_names_that_nni_counted(self) -> None:
        with pytest.raises(UnknownKeyError, match='come from a counter of NNI'):
            apply_fixed_architecture(net(), {'LayerChoice1': 0})

    def test_inactive_decisions_may_be_given_or_not(self) -> None:
        first = apply_fixed_architecture(net(), {**ARCHITECTURE, 'inner': 1})
        assert torch.equal(first(X), apply_fixed_architecture(net(), ARCHITECTURE)(X))
        with pytest.raises(SubnetError, match="no choice for 'inner', which is active"):
            apply_fixed_architecture(net(), {**ARCHITECTURE, 'layer': 1})

    def test_not_strict(self) -> None:
        mutator = FixedArchitecture(net(), {**ARCHITECTURE, 'lr': 0.1}, strict=False)
        assert mutator.subnet == mutator.space.subnet(ARCHITECTURE)


@pytest.mark.parametrize(
    ('key', 'choice', 'text'),
    [
        ('layer', 9, '9 is none of'),
        ('layer', -1, '-1 is none of'),
        ('op', 9, r'0\.\.1, but got 9'),
        ('op', 'conv3', "Did you mean 'conv3x3'"),
        ('layer', [False, True], r'shape \(3,\), but got shape \(2,\)'),
        ('layer', [0, 1, 0], 'names one twice'),
        ('layer', [0.5, 0.5], 'one number for each of 3'),
        ('skip', [], 'Exactly 2'),
        ('skip', [0], 'Exactly 2'),
        ('layer', {'_value': '0', '_idx': 7}, '`_idx` must hold'),
        ('op', float('nan'), 'nan is none of'),
    ],
)
def test_a_choice_that_does_not_fit_is_refused_with_its_key(key: str, choice: object, text: str) -> None:
    with pytest.raises(SubnetError, match=text) as caught:
        apply_fixed_architecture(net(), {**ARCHITECTURE, key: choice})
    assert repr(key) in str(caught.value)


def test_a_bound_model_is_refused_and_stays_bound() -> None:
    model = net()
    mutator = RandomMutator(model)
    with pytest.raises(BindingError, match=r'bound to a RandomMutator already.*release\(\)'):
        apply_fixed_architecture(model, ARCHITECTURE)
    mutator.reset()
    mutator.release()
    assert mutables_of(apply_fixed_architecture(model, ARCHITECTURE)) == []


def test_a_choice_itself_cannot_be_replaced_in_place() -> None:
    with pytest.raises(BindingError, match='extract'):
        apply_fixed_architecture(LayerChoice([nn.ReLU(), nn.Tanh()], key='act'), {'act': 0})


def test_values_and_depths_are_fixed_too() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = Repeat(nn.Linear(3, 3), ValueChoice([1, 2, 4], key='depth'))
            self.scale = ValueChoice([0.5, 2.0], key='scale')

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks(x) * self.scale()

    model = Deep()
    x = torch.randn(2, 3)
    blocks = list(model.blocks.blocks)
    apply_fixed_architecture(model, {'depth': 2, 'scale': 2.0})
    assert torch.equal(model(x), blocks[1](blocks[0](x)) * 2)
    fresh = apply_fixed_architecture(Deep(), {'depth': 2, 'scale': 2.0})
    supernet = Deep()
    fresh.load_state_dict(supernet.state_dict())
    assert torch.equal(fresh.blocks[1].weight, supernet.blocks.blocks[1].weight)


def test_the_mutator_of_a_fixed_architecture_keeps_the_choices() -> None:
    model = net()
    mutator = FixedArchitecture(model, ARCHITECTURE)
    mutator.reset()
    assert torch.equal(model(X), expected(ARCHITECTURE))
    assert len(space_of(model)) == 5
    assert mutator.export(readable=True) == {'op': 'conv5x5', 'layer': 0, 'skip': [0, 2], 'any': 'layer'}


class TestTheNextArchitecture:
    @pytest.fixture
    def trial(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv('STROP_TRIAL_DIR', str(tmp_path))
        return tmp_path

    def test_the_parameters_of_the_trial_become_the_model(self, trial: Path) -> None:
        file = SearchSpaceFile.of(net())
        write_parameters(trial, {**file.parameters(file.space.subnet(ARCHITECTURE)), 'lr': 0.1})
        model = net()
        assert get_and_apply_next_architecture(model) is None
        assert torch.equal(model(X), expected(ARCHITECTURE))
        assert get_next_parameter()['lr'] == 0.1

    def test_hyper_parameters_may_be_asked_for_first(self, trial: Path) -> None:
        file = SearchSpaceFile.of(net())
        write_parameters(trial, {**file.parameters(file.space.subnet(ARCHITECTURE), complete=True), 'lr': 0.1})
        assert get_next_parameter()['lr'] == 0.1
        model = net()
        get_and_apply_next_architecture(model)
        assert torch.equal(model(X), expected(ARCHITECTURE))

    def test_the_documents_idex_is_read_with_a_warning(self, trial: Path) -> None:
        file = SearchSpaceFile.of(net())
        parameters = file.parameters(file.space.subnet(ARCHITECTURE))
        parameters['skip'] = {'_value': ['', ''], '_idex': [0, 2]}
        write_parameters(trial, parameters)
        model = net()
        with pytest.warns(UserWarning, match="'skip': '_idex' is read as '_idx'"):
            get_and_apply_next_architecture(model)
        assert torch.equal(model(X), expected(ARCHITECTURE))

    def test_the_parameters_of_another_model(self, trial: Path) -> None:
        file = SearchSpaceFile.of(net())
        parameters = file.parameters(file.space.subnet(ARCHITECTURE))
        parameters['opp'] = parameters.pop('op')
        write_parameters(trial, parameters)
        with pytest.raises(UnknownKeyError, match=r"decide 'opp', which the model does not have.*Did you mean 'op'"):
            get_and_apply_next_architecture(net())
        del parameters['opp'], parameters['skip']
        write_parameters(trial / 'second', parameters)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SubnetError, match="lacks 'op', 'skip'"):
            patch.setenv('STROP_TRIAL_DIR', str(trial / 'second'))
            get_and_apply_next_architecture(net())

    def test_standalone_takes_the_first_candidates_and_all_inputs_of_any_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv('STROP_TRIAL_DIR', raising=False)
        model = net()
        with pytest.warns(UserWarning, match='runs standalone.*first candidate'):
            get_and_apply_next_architecture(model)
        assert torch.equal(model(X), expected({'op': 0, 'layer': 0, 'skip': [0, 1], 'any': [0, 1]}))

    def test_values_stand_at_their_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv('STROP_TRIAL_DIR', raising=False)
        model = nn.Module()
        model.size = ValueChoice([3, 5], key='size')
        with pytest.warns(UserWarning, match='standalone'):
            get_and_apply_next_architecture(model)
        assert model.size() == 3

    def test_a_script_that_is_run_for_its_space_ends_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / 'space.json'
        monkeypatch.setenv('NNI_GEN_SEARCH_SPACE', str(path))
        with pytest.raises(SystemExit) as ended:
            get_and_apply_next_architecture(net())
        assert ended.value.code == 0
        assert SearchSpaceFile.of(path).to_dict() == SearchSpaceFile.of(net()).to_dict()


class TestAsTunersSpellIt:
    def test_names_with_indices(self) -> None:
        spelled = {'_value': ['', ''], '_idx': [0, 2]}
        model = apply_fixed_architecture(net(), {**ARCHITECTURE, 'skip': spelled, 'layer': {'_value': '2', '_idx': 2}})
        assert torch.equal(model(X), expected({**ARCHITECTURE, 'skip': [0, 2], 'layer': 2}))

    def test_the_documents_idex_is_read_with_a_warning(self) -> None:
        with pytest.warns(UserWarning, match='_idex'):
            model = apply_fixed_architecture(net(), {**ARCHITECTURE, 'skip': {'_value': ['', ''], '_idex': [0, 2]}})
        assert torch.equal(model(X), expected({**ARCHITECTURE, 'skip': [0, 2]}))

    def test_a_name_and_an_index_that_differ(self) -> None:
        with pytest.raises(SubnetError, match="'op': `_value` 'conv3x3' and `_idx` 1 do not belong together"):
            apply_fixed_architecture(net(), {**ARCHITECTURE, 'op': {'_value': 'conv3x3', '_idx': 1}})


def test_numbers_are_positions_where_names_are_other_numbers():
    def net():
        torch.manual_seed(0)
        kernels = {'3': nn.Linear(2, 3), '5': nn.Linear(2, 5), '7': nn.Linear(2, 7)}
        return nn.Sequential(LayerChoice(kernels, key='op'))

    def width(choice):
        return apply_fixed_architecture(net(), {'op': choice})(torch.ones(1, 2)).shape[1]

    assert [width(choice) for choice in (0, 1, 2, '3', '5', [2], {'_value': '7', '_idx': 2})] == [3, 5, 7, 3, 5, 7, 7]
    with pytest.raises(SubnetError, match=r"An index must be in 0\.\.2, but got 3\. The alternatives are '3', '5', '7'"):
        width(3)


@pytest.mark.parametrize(
    ('sources', 'count', 'given', 'expected'),
    [
        ([''], None, '', [0]),
        (['a', 'b', 'c', ''], None, ['a', 'c'], [0, 2]),
        (['a', 'b', 'c', ''], None, ['', 'b'], [1, 3]),
        (['a', 'b', ''], 1, '', [2]),
        (['a', 'b', ''], 1, 'b', [1]),
        (['a', 'b'], 1, 'b', [1]),
    ],
)
def test_inputs_go_by_name_where_names_differ(sources, count, given, expected):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name in filter(None, sources):
                setattr(self, name, LayerChoice([nn.Identity()], key=name))
            self.pick = InputChoice(choose_from=sources, n_chosen=count, key='pick')

        def forward(self, x):
            return self.pick([x * 10**place for place in range(len(sources))])

    total = sum(10**place for place in expected)
    others = dict.fromkeys(filter(None, sources), 0)
    assert float(apply_fixed_architecture(Net(), {'pick': given, **others})(torch.ones(1))) == total
