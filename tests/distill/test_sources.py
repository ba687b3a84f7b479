import sys
import types

import pytest
import torch
from torch import nn

from strop.algorithms import BaseAlgorithm
from strop.distill.sources import find_attribute, find_module, find_parameter, import_path
from strop.errors import ConfigError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.blocks = nn.ModuleList([nn.Linear(3, 3)])


def test_the_literal_path_comes_first():
    net = Net()
    wrapped = nn.ModuleDict(dict(module=net, blocks=nn.Identity()))
    assert find_module(wrapped, 'blocks') is wrapped['blocks']
    assert find_module(wrapped, 'module.blocks') is net.blocks
    assert find_module(wrapped, 'module.module') is net.module
    assert find_module(wrapped, '') is wrapped


@pytest.mark.parametrize('path', ['blocks.0', 'module.0', '0'])
def test_wrappers_are_left_out_at_any_place(path):
    net = Net()
    algorithm = BaseAlgorithm(nn.DataParallel(net))
    expected = net.blocks[0] if path.startswith('b') else net.module[0]
    assert find_module(algorithm, path) is expected
    owner, name = find_parameter(algorithm, f'{path}.weight')
    assert owner is expected
    assert name == 'weight'
    assert find_attribute(algorithm, f'{path}.extra_repr') == (expected, 'extra_repr')


def test_what_is_not_there():
    net = Net()
    assert find_attribute(net, 'blocks.0.nothing') is None
    assert find_attribute(net, 'nothing.at.all') is None
    with pytest.raises(ConfigError, match=r"Net has no module 'block\.0'\. Did you mean 'blocks\.0'"):
        find_module(net, 'block.0')
    with pytest.raises(ConfigError, match=r"In 'blocks' \(ModuleList\) there is '0'\."):
        find_module(net, 'blocks.something_else')
    with pytest.raises(ConfigError, match=r"In the model \(Net\) there is 'module', 'blocks'"):
        find_module(net, 'xyz')
    with pytest.raises(ConfigError, match=r"no parameter or buffer '0\.running_meen'\. Did you mean .*running_mean'"):
        find_parameter(net, '0.running_meen')


def test_buffers_are_found_too():
    owner, name = find_parameter(Net(), '1.running_mean')
    assert torch.equal(getattr(owner, name), torch.zeros(3))


def test_imports():
    assert import_path('torch.nn.Linear.forward') == (nn.Linear, 'forward')
    assert import_path('torch.nn') == (torch, 'nn')


@pytest.mark.parametrize(
    ('path', 'words'),
    [
        ('torch', 'import path'),
        ('torch..nn', 'import path'),
        ('torhc.nn', "no package 'torhc'. Did you mean 'torch'"),
        ('torch.nn.Liner.forward', r"torch\.nn has no 'Liner'\. Did you mean 'Linear'"),
        ('torch.nn.Linear.foward', r"torch\.nn\.Linear has no 'foward'\. Did you mean 'forward'"),
    ],
)
def test_wrong_imports(path, words):
    with pytest.raises(ConfigError, match=words):
        import_path(path)


def test_a_module_whose_own_import_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / 'needs_more.py').write_text('import a_package_that_is_not_installed\n')
    (tmp_path / 'is_broken.py').write_text('from math import nothing_of_the_kind\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="needs 'a_package_that_is_not_installed'"):
        import_path('needs_more.function')
    with pytest.raises(ConfigError, match='nothing_of_the_kind'):
        import_path('is_broken.function')


def test_modules_made_by_hand():
    module = types.ModuleType('made_by_hand')
    module.function = len
    sys.modules['made_by_hand'] = module
    assert import_path('made_by_hand.function') == (module, 'function')
    del sys.modules['made_by_hand']
