"""The second-order gradient of DARTS against finite differences, in float64, on cells of the paper's operations.

What is differentiated is the validation loss after a step that torch's own SGD makes on the training loss, with momentum from
steps before and weight decay: no formula of ours. Each of the architecture parameters is moved by +-eps, which is small so that
few activations cross a kink of ReLU or of the max-pooling. Reported: the relative error, in the Euclidean norm over all of
them, of the exact gradient, of the finite-difference product (the paper's radius is 0.01), of the first order, and of what NNI
1.9 computes (the product scaled by eps / 2 instead of 1 / (2 eps), at weights that its virtual step did not change).

    python benchmarks/darts_gradient.py --out benchmarks/results/darts_gradient.json
"""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from darts_search import Network
from record import write_result

from strop.algorithms import architecture_gradient, hypergradient
from strop.mutators import DifferentiableMutator
from strop.randomness import seed_everything

TARGET = 1e-4
SGD = {'lr': 0.05, 'momentum': 0.9, 'weight_decay': 3e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--channels', type=int, default=4)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--eps', type=float, default=1e-7)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', default='benchmarks/results/darts_gradient.json')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seed_everything(args.seed)
    net = Network(args.channels, search=True).double()
    mutator = DifferentiableMutator(net, init_std=0.5).double()
    arch = list(mutator.parameters())
    sgd = torch.optim.SGD(net.parameters(), **SGD)
    train, valid = (
        (torch.randn(args.batch, 1, 16, 16, dtype=torch.float64), torch.randint(10, (args.batch,))) for _ in range(2)
    )

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        mutator.reset()
        return F.cross_entropy(net(batch[0]), batch[1])

    for _ in range(3):  # so that there is momentum
        sgd.zero_grad()
        loss(train).backward()
        sgd.step()
    weights = [parameter.detach().clone() for parameter in net.parameters()]
    state = copy.deepcopy(sgd.state_dict())

    def after_a_step() -> float:
        """Return the validation loss after a real step; everything is put back."""
        sgd.zero_grad()
        loss(train).backward()
        sgd.step()
        value = loss(valid).item()
        with torch.no_grad():
            for parameter, before in zip(net.parameters(), weights, strict=True):
                parameter.copy_(before)
        sgd.load_state_dict(copy.deepcopy(state))
        return value

    expected = []
    for logits in arch:
        for index in range(len(logits)):
            values = []
            for sign in (1, -2):
                with torch.no_grad():
                    logits[index] += sign * args.eps
                values.append(after_a_step())
            with torch.no_grad():
                logits[index] += args.eps
            expected.append((values[0] - values[1]) / (2 * args.eps))
    reference = torch.tensor(expected, dtype=torch.float64)

    def error(gradients: list[torch.Tensor]) -> float:
        return float((torch.cat(gradients) - reference).norm() / reference.norm())

    first = architecture_gradient(loss(valid), arch)
    exact = hypergradient(lambda: loss(train), lambda: loss(valid), arch, sgd, net)[0]
    differences = {
        radius: hypergradient(lambda: loss(train), lambda: loss(valid), arch, sgd, net, 'finite_difference', radius)[0]
        for radius in (1e-2, 1e-4, 1e-6)
    }
    figures = {
        'exact': error(exact),
        'finite_difference': {str(radius): error(gradients) for radius, gradients in differences.items()},
        'first_order': error(first),
        'nni_1_9': error(as_nni(lambda: loss(train), lambda: loss(valid), arch, list(net.parameters()), SGD['lr'])),
        'architecture_parameters': len(reference),
    }
    settings = {'channels': args.channels, 'batch': args.batch, 'eps': args.eps, 'threads': args.threads, **SGD}
    content = {
        'seed': args.seed,
        'settings': settings,
        'target': TARGET,
        'passed': figures['exact'] <= TARGET,
        'figures': figures,
    }
    write_result(args.out, 'darts_gradient', content)
    print(figures)


def as_nni(train_loss, valid_loss, arch, weights, rate) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
    """Return the gradient with the two faults that NNI 1.9's trainer is known for."""
    both = torch.autograd.grad(valid_loss(), [*weights, *arch], allow_unused=True)
    vector = [torch.zeros_like(w) if g is None else g for g, w in zip(both, weights)]
    eps = 0.01 / torch.cat([v.flatten() for v in vector]).norm()
    sides = []
    for sign in (1, -2):
        with torch.no_grad():
            for weight, v in zip(weights, vector, strict=True):
                weight += sign * eps * v
        sides.append(torch.autograd.grad(train_loss(), arch))
    with torch.no_grad():
        for weight, v in zip(weights, vector, strict=True):
            weight += eps * v
    products = [(plus - minus) / 2.0 * eps for plus, minus in zip(*sides, strict=True)]
    return [g - rate * p for g, p in zip(both[len(weights) :], products, strict=True)]


if __name__ == '__main__':
    main()
