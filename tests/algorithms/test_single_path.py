import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from strop.algorithms import SinglePathTrainer, SPOSSupernetTrainer, SPOSSupernetTrainingMutator
from strop.errors import ConfigError
from strop.mutables import LayerChoice, extract
from strop.mutators import OneShotMutator


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.ops = nn.ModuleList(
            LayerChoice([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())], key=f'op{index}') for index in range(2)
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for op in self.ops:
            x = op(x)
        return self.head(x)


def data(number=32):
    x = torch.randn(number, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long())


def accuracy(outputs, labels):
    return {'acc': (outputs.argmax(1) == labels).float().mean()}


def made(tmp_path, cls=SinglePathTrainer, train=None, valid=None, epochs=8, **changes):
    torch.manual_seed(0)
    net = Net()
    sgd = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    options = dict(batch_size=8, workers=0, device='cpu', work_dir=tmp_path, log_level='WARNING')
    loss = changes.pop('loss', nn.CrossEntropyLoss())
    return cls(net, loss, accuracy, sgd, epochs, train or data(), valid, **{**options, **changes})


def test_every_architecture_of_the_trained_supernet_is_better_than_chance(tmp_path):
    search = made(tmp_path, valid=data(40))
    search.train()
    x, y = data(40).tensors
    for subnet in search.mutator.space.grid():
        plain = extract(search.model, subnet).eval()
        assert (plain(x).argmax(1) == y).float().mean() > 0.8


def test_each_step_trains_the_drawn_candidates_only(tmp_path):
    search = made(tmp_path, epochs=1)
    runs = []
    for number, op in enumerate(search.model.ops):
        for index, layer in enumerate(op):
            layer.register_forward_hook(lambda *_, name=(number, index): runs.append(name))
    search.train()
    steps = [tuple(runs[i : i + 2]) for i in range(0, len(runs), 2)]
    assert len(steps) == 4
    assert all([number for number, _ in step] == [0, 1] for step in steps)
    assert len(set(steps)) > 1


def test_a_mutator_of_ones_own_draws(tmp_path):
    class First(OneShotMutator):
        def sample_subnet(self):
            return {key: torch.tensor([1.0, 0.0]) for key in self.space}

    torch.manual_seed(0)
    net = Net()
    before = net.ops[0][1][0].weight.detach().clone()
    sgd = torch.optim.SGD(net.parameters(), lr=0.2)
    loss = nn.functional.cross_entropy
    search = SinglePathTrainer(net, loss, None, sgd, 1, data(), None, First(net), workers=0, device='cpu', work_dir=tmp_path)
    search.train()
    assert torch.equal(net.ops[0][1][0].weight, before)
    assert search.mutator.status() == {'op0': [1.0, 0.0], 'op1': [1.0, 0.0]}


def test_a_large_gradient_is_clipped(tmp_path):
    search = made(tmp_path, epochs=1, clip_grad=1e-6, loss=lambda outputs, labels: 1e3 * outputs.pow(2).sum())
    before = [p.detach().clone() for p in search.model.parameters()]
    search.train()
    moved = torch.cat([(a.detach() - b).flatten() for a, b in zip(search.model.parameters(), before)])
    assert 0 < float(moved.norm()) < 1e-5


def test_the_trainer_of_nni_takes_loaders(tmp_path):
    loaders = DataLoader(data(), batch_size=16), DataLoader(data(8), batch_size=8)
    search = made(tmp_path, SPOSSupernetTrainer, *loaders, epochs=2)
    assert search.train_loader is loaders[0]
    search.train()
    assert set(search.validate()) == {'loss', 'acc'}


# -- sampling that is even in FLOPs -----------------------------------------------------------------------------


def chain(length=6):
    return nn.Sequential(*(LayerChoice([nn.Identity(), nn.ReLU(), nn.Tanh(), nn.GELU()], key=str(i)) for i in range(length)))


def cost(candidate):
    return sum(int(mask.nonzero()) for mask in candidate.values())


def test_flops_are_spread_over_the_range():
    torch.manual_seed(0)
    even = SPOSSupernetTrainingMutator(chain(), cost, 0, 18, flops_bin_num=6)
    drawn = torch.tensor([cost(even.sample_search()) for _ in range(300)])
    plain = SPOSSupernetTrainingMutator(chain())
    uniform = torch.tensor([cost(plain.sample_search()) for _ in range(300)])
    # A sixth of the draws is to be in the lowest of six bins, where 2 % of all candidates are.
    assert 0.1 < (drawn <= 3).float().mean() < 0.25
    assert 0.1 < (drawn >= 15).float().mean() < 0.25
    assert (uniform <= 3).float().mean() < 0.06


def test_a_bin_that_nothing_falls_into_is_left_with_a_warning(monkeypatch):
    said = []
    monkeypatch.setattr('strop.algorithms.single_path.print_log', lambda text, **_: said.append(text))
    mutator = SPOSSupernetTrainingMutator(chain(2), cost, 100, 200, flops_sample_timeout=3)
    assert set(mutator.sample_search()) == {'0', '1'}
    assert len(said) == 1
    assert 'None of 3 candidates' in said[0]


@pytest.mark.parametrize('range_', [(None, 5), (5, 5), (6, 5)])
def test_a_range_that_is_none_is_refused(range_):
    with pytest.raises(ConfigError, match='flops_lb < flops_ub'):
        SPOSSupernetTrainingMutator(chain(), cost, *range_)
