"""A folder is there whole or not at all, whatever moment the process dies at."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time

import pytest
import torch
from torch import nn

from strop.errors import ConfigError
from strop.export import folder as module
from strop.export import load_recipe, save_recipe
from strop.export.folder import atomic_folder
from strop.mutables import LayerChoice

FORK = multiprocessing.get_context('fork')


def make() -> nn.Module:
    return nn.Sequential(LayerChoice([nn.Linear(8, 8), nn.Linear(8, 8)]))


def filled(value: float) -> nn.Module:
    model = make()
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def save(folder, value):
    save_recipe(filled(value), {'0': 1}, folder, factory=make)


def write(target, meanwhile):
    with atomic_folder(target) as temporary:
        (temporary / 'recipe.json').write_text('{}')
        meanwhile()


def saved_value(folder) -> float:
    model = load_recipe(folder, factory=make)
    assert model[0].weight.unique().numel() == 1
    return model[0].bias[0].item()


def dies(folder, value, step):
    """Save in this process, and die just before the n-th change to the file system."""
    torch.set_num_threads(1)
    count = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for owner, name in [
        (os, 'mkdir'), (os, 'rename'), (os, 'fsync'), (os, 'unlink'), (module, '_exchange'), (module.shutil, 'rmtree'),
    ]:  # fmt: skip
        setattr(owner, name, counted(getattr(owner, name)))
    save(folder, value)


@pytest.mark.parametrize('replacing', [False, True])
def test_a_killed_process_leaves_the_old_folder_or_the_new_one(replacing, tmp_path):
    seen, exitcode, step = [], None, 0
    while exitcode != 0:
        step += 1
        target = tmp_path / f'net{step}'
        if replacing:
            save(target, 1.0)
        process = FORK.Process(target=dies, args=(target, 2.0, step))
        process.start()
        process.join(60)
        exitcode = process.exitcode
        assert exitcode in (0, -signal.SIGKILL)
        seen.append(saved_value(target) if replacing or target.exists() else None)
        save(target, 3.0)  # leftovers are in nobody's way
        assert saved_value(target) == 3.0
    old = 1.0 if replacing else None
    switch = seen.index(2.0)
    assert seen == [old] * switch + [2.0] * (len(seen) - switch)
    assert switch >= 7  # two folders, three files and the folder, and the exchange
    assert len(seen) - switch >= 2


def test_a_process_killed_at_any_time(tmp_path):
    def loop(folder, start):
        torch.set_num_threads(1)
        for number in range(10_000):
            save(folder, start + number)

    save(tmp_path / 'net', -1.0)
    for milliseconds in (0, 3, 11):
        before = (tmp_path / 'net').stat().st_ino, saved_value(tmp_path / 'net')
        process = FORK.Process(target=loop, args=(tmp_path / 'net', before[1] + 1))
        process.start()
        deadline = time.monotonic() + 60
        while (tmp_path / 'net').stat().st_ino == before[0] and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(milliseconds / 1000)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert saved_value(tmp_path / 'net') > before[1]


def test_without_an_atomic_exchange_the_folder_is_still_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_exchange', lambda first, second: False)
    for value in (1.0, 2.0):
        save(tmp_path / 'net', value)
    assert saved_value(tmp_path / 'net') == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ['net']


def test_an_exception_leaves_what_was_there(tmp_path):
    save(tmp_path / 'net', 1.0)
    for name in ('net', 'new'):
        with pytest.raises(ZeroDivisionError):
            write(tmp_path / name, lambda: 1 // 0)
    assert [path.name for path in tmp_path.iterdir()] == ['net']
    assert saved_value(tmp_path / 'net') == 1.0


def test_files_that_appear_meanwhile_are_not_destroyed(tmp_path):
    def meanwhile():
        (tmp_path / 'net').mkdir()
        (tmp_path / 'net' / 'mine').write_text('x')

    with pytest.raises(ConfigError, match='mine'):
        write(tmp_path / 'net', meanwhile)
    assert (tmp_path / 'net' / 'mine').read_text() == 'x'


def test_parents_are_made_links_are_followed_and_the_umask_holds(tmp_path):
    save(tmp_path / 'a' / 'b' / 'net', 1.0)
    os.symlink(tmp_path / 'a' / 'b' / 'net', tmp_path / 'link')
    save(tmp_path / 'link', 2.0)
    assert saved_value(tmp_path / 'a' / 'b' / 'net') == 2.0
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / 'a' / 'b' / 'net').stat().st_mode & 0o777 == 0o777 & ~mask
    for path in (tmp_path / 'a' / 'b' / 'net').iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask, path.name
    shutil.rmtree(tmp_path / 'a')
