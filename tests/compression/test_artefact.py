"""Artefacts come back from the original class, without a network, and run no code that nobody trusts."""

from __future__ import annotations

import json
import socket

import pytest
import torch

import strop
from strop.compression.artefact import FILE
from strop.errors import ConfigError, UnsafeFileError
from tests.scripts import run_script

timm = pytest.importorskip('timm')


@pytest.fixture(scope='module')
def artefact(tmp_path_factory):
    torch.set_num_threads(1)
    x, y = torch.rand(16, 3, 32, 32), torch.arange(16) % 4
    return strop.compress(
        {'source': 'timm:resnet10t', 'args': {'num_classes': 4}}, {'train': (x, y), 'test': (x[:4], y[:4])},
        stages=[{'prune': {'ratio': 0.5}}], output=tmp_path_factory.mktemp('artefact') / 'out', threads=1, runtimes=['eager'],
        progress='quiet',
    )  # fmt: skip


def test_a_model_of_timm_comes_back_without_a_network_and_without_leave(artefact, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError('no network here')

    monkeypatch.setattr(socket, 'socket', refuse)
    x = torch.rand(2, 3, 32, 32)
    found = strop.load(artefact.folder)
    assert type(found) is type(timm.create_model('resnet10t'))
    assert torch.equal(found(x), artefact.model(x))


def test_the_loader_of_the_folder_runs_in_a_new_process(artefact):
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    done = run_script(code, artefact.folder / 'load.py', cwd=artefact.folder.parent)
    assert done.returncode == 0, done.stderr[-800:]
    assert 'tensor(' in done.stdout
    assert len((artefact.folder / 'load.py').read_text().splitlines()) <= 16


def _with_model(artefact, folder, model):
    for name in (FILE, 'model'):
        source = artefact.folder / name
        if source.is_dir():
            (folder / name).mkdir()
            for file in source.iterdir():
                (folder / name / file.name).write_bytes(file.read_bytes())
        else:
            content = json.loads(source.read_text())
            content['model'] = model
            (folder / name).write_text(json.dumps(content))
    return folder


def test_a_folder_that_names_a_function_runs_it_only_with_leave(artefact, tmp_path, monkeypatch):
    (tmp_path / 'evil_net.py').write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nimport timm\ndef make():\n    return "
        "timm.create_model('resnet10t', num_classes=4)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / 'folder').mkdir()
    folder = _with_model(artefact, tmp_path / 'folder', {'source': 'evil_net:make'})
    with pytest.raises(UnsafeFileError, match=r"allow=\['evil_net'\]"):
        strop.load(folder)
    assert not (tmp_path / 'ran').exists()
    assert strop.load(folder, allow='evil_net').conv1 is not None


@pytest.mark.parametrize('key', ['checkpoint_path', 'pretrained_cfg'])
def test_arguments_that_would_read_or_fetch_weights_are_not_passed_on(artefact, tmp_path, key):
    folder = _with_model(
        artefact, tmp_path, {'source': 'timm:resnet10t', 'args': {'num_classes': 4, 'pretrained': True, key: '/x.pth'}}
    )
    assert strop.load(folder).num_classes == 4


def test_a_folder_without_a_source_needs_a_factory(artefact, tmp_path):
    folder = _with_model(artefact, tmp_path, None)
    with pytest.raises(ConfigError, match='give factory='):
        strop.load(folder)
    assert strop.load(folder, factory=lambda: timm.create_model('resnet10t', num_classes=4)).num_classes == 4


def test_what_is_no_artefact_is_told(tmp_path):
    with pytest.raises(ConfigError, match='not a folder that `strop compress` finished'):
        strop.load(tmp_path)
    (tmp_path / FILE).write_text('{"strop": "artefact", "version": 99}')
    with pytest.raises(ConfigError, match='version 99'):
        strop.load(tmp_path)
    (tmp_path / FILE).write_text('{"strop": "artefact", "version": 1, "model": {}}')
    with pytest.raises(ConfigError, match='does not say what builds'):
        strop.load(tmp_path)


def test_leave_for_a_package_is_none_for_what_it_imported(artefact, tmp_path, monkeypatch):
    (tmp_path / 'own_package.py').write_text('import os\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / 'folder').mkdir()
    model = {'source': 'own_package:os.mkdir', 'args': {'path': str(tmp_path / 'ran')}}
    folder = _with_model(artefact, tmp_path / 'folder', model)
    with pytest.raises(UnsafeFileError, match=r"names 'own_package:os\.mkdir', which is no function or class of that package"):
        strop.load(folder, allow='own_package')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('name', ['timm:hf-hub:someone/model', 'timm:local-dir:/tmp', 'timm:no_such_net'])
def test_names_that_would_be_fetched_or_read_elsewhere_are_no_models(artefact, tmp_path, name):
    with pytest.raises(ConfigError, match='has no model'):
        strop.load(_with_model(artefact, tmp_path, {'source': name}))


def test_a_folder_of_a_model_of_transformers_is_no_other_source(artefact, tmp_path):
    folder = _with_model(artefact, tmp_path, {'source': 'transformers:/tmp', 'args': {'weights_only': False}})
    with pytest.raises(ConfigError, match='is not described by a config'):
        strop.load(folder)


@pytest.mark.parametrize(
    'model', [{'source': 5}, {'source': 'timm:resnet10t', 'args': [1]}, {'source': 'timm:resnet10t', 'config': 'x'}, 3]
)
def test_a_source_of_another_form_is_told(artefact, tmp_path, model):
    with pytest.raises(ConfigError, match='does not say what builds the model'):
        strop.load(_with_model(artefact, tmp_path, model))


def test_a_factory_is_a_function(artefact):
    with pytest.raises(ConfigError, match='`factory` is a function'):
        strop.load(artefact.folder, factory=...)
