from __future__ import annotations

import pytest

from strop.compat.config_source import Source, edited
from strop.compat.runtime_keys import RuntimeKeys


def rewritten(text: str) -> tuple[dict[str, object], list[str]]:
    """Return what the rewritten text says, run as Python, and what is left to be done by hand."""
    source = Source(text)
    changes = list(RuntimeKeys(source).changes())
    said: dict[str, object] = {}
    exec(edited(text, [edit for change in changes for edit in change.edits]), said)
    del said['__builtins__']
    return said, [change.text for change in changes if change.kind == 'by hand']


SGD = dict(type='SGD', lr=0.1)


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ("optimizer = dict(type='SGD', lr=0.1)", dict(optim_wrapper=dict(optimizer=SGD))),
        (
            "optimizer = dict(type='SGD', lr=0.1)\noptimizer_config = dict(grad_clip=None)",
            dict(optim_wrapper=dict(optimizer=SGD)),
        ),
        (
            "optimizer = dict(type='SGD', lr=0.1)\noptimizer_config = dict(cumulative_iters=4)\nfp16 = dict(loss_scale=512.0)",
            dict(optim_wrapper=dict(optimizer=SGD, type='AmpOptimWrapper', loss_scale=512.0, accumulative_counts=4)),
        ),
        (
            "optimizer = dict(architecture=dict(type='SGD', lr=0.1), mutator=dict(type='Adam', lr=3e-4))",
            dict(
                optim_wrapper=dict(
                    constructor='mmrazor.SeparateOptimWrapperConstructor',
                    architecture=dict(optimizer=SGD),
                    mutator=dict(optimizer=dict(type='Adam', lr=3e-4)),
                )
            ),
        ),
        (
            "lr_config = dict(policy='step', step=[30, 60])",
            dict(param_scheduler=[dict(type='MultiStepLR', milestones=[30, 60], gamma=0.1, by_epoch=True)]),
        ),
        (
            "lr_config = dict(policy='step', step=5, gamma=0.5, by_epoch=False)",
            dict(param_scheduler=[dict(type='StepLR', step_size=5, gamma=0.5, by_epoch=False)]),
        ),
        (
            "total_epochs = 9\nlr_config = dict(policy='CosineAnnealing', min_lr_ratio=0.01)",
            dict(
                train_cfg=dict(by_epoch=True, max_epochs=9),
                param_scheduler=[dict(type='CosineAnnealingLR', T_max=9, eta_min_ratio=0.01, by_epoch=True)],
            ),
        ),
        (
            "lr_config = dict(policy='exp', gamma=0.9, warmup='constant', warmup_iters=5, warmup_ratio=0.1)",
            dict(
                param_scheduler=[
                    dict(type='ConstantLR', factor=0.1, by_epoch=False, end=5),
                    dict(type='ExponentialLR', gamma=0.9, by_epoch=True),
                ]
            ),
        ),
        ("lr_config = dict(policy='fixed')", {}),
        (
            "runner = dict(type='IterBasedRunner', max_iters=50)\nevaluation = dict(interval=5, metric='accuracy')",
            dict(
                train_cfg=dict(by_epoch=False, max_iters=50, val_interval=5),
                val_evaluator=dict(type='Accuracy', topk=(1, 5)),
                test_evaluator=dict(type='Accuracy', topk=(1, 5)),
            ),
        ),
        (
            'checkpoint_config = dict(interval=2, max_keep_ckpts=3)\nlog_config = dict(interval=7)',
            dict(
                default_hooks=dict(
                    checkpoint=dict(type='CheckpointHook', interval=2, max_keep_ckpts=3),
                    logger=dict(type='LoggerHook', interval=7),
                )
            ),
        ),
        ('cudnn_benchmark = True', dict(env_cfg=dict(cudnn_benchmark=True))),
        ("resume_from = 'a.pth'", dict(load_from='a.pth', resume=True)),
        ('resume_from = None\nworkflow = [("train", 1)]\ngpu_ids = range(1)\nx = 1', dict(x=1)),
        (
            'data = dict(samples_per_gpu=8, test=dict(type="A"))',
            dict(
                test_dataloader=dict(
                    batch_size=8, num_workers=0, dataset=dict(type='A'), sampler=dict(type='DefaultSampler', shuffle=False)
                ),
                test_cfg={},
            ),
        ),
    ],
)
def test_a_setting_of_mmcv_becomes_mmengines(old: str, new: dict[str, object]) -> None:
    assert rewritten(old) == (new, [])


@pytest.mark.parametrize(
    ('old', 'words'),
    [
        ("lr_config = dict(policy='CosineAnnealing')", "policy 'cosineannealing'"),
        ("lr_config = dict(policy='cyclic')", "policy 'cyclic'"),
        ("lr_config = dict(policy='exp', warmup='exp')", "warm-up 'exp'"),
        ("runner = dict(type='MultiLoaderEpochBasedRunner', max_epochs=5)", 'mmrazor.DartsEpochBasedTrainLoop'),
        ('data = dict(train=[dict(), dict()])', '`data.train` is a list'),
        ('data = dict(samples_per_gpu=2)', 'train_dataloader, val_dataloader and test_dataloader'),
        ("evaluation = dict(metric='bbox')", 'mmdet.CocoMetric'),
        ("evaluation = dict(metric=['PQ'])", "['PQ']"),
        ('optimizer_config = dict(grad_clip=None)', 'belongs into `optim_wrapper`'),
        ('optimizer = 3', 'its value is not plain'),
        ('data = dict(**{})', 'its value is not plain'),
        ("log_config = dict(interval=1, hooks=[dict(type='TensorboardLoggerHook')])", 'TensorboardVisBackend'),
        (
            "searcher = dict(type='EvolutionSearcher', candidate_pool_size=50, constraints=dict(flops=330 * 1e6))",
            'num_candidates=50, constraints_range=dict(flops=(0, (330 * 1e6) / 1e6))',
        ),
        ("searcher = dict(type='GreedySearcher')", 'AutoSlimGreedySearchLoop'),
    ],
)
def test_what_cannot_be_rewritten_is_told(old: str, words: str) -> None:
    by_hand = rewritten(old)[1]
    assert len(by_hand) == 1
    assert words in by_hand[0]


def test_a_config_of_mmengine_is_left_alone() -> None:
    assert (
        rewritten("optim_wrapper = dict(optimizer=dict(type='SGD'))\ntrain_cfg = dict(max_epochs=1)\nload_from = None")[1] == []
    )
    assert list(RuntimeKeys(Source('train_cfg = dict(max_epochs=1)')).changes()) == []
