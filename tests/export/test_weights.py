from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from strop.errors import ExportError
from strop.export.weights import differences, load_weights, read_weights, same_bits, write_weights


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        whole = torch.arange(12.0).reshape(3, 4)
        self.register_buffer('whole', whole)
        self.register_buffer('column', whole[:, 1])
        self.register_buffer('turned', whole.t())
        self.register_buffer('again', whole)
        self.register_buffer('scalar', torch.tensor(True))
        self.register_buffer('wave', torch.tensor([1 + 2j]).conj())


def test_shared_and_viewed_tensors_are_written_once_each(tmp_path):
    path = tmp_path / 'model.safetensors'
    table = write_weights(Views(), path)
    assert [name for name, entry in table.items() if 'same_as' in entry] == ['again']
    assert sorted(load_file(path)) == ['column', 'scalar', 'turned', 'wave', 'whole']
    weights = read_weights(path, table)
    state = Views().state_dict()
    assert list(weights) == list(state)
    assert all(torch.equal(weights[name], value) for name, value in state.items())


def test_a_table_that_points_nowhere(tmp_path):
    path = tmp_path / 'model.safetensors'
    table = write_weights(Views(), path)
    table['again']['same_as'] = 'hole'
    with pytest.raises(ExportError, match="'again' is the same as 'hole', which is not in the file"):
        read_weights(path, table)


def test_other_layouts_are_refused(tmp_path):
    model = nn.Module()
    model.register_buffer('sparse', torch.eye(3).to_sparse())
    with pytest.raises(ExportError, match=r"'sparse' is a torch\.sparse_coo tensor"):
        write_weights(model, tmp_path / 'a')
    assert not list(tmp_path.iterdir())


def test_bits():
    assert same_bits(torch.tensor(0.0), torch.tensor(0.0))
    assert not same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert not same_bits(torch.tensor(0.0), torch.tensor(0.0).double())
    assert not same_bits(torch.zeros(2), torch.zeros(1, 2))
    assert same_bits(torch.zeros(0, 2), torch.zeros(0, 2))


def test_differences_in_words():
    wanted = {f'layer{n}': (n,) for n in range(8)}
    found = differences(wanted, {**{name: (9,) for name in wanted if name != 'layer0'}, 'head': (1,)}, 'A', 'B')
    assert found[0] == "missing in A: 'layer0'"
    assert found[1] == "not known to B: 'head'"
    assert found[2] == "'layer1' has shape (9,) in A and (1,) in B"
    assert found[-1] == 'and 3 more of other shapes'
    assert differences(wanted, wanted, 'A', 'B') == []


def test_tied_parameters_stay_tied_in_another_dtype(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    weights = {name: value.clone().double() for name, value in model.state_dict().items()}
    load_weights(model, weights, True, 'here')
    assert model[1].weight is model[0].weight
    assert model[0].weight.dtype == torch.float64
    save_file({'a': torch.zeros(1)}, tmp_path / 'a')
    with pytest.raises(ExportError, match='missing in the weights'):
        load_weights(model, read_weights(tmp_path / 'a', {'a': {'dtype': 'float32', 'shape': [1]}}), True, 'here')
