from __future__ import annotations

from collections.abc import Iterator

import mmengine
import pytest
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope
from torch import nn

from strop import registry
from strop.errors import UnknownTypeError
from strop.mutables import OneShotMutableOP
from strop.mutators import RandomMutator
from strop.registry import MODELS, MUTATORS


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    before = dict(MODELS.module_dict)
    yield
    MODELS._module_dict.clear()
    MODELS._module_dict.update(before)


def made(name: str, module: str) -> type[nn.Module]:
    return type(name, (nn.Module,), {'__module__': module})


@pytest.mark.parametrize('found_in', [MODELS, ROOT], ids=['ours', 'root'])
@pytest.mark.parametrize('prefix', ['strop.', 'mmrazor.'])
def test_both_prefixes_reach_one_class(found_in: object, prefix: str) -> None:
    assert found_in.get(f'{prefix}OneShotMutableOP') is OneShotMutableOP


def test_a_bare_name_reaches_it_too() -> None:
    assert MODELS.get('RandomMutator') is RandomMutator
    assert isinstance(MODELS.build({'type': 'RandomMutator'}), RandomMutator)


@pytest.mark.parametrize('scope', ['strop', 'mmrazor'])
def test_a_default_scope_reaches_it_from_the_root(scope: str) -> None:
    with DefaultScope.overwrite_default_scope(scope):
        assert isinstance(ROOT.build({'type': 'RandomMutator'}), RandomMutator)


def test_a_scope_inside_a_config() -> None:
    assert isinstance(ROOT.build({'type': 'RandomMutator', '_scope_': 'mmrazor'}), RandomMutator)


@pytest.mark.parametrize('name', ['OneShotMutator', 'strop.OneShotMutator', 'mmrazor.OneShotMutator'])
def test_a_users_class_replaces_a_built_in_one(name: str) -> None:
    own = made('OneShotMutator', 'my_project.mutators')
    assert MUTATORS.register_module()(own) is own
    assert MODELS.get(name) is own


def test_a_built_in_class_that_comes_later_does_not_take_the_name_back() -> None:
    own, built_in = made('Later', 'my_project.models'), made('Later', 'strop.algorithms.later')
    MODELS.register_module(module=own)
    MODELS.register_module(module=built_in)
    assert MODELS.get('Later') is own
    first = made('Sooner', 'strop.algorithms.sooner')
    MODELS.register_module(name=['Sooner', 'Earlier'], module=first)
    MODELS.register_module(name='Earlier', module=own)
    assert (MODELS.get('Sooner'), MODELS.get('Earlier')) == (first, own)


@pytest.mark.parametrize('package', ['my_project', 'strop', 'strop_tricks'])
def test_two_classes_of_one_owner_and_name_are_an_error(package: str) -> None:
    MODELS.register_module(module=made('Twice', f'{package}.a'))
    with pytest.raises(KeyError, match='Twice is already registered'):
        MODELS.register_module(module=made('Twice', f'{package}.b'))
    forced = made('Twice', f'{package}.c')
    MODELS.register_module(module=forced, force=True)
    assert MODELS.get('Twice') is forced


@pytest.mark.parametrize('name', ['RandomMutater', 'strop.RandomMutater', 'mmrazor.RandomMutater'])
@pytest.mark.parametrize('use', ['get', 'build'])
def test_unknown_names(name: str, use: str) -> None:
    with pytest.raises(
        KeyError, match=r"RandomMutater' is not in the model registry .*Did you mean 'RandomMutator'.*custom_imports"
    ) as caught:
        MODELS.get(name) if use == 'get' else MODELS.build({'type': name})
    assert isinstance(caught.value, UnknownTypeError)
    assert name not in MODELS
    assert 'RandomMutator' in MODELS


def test_names_of_a_package_that_is_absent() -> None:
    with pytest.raises(UnknownTypeError, match=r"'no_such_package.Thing' is not in the model registry"):
        MODELS.get('no_such_package.Thing')


def test_full_paths_and_mmengines_own_classes() -> None:
    assert MODELS.get('torch.nn.ReLU') is nn.ReLU
    assert MODELS.get('BaseDataPreprocessor') is mmengine.model.BaseDataPreprocessor


def test_an_error_while_importing_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise RuntimeError('Something else went wrong')

    monkeypatch.setattr(registry.Registry, 'import_from_location', fail)
    with pytest.raises(RuntimeError, match='Something else'):
        MODELS.get('X')


def test_mmrazors_older_registries_are_the_same_one() -> None:
    for name in ('ALGORITHMS', 'MUTATORS', 'MUTABLES', 'DISTILLERS', 'PRUNERS', 'LOSSES', 'ARCHITECTURES', 'OPS'):
        assert getattr(registry, name) is MODELS


def test_registering_functions() -> None:
    def build_something(width: int) -> nn.Module:
        return nn.Linear(width, width)

    MODELS.register_module(name='build_something', module=build_something)
    assert MODELS.build({'type': 'build_something', 'width': 3}).in_features == 3
