import copy
import json

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from strop.algorithms import Darts, DartsTrainer, architecture_gradient, hypergradient
from strop.engine import AmpOptimWrapper, SearchBatches
from strop.errors import ComponentTypeError, ConfigError, DataError, TrainingError
from strop.mutables import InputChoice, LayerChoice, extract
from strop.mutators import DartsMutator, DifferentiableMutator, ProxylessMutator, RandomMutator


class Net(nn.Module):
    """A small network of real layers with two mixed operations and a switch."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.first = LayerChoice(
            {
                'conv': nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Tanh()),
                'pool': nn.AvgPool2d(3, 1, 1),
                'skip': nn.Identity(),
            },
            key='first',
        )
        self.second = LayerChoice({'conv': nn.Conv2d(4, 4, 1), 'skip': nn.Sigmoid()}, key='second')
        self.switch = InputChoice(choose_from=['first', 'second'], n_chosen=1, key='switch')
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        x = self.switch([self.first(x), self.second(x)])
        return self.head(self.drop(x.mean((2, 3))))


def images(number=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 1, 5, 5, generator=generator, dtype=dtype), torch.arange(number) % 3


# -- the trainer --------------------------------------------------------------------------------------------


def dataset(number=24):
    x, y = images(number, dtype=torch.float32)
    x = x + y.view(-1, 1, 1, 1)
    return torch.utils.data.TensorDataset(x, y)


def accuracy(outputs, labels):
    return {'acc': (outputs.argmax(1) == labels).float().mean()}


def trainer(tmp_path, epochs=2, number=24, net=None, lr=0.1, **options):
    torch.manual_seed(0)
    net = Net() if net is None else net
    sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)
    made = dict(batch_size=4, workers=0, device='cpu', work_dir=tmp_path, log_level='WARNING', arc_learning_rate=0.05)
    loss = options.pop('loss', nn.CrossEntropyLoss())
    return DartsTrainer(net, loss, accuracy, sgd, epochs, dataset(number), dataset(9), **{**made, **options})


@pytest.mark.parametrize('unrolled', [False, True])
def test_both_losses_go_down(tmp_path, unrolled):
    search = trainer(tmp_path, epochs=6, unrolled=unrolled)
    before = search.validate()
    logits = [p.detach().clone() for p in search.mutator.parameters()]
    search.train()
    after = search.validate()
    assert after['loss'] < before['loss'] - 0.1
    assert set(after) == {'loss', 'acc'}
    assert all((a - b).abs().max() > 1e-2 for a, b in zip(search.mutator.parameters(), logits))


def test_the_halves_of_the_data_do_not_overlap(tmp_path):
    search = trainer(tmp_path, number=25)
    first, second = (set(loader.dataset.indices) for loader in (search.train_loader, search.valid_loader))
    assert not first & second
    assert sorted([*first, *second]) == list(range(25))
    assert len(first) == 12


def test_a_step_is_that_of_the_formula(tmp_path):
    """One step of the trainer against the same step written out, with the optimizers of torch."""
    search = trainer(tmp_path, unrolled=True, batch_size=12, clip_grad=None)
    net, mutator = copy.deepcopy((search.model, search.mutator))
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    adam = torch.optim.Adam(mutator.parameters(), 0.05, betas=(0.5, 0.999), weight_decay=1e-3)
    (train_batch,), (valid_batch,) = list(search.train_loader), list(search.valid_loader)

    def loss(batch):
        mutator.reset()
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    arch = list(mutator.parameters())
    gradients, _ = hypergradient(lambda: loss(train_batch), lambda: loss(valid_batch), arch, sgd, net)
    for logits, gradient in zip(arch, gradients):
        logits.grad = gradient
    adam.step()
    loss(train_batch).backward()
    sgd.step()
    search.train_one_epoch(0)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(search.mutator.parameters(), arch))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(search.model.parameters(), net.parameters()))


def test_the_loss_may_be_a_lambda_and_the_export_is_readable(tmp_path):
    search = trainer(tmp_path, loss=lambda outputs, labels: nn.functional.cross_entropy(outputs, labels))
    search.train_one_epoch(0)
    search.export(tmp_path / 'final.json')
    architecture = json.loads((tmp_path / 'final.json').read_text())
    assert set(architecture) == {'first', 'second', 'switch'}
    plain = extract(search.model, architecture).eval()
    assert plain(images(2, dtype=torch.float32)[0]).shape == (2, 3)


@pytest.mark.parametrize('precision', ['bfloat16', 'float16'])
def test_half_precision_learns_too(tmp_path, precision):
    search = trainer(tmp_path, epochs=4, precision=precision)
    before = search.validate()['loss']
    logits = [p.detach().clone() for p in search.mutator.parameters()]
    search.train()
    assert search.validate()['loss'] < before
    assert all(not torch.equal(a, b) for a, b in zip(search.mutator.parameters(), logits))
    assert all(p.dtype == torch.float32 for p in search.network.parameters())


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_spoiled(tmp_path):
    search = trainer(tmp_path, loss=lambda outputs, labels: outputs.sum() * float('nan'))
    before = [p.detach().clone() for p in search.network.parameters()]
    with pytest.raises(TrainingError, match=r'not finite \(nan\).*architecture was'):
        search.train()
    assert all(torch.equal(a, b) for a, b in zip(search.network.parameters(), before))


def test_a_mutator_without_parameters_is_refused(tmp_path):
    net = Net()
    with pytest.raises(ComponentTypeError, match=r'RandomMutator has none.*DartsMutator'):
        trainer(tmp_path, net=net, mutator=RandomMutator(net))
    other = Net()
    with pytest.raises(ConfigError, match='bound to another model'):
        trainer(tmp_path, net=Net(), mutator=DartsMutator(other))


@pytest.mark.parametrize('number', [0, 1])
def test_too_few_data_are_refused(tmp_path, number):
    with pytest.raises(DataError, match=f'have {number} samples'):
        trainer(tmp_path, number=number)


def test_the_second_order_in_float16_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='bfloat16'):
        trainer(tmp_path, unrolled=True, precision='float16')


# -- the algorithm ------------------------------------------------------------------------------------------


def wrappers(darts, wrapper=OptimWrapper, **options):
    return OptimWrapperDict(
        architecture=wrapper(optimizer=torch.optim.SGD(darts.architecture.parameters(), lr=0.1, momentum=0.9), **options),
        mutator=wrapper(optimizer=torch.optim.Adam(darts.mutator.parameters(), lr=0.01), **options),
    )


@pytest.mark.parametrize('unroll', [False, True])
def test_a_step_of_the_algorithm_is_the_architecture_and_then_the_weights(unroll):
    torch.manual_seed(0)
    darts = Darts(Net(), unroll=unroll).double()
    net = copy.deepcopy(darts.architecture.module)
    mutator = DifferentiableMutator(net).double()
    for key, logits in darts.mutator.choices.items():
        mutator.logits(key.removeprefix('module.')).data = logits.detach().clone()
    log = darts.train_step(SearchBatches(images(seed=1), images(seed=2)), wrappers(darts))
    assert {'loss', 'architecture.loss', 'mutator.loss'} == set(log)

    def loss(batch):
        mutator.reset()
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    adam = torch.optim.Adam(mutator.parameters(), lr=0.01)
    arch = list(mutator.parameters())
    if unroll:
        gradients, _ = hypergradient(lambda: loss(images(seed=1)), lambda: loss(images(seed=2)), arch, sgd, net)
    else:
        gradients = architecture_gradient(loss(images(seed=2)), arch)
    for logits, gradient in zip(arch, gradients):
        logits.grad = gradient
    adam.step()
    loss(images(seed=1)).backward()
    sgd.step()
    assert all(torch.allclose(a, b) for a, b in zip(darts.mutator.parameters(), arch))
    assert all(torch.allclose(a, b) for a, b in zip(darts.architecture.parameters(), net.parameters()))


def test_gradients_of_the_weights_are_accumulated_over_batches():
    torch.manual_seed(0)
    darts = Darts(Net()).double()
    still = OptimWrapper(torch.optim.SGD(darts.mutator.parameters(), lr=0.0))
    weights = torch.optim.SGD(darts.architecture.parameters(), lr=0.1)
    optimizers = OptimWrapperDict(architecture=OptimWrapper(weights, accumulative_counts=2), mutator=still)
    net = copy.deepcopy(darts.architecture.module)
    mutator = DifferentiableMutator(net).double()
    for key, logits in darts.mutator.choices.items():
        mutator.logits(key.removeprefix('module.')).data = logits.detach().clone()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    for seed in (1, 2):
        darts.train_step(SearchBatches(images(seed=seed), images(seed=3)), optimizers)
        mutator.reset()
        (nn.functional.cross_entropy(net(images(seed=seed)[0]), images()[1]) / 2).backward()
    sgd.step()
    assert all(torch.allclose(a, b) for a, b in zip(darts.architecture.parameters(), net.parameters()))
    optimizers['mutator']._accumulative_counts = 2
    with pytest.raises(ConfigError, match='accumulative_counts'):
        darts.train_step(SearchBatches(images(seed=1), images(seed=3)), optimizers)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_the_algorithm_in_half_precision(dtype):
    torch.manual_seed(0)
    darts = Darts(Net())
    optimizers = wrappers(darts, AmpOptimWrapper, dtype=dtype)
    before = [p.detach().clone() for p in darts.parameters()]
    for _ in range(3):
        darts.train_step(SearchBatches(images(seed=1, dtype=torch.float32), images(seed=2, dtype=torch.float32)), optimizers)
    assert sum(not torch.equal(a, b) for a, b in zip(darts.parameters(), before)) >= len(before) - 1


def test_old_batches_are_a_list_of_two_mappings():
    darts = Darts(Net())
    batch = dict(zip(('inputs', 'data_samples'), images(dtype=torch.float32)))
    assert 'mutator.loss' in darts.train_step([batch, batch], wrappers(darts))


def test_the_final_architecture_replaces_the_supernet():
    torch.manual_seed(0)
    darts = Darts(Net())
    for _ in range(2):
        darts.train_step(SearchBatches(*[images(seed=s, dtype=torch.float32) for s in (1, 2)]), wrappers(darts))
    choices = darts.mutator.sample_choices()
    darts.mutator.set_choices(choices)
    darts.eval()
    x = images(dtype=torch.float32)[0]
    expected = darts(x)
    darts.mutator.set_chosen_subnet(choices)
    assert torch.equal(darts(x), expected)


def test_predictions_before_any_step_use_the_current_weights():
    darts = Darts(Net()).eval()
    assert len(darts(images(dtype=torch.float32)[0], mode='predict')) == 6
    assert darts(images(dtype=torch.float32)[0]).shape == (6, 3)


def test_norms_may_stay_in_training():
    assert all(m.training for m in Darts(Net(), norm_training=True).eval().modules() if isinstance(m, nn.BatchNorm2d))
    assert not any(m.training for m in Darts(Net()).eval().modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize('kind', ['NasMutator', 'mmrazor.NasMutator', 'DiffModuleMutator', 'mmrazor.DartsMutator'])
def test_configs_name_a_differentiable_mutator(kind):
    assert isinstance(Darts(Net(), mutator=dict(type=kind)).mutator, DifferentiableMutator)


def test_what_is_missing_for_two_parts_is_told():
    darts = Darts(Net())
    batch = images(dtype=torch.float32)
    both = wrappers(darts)
    with pytest.raises(ConfigError, match=r'two batches.*one of them is missing'):
        darts.train_step(batch, both)
    with pytest.raises(ConfigError, match='one of them is missing'):
        darts.train_step(SearchBatches(batch, batch), both['architecture'])
    with pytest.raises(ConfigError, match="lacks 'mutator'"):
        darts.train_step(SearchBatches(batch, batch), OptimWrapperDict(architecture=both['architecture']))
    with pytest.raises(ComponentTypeError, match='OneShotMutator has none'):
        Darts(Net(), mutator=dict(type='OneShotMutator'))
    with pytest.raises(ConfigError, match='second_order'):
        Darts(Net(), second_order='both')
    spoiled = SearchBatches(batch, (batch[0] * float('nan'), batch[1]))
    before = [p.detach().clone() for p in darts.parameters()]
    with pytest.raises(TrainingError, match='not finite'):
        darts.train_step(spoiled, both)
    assert all(torch.equal(a, b) for a, b in zip(darts.parameters(), before))


def test_other_differentiable_mutators_work_as_well():
    torch.manual_seed(0)
    net = Net()
    darts = Darts(net, mutator=ProxylessMutator())
    assert 'loss' in darts.train_step(images(dtype=torch.float32), torch.optim.SGD(darts.parameters(), lr=0.1))


def test_retraining_what_still_has_decisions_is_refused():
    with pytest.raises(ConfigError, match='still has decisions'):
        Darts(Net(), retraining=True)
    torch.manual_seed(0)
    again = Darts(Net(), retraining=True, mutable_cfg=Darts(Net()).mutator.best_subnet())
    assert again.mutator is None
    optimizer = OptimWrapper(torch.optim.SGD(again.parameters(), lr=0.1))
    assert 'mutator.loss' not in again.train_step(images(dtype=torch.float32), optimizer)
