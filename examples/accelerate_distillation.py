"""Distil a network of digits into a supernet, in a loop of Hugging Face's Accelerate.

Each step trains one subnet, drawn by the number of the step, by the labels and by a frozen teacher; the smallest and the
largest subnet are scored after each epoch. A run that was stopped goes on from its folder with the subnets that come next.

    accelerate launch examples/accelerate_distillation.py --folder work_dirs/accelerate
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from strop import LayerChoice, RandomMutator, distiller_for
from strop.data import load_images
from strop.engine import CompressionStep


class Net(nn.Module):
    """A small network, with a choice of the kernel if it is to be a supernet."""

    def __init__(self, width, choice=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        kernels = [nn.Conv2d(width, width, size, stride=2, padding=size // 2) for size in (1, 3, 5)]
        self.body = LayerChoice(kernels, key='body') if choice else kernels[1]
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(self.norm(self.body(self.stem(x))).relu(), 2).flatten(1))


def digits(split, limit):
    arrays = load_images('digits', split)
    images = torch.from_numpy(arrays.images[:limit]) / 255
    return TensorDataset(images, torch.from_numpy(arrays.labels[:limit]).long())


def train(model, loader, accelerator, optimizer, step=None):
    """Train for one epoch: the loop that was there before, and two lines for the step."""
    model.train()
    for images, labels in loader:
        if step is None:
            loss = F.cross_entropy(model(images), labels)
        else:
            with step.training():
                loss = step.loss(F.cross_entropy(model(images), labels))
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()


@torch.no_grad()
def accuracy(model, loader, accelerator):
    model.eval()
    right = [accelerator.gather_for_metrics(model(images).argmax(1) == labels) for images, labels in loader]
    return torch.cat(right).float().mean().item()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folder', type=Path, default=Path('work_dirs/accelerate'))
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--limit', type=int, default=1000, help='number of images to train on')
    parser.add_argument('--cpu', action='store_true')
    options = parser.parse_args(arguments)

    # A subnet leaves the parameters of the others without gradients.
    accelerator = Accelerator(cpu=options.cpu, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    set_seed(0)
    data = digits('train', options.limit)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    validation = DataLoader(digits('val', options.limit), batch_size=256)

    # A teacher of one's own would be loaded here.
    teacher = Net(32)
    teacher, its_loader, its_optimizer = accelerator.prepare(teacher, loader, torch.optim.AdamW(teacher.parameters(), lr=5e-3))
    for _ in range(options.epochs):
        train(teacher, its_loader, accelerator, its_optimizer)
    teacher = accelerator.unwrap_model(teacher)

    student = Net(8, choice=True)
    mutator = RandomMutator(student)
    mutator.set_min_subnet()
    step = CompressionStep(
        student,
        mutator=mutator,
        distiller=distiller_for(student, teacher, data[:2][0].to(accelerator.device), features={'norm': 'norm'}),
        teacher=teacher,
        calibration=[data[:256][0]],
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    step.add_to(optimizer)  # connectors learn, too; their gradients are averaged over processes
    loader = DataLoader(data, batch_size=32, shuffle=True)
    model, loader, validation, optimizer = accelerator.prepare(
        student, DataLoader(data, 32, shuffle=True), validation, optimizer
    )
    accelerator.register_for_checkpointing(step)

    done = sorted(options.folder.glob('epoch_*'), key=lambda path: int(path.name.split('_')[1]))
    if done:
        accelerator.load_state(done[-1])
    scores = {}
    for epoch in range(len(done), options.epochs):
        set_seed(epoch + 1)
        train(model, loader, accelerator, optimizer, step)
        for subnet in ('min', 'max'):
            with step.evaluating(subnet):
                scores[subnet] = accuracy(model, validation, accelerator)
        accelerator.save_state(options.folder / f'epoch_{epoch + 1}')
        accelerator.print(f'epoch {epoch + 1}: ' + ', '.join(f'{name} {score:.3f}' for name, score in scores.items()))
    return accelerator.unwrap_model(model), step, scores


if __name__ == '__main__':
    main()
