"""A trial as a function: it trains a small network on digits and reports its accuracy on the way.

strop experiment run examples/experiments/digits.yaml --dry-run
strop experiment run examples/experiments/digits.yaml
"""

import torch
from torch import nn

from strop.data import load_images
from strop.search import report_intermediate_result

ACTIVATIONS = {'relu': nn.ReLU, 'gelu': nn.GELU, 'tanh': nn.Tanh}


def network(subnet):
    width = subnet['width']
    layers = [nn.Flatten(), nn.Linear(28 * 28, width), ACTIVATIONS[subnet['activation']]()]
    return nn.Sequential(*layers, nn.Dropout(subnet['dropout']), nn.Linear(width, 10))


def parameters(subnet):
    """What a subnet costs, for the bound in digits.yaml."""
    return float(sum(weight.numel() for weight in network(subnet).parameters()))


def train(subnet, epochs=4):
    torch.set_num_threads(1)
    images, labels = tensors('train')
    model = network(subnet)
    optimizer = torch.optim.Adam(model.parameters(), subnet['lr'])
    for epoch in range(1, epochs + 1):
        model.train()
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        reached = accuracy(model, *tensors('val'))
        if epoch < epochs:  # the last one is the result
            report_intermediate_result(reached)  # the pruner may end the trial here
    return {'accuracy': reached, 'epochs': epochs}


def tensors(split):
    data = load_images('mnist', split)
    return torch.from_numpy(data.images).float() / 255, torch.from_numpy(data.labels).long()


def accuracy(model, images, labels):
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())
