from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from strop import distiller_for
from strop.engine import CompressionStep, CompressionTrainerMixin
from strop.errors import ComponentTypeError, ConfigError
from strop.mutables import LayerChoice
from strop.mutators import RandomMutator
from tests.engine.digit_nets import digits, distiller, net, teacher

transformers = pytest.importorskip('transformers')
pytest.importorskip('accelerate')


class CompressionTrainer(CompressionTrainerMixin, transformers.Trainer):
    """What a user writes."""


class WithLoss(nn.Module):
    """A network whose output is what the trainer wants."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(pixels)
        found = {'logits': logits}
        return found if labels is None else {'loss': F.cross_entropy(logits, labels), **found}


def samples(split: str = 'train', name: str = 'pixels', number: int = 64) -> list[dict[str, Any]]:
    return [{name: image, 'labels': int(label)} for image, label in digits(number, split)]


def arguments(folder: Path, **options: Any) -> Any:
    defaults = dict(
        output_dir=str(folder), optim='sgd', learning_rate=0.1, lr_scheduler_type='constant', max_grad_norm=0.0,
        num_train_epochs=2, per_device_train_batch_size=16, per_device_eval_batch_size=32, save_strategy='epoch',
        train_sampling_strategy='sequential', use_cpu=True, report_to='none', disable_tqdm=True, remove_unused_columns=False,
        logging_strategy='no',
    )  # fmt: skip
    return transformers.TrainingArguments(**{**defaults, **options})


def make() -> tuple[WithLoss, CompressionStep]:
    model = WithLoss(net(choice=True))
    mutator = RandomMutator(model)
    mutator.set_subnet({'body': 0})
    its_teacher = teacher()
    made = distiller(model.net, its_teacher)
    return model, CompressionStep(
        model.net, mutator=mutator, distiller=made, teacher=its_teacher, subnet='max', calibration=[digits(64)[:][0]]
    )


def trained_by_hand(epochs: int = 2, batch: int = 16, accumulated: int = 1) -> dict[str, torch.Tensor]:
    model, step = make()
    model.train()
    images, labels = digits(64)[:]
    optimizer = torch.optim.SGD([*model.parameters(), *step.parameters()], lr=0.1)
    for _ in range(epochs):
        for number in range(64 // batch):
            part = slice(number * batch, (number + 1) * batch)
            with step.training():
                loss = step.loss(model(images[part], labels[part])['loss'])
            (loss / accumulated).backward()
            if (number + 1) % accumulated == 0:
                optimizer.step()
                optimizer.zero_grad()
    return {**model.state_dict(), **step.distiller.state_dict()}


def close(model: nn.Module, step: CompressionStep, expected: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close({**model.state_dict(), **step.distiller.state_dict()}, expected)


def test_a_model_is_trained_as_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    model, step = make()
    CompressionTrainer(model, arguments(tmp_path), train_dataset=samples(), compression=step).train()
    assert step.count == 8
    close(model, step, trained_by_hand())


@pytest.mark.parametrize('scaled', [False, True])
def test_accumulated_batches_count_as_one(tmp_path: Path, scaled: bool) -> None:
    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        return F.cross_entropy(outputs['logits'], labels, reduction='sum') / num_items_in_batch

    model, step = make()
    options = dict(gradient_accumulation_steps=2, per_device_train_batch_size=8, num_train_epochs=1)
    CompressionTrainer(
        model,
        arguments(tmp_path, **options),
        train_dataset=samples(),
        compression=step,
        compute_loss_func=loss if scaled else None,
    ).train()
    close(model, step, trained_by_hand(epochs=1, batch=8, accumulated=2))


@pytest.mark.parametrize('named', [True, False])
def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(tmp_path: Path, named: bool) -> None:
    model, step = make()
    CompressionTrainer(model, arguments(tmp_path, num_train_epochs=1), train_dataset=samples(), compression=step).train()
    assert (tmp_path / 'checkpoint-4' / 'strop_step.pth').is_file()
    model, step = make()
    trainer = CompressionTrainer(model, arguments(tmp_path), train_dataset=samples(), compression=step)
    trainer.train(resume_from_checkpoint=str(tmp_path / 'checkpoint-4') if named else True)
    assert step.count == 8
    close(model, step, trained_by_hand())


def test_evaluations_are_of_the_fixed_subnet_with_its_own_statistics(tmp_path: Path) -> None:
    model, step = make()
    trainer = CompressionTrainer(model, arguments(tmp_path), compression=step)
    model.eval()
    found = trainer.predict(samples('val', number=32))
    measured = trainer.evaluate(samples('val', number=32))
    assert dict(step.mutator.current_subnet()) == {'body': 0}
    images, labels = digits(32, 'val')[:]
    with step.evaluating('max'), torch.no_grad():
        expected = model(images, labels)
    torch.testing.assert_close(torch.from_numpy(found.predictions), expected['logits'])
    assert measured['eval_loss'] == pytest.approx(float(expected['loss']), rel=1e-5)


def vit(seed: int, hidden: int) -> Any:
    torch.manual_seed(seed)
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=8, patch_size=4, num_channels=1, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=2 * hidden, num_labels=10,
        )
    )  # fmt: skip


def test_a_distilled_model_is_saved_as_its_own_alone_and_has_learned(tmp_path: Path) -> None:
    its_teacher, student = vit(0, 24), vit(1, 16)
    teaching = arguments(tmp_path, optim='adamw_torch', learning_rate=5e-3, num_train_epochs=4, save_strategy='no')
    transformers.Trainer(its_teacher, teaching, train_dataset=samples(name='pixel_values', number=256)).train()
    inputs = {'pixel_values': digits(2)[:][0]}
    made = distiller_for(student, its_teacher, inputs, features={'vit.layernorm': 'vit.layernorm'})
    step = CompressionStep(student, distiller=made, teacher=its_teacher)

    def divergence() -> float:
        student.train()
        with step.training():
            student(digits(128)[:][0])
            return float(step.loss().detach())

    before = divergence()
    CompressionTrainer(student, teaching, train_dataset=samples(name='pixel_values', number=256), compression=step).train()
    assert divergence() < before
    student.save_pretrained(tmp_path / 'student')
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path / 'student')
    assert set(again.state_dict()) == set(student.state_dict())


def test_choices_inside_a_transformer_are_trained(tmp_path: Path) -> None:
    model = vit(0, 16)
    for layer in model.vit.layers:
        layer.mlp = LayerChoice({'mlp': layer.mlp, 'none': nn.Threshold(-1e9, 0)})
    mutator = RandomMutator(model)
    step = CompressionStep(model, mutator=mutator, subnet='max')
    seen = set()
    model.register_forward_hook(lambda *_: seen.add(tuple(dict(mutator.current_subnet()).values())))
    CompressionTrainer(
        model, arguments(tmp_path, save_strategy='no'), train_dataset=samples(name='pixel_values'), compression=step
    ).train()
    assert len(seen) > 1


@pytest.mark.slow
def test_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', __file__, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, 'PYTHONPATH': '.'})
    assert ended.returncode == 0, ended.stderr
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, step = make()
    with pytest.raises(ConfigError, match='no part of the WithLoss'):
        CompressionTrainer(WithLoss(net()), arguments(tmp_path), compression=step)
    with pytest.raises(ComponentTypeError, match='CompressionStep'):
        CompressionTrainer(model, arguments(tmp_path), compression=model)
    trainer = CompressionTrainer(model, arguments(tmp_path), train_dataset=samples(), compression=step)
    (tmp_path / 'checkpoint-4').mkdir()
    with pytest.raises(ConfigError, match=r'no strop_step\.pth'):
        trainer.train(resume_from_checkpoint=str(tmp_path / 'checkpoint-4'))
    trainer.is_fsdp_enabled = True
    with pytest.raises(ConfigError, match='FSDP'):
        trainer.train()


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    model, step = make()
    options = arguments(folder, ddp_find_unused_parameters=True)
    CompressionTrainer(model, options, train_dataset=samples(), compression=step).train()
    torch.save([*model.parameters(), *step.parameters()], folder / f'{os.environ["RANK"]}.pth')
