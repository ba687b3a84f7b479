"""The finder on tables of its own, in this process: what is virtual, what is the user's, what is real."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from strop.compat import Finder, OldImportError, OldNameError, Table
from strop.errors import StropError

OLD = Table(
    'oldlib',
    names={
        'oldlib': {'math': 'tau'},
        'oldlib.models.shapes': {'math': 'pi circumference=tau', 'no.such.module': 'Ghost'},
        'oldlib.models.paths': {'posixpath': '*'},
    },
    modules={
        'oldlib': 'models version',
        'oldlib.models': 'shapes paths',
        'oldlib.models.shapes': 'base round',
        'oldlib.models.shapes.round': 'ball',
    },
    later='Square Ghost',
)


def forget(*roots: str) -> None:
    for name in [name for name in sys.modules if name.split('.')[0] in roots]:
        del sys.modules[name]


@pytest.fixture
def finder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Finder]:
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    finder = Finder([OLD, Table('oldcls', {}, successor='newcls'), GRAFT])
    yield finder
    if finder in sys.meta_path:
        sys.meta_path.remove(finder)
    forget('oldlib', 'oldcls', 'newcls', 'oldcv')


GRAFT = Table(
    'oldcv',
    names={'oldcv.runner': {'math': 'floor'}, 'oldcv.cnn': {'math': 'floor ceil'}},
    modules={'oldcv': 'runner cnn', 'oldcv.runner': 'deep'},
    grafts=('oldcv.runner', 'oldcv.cnn'),
)


def put(folder: Path, path: str, text: str = '') -> None:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    importlib.invalidate_caches()


def test_nothing_is_virtual_before_activation(finder: Finder) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module('oldlib')


def test_names_are_the_targets_own_objects(finder: Finder) -> None:
    finder.activate()
    finder.activate()
    assert sys.meta_path.count(finder) == 1
    assert sys.meta_path[0] is finder
    from oldlib.models.shapes import circumference, pi  # type: ignore[import-not-found]

    assert pi is math.pi
    assert circumference is math.tau


@pytest.mark.parametrize(
    'place', ['oldlib.models', 'oldlib.models.shapes', 'oldlib.models.shapes.base', 'oldlib.models.shapes.round.ball']
)
def test_a_name_is_reached_from_its_room_its_modules_and_the_packages_above(finder: Finder, place: str) -> None:
    finder.activate()
    assert importlib.import_module(place).pi is math.pi


def test_a_name_does_not_leak_into_other_rooms_nor_into_the_root(finder: Finder) -> None:
    finder.activate()
    assert not hasattr(importlib.import_module('oldlib.models.paths'), 'pi')
    root = importlib.import_module('oldlib')
    assert not hasattr(root, 'pi')
    assert root.tau is math.tau


def test_a_star_in_the_table_gives_what_the_target_exports(finder: Finder) -> None:
    import posixpath

    finder.activate()
    paths = importlib.import_module('oldlib.models.paths')
    assert paths.join is posixpath.join
    assert not hasattr(paths, '_joinrealpath')


def test_import_star_gives_what_exists(finder: Finder) -> None:
    finder.activate()
    namespace: dict[str, object] = {}
    exec('from oldlib.models.shapes import *', namespace)
    assert set(namespace) - {'__builtins__'} == {'pi', 'circumference'}
    shapes = importlib.import_module('oldlib.models.shapes')
    assert {'pi', 'circumference', 'base', 'round'} <= set(dir(shapes))
    assert 'Ghost' not in dir(shapes)


def test_packages_are_attributes_of_their_parents(finder: Finder) -> None:
    finder.activate()
    root = importlib.import_module('oldlib')
    assert root.models.shapes.round.pi is math.pi


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('from oldlib.models import Square', ["'Square' of oldlib is not supported yet"]),
        ('from oldlib.models.shapes import Ghost', ["'Ghost' of oldlib is not supported yet"]),
        ('from oldlib.models.shapes import circumfernce', ["has no 'circumfernce'", "Did you mean 'circumference'"]),
        ('import oldlib.models.shaps', ["has no 'shaps'", "Did you mean 'shapes'"]),
        ('from oldlib.models.shapes.rund import pi', ["has no 'rund'", "Did you mean 'round'"]),
    ],
)
def test_a_missing_name_is_an_import_error_that_names_what_is_near(finder: Finder, line: str, words: list[str]) -> None:
    finder.activate()
    with pytest.raises(OldImportError) as caught:
        exec(line)
    assert isinstance(caught.value, (StropError, ImportError))
    for word in words:
        assert word in str(caught.value)


def test_a_missing_attribute_is_an_attribute_error(finder: Finder) -> None:
    finder.activate()
    shapes = importlib.import_module('oldlib.models.shapes')
    with pytest.raises(OldNameError, match=r"has no 'pie'\. Did you mean 'pi'"):
        shapes.pie
    assert getattr(shapes, 'Square', None) is None
    assert not hasattr(shapes, '__wrapped__')


def test_asking_whether_a_module_exists_is_answered_not_refused(finder: Finder) -> None:
    finder.activate()
    assert importlib.util.find_spec('oldlib.models.shapes') is not None
    assert importlib.util.find_spec('oldlib.models.shaps') is None
    assert importlib.util.find_spec('oldlib._ext') is None


def test_a_broken_target_tells_why(finder: Finder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 'broken_target.py', 'import a_package_that_is_absent')
    table = Table('oldlib', {'oldlib.x': {'broken_target': 'Thing'}})
    finder.tables['oldlib'] = table
    finder.activate()
    with pytest.raises(ModuleNotFoundError, match='a_package_that_is_absent'):
        exec('from oldlib.x import Thing')


# -- the user's files ------------------------------------------------------------------------


def test_a_users_file_without_any_init_is_found_and_its_relative_imports_reach_the_table(
    finder: Finder, tmp_path: Path
) -> None:
    put(tmp_path, 'oldlib/models/shapes/mine.py', 'from .base import pi\nfrom ..paths import join\nmine = (pi, join)')
    put(tmp_path, 'oldlib/models/shapes/round/deep.py', 'from ..base import pi\nfrom ..mine import mine\nfrom . import ball')
    finder.activate()
    deep = importlib.import_module('oldlib.models.shapes.round.deep')
    assert deep.pi is math.pi
    assert deep.mine == (math.pi, importlib.import_module('posixpath').join)
    assert deep.__file__ == str(tmp_path / 'oldlib/models/shapes/round/deep.py')


def test_a_users_file_wins_over_a_virtual_module_of_its_name(finder: Finder, tmp_path: Path) -> None:
    put(tmp_path, 'oldlib/models/shapes/round/ball.py', 'from oldlib.models.shapes import pi\nvolume = 4 / 3 * pi')
    finder.activate()
    from oldlib.models.shapes.round.ball import volume  # type: ignore[import-not-found]

    assert volume == 4 / 3 * math.pi
    assert not hasattr(sys.modules['oldlib.models.shapes.round.ball'], 'circumference')


def test_a_users_init_runs_on_top_of_the_virtual_package_at_activation(finder: Finder, tmp_path: Path) -> None:
    put(tmp_path, 'oldlib/models/shapes/mine.py', 'from .base import pi\n\n\nclass Mine:\n    value = pi')
    put(tmp_path, 'oldlib/models/shapes/__init__.py', 'from .mine import Mine')
    finder.activate()
    shapes = sys.modules['oldlib.models.shapes']
    assert shapes.Mine.value is math.pi
    assert shapes.pi is math.pi
    assert importlib.import_module('oldlib.models').Mine is shapes.Mine
    assert shapes.__file__ == str(tmp_path / 'oldlib/models/shapes/__init__.py')
    namespace: dict[str, object] = {}
    exec('from oldlib.models.shapes import *', namespace)
    assert set(namespace) - {'__builtins__'} == {'Mine', 'pi', 'circumference'}


def test_a_users_all_is_kept(finder: Finder, tmp_path: Path) -> None:
    put(tmp_path, 'oldlib/models/shapes/__init__.py', "Mine = 1\n__all__ = ['Mine']")
    finder.activate()
    namespace: dict[str, object] = {}
    exec('from oldlib.models.shapes import *', namespace)
    assert set(namespace) - {'__builtins__'} == {'Mine'}


def test_an_error_in_a_users_init_has_its_line(finder: Finder, tmp_path: Path) -> None:
    put(tmp_path, 'oldlib/models/shapes/__init__.py', 'from .mine import Mine')
    with pytest.raises(OldImportError, match=r"oldlib\.models\.shapes has no 'mine'"):
        finder.activate()


def test_files_in_folders_that_come_to_the_path_later(
    finder: Finder, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    finder.activate()
    importlib.import_module('oldlib.models.shapes')
    other = tmp_path_factory.mktemp('other')
    put(other, 'oldlib/models/shapes/late.py', 'from .base import pi')
    monkeypatch.syspath_prepend(str(other))
    assert importlib.import_module('oldlib.models.shapes.late').pi is math.pi


def test_a_users_own_sub_package(finder: Finder, tmp_path: Path) -> None:
    put(tmp_path, 'oldlib/models/shapes/own/__init__.py', 'from .thing import value')
    put(tmp_path, 'oldlib/models/shapes/own/thing.py', 'from ..base import pi as value')
    finder.activate()
    assert importlib.import_module('oldlib.models.shapes.own').value is math.pi


def test_a_bare_folder_imported_before_activation_is_replaced(finder: Finder, tmp_path: Path) -> None:
    put(tmp_path, 'oldlib/plain.py', 'value = 1')
    before = importlib.import_module('oldlib.plain')
    finder.activate()
    import oldlib  # type: ignore[import-not-found]

    assert oldlib.models.shapes.pi is math.pi
    assert importlib.import_module('oldlib.plain') is before
    assert oldlib.plain is before


def test_only_known_packages_are_imported_at_activation(finder: Finder, tmp_path: Path) -> None:
    put(tmp_path, 'oldlib/tests/__init__.py', "raise RuntimeError('must not run')")
    put(tmp_path, 'oldlib/models/shapes/thing.py', "raise RuntimeError('must not run')")
    finder.activate()
    assert 'oldlib.tests' not in sys.modules


# -- real packages ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('files', 'real'),
    [
        ({'oldlib/__init__.py': "__version__ = '1.0'"}, True),
        ({'oldlib/__init__.py': 'from .version import *', 'oldlib/version.py': "__version__ = '1.0'"}, True),
        (
            {'oldlib/__init__.py': '', 'oldlib-1.0.dist-info/METADATA': 'Metadata-Version: 2.1\nName: oldlib\nVersion: 1.0\n'},
            True,
        ),
        ({'oldlib.py': ''}, True),
        ({'oldlib/__init__.py': 'from .mine import Mine', 'oldlib/mine.py': 'Mine = 1'}, False),
        ({'oldlib/mine.py': ''}, False),
        ({'oldlib-1.0.dist-info/METADATA': 'Metadata-Version: 2.1\nName: oldlib\nVersion: 1.0\n'}, False),
    ],
)
def test_what_counts_as_installed(finder: Finder, tmp_path: Path, files: dict[str, str], real: bool) -> None:
    for path, text in files.items():
        put(tmp_path, path, text)
    assert finder.installed('oldlib') is real
    finder.activate()
    module = importlib.import_module('oldlib')
    assert hasattr(module, 'models') is not real
    if real:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module('oldlib.models.shapes')


def test_a_successor_is_the_same_module_under_both_names(finder: Finder, tmp_path: Path) -> None:
    put(tmp_path, 'newcls/__init__.py', "__version__ = '1.0'")
    put(tmp_path, 'newcls/models/__init__.py', 'from .net import Net')
    put(tmp_path, 'newcls/models/net.py', 'class Net:\n    pass')
    finder.activate()
    from oldcls.models.net import Net  # type: ignore[import-not-found]

    new = importlib.import_module('newcls.models')
    assert Net is new.Net
    assert importlib.import_module('oldcls.models') is new
    assert new.__spec__.name == 'newcls.models'
    with pytest.raises(OldImportError, match=r'oldcls\.models\.nett is newcls\.models\.nett now'):
        importlib.import_module('oldcls.models.nett')


def test_an_installed_package_gets_what_it_lacks_and_keeps_what_it_has(finder: Finder, tmp_path: Path) -> None:
    put(tmp_path, 'oldcv/__init__.py', "__version__ = '2.0'")
    put(tmp_path, 'oldcv/cnn/__init__.py', "ceil = 'its own'")
    put(tmp_path, 'oldcv/other.py', 'value = 1')
    finder.activate()
    from oldcv.cnn import ceil, floor  # type: ignore[import-not-found]
    from oldcv.other import value  # type: ignore[import-not-found]
    from oldcv.runner import floor as same  # type: ignore[import-not-found]
    from oldcv.runner.deep import floor as deep  # type: ignore[import-not-found]

    assert (ceil, value) == ('its own', 1)
    assert floor is same is deep is math.floor
    assert importlib.util.find_spec('oldcv.ops') is None
    assert importlib.import_module('oldcv').__version__ == '2.0'


def test_an_installed_package_keeps_a_module_that_it_has(finder: Finder, tmp_path: Path) -> None:
    put(tmp_path, 'oldcv/__init__.py', "__version__ = '1.0'")
    put(tmp_path, 'oldcv/runner.py', "floor = 'its own'")
    finder.activate()
    assert importlib.import_module('oldcv.runner').floor == 'its own'


def test_a_module_put_into_sys_modules_is_left_alone(finder: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = types.ModuleType('oldlib')
    finder.activate()
    monkeypatch.setitem(sys.modules, 'oldlib', mine)
    assert importlib.import_module('oldlib') is mine
