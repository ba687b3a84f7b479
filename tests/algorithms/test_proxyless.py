import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from strop.algorithms import ProxylessNasTrainer, ProxylessTrainer, expected_cost
from strop.errors import ComponentTypeError, ConfigError, DataError, UnknownKeyError
from strop.mutables import LayerChoice
from strop.mutators import GumbelMutator, ProxylessMutator, RandomMutator


class Net(nn.Module):
    """The label is a product of two inputs, which only the candidate with a hidden layer can compute."""

    def __init__(self, zero=True):
        super().__init__()
        deep = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        nothing = {'zero': nn.Threshold(1e9, 0.0)} if zero else {}
        self.op = LayerChoice({**nothing, 'shallow': nn.Linear(2, 2), 'deep': deep}, key='op')

    def forward(self, x):
        return self.op(x)


def data(number=96):
    x = torch.randn(number, 2, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x.prod(1) > 0).long())


def accuracy(outputs, labels):
    return {'acc': (outputs.argmax(1) == labels).float().mean()}


def made(tmp_path, mutator=None, epochs=20, train=None, zero=True, **changes):
    torch.manual_seed(0)
    net = Net(zero)
    adam = torch.optim.Adam(net.parameters(), lr=0.03)
    options = dict(batch_size=16, workers=0, device='cpu', work_dir=tmp_path, log_level='WARNING', arc_learning_rate=0.05)
    mutator = None if mutator is None else mutator(net)
    return ProxylessTrainer(
        net,
        nn.CrossEntropyLoss(),
        accuracy,
        adam,
        epochs,
        data() if train is None else train,
        data(),
        mutator,
        **{**options, **changes},
    )


@pytest.mark.parametrize('mutator', [None, GumbelMutator, lambda net: GumbelMutator(net, hard=False)])
def test_the_candidate_that_can_learn_is_found(tmp_path, mutator):
    search = made(tmp_path, mutator, epochs=35, zero=False, warmup_epochs=10)
    search.train()
    assert search.mutator.export(readable=True) == {'op': 'deep'}
    assert search.validate()['acc'] > 0.8


def test_logits_stay_during_the_warm_up(tmp_path):
    search = made(tmp_path, epochs=2, warmup_epochs=2)
    before = search.mutator.logits('op').detach().clone()
    weights = [p.detach().clone() for p in search.model.parameters()]
    search.train()
    assert torch.equal(search.mutator.logits('op'), before)
    assert any(not torch.equal(a, b) for a, b in zip(search.model.parameters(), weights))


@pytest.mark.parametrize('precision', ['bfloat16', 'float16'])
def test_half_precision(tmp_path, precision):
    search = made(tmp_path, epochs=2, precision=precision)
    before = search.mutator.logits('op').detach().clone()
    search.train()
    assert not torch.equal(search.mutator.logits('op'), before)


def test_a_step_runs_one_path_for_weights_and_two_for_the_architecture(tmp_path):
    search = made(tmp_path, epochs=1, train=data(4))
    runs = []
    for layer in search.model.op:
        layer.register_forward_hook(lambda module, *_: runs.append(module))
    search.train_one_epoch(0)
    assert len(runs) == 3


def test_the_expected_cost_and_its_gradient_are_those_of_the_formula():
    mutator = ProxylessMutator(Net(), init_std=1.0)
    costs = [0.0, 3.0, 10.0]
    logits = mutator.logits('op')
    p = torch.softmax(logits.detach(), 0)
    mean = float((p * torch.tensor(costs)).sum())
    cost = expected_cost(mutator, {'op': costs})
    assert float(cost.detach()) == pytest.approx(mean)
    (gradient,) = torch.autograd.grad(cost, logits)
    assert torch.allclose(gradient, p * (torch.tensor(costs) - mean), atol=1e-6)


def test_a_high_price_makes_the_cheap_candidate_win(tmp_path):
    search = made(tmp_path, epochs=12, costs={'op': [0.0, 1.0, 10.0]}, cost_weight=10.0)
    search.train()
    assert search.mutator.export(readable=True)['op'] == 'zero'


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        (dict(costs={'ops': [1, 2, 3]}), UnknownKeyError, "Did you mean 'op'"),
        (dict(costs={'op': [1, 2]}), ConfigError, '3 alternatives'),
        (dict(warmup_epochs=30), ConfigError, r'within 0\.\.20'),
        (dict(mutator=RandomMutator), ComponentTypeError, 'RandomMutator has none'),
        (dict(arch_every=0), ConfigError, 'positive number of steps'),
        (dict(train=data(1)), DataError, 'have 1 samples'),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        made(tmp_path, **change)


def test_a_drawn_architecture_without_weights_is_left_out_and_told_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('strop.engine.trainer.print_log', lambda text, **_: said.append(text))
    search = made(tmp_path, epochs=1)
    search.mutator.logits('op').data = torch.tensor([50.0, 0.0, 0.0])
    weights = [p.detach().clone() for p in search.model.parameters()]
    search.warmup_epochs = 1
    search.train_one_epoch(0)
    assert all(torch.equal(a, b) for a, b in zip(search.model.parameters(), weights))
    assert len(said) == 1
    assert 'architecture without weights' in said[0]


def test_the_trainer_of_nni_takes_loaders_and_warms_up_first(tmp_path):
    torch.manual_seed(0)
    net = Net(zero=False)
    sgd = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9)
    loaders = DataLoader(data(), batch_size=16), DataLoader(data(32), batch_size=16)
    search = ProxylessNasTrainer(
        net, sgd, 'cpu', *loaders, n_epochs=2, init_lr=0.1, warmup_epochs=1, work_dir=tmp_path, log_level='WARNING'
    )
    assert sgd.param_groups[0]['lr'] == pytest.approx(0.05), 'the warm-up begins with a rate of its own'
    learned, rates = [], []
    step = search._learn_architecture
    update = search.update
    search.update = lambda optimizer, *more: rates.append(optimizer.param_groups[0]['lr']) or update(optimizer, *more)
    search._learn_architecture = lambda batch: learned.append(search._runner.iter) or step(batch)
    search.train()
    # Six steps an epoch: none in the warm-up, then the fifth of each.
    assert learned == [10, 16]
    assert rates[::6] == pytest.approx([0.05, 0.1, 0.05]), 'and the search with what was given, on a cosine of two epochs'
    assert sgd.param_groups[0]['lr'] == pytest.approx(0.0, abs=1e-9)
    assert set(search.validate()) == {'loss', 'acc1'}


def test_options_of_nni_that_are_otherwise_here_are_taken_at_their_defaults_alone():
    net = Net(zero=False)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    loader = DataLoader(data(), batch_size=16)
    ProxylessNasTrainer(net, sgd, 'cpu', loader, loader, arch_init_type='normal', load_ckpt=False, binary_mode='full_v2')
    with pytest.raises(ConfigError, match=r'no `load_ckpt`, but got True: call train\(resume=True\)'):
        ProxylessNasTrainer(Net(), sgd, 'cpu', loader, loader, load_ckpt=True)
