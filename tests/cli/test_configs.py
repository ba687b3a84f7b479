from __future__ import annotations

import sys
from pathlib import Path

import pytest

from strop.cli.configs import default_work_dir, find_config, load_config, use_mixed_precision
from strop.errors import ConfigError
from tests.scripts import run_script

from .running import one_error, run


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'path', list(sys.path))


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_config_with_settings(project: Path) -> None:
    config = load_config(
        str(project / 'search.py'),
        {'optim_wrapper.optimizer.lr': 0.5, 'train_cfg.constraints_range.flops': (0, 1), 'load_from': 'x.pth', 'model.seed': 4},
    )
    assert config.optim_wrapper.optimizer.lr == 0.5
    assert config.optim_wrapper.optimizer.momentum == 0.9
    assert config.train_cfg.constraints_range.flops == (0, 1)
    assert config.train_cfg.dataloader.dataset.size == 24
    assert config.load_from == 'x.pth'
    assert config.model.seed == 4


def test_positions_in_lists(tmp_path: Path) -> None:
    file = _write(tmp_path / 'c.py', "model = dict(type='X')\ncustom_hooks = [dict(type='A', interval=1), dict(type='B')]\n")
    config = load_config(str(file), {'custom_hooks.1.interval': 7})
    assert config.custom_hooks[1].interval == 7
    with pytest.raises(ConfigError, match=r'custom_hooks is a list of 2'):
        load_config(str(file), {'custom_hooks.2.interval': 7})
    with pytest.raises(ConfigError, match=r"model.type is 'X' and has nothing inside"):
        load_config(str(file), {'model.type.name': 7})
    with pytest.raises(ConfigError, match=r'between the dots'):
        load_config(str(file), {'model..type': 7})


def test_an_unknown_key_names_the_near_one(project: Path) -> None:
    done = run('train', project / 'supernet.py', '--cfg-options', 'optim_wraper.optimizer.lr=1')
    assert done.exit_code == 1
    assert "Did you mean 'optim_wrapper'?" in one_error(done)


def test_malformed_settings_are_usage_errors(project: Path) -> None:
    done = run('train', project / 'supernet.py', '--cfg-options', 'nonsense')
    assert done.exit_code == 2
    assert 'KEY=VALUE' in one_error(done)


def test_a_missing_config_names_near_files(project: Path) -> None:
    done = run('train', project / 'supernett.py')
    assert done.exit_code == 1
    assert "Did you mean 'supernet.py'?" in one_error(done)
    assert 'does not exist' in one_error(run('train', project / 'nowhere' / 'a.py'))
    assert 'is a folder' in one_error(run('train', project))
    with pytest.raises(ConfigError, match=r'ends with \.py'):
        find_config(__file__.replace('test_configs.py', '../../README.md'))


def test_shipped_configs() -> None:
    assert find_config('strop::spos/spos_shufflenet_supernet_mnist.py').is_file()
    with pytest.raises(ConfigError, match=r"Did you mean 'spos/spos_shufflenet_supernet_mnist.py'"):
        find_config('strop::spos/spos_shufflenet_supernet_mnst.py')
    with pytest.raises(ConfigError, match=r"'strap' is not installed. Did you mean 'strop'"):
        find_config('strap::a.py')


def test_a_syntax_error_has_its_line_also_in_a_base(tmp_path: Path) -> None:
    _write(tmp_path / 'base.py', 'a = 1\nb = = 2\n')
    file = _write(tmp_path / 'c.py', "_base_ = ['./base.py']\n")
    with pytest.raises(ConfigError, match=r'base\.py:2: invalid syntax: b = = 2'):
        load_config(str(file))


def test_an_error_in_a_config_has_its_line(tmp_path: Path) -> None:
    file = _write(tmp_path / 'c.py', 'a = 1\nb = undefined_name\n')
    with pytest.raises(ConfigError, match=r"c\.py:2: NameError: name 'undefined_name' is not defined"):
        load_config(str(file))


def test_a_missing_base(tmp_path: Path) -> None:
    _write(tmp_path / 'schedule.py', 'a = 1\n')
    file = _write(tmp_path / 'c.py', "_base_ = './shedule.py'\n")
    with pytest.raises(ConfigError, match=r"c\.py: its `_base_` './shedule.py' does not exist. Did you mean 'schedule.py'"):
        load_config(str(file))


def test_other_formats(tmp_path: Path) -> None:
    assert load_config(str(_write(tmp_path / 'c.yaml', 'model: {type: X}\n'))).model.type == 'X'
    assert load_config(str(_write(tmp_path / 'c.json', '{"algorithm": {"type": "X"}}'))).algorithm.type == 'X'
    with pytest.raises(ConfigError, match=r'c\.yml'):
        load_config(str(_write(tmp_path / 'c.yml', '- 1\n- 2\n')))


def test_custom_imports(tmp_path: Path) -> None:
    _write(tmp_path / 'parts_of_a_test.py', 'VALUE = 3\n')
    text = "custom_imports = dict(imports=['parts_of_a_tst'], allow_failed_imports={})\n"
    with pytest.raises(ConfigError, match=r"'parts_of_a_tst' of `custom_imports` .* Did you mean 'parts_of_a_test'"):
        load_config(str(_write(tmp_path / 'c.py', text.format(False))))
    load_config(str(_write(tmp_path / 'c.py', text.format(True))))
    with pytest.raises(ConfigError, match=r"must be dict\(imports=\['module', ...\]\)"):
        load_config(str(_write(tmp_path / 'c.py', "custom_imports = ['x']\n")))


def test_old_import_lines_work_where_a_config_names_them(tmp_path: Path) -> None:
    _write(
        tmp_path / 'my_old_algorithm.py',
        'from mmrazor.models.builder import ALGORITHMS\nfrom mmrazor.registry import MODELS\n\nassert MODELS is ALGORITHMS\n',
    )
    text = (
        "custom_imports = dict(imports=['my_old_algorithm'], allow_failed_imports=False)\nmodel = dict(type='mmrazor.SPOS')\n"
    )
    config = load_config(str(_write(tmp_path / 'c.py', text)))
    assert config.model.type == 'mmrazor.SPOS'
    assert 'my_old_algorithm' in sys.modules


def test_an_unknown_type_names_the_near_one(project: Path) -> None:
    done = run('show', project / 'supernet.py', '--cfg-options', 'model.architecture.module.type=TinySupernett')
    assert done.exit_code == 1
    assert "Did you mean 'TinySupernet'?" in one_error(done)


def test_mixed_precision(tmp_path: Path) -> None:
    config = load_config(str(_write(tmp_path / 'a.py', 'optim_wrapper = dict(optimizer=dict(lr=1))\n')))
    use_mixed_precision(config)
    assert config.optim_wrapper.type == 'strop.AmpOptimWrapper'
    assert config.optim_wrapper.optimizer.lr == 1
    use_mixed_precision(config)
    config.optim_wrapper.type = 'OptimWrapperDict'
    with pytest.raises(ConfigError, match='OptimWrapperDict'):
        use_mixed_precision(config)
    config.optim_wrapper = None
    with pytest.raises(ConfigError, match='does not have'):
        use_mixed_precision(config)


def test_work_dirs(tmp_path: Path) -> None:
    config = load_config(str(_write(tmp_path / 'a.py', 'x = 1\n')))
    assert default_work_dir(config, 'configs/a.py', 'given') == 'given'
    assert Path(default_work_dir(config, 'configs/a.py', None)) == Path('work_dirs/a')
    assert Path(default_work_dir(config, 'strop::spos/b.py', None)) == Path('work_dirs/b')
    config.work_dir = 'own'
    assert default_work_dir(config, 'configs/a.py', None) == 'own'


def test_a_shipped_config_is_found_before_anything_else_is_imported(tmp_path: Path) -> None:
    code = "from strop.cli.configs import find_config; print(find_config('strop::spos/spos_shufflenet_supernet_mnist.py'))"
    done = run_script(code, cwd=tmp_path)
    assert Path(done.stdout.strip()).is_file(), done.stderr
