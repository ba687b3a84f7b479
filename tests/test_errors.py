from __future__ import annotations

import inspect

import pytest

from strop import errors
from strop.errors import MissingDependencyError, StropError, UnknownKeyError, UnknownTypeError, listed, near, try_import

CONCRETE = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, StropError) and cls is not StropError
]


@pytest.mark.parametrize('cls', CONCRETE)
def test_every_error_is_one_of_the_root_and_of_a_built_in(cls: type[StropError]) -> None:
    assert cls.__doc__
    built_in = [
        base for base in cls.__mro__ if base.__module__ == 'builtins' and base not in (Exception, BaseException, object)
    ]
    assert built_in
    assert str(cls('A rule.', 'More.')) == 'A rule. More.'


@pytest.mark.parametrize(
    ('name', 'built_in'),
    [
        ('ModeError', RuntimeError),
        ('BindingError', RuntimeError),
        ('NotDecidedError', RuntimeError),
        ('ComponentTypeError', TypeError),
        ('SubnetError', ValueError),
        ('UnknownKeyError', KeyError),
        ('UnknownTypeError', KeyError),
        ('MissingDependencyError', ImportError),
    ],
)
def test_the_built_ins_that_callers_of_older_toolkits_catch(name: str, built_in: type[Exception]) -> None:
    assert issubclass(getattr(errors, name), built_in)


@pytest.mark.parametrize('cls', [UnknownKeyError, UnknownTypeError])
def test_key_errors_print_as_sentences(cls: type[StropError]) -> None:
    assert str(cls("'x' is unknown.")) == "'x' is unknown."


@pytest.mark.parametrize(
    ('name', 'options', 'expected'),
    [
        ('conf', ['conv', 'pool'], " Did you mean 'conv'?"),
        ('CONV', ['conv'], " Did you mean 'conv'?"),
        ('layer1', ['layer0', 'layer2'], " Did you mean 'layer2' or 'layer0'?"),
        ('zzz', ['conv'], ''),
        ('a', [], ''),
        (3, ['30', 31], " Did you mean '31' or '30'?"),
        (None, ['none'], " Did you mean 'none'?"),
    ],
)
def test_near(name: object, options: list[object], expected: str) -> None:
    assert near(name, options) == expected


def test_listed() -> None:
    assert listed([]) == ''
    assert listed(['a', 1]) == "'a', 1"
    assert listed(range(100), limit=2) == '0, 1, ... (100 in all)'


def test_try_import() -> None:
    assert try_import('json', 'none').dumps([1]) == '[1]'
    with pytest.raises(ImportError, match=r"`no_such_package` is needed here .*pip install 'strop\[onnx\]'") as caught:
        try_import('no_such_package', 'onnx')
    assert isinstance(caught.value, MissingDependencyError)
    assert isinstance(caught.value.__cause__, ImportError)
