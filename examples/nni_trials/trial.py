"""A trial as NNI's documentation writes it: a space of small networks on digits; each run trains one of them.

Run alone it takes the first candidates and the default learning rate. `search.py` runs it once for each trial.
"""

import torch
from torch import nn

import strop.compat  # noqa: F401  answers for nni where it is not installed
from strop.data import load_images

import nni  # isort: skip
from nni.nas.pytorch.classic_nas import get_and_apply_next_architecture  # isort: skip
from nni.nas.pytorch.mutables import InputChoice, LayerChoice  # isort: skip


class Net(nn.Module):
    """Two layers to choose, and skip connections of which any number may be taken."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.first = LayerChoice(
            {'conv3x3': nn.Conv2d(8, 8, 3, padding=1), 'conv5x5': nn.Conv2d(8, 8, 5, padding=2)}, key='first'
        )
        self.second = LayerChoice(
            {'conv3x3': nn.Conv2d(8, 8, 3, padding=1), 'depthwise': nn.Conv2d(8, 8, 3, padding=1, groups=8)}, key='second'
        )
        self.skip = InputChoice(n_candidates=2, n_chosen=None, key='skip')
        self.head = nn.Linear(8 * 7 * 7, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        a = self.first(x).relu()
        b = self.second(a)
        more = self.skip([x, a])
        x = (b if more is None else b + more).relu()
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))


def tensors(split):
    data = load_images('mnist', split)
    return torch.from_numpy(data.images).float() / 255, torch.from_numpy(data.labels).long()


def accuracy(model, images, labels):
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def train(model, rate, epochs, report=lambda value: None):
    images, labels = tensors('train')
    held_out = tensors('val')
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        report(accuracy(model, *held_out))
    return accuracy(model, *held_out)


if __name__ == '__main__':
    torch.manual_seed(0)
    torch.set_num_threads(1)
    settings = {'lr': 0.003}
    settings.update(nni.get_next_parameter())
    network = Net()
    get_and_apply_next_architecture(network)  # from here on it is a plain PyTorch model
    nni.report_final_result(train(network, settings['lr'], epochs=2, report=nni.report_intermediate_result))
