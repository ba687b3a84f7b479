"""A small supernet on scikit-learn's 8 x 8 digits, as a config: what the tests of the engine run."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

_choice = dict(
    type='OneShotMutableOP',
    candidates=dict(
        shuffle_3x3=dict(type='ShuffleBlock', kernel_size=3),
        shuffle_5x5=dict(type='ShuffleBlock', kernel_size=5),
        shuffle_xception=dict(type='ShuffleXception'),
    ),
)

supernet = dict(
    type='ImageClassifier',
    backbone=dict(
        type='SearchableShuffleNetV2',
        arch_setting=[[16, 2, _choice], [32, 1, _choice]],
        in_channels=1,
        stem_multiplier=1,
        last_channels=32,
        out_indices=(2,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=32, topk=(1,)),
)
preprocessor = dict(type='ClsDataPreprocessor', mean=[78.0], std=[96.0])


def loader(split: str, limit: int = 96, batch_size: int = 32, shuffle: bool = False) -> dict[str, Any]:
    """Return the config of a data loader of `limit` digits."""
    return dict(
        batch_size=batch_size,
        num_workers=0,
        dataset=dict(type='ImageDataset', source='digits', split=split, limit=limit, form='samples'),
        sampler=dict(type='EpochSampler', shuffle=shuffle),
    )


def train_config(**changes: Any) -> Config:
    """Return a config that trains the supernet for two epochs of three batches."""
    config = dict(
        default_scope='strop',
        model=dict(type='SPOS', architecture=supernet, mutator=dict(type='OneShotMutator'), data_preprocessor=preprocessor),
        train_dataloader=loader('train', shuffle=True),
        val_dataloader=loader('val', 60, 60),
        val_evaluator=dict(type='Accuracy', topk=(1,)),
        test_dataloader=loader('test', 60, 60),
        test_evaluator=dict(type='Accuracy', topk=(1,)),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=100),
        val_cfg=dict(),
        test_cfg=dict(),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        randomness=dict(seed=0),
        log_level='WARNING',
    )
    return Config({**config, **changes})


def search_config(**changes: Any) -> Config:
    """Return a config that searches the supernet: two generations of four candidates, unless changed."""
    loop = dict(
        type='EvolutionSearchLoop',
        dataloader=loader('val', 60, 60),
        evaluator=dict(type='Accuracy', topk=(1,)),
        max_epochs=2,
        num_candidates=4,
        top_k=2,
        num_mutation=2,
        num_crossover=1,
        constraints_range=dict(flops=(0.0, 1.0)),
    )
    rest = {name: value for name, value in changes.items() if name not in ('model',)}
    config = train_config(**({'model': changes['model']} if 'model' in changes else {}))
    config.train_cfg = {**loop, **rest}
    return config
