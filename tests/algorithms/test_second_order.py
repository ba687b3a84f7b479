import copy

import pytest
import torch
from torch import nn

from strop.algorithms import architecture_gradient, hypergradient
from strop.errors import ConfigError
from strop.mutators import DartsMutator

from .test_darts import Net, images

SGDS = [
    dict(lr=0.3),
    dict(lr=0.3, weight_decay=0.1),
    dict(lr=0.3, momentum=0.9, weight_decay=0.05),
    dict(lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.05),
    dict(lr=0.3, momentum=0.8, dampening=0.4),
    dict(lr=0.3, momentum=0.9, maximize=True),
]


class Setting:
    """A network with momentum in its optimizer, and its two losses."""

    def __init__(self, options, steps=2, dropout=0.0):
        torch.manual_seed(0)
        self.net = Net(dropout).double()
        self.mutator = DartsMutator(self.net).double()
        for logits in self.mutator.parameters():
            logits.data = torch.randn_like(logits)
        self.optimizer = torch.optim.SGD(self.net.parameters(), **options)
        self.train, self.valid = images(seed=1), images(seed=2)
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss(self.train).backward()
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.mutator.zero_grad()
        self.arch = list(self.mutator.parameters())

    def loss(self, batch):
        self.mutator.reset()
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def second_order(self, method='exact', **more):
        return hypergradient(
            lambda: self.loss(self.train), lambda: self.loss(self.valid), self.arch, self.optimizer, self.net, method, **more
        )

    def after_a_real_step(self):
        """Return the validation loss after the optimizer itself made a step: no formula of ours."""
        net, mutator = copy.deepcopy((self.net, self.mutator))
        copied = torch.optim.SGD(net.parameters(), **{k: v for k, v in self.optimizer.defaults.items() if k in self.options()})
        copied.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        mutator.reset()
        copied.zero_grad()
        nn.functional.cross_entropy(net(self.train[0]), self.train[1]).backward()
        copied.step()
        mutator.reset()
        return nn.functional.cross_entropy(net(self.valid[0]), self.valid[1]).item()

    @staticmethod
    def options():
        return ('lr', 'momentum', 'dampening', 'nesterov', 'weight_decay', 'maximize')

    def by_finite_differences(self, eps=1e-5):
        gradients = []
        for logits in self.arch:
            gradient = torch.zeros_like(logits)
            for index in range(len(logits)):
                values = []
                for sign in (1, -1):
                    with torch.no_grad():
                        logits[index] += sign * eps
                    values.append(self.after_a_real_step())
                    with torch.no_grad():
                        logits[index] -= sign * eps
                gradient[index] = (values[0] - values[1]) / (2 * eps)
            gradients.append(gradient)
        return gradients


def relative(found, expected):
    found, expected = torch.cat(found), torch.cat(expected)
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize('options', SGDS, ids=lambda options: '-'.join(options))
@pytest.mark.parametrize('steps', [0, 2])
def test_the_second_order_is_the_derivative_through_a_real_step(options, steps):
    setting = Setting(options, steps)
    exact, loss = setting.second_order()
    expected = setting.by_finite_differences()
    assert relative(exact, expected) < 1e-6
    assert float(loss) == pytest.approx(setting.after_a_real_step(), rel=1e-12)
    # The part that the first order leaves out matters here, so the test could fail.
    first = architecture_gradient(setting.loss(setting.valid), setting.arch)
    assert relative(first, expected) > 1e-2


@pytest.mark.parametrize('options', SGDS[:4], ids=lambda options: '-'.join(options))
def test_the_finite_difference_of_the_paper_agrees(options):
    setting = Setting(options)
    assert relative(setting.second_order('finite_difference', radius=1e-4)[0], setting.second_order()[0]) < 1e-4


def test_nothing_is_left_behind():
    setting = Setting(SGDS[2])
    tensors = [*setting.net.parameters(), *setting.net.buffers(), *setting.arch]
    before = [(tensor, tensor.data_ptr(), tensor.detach().clone()) for tensor in tensors]
    state = copy.deepcopy(setting.optimizer.state_dict())
    for method in ('exact', 'finite_difference'):
        setting.second_order(method)
        assert all(tensor.data_ptr() == place and torch.equal(tensor, value) for tensor, place, value in before)
        assert all(tensor.grad is None or not tensor.grad.any() for tensor, *_ in before)
    after = setting.optimizer.state_dict()
    assert all(
        torch.equal(state['state'][key]['momentum_buffer'], after['state'][key]['momentum_buffer']) for key in state['state']
    )


def test_weights_come_back_also_if_the_loss_raises():
    setting = Setting(SGDS[2])
    before = [parameter.detach().clone() for parameter in setting.net.parameters()]

    def broken():
        raise RuntimeError('no loss')

    with pytest.raises(RuntimeError, match='no loss'):
        hypergradient(lambda: setting.loss(setting.train), broken, setting.arch, setting.optimizer)
    assert all(torch.equal(first, second) for first, second in zip(before, setting.net.parameters()))


def test_the_finite_difference_sees_the_same_dropout_at_all_points():
    setting = Setting(SGDS[1], dropout=0.5)
    torch.manual_seed(5)
    exact = setting.second_order()[0]
    torch.manual_seed(5)
    difference = setting.second_order('finite_difference', radius=1e-4)[0]
    assert relative(difference, exact) < 1e-4


def test_weights_that_the_losses_do_not_use_are_left_out():
    setting = Setting(SGDS[2])
    setting.optimizer.add_param_group({'params': [nn.Parameter(torch.ones(2))]})
    exact = setting.second_order()[0]
    assert relative(exact, Setting(SGDS[2]).second_order()[0]) < 1e-12


def test_the_first_order_is_the_gradient_that_backward_gives():
    setting = Setting(SGDS[0])
    gradients = architecture_gradient(setting.loss(setting.valid), setting.arch)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in setting.net.parameters())
    setting.loss(setting.valid).backward()
    assert all(torch.equal(gradient, logits.grad) for gradient, logits in zip(gradients, setting.arch))


def test_an_optimizer_without_a_virtual_step_is_refused():
    setting = Setting(SGDS[0])
    adam = torch.optim.Adam(setting.net.parameters())
    with pytest.raises(ConfigError, match=r'is Adam\. Use torch\.optim\.SGD, or the first order'):
        hypergradient(lambda: setting.loss(setting.train), lambda: setting.loss(setting.valid), setting.arch, adam)
    with pytest.raises(ConfigError, match=r"'exakt'.*Did you mean 'exact'"):
        setting.second_order('exakt')
