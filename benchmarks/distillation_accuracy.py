"""What a small network learns from a large one, by several losses, against learning alone.

The teacher is a CIFAR ResNet-20 (published weights, fine-tuned on CIFAR-10-JPEG), the student a residual network of one block
a stage and half its channels, trained from scratch on few images (on all of them with `--full`), of which labels alone say
little. For each seed all students start from the same weights and see the same images in the same order; only the loss differs:

- `alone`: cross-entropy with the labels;
- `kd`: and the divergence of the logits at temperature 4 (Hinton et al.);
- `kd_by_hand`: the same, written out in plain PyTorch, as a reference;
- `cwd`: and the channel-wise divergence of the last feature map, through a 1x1 convolution (Shu et al.);
- `dkd`, `dist`: and these losses of the logits (Zhao et al.; Huang et al.).

Weights of the losses are those of the papers where they give them, and were not tuned. Test images are scored once.
Scores are those of "CIFAR-10-JPEG" (lossy copies), not of CIFAR-10.

    python benchmarks/distillation_accuracy.py --data cifar10_jpeg.npz --weights cifar10_resnet20_weights.npz
    python benchmarks/distillation_accuracy.py --full        # all images, more epochs, five seeds
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pruning_accuracy import MEAN, STD, Block, ResNet20, load_weights
from record import write_result
from torch import Tensor, nn
from training import Cells, accuracy, fit, load, mean_and_spread

from strop.distill import ConfigurableDistiller
from strop.randomness import seed_everything

METHODS = ('alone', 'kd', 'kd_by_hand', 'cwd', 'dkd', 'dist')
TEMPERATURE = 4.0


class Pixels(nn.Module):
    """The teacher for batches that are normalised as the students' are."""

    def __init__(self, model: ResNet20) -> None:
        super().__init__()
        self.model = model
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        self.register_buffer('scale', 0.25 / std)
        self.register_buffer('offset', (0.45 - mean) / std)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x * self.scale + self.offset)


class Student(nn.Module):
    """One block a stage, of 8, 16 and 32 channels."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1, self.layer2, self.layer3 = Block(8, 8, 1), Block(8, 16, 2), Block(16, 32, 2)
        self.linear = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Supervised(nn.Module):
    """A student and its loss by the labels as one module, so that the labels can be recorded as well."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.student(x), labels)


def distiller(method: str) -> ConfigurableDistiller:
    """Return the distiller of a method; the cross-entropy is added by the loop."""
    if method == 'cwd':
        source: dict[str, Any] = dict(
            student_recorders=dict(x=dict(type='ModuleOutputs', source='student.layer3')),
            teacher_recorders=dict(x=dict(type='ModuleOutputs', source='model.layer3')),
            connectors=dict(wide=dict(type='ConvModuleConnector', in_channel=32, out_channel=64, act_cfg=None)),
        )
        loss: dict[str, Any] = dict(type='ChannelWiseDivergence', tau=TEMPERATURE, loss_weight=3.0)
    else:
        source = dict(
            student_recorders=dict(x=dict(type='ModuleOutputs', source='student.linear')),
            teacher_recorders=dict(x=dict(type='ModuleOutputs', source='model.linear')),
        )
        loss = {
            'kd': dict(type='KLDivergence', tau=TEMPERATURE),
            'dkd': dict(type='DKDLoss', tau=TEMPERATURE, alpha=1.0, beta=2.0),
            'dist': dict(type='DISTLoss', inter_loss_weight=2.0, intra_loss_weight=2.0),
        }[method]
    student = dict(from_student=True, recorder='x', **(dict(connector='wide') if method == 'cwd' else {}))
    arguments = ('logits_S', 'logits_T') if method == 'dist' else ('preds_S', 'preds_T')
    mapping: dict[str, Any] = dict(zip(arguments, (student, dict(from_student=False, recorder='x'))))
    if method == 'dkd':
        source['student_recorders']['labels'] = dict(type='ModuleInputs', source='loss')
        mapping['data_samples'] = dict(from_student=True, recorder='labels', data_idx=1)
    return ConfigurableDistiller(**source, distill_losses=dict(loss=loss), loss_forward_mappings=dict(loss=mapping))


class Study:
    """The cells of one setting."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cells = Cells(Path(options.work) / f'{options.images}-{options.epochs}-{options.lr}-{options.device}')
        self.data = load(options.data, options.images, 5000, options.device)

    def teacher(self) -> Pixels:
        model = ResNet20()
        model.load_state_dict(load_weights(self.options.weights), strict=False)
        teacher = Pixels(model).to(self.options.device)
        file = self.cells.folder / 'teacher.pt'
        if not file.exists():
            fit(teacher, self.data['train'], 0, epochs=2, lr=0.02)
            torch.save(teacher.state_dict(), file)
        teacher.load_state_dict(torch.load(file, weights_only=True))
        return teacher.eval().requires_grad_(False)

    def train(self, method: str, seed: int) -> dict[str, Any]:
        seed_everything(seed)
        student, teacher = Student().to(self.options.device), self.teacher()
        begin = time.perf_counter()
        settings: dict[str, Any] = dict(epochs=self.options.epochs, lr=self.options.lr)
        if method == 'alone':
            fit(student, self.data['train'], seed, **settings)
        elif method == 'kd_by_hand':

            def by_hand(inputs: Tensor, labels: Tensor) -> Tensor:
                with torch.no_grad():
                    taught = (teacher(inputs) / TEMPERATURE).softmax(1)
                outputs = student(inputs)
                divergence = (taught * (taught.log() - (outputs / TEMPERATURE).log_softmax(1))).sum(1).mean()
                return F.cross_entropy(outputs, labels) + TEMPERATURE**2 * divergence

            fit(student, self.data['train'], seed, loss=by_hand, **settings)
        else:
            rule, supervised = distiller(method).to(self.options.device), Supervised(student)

            def distilled(inputs: Tensor, labels: Tensor) -> Tensor:
                with rule.record(teacher, supervised):
                    with torch.no_grad():
                        teacher(inputs)
                    loss = supervised(inputs, labels)
                return loss + rule.loss(check_finite=False)

            fit(student, self.data['train'], seed, loss=distilled, more=list(rule.parameters()), **settings)
        return {
            'held': accuracy(student, self.data['held']),
            'test': accuracy(student, self.data['test']),
            'seconds': time.perf_counter() - begin,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='../shared/data/cifar10_jpeg.npz')
    parser.add_argument('--weights', default='../shared/data/cifar10_resnet20_weights.npz')
    parser.add_argument('--images', type=int, default=2500, help='training images')
    parser.add_argument('--epochs', type=int, default=16)
    parser.add_argument('--lr', type=float, default=0.1)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--methods', nargs='+', default=METHODS, choices=METHODS)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--work', default='work_dirs/distillation_accuracy')
    parser.add_argument('--full', action='store_true', help='45,000 images, 60 epochs, five seeds')
    parser.add_argument('--out')
    options = parser.parse_args()
    if options.full:
        options.images, options.epochs, options.seeds = 45_000, 60, 5
    if options.device == 'cpu':
        torch.set_num_threads(1)
    study = Study(options)
    teacher = study.cells.get('teacher', lambda: {'test': accuracy(study.teacher(), study.data['test'])})
    rows = {
        seed: {m: study.cells.get(f'{m}-{seed}', lambda m=m, seed=seed: study.train(m, seed)) for m in options.methods}
        for seed in range(options.seeds)
    }
    figures: dict[str, Any] = {'teacher': teacher['test']}
    for method in options.methods:
        figures[method] = mean_and_spread([cells[method]['test'] for cells in rows.values()])
        if method != 'alone' and 'alone' in options.methods:
            gains = [cells[method]['test'] - cells['alone']['test'] for cells in rows.values()]
            figures[method]['gain'] = mean_and_spread(gains)
    print(figures)
    if options.out:
        settings = {name: value for name, value in vars(options).items() if name not in ('out', 'work')}
        content = {'data': 'CIFAR-10-JPEG', 'settings': settings, 'figures': figures, 'rows': rows}
        write_result(options.out, 'distillation_accuracy', content)


if __name__ == '__main__':
    main()
