"""A distillation step, divided by the same step written by hand; and a step of AutoSlim, by the static models' steps.

- Knowledge distillation from a ResNet-34 to a ResNet-18 (timm): the teacher's forward, the student's step by the labels and by
  the teacher's logits, and the update by SGD; by `distiller.record` in a plain loop, by `SingleTeacherDistill` with the
  activations as they are (in place) and by default (none in place, so that no record can be overwritten), and by hand.
- AutoSlim with four widths of a MobileNetV2 (timm), divided by the sum of the four static models' steps by hand, the widest of
  which teaches. The widths are drawn once. With and without the update, which AutoSlim does once for four widths.

In all of them gradients are let go after the update, as MMEngine's optim wrapper does it. The steps are timed in turns on the
same batch; reported is the median ratio of the pairs with a bootstrap interval.

    python benchmarks/distillation_cost.py --out benchmarks/results/distillation_cost.json
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from elastic_cost import interval
from record import write_result
from torch import nn

from strop.algorithms import AutoSlim, SingleTeacherDistill
from strop.distill import ConfigurableDistiller
from strop.mutables import extract
from strop.randomness import seed_everything

TEMPERATURE = 4.0
Step = Callable[[], Any]


def rule(student: str, teacher: str, tau: float = TEMPERATURE) -> dict[str, Any]:
    """Return the config of a distiller of logits."""
    return dict(
        type='ConfigurableDistiller',
        student_recorders=dict(logits=dict(type='ModuleOutputs', source=student)),
        teacher_recorders=dict(logits=dict(type='ModuleOutputs', source=teacher)),
        distill_losses=dict(loss_kl=dict(type='KLDivergence', tau=tau)),
        loss_forward_mappings=dict(
            loss_kl=dict(
                preds_S=dict(from_student=True, recorder='logits'), preds_T=dict(from_student=False, recorder='logits')
            )
        ),
    )


def divergence(outputs: torch.Tensor, taught: torch.Tensor, tau: float) -> torch.Tensor:
    expected = (taught / tau).softmax(1)
    return tau**2 * F.kl_div((outputs / tau).log_softmax(1), expected, reduction='batchmean')


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)


def distillation(batch: Any) -> dict[str, Step]:
    """Return the step by hand and ours, each on models of its own."""
    images, labels = batch
    seed_everything(0)
    teacher = timm.create_model('resnet34', num_classes=100).eval().requires_grad_(False)
    student = timm.create_model('resnet18', num_classes=100)
    hand, plain, algorithm = copy.deepcopy(student), copy.deepcopy(student), copy.deepcopy(student)
    of_hand, of_plain = sgd(hand), sgd(plain)
    distiller = ConfigurableDistiller(**{name: value for name, value in rule('fc', 'fc').items() if name != 'type'})
    given = dict(distiller=rule('fc', 'fc'), teacher=teacher, architecture=algorithm)
    model = SingleTeacherDistill(**copy.deepcopy(given)).train()
    in_place = SingleTeacherDistill(**copy.deepcopy(given), module_inplace=None, teacher_module_inplace=None).train()
    of_model, of_in_place = sgd(model.architecture), sgd(in_place.architecture)

    def by_hand() -> None:
        with torch.no_grad():
            taught = teacher(images)
        outputs = hand(images)
        loss = F.cross_entropy(outputs, labels) + divergence(outputs, taught, TEMPERATURE)
        loss.backward()
        of_hand.step()
        of_hand.zero_grad()

    def in_a_loop() -> None:
        with distiller.record(teacher, plain):
            with torch.no_grad():
                teacher(images)
            loss = F.cross_entropy(plain(images), labels)
        loss = loss + distiller.loss()
        loss.backward()
        of_plain.step()
        of_plain.zero_grad()

    return {
        'by_hand': by_hand,
        'plain_loop': in_a_loop,
        'algorithm': lambda: in_place.train_step((images, labels), of_in_place),
        'algorithm_by_default': lambda: model.train_step((images, labels), of_model),
    }


def slimming(batch: Any, update: bool) -> dict[str, Step]:
    """Return the steps of four static models by hand, and that of AutoSlim at the same widths."""
    images, labels = batch
    seed_everything(0)
    network = timm.create_model('mobilenetv2_100', num_classes=100)
    mutator = dict(type='OneShotChannelMutator', parse_cfg=dict(demo_input=(1, 3, images.shape[-1], images.shape[-1])))
    algorithm = AutoSlim(network, mutator, rule('classifier', 'classifier', 1.0)).train()
    space = algorithm.mutator.space
    drawn = [space.subnet(algorithm.sample_subnet(number)) for number in range(2)]
    algorithm.sample_subnet = lambda number=0: drawn[number]  # type: ignore[method-assign]
    statics = []
    for subnet in (space.extreme(largest=True), space.extreme(largest=False), *drawn):
        algorithm.set_subnet(subnet)
        statics.append(extract(algorithm.architecture).module.train())
    optimizers = [sgd(static) for static in statics]
    whole = sgd(algorithm.architecture)
    if not update:
        for optimizer in (*optimizers, whole):
            optimizer.step = lambda *_, **__: None  # type: ignore[method-assign]

    def by_hand() -> None:
        taught: Any = None
        for static, optimizer in zip(statics, optimizers):
            outputs = static(images)
            if taught is None:
                loss, taught = F.cross_entropy(outputs, labels), outputs.detach()
            else:
                loss = divergence(outputs, taught, 1.0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return {'by_hand': by_hand, 'autoslim': lambda: algorithm.train_step((images, labels), whole)}


def compared(steps: dict[str, Step], pairs: int) -> dict[str, Any]:
    """Time all in turns; return their medians, and their ratios to the one by hand."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for pair in range(pairs + 3):
        for name in names if pair % 2 else names[::-1]:
            begin = time.perf_counter_ns()
            steps[name]()
            times[name].append((time.perf_counter_ns() - begin) / 1e6)
    array = {name: np.array(values[3:]) for name, values in times.items()}
    result: dict[str, Any] = {f'{name}_ms': float(np.median(values)) for name, values in array.items()}
    for name in names[1:]:
        ratios = array[name] / array['by_hand']
        result[name] = {'ratio': float(np.median(ratios)), 'interval': interval(ratios), 'pairs': pairs}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', type=int, default=100)
    parser.add_argument('--size', type=int, default=64)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--full', action='store_true', help='images of 224 x 224 in batches of 32')
    parser.add_argument('--out')
    options = parser.parse_args()
    if options.full:
        options.size, options.batch = 224, 32
    torch.set_num_threads(options.threads)
    seed_everything(0)
    batch = torch.randn(options.batch, 3, options.size, options.size), torch.randint(0, 100, (options.batch,))
    figures: dict[str, Any] = {'distillation': compared(distillation(batch), options.pairs)}
    print(figures['distillation'], flush=True)
    for name, update in (('autoslim', True), ('autoslim_without_update', False)):
        figures[name] = compared(slimming(batch, update), options.pairs)
        print(name, figures[name], flush=True)
    if options.out:
        settings = {name: value for name, value in vars(options).items() if name != 'out'}
        targets = {'distillation': 1.03, 'autoslim': 1.10}
        write_result(
            options.out, 'distillation_cost', {'settings': settings, 'targets': targets, 'figures': figures}, packages=('timm',)
        )


if __name__ == '__main__':
    main()
