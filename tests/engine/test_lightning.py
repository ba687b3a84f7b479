from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from strop.engine import CompressionStep
from strop.errors import ComponentTypeError, ConfigError
from strop.mutators import RandomMutator
from tests.engine.digit_nets import digits, distiller, net, teacher

lightning = pytest.importorskip('lightning.pytorch')
pytestmark = pytest.mark.filterwarnings('ignore')


class Classifier(lightning.LightningModule):
    """A module as a user of Lightning writes it, knowing nothing of compression."""

    def __init__(self, network: nn.Module, form: str = 'tensor') -> None:
        super().__init__()
        self.net = network
        self.form = form
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        return {'tensor': loss, 'mapping': {'loss': loss, 'number': batch_idx}, 'none': None if batch_idx else loss}[self.form]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        outputs = self.net(batch[0])
        self.seen.append(outputs)
        self.log('accuracy', (outputs.argmax(1) == batch[1]).float().mean())

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def loader(split: str = 'train') -> DataLoader:
    return DataLoader(digits(64, split), batch_size=16)


def trainer(step: CompressionStep | None, folder: Path, package: Any = lightning, **options: Any) -> Any:
    from strop.engine.lightning import CompressionCallback

    return package.Trainer(
        default_root_dir=folder, accelerator='cpu', logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[CompressionCallback(step)] if step else [], **{'max_epochs': 2, 'enable_checkpointing': False, **options},
    )  # fmt: skip


def make() -> tuple[nn.Module, CompressionStep]:
    model = net(choice=True)
    mutator = RandomMutator(model)
    mutator.set_subnet({'body': 0})
    its_teacher = teacher()
    made = distiller(model, its_teacher)
    step = CompressionStep(
        model, mutator=mutator, distiller=made, teacher=its_teacher, subnet='max', calibration=[digits(64)[:][0]]
    )
    return model, step


def trained_by_hand(epochs: int = 2) -> dict[str, torch.Tensor]:
    """Train in a loop of our own what the trainers of the tests train."""
    model, step = make()
    optimizer = torch.optim.SGD([*model.parameters(), *step.parameters()], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for _ in range(epochs):
        model.train()
        for images, labels in loader():
            with step.training():
                loss = step.loss(F.cross_entropy(model(images), labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    return {**model.state_dict(), **step.distiller.state_dict()}


def same(model: nn.Module, step: CompressionStep, expected: dict[str, torch.Tensor]) -> bool:
    found = {**model.state_dict(), **step.distiller.state_dict()}
    return set(found) == set(expected) and all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize('form', ['tensor', 'mapping'])
@pytest.mark.parametrize('package', ['lightning.pytorch', 'pytorch_lightning'])
def test_a_module_is_trained_as_in_a_loop_of_ones_own(tmp_path: Path, form: str, package: str) -> None:
    package = pytest.importorskip(package)
    classes = {'Classifier': Classifier}
    if package is not lightning:
        names = ('__init__', 'training_step', 'validation_step', 'configure_optimizers')
        classes['Classifier'] = type('Classifier', (package.LightningModule,), {})
        for name in names[1:]:
            setattr(classes['Classifier'], name, getattr(Classifier, name))
    model, step = make()
    if package is lightning:
        module: Any = Classifier(model, form)
    else:
        module = classes['Classifier']()
        module.net, module.form, module.seen = model, form, []
    fitted = trainer(step, tmp_path, package)
    fitted.fit(module, loader(), loader('val'))
    assert same(model, step, trained_by_hand())
    assert 'training_step' not in vars(module)
    assert torch.isfinite(fitted.callback_metrics['distill_loss'])


def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(tmp_path: Path) -> None:
    model, step = make()
    first = trainer(step, tmp_path, max_epochs=1)
    first.fit(Classifier(model), loader())
    first.save_checkpoint(tmp_path / 'one.ckpt')
    model, step = make()
    trainer(step, tmp_path, max_epochs=2).fit(Classifier(model), loader(), ckpt_path=tmp_path / 'one.ckpt', weights_only=True)
    assert step.count == 8
    assert same(model, step, trained_by_hand())


def test_a_checkpoint_has_the_weights_of_the_module_alone(tmp_path: Path) -> None:
    model, step = make()
    fitted = trainer(step, tmp_path, max_epochs=1, limit_train_batches=1)
    module = Classifier(model)
    fitted.fit(module, loader())
    fitted.save_checkpoint(tmp_path / 'one.ckpt')
    saved = torch.load(tmp_path / 'one.ckpt', weights_only=True)
    assert set(saved['state_dict']) == set(module.state_dict())


def test_evaluations_are_of_the_fixed_subnet_with_its_own_statistics(tmp_path: Path) -> None:
    model, step = make()
    module = Classifier(model)
    evaluator = trainer(step, tmp_path)
    evaluator.test(module, loader('val'), verbose=False)
    assert dict(step.mutator.current_subnet()) == {'body': 0}
    model.eval()
    with step.evaluating('max'), torch.no_grad():
        expected = [model(images) for images, _ in loader('val')]
    assert all(torch.equal(found, one) for found, one in zip(module.seen, expected, strict=True))
    with torch.no_grad():
        assert not torch.equal(module.seen[0], model(next(iter(loader('val')))[0]))


def test_validation_in_between_does_not_change_the_training(tmp_path: Path) -> None:
    weights = []
    for validated in (True, False):
        model, step = make()
        trainer(step, tmp_path, max_epochs=1, val_check_interval=2).fit(
            Classifier(model), loader(), loader('val') if validated else None
        )
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_supernet_alone_takes_modules_that_optimize_by_hand(tmp_path: Path) -> None:
    class ByHand(Classifier):
        def __init__(self, network: nn.Module) -> None:
            super().__init__(network)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.seen.append(dict(mutator.current_subnet())['body'])
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    model = net(choice=True)
    mutator = RandomMutator(model)
    module = ByHand(model)
    trainer(CompressionStep(model, mutator=mutator), tmp_path, max_epochs=3).fit(module, loader())
    assert set(module.seen) == {0, 1, 2}
    model, step = make()
    with pytest.raises(ConfigError, match='optimizes by hand'):
        trainer(step, tmp_path).fit(ByHand(model), loader())


def test_a_batch_that_is_skipped_leaves_no_records(tmp_path: Path) -> None:
    model, step = make()
    trainer(step, tmp_path, max_epochs=1).fit(Classifier(model, 'none'), loader())
    assert step.count == 4
    with step.training():
        model(digits(4)[:][0])
        assert torch.isfinite(step.loss())


def test_an_error_in_training_gives_the_module_its_step_back(tmp_path: Path) -> None:
    class Failing(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            super().training_step(batch, batch_idx)
            raise ZeroDivisionError

    model, step = make()
    module = Failing(model)
    with pytest.raises(ZeroDivisionError), warnings.catch_warnings():
        trainer(step, tmp_path).fit(module, loader())
    assert 'training_step' not in vars(module)
    assert not model._forward_pre_hooks


def test_under_mixed_precision_the_teacher_runs_in_it_too(tmp_path: Path) -> None:
    model, step = make()
    seen = set()
    step.teacher.head.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    trainer(step, tmp_path, max_epochs=1, precision='bf16-mixed').fit(Classifier(model), loader())
    assert seen == {torch.bfloat16}
    assert torch.isfinite(step.distill_loss)


@pytest.mark.slow
def test_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, 'PYTHONPATH': '.'},
    )
    assert ended.returncode == 0, ended.stderr
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_strategies_that_spread_parameters_are_refused(tmp_path: Path) -> None:
    class FSDPStrategy(lightning.strategies.SingleDeviceStrategy):
        pass

    model, step = make()
    with pytest.raises(ConfigError, match="strategy='ddp'"):
        trainer(step, tmp_path, strategy=FSDPStrategy('cpu')).fit(Classifier(model), loader())


def test_a_step_of_another_network_is_refused(tmp_path: Path) -> None:
    from strop.engine.lightning import CompressionCallback

    with pytest.raises(ConfigError, match='no part of Classifier'):
        trainer(make()[1], tmp_path).fit(Classifier(net()), loader())
    with pytest.raises(ComponentTypeError, match='CompressionStep'):
        CompressionCallback(net())


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    model, step = make()
    run = trainer(step, folder, strategy='ddp_find_unused_parameters_true', devices=2)
    run.fit(Classifier(model), loader(), loader('val'))
    torch.save([*model.parameters(), *step.parameters()], folder / f'{run.global_rank}.pth')
