import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from strop.engine import load_pretrained
from strop.engine.pretrained import matching, read_weights
from strop.errors import ConfigError, UnsafeFileError


def net(width=3):
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


@pytest.mark.parametrize('prefix', ['', 'module.', 'architecture.module.', 'model.', 'teacher.', 'student.'])
@pytest.mark.parametrize('key', [None, 'state_dict', 'model'])
def test_prefixes_and_places_of_the_weights(tmp_path, prefix, key):
    saved, model = net(), net()
    state = {prefix + name: value for name, value in saved.state_dict().items()}
    state['optimizer_step'] = torch.tensor(3)
    torch.save(state if key is None else {key: state, 'epoch': 3}, tmp_path / 'a.pth')
    load_pretrained(model, tmp_path / 'a.pth')
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in saved.state_dict().items())


def test_safetensors(tmp_path):
    saved, model = net(), net()
    save_file(saved.state_dict(), tmp_path / 'a.safetensors')
    load_pretrained(model, tmp_path / 'a.safetensors')
    assert torch.equal(saved[0].weight, model[0].weight)


def test_running_statistics_must_be_there_and_the_counter_need_not(tmp_path):
    state = net().state_dict()
    del state['1.num_batches_tracked']
    torch.save(state, tmp_path / 'a.pth')
    load_pretrained(net(), tmp_path / 'a.pth')
    del state['1.running_var']
    torch.save(state, tmp_path / 'a.pth')
    with pytest.raises(ConfigError, match=r"it has no '1\.running_var'"):
        load_pretrained(net(), tmp_path / 'a.pth')


def test_nothing_is_loaded_from_a_checkpoint_that_does_not_fit(tmp_path):
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(net(4).state_dict(), tmp_path / 'a.pth')
    with pytest.raises(ConfigError, match=r'\(4, 2\) in it and \(3, 2\) in the model \(6 differ\)'):
        load_pretrained(model, tmp_path / 'a.pth')
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_near_names_are_told(tmp_path):
    torch.save({name.replace('weight', 'wieght'): value for name, value in net().state_dict().items()}, tmp_path / 'a.pth')
    with pytest.raises(ConfigError, match=r"Did you mean '0\.wieght'"):
        load_pretrained(net(), tmp_path / 'a.pth')


def test_files_that_are_no_checkpoints(tmp_path):
    for content in ({}, {'epoch': 3}, [1], torch.zeros(2)):
        torch.save(content, tmp_path / 'a.pth')
        with pytest.raises(ConfigError, match='holds no weights'):
            load_pretrained(net(), tmp_path / 'a.pth')
    torch.save(net(), tmp_path / 'a.pth')
    with pytest.raises(UnsafeFileError):
        load_pretrained(net(), tmp_path / 'a.pth')
    with pytest.raises(FileNotFoundError):
        load_pretrained(net(), tmp_path / 'b.pth')


def test_arrays_of_numpy_are_read_and_objects_in_them_are_not(tmp_path):
    saved, model = net(), net()
    np.savez(tmp_path / 'a.npz', **{name: value.numpy() for name, value in saved.state_dict().items()})
    load_pretrained(model, tmp_path / 'a.npz')
    assert torch.equal(saved[0].weight, model[0].weight)
    np.savez(tmp_path / 'bad.npz', weight=np.array([{}], dtype=object))
    (tmp_path / 'damaged.npz').write_bytes((tmp_path / 'a.npz').read_bytes()[:100])
    np.savez(tmp_path / 'turned.npz', weight=np.zeros(3, '>f4'))
    for name in ('bad', 'damaged', 'turned'):
        with pytest.raises(UnsafeFileError, match='plain arrays'):
            read_weights(tmp_path / f'{name}.npz')
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / 'none.npz')


def test_parameters_alone_may_be_asked_for():
    weights = dict(net().named_parameters())
    assert matching(net(), weights, 'a.pth', buffers=False).keys() == weights.keys()
    with pytest.raises(ConfigError, match='running_mean'):
        matching(net(), weights, 'a.pth')
    spoiled = {**weights, '1.running_mean': torch.zeros(7)}
    with pytest.raises(ConfigError, match=r"'1\.running_mean' has the shape \(7,\) in it and \(3,\)"):
        matching(net(), spoiled, 'a.pth', buffers=False)
