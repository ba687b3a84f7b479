"""What the tests with the real codebases share: images of CIFAR-10 in folders, and a config with their loaders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).resolve().parents[2] / '..' / 'shared' / 'data' / 'cifar10_jpeg.npz'


@pytest.fixture(scope='session')
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` and `val`, in each a folder for each of four classes, in each eight JPEG files."""
    if not FILE.is_file():
        pytest.skip('needs cifar10_jpeg.npz in shared/data beside the checkout')
    root = tmp_path_factory.mktemp('cifar')
    with np.load(FILE, allow_pickle=False) as data:
        names = [str(name) for name in data['classes'][:4]]
        content, offsets, labels = data['train_jpeg'], data['train_offsets'], data['train_labels']
        for label, name in enumerate(names):
            for number, index in enumerate(np.flatnonzero(labels == label)[:16]):
                file = root / ('train' if number < 8 else 'val') / name / f'{number}.jpg'
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content[offsets[index] : offsets[index + 1]].tobytes())
    return root


@pytest.fixture(scope='session')
def image_loaders(cifar: Path) -> dict:
    """Loaders and evaluators of mmpretrain for these images, as its configs have them, under any default scope."""

    def loader(part: str, train: bool) -> dict:
        pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64)]
        pipeline += [dict(type='RandomFlip', prob=0.5, direction='horizontal')] if train else []
        dataset = dict(
            type='CustomDataset', data_root=str(cifar), data_prefix=part, pipeline=[*pipeline, dict(type='PackInputs')]
        )
        return dict(
            batch_size=8,
            num_workers=0,
            persistent_workers=False,
            sampler=dict(type='DefaultSampler', shuffle=train),
            collate_fn=dict(type='default_collate'),
            dataset=dict(_scope_='mmpretrain', **dataset),
        )

    evaluator = dict(_scope_='mmpretrain', type='Accuracy', topk=(1,))
    return dict(
        train_dataloader=loader('train', True),
        val_dataloader=loader('val', False),
        test_dataloader=loader('val', False),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=evaluator,
        test_evaluator=evaluator,
    )


PREPROCESSOR = dict(num_classes=4, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)


def training(iterations: int, lr: float = 0.01, **changes: object) -> dict:
    """Return the part of a config that trains for a few iterations on one process."""
    return dict(
        train_cfg=dict(by_epoch=False, max_iters=iterations, val_interval=iterations),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr, momentum=0.9)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=None),
        randomness=dict(seed=0),
        **changes,
    )


def losses_of(runner: object, name: str = 'loss') -> list[float]:
    """Return what a runner logged of a loss, one number an iteration."""
    return [float(value) for value in runner.message_hub.get_scalar(f'train/{name}')._log_history]  # type: ignore[attr-defined]
