from __future__ import annotations

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS

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


CHILD = "_base_ = ['./base.py']\n"
EPOCHS = "runner = dict(type='EpochBasedRunner', max_epochs=300)\n"
ITERATIONS = "runner = dict(type='IterBasedRunner', max_iters=500)\n"


def found(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the rewritten text without its base, and what is said, but for the changes that it shows itself."""
    source = Source(text)
    changes = list(RuntimeKeys(source).changes())
    new = edited(text, [edit for change in changes for edit in change.edits])
    return new.removeprefix(CHILD), [(change.kind, change.text) for change in changes if change.kind != 'change']


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        (
            f"{EPOCHS}lr_config = dict(policy='poly', power=0.9, min_lr=1e-4, by_epoch=False)",
            'train_cfg = dict(by_epoch=True, max_epochs=300)\n'
            "param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-4, end=300, by_epoch=True, "
            'convert_to_iter_based=True)]',
        ),
        (
            f"{EPOCHS}lr_config = dict(policy='CosineAnnealing', by_epoch=False)",
            'train_cfg = dict(by_epoch=True, max_epochs=300)\n'
            "param_scheduler = [dict(type='CosineAnnealingLR', T_max=300, eta_min=0, begin=0, end=300, by_epoch=True, "
            'convert_to_iter_based=True)]',
        ),
        (
            f"{EPOCHS}lr_config = dict(policy='poly')\ncheckpoint_config = dict(interval=1)",
            'train_cfg = dict(by_epoch=True, max_epochs=300)\n'
            "param_scheduler = [dict(type='PolyLR', power=1.0, eta_min=0, end=300, by_epoch=True)]\n"
            "default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))",
        ),
        (
            f"{ITERATIONS}lr_config = dict(policy='poly', power=0.9)\ncheckpoint_config = dict(interval=100)",
            'train_cfg = dict(by_epoch=False, max_iters=500)\n'
            "param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0, end=500, by_epoch=False)]\n"
            "default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=100, by_epoch=False))",
        ),
        (
            f"{ITERATIONS}lr_config = dict(policy='step', step=[400])\ncheckpoint_config = dict(by_epoch=True, interval=1)",
            'train_cfg = dict(by_epoch=False, max_iters=500)\n'
            "param_scheduler = [dict(type='MultiStepLR', milestones=[400], gamma=0.1, by_epoch=False)]\n"
            "default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=True, interval=1))",
        ),
        (
            "runner = dict(max_iters=500)\nlr_config = dict(policy='cosine')",
            'train_cfg = dict(by_epoch=False, max_iters=500)\n'
            "param_scheduler = [dict(type='CosineAnnealingLR', T_max=500, eta_min=0, by_epoch=False)]",
        ),
    ],
)
def test_what_a_schedule_and_checkpoints_count_is_what_the_runner_counts(old: str, new: str) -> None:
    assert found(old) == (new, [])


def test_a_rate_that_changes_in_each_iteration_ends_with_the_run() -> None:
    said, _ = rewritten('total_epochs = 2\nlr_config = dict(policy="poly", by_epoch=False)')
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    (config,) = said['param_scheduler']  # type: ignore[misc]
    scheduler = PARAM_SCHEDULERS.build(config, default_args=dict(optimizer=optimizer, epoch_length=10))
    rates = [optimizer.param_groups[0]['lr']]
    for _ in range(19):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]['lr'])
    # Of 20 iterations the first has the whole rate and the last has none.
    assert rates == pytest.approx([1 - step / 19 for step in range(20)])


def test_what_the_runner_of_a_base_counts_is_not_guessed() -> None:
    assert found(f"{CHILD}lr_config = dict(policy='poly', by_epoch=False)")[1] == [
        (
            'by hand',
            "`lr_config` with policy 'poly' goes over the whole run, whose length is not in this file; it is a list of "
            'schedulers in `param_scheduler`',
        )
    ]
    assert found(f"{CHILD}lr_config = dict(policy='step', step=[3])") == (
        "param_scheduler = [dict(type='MultiStepLR', milestones=[3], gamma=0.1, by_epoch=True)]",
        [
            (
                'by hand',
                '`param_scheduler` is in the place of the whole list of a base; what its `lr_config` adds, such as a warm-up, '
                'is to be written here, too',
            ),
            ('note', 'the steps of `lr_config` are taken for epochs; under a runner of iterations they are by_epoch=False'),
        ],
    )
    assert found(f'{CHILD}checkpoint_config = dict(interval=1000)\nlog_config = dict(interval=7)') == (
        "checkpoint_config = dict(interval=1000)\ndefault_hooks = dict(logger=dict(type='LoggerHook', interval=7))",
        [
            (
                'by hand',
                '`checkpoint_config` is `checkpoint` of `default_hooks`; a runner of iterations needs by_epoch=False beside '
                'its interval, and the runner is not in this file',
            )
        ],
    )
    assert found(f'{CHILD}checkpoint_config = dict(max_keep_ckpts=3)') == (
        "default_hooks = dict(checkpoint=dict(type='CheckpointHook', max_keep_ckpts=3))",
        [],
    )


def test_the_runner_of_a_base_is_changed_in_its_length() -> None:
    assert found(f'{CHILD}runner = dict(max_iters=150000)') == ('train_cfg = dict(max_iters=150000)', [])
    assert found(f'{CHILD}runner = dict(max_epochs=9)') == ('train_cfg = dict(max_epochs=9)', [])
    assert found(f"{CHILD}runner = dict(_delete_=True, type='IterBasedRunner', max_iters=9)") == (
        'train_cfg = dict(_delete_=True, by_epoch=False, max_iters=9)',
        [],
    )


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('optimizer = dict(lr=0.01)', 'optim_wrapper = dict(optimizer=dict(lr=0.01))'),
        (
            'optimizer = dict(lr=0.01, paramwise_cfg=dict(norm_decay_mult=0.0))',
            'optim_wrapper = dict(optimizer=dict(lr=0.01), paramwise_cfg=dict(norm_decay_mult=0.0))',
        ),
        (
            'optimizer = dict(paramwise_cfg=dict(norm_decay_mult=0.0))',
            'optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))',
        ),
        (
            "one = dict(type='SGD', lr=0.1)\noptimizer = dict(architecture=one)\noptimizer_config = None\nx = 1",
            "one = dict(type='SGD', lr=0.1)\n"
            "optim_wrapper = dict(constructor='mmrazor.SeparateOptimWrapperConstructor', architecture=dict(optimizer=one))\n"
            'x = 1',
        ),
        (
            "optimizer = dict(type='SGD')\noptimizer_config = dict(type='Fp16OptimizerHook', loss_scale=512.0, "
            'grad_clip=dict(max_norm=5.0), coalesce=True)\nx = 1',
            "optim_wrapper = dict(optimizer=dict(type='SGD'), type='AmpOptimWrapper', loss_scale=512.0, "
            'clip_grad=dict(max_norm=5.0))\nx = 1',
        ),
        (
            "optimizer = dict(type='SGD')\n"
            "optimizer_config = dict(type='GradientCumulativeOptimizerHook', cumulative_iters=4)\nx = 1",
            "optim_wrapper = dict(optimizer=dict(type='SGD'), accumulative_counts=4)\nx = 1",
        ),
    ],
)
def test_one_optimizer_or_several_and_their_wrapper(old: str, new: str) -> None:
    assert found(f'{CHILD}{old}') == (new, [])


BELONGS = '`optimizer_config` belongs into `optim_wrapper` (clip_grad, loss_scale)'


@pytest.mark.parametrize(
    ('old', 'new', 'by_hand'),
    [
        (
            'optimizer = 3\noptimizer_config = dict(grad_clip=dict(max_norm=5.0))',
            'optimizer = 3\noptimizer_config = dict(grad_clip=dict(max_norm=5.0))',
            ['`optimizer` is of mmcv 1.x, and its value is not plain, or is read again below', BELONGS],
        ),
        (
            'optimizer_config = dict(grad_clip=dict(max_norm=5.0))',
            'optimizer_config = dict(grad_clip=dict(max_norm=5.0))',
            [BELONGS],
        ),
        (
            "optimizer = dict(type='SGD')\noptimizer_config = dict(type='DistOptimizerHook', use_fp16=True)",
            "optim_wrapper = dict(optimizer=dict(type='SGD'))\n"
            "optimizer_config = dict(type='DistOptimizerHook', use_fp16=True)",
            [BELONGS],
        ),
        (
            "optimizer = dict(type='SGD')\noptimizer_config = dict(grad_clip=None, detect_anomalous_params=True)\nx = 1",
            "optim_wrapper = dict(optimizer=dict(type='SGD'))\nx = 1",
            ['`detect_anomalous_params=True` of `optimizer_config` is left out; what takes it is not known'],
        ),
        (
            "optimizer = dict(a=dict(type='SGD'), b=dict(type='Adam'))\noptimizer_config = dict(grad_clip=dict(max_norm=5.0))",
            "optim_wrapper = dict(constructor='mmrazor.SeparateOptimWrapperConstructor', a=dict(optimizer=dict(type='SGD')), "
            "b=dict(optimizer=dict(type='Adam')))\noptimizer_config = dict(grad_clip=dict(max_norm=5.0))",
            ['`optimizer_config` belongs into each part of `optim_wrapper` (clip_grad, loss_scale)'],
        ),
        (
            "optimizer = dict(a=dict(type='SGD'), b=dict(lr=0.1))",
            "optimizer = dict(a=dict(type='SGD'), b=dict(lr=0.1))",
            ['`optimizer` has settings without a type; each of several is dict(optimizer=dict(...)) in `optim_wrapper`'],
        ),
    ],
)
def test_what_a_wrapper_does_not_take_is_not_lost(old: str, new: str, by_hand: list[str]) -> None:
    assert found(old) == (new, [('by hand', text) for text in by_hand])


LOADERS = [
    ('note', "data sets take `data_root` where they took `data_prefix`, and pipelines end with dict(type='PackInputs')"),
    ('note', "a base's loaders change in what is written, others stay; new ones need sampler=dict(type='DefaultSampler')"),
]


def test_data_on_top_of_a_base_keep_what_they_do_not_say() -> None:
    assert found(f'{CHILD}data = dict(train=dict(ann_file="a"), val=dict(ann_file="b"))') == (
        'train_dataloader = dict(\n    dataset=dict(ann_file="a"),\n)\n'
        'val_dataloader = dict(\n    dataset=dict(ann_file="b"),\n)',
        LOADERS,
    )
    assert found(f'{CHILD}data = dict(workers_per_gpu=2, test=dict(ann_file="c"))') == (
        'train_dataloader = dict(\n    num_workers=2,\n)\n'
        'test_dataloader = dict(\n    num_workers=2,\n    dataset=dict(ann_file="c"),\n)',
        LOADERS,
    )
    assert found(f'{CHILD}data = dict(samples_per_gpu=4)') == ('train_dataloader = dict(\n    batch_size=4,\n)', LOADERS)


def test_of_data_that_are_whole_nothing_is_lost() -> None:
    old = 'data = dict(samples_per_gpu=8, pin_memory=True, val=dict(), val_dataloader=dict(\n    shuffle=1), shuffle=False)'
    assert found(old) == (
        'val_dataloader = dict(\n    batch_size=8,\n    num_workers=0,\n    pin_memory=True,\n    dataset=dict(),\n'
        "    sampler=dict(type='DefaultSampler', shuffle=False),\n)\nval_cfg = dict()",
        [
            (
                'by hand',
                '`val_dataloader=dict( shuffle=1)` of `data` is left out; what takes it is `val_dataloader`',
            ),
            ('by hand', '`shuffle=False` of `data` is left out; what takes it is not known'),
            LOADERS[0],
        ],
    )


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        (f'{CHILD}evaluation = dict(interval=5)', 'train_cfg = dict(val_interval=5)'),
        (
            f"{CHILD}evaluation = dict(interval=5, metric='mIoU', pre_eval=True)",
            "val_evaluator = test_evaluator = dict(type='mmseg.IoUMetric', iou_metrics=['mIoU'])\n"
            'train_cfg = dict(val_interval=5)',
        ),
        (
            f'{CHILD}runner = dict(max_epochs=9)\nevaluation = dict(interval=5, by_epoch=True)\nx = 1',
            'train_cfg = dict(max_epochs=9, val_interval=5)\nx = 1',
        ),
        ('evaluation = dict()', "val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, 5))"),
        (
            "evaluation = dict(interval=1, metric='accuracy', metric_options={'topk': (1, )})",
            "val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, ))",
        ),
        (
            "evaluation = dict(save_best='accuracy_top-1')\ncheckpoint_config = dict(interval=2)",
            "val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, 5))\n"
            "default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=2, save_best='accuracy/top1'))",
        ),
        (
            f"{CHILD}evaluation = dict(save_best='auto')\ncheckpoint_config = dict(max_keep_ckpts=2)",
            "default_hooks = dict(checkpoint=dict(type='CheckpointHook', max_keep_ckpts=2, save_best='auto'))",
        ),
    ],
)
def test_scores_their_interval_and_the_best(old: str, new: str) -> None:
    assert found(old) == (new, [])


@pytest.mark.parametrize(
    ('old', 'new', 'by_hand'),
    [
        (
            f'{CHILD}evaluation = dict(metric=SCORE)',
            'evaluation = dict(metric=SCORE)',
            '`evaluation` with metric=SCORE is `val_evaluator` and `test_evaluator` now',
        ),
        (
            f"{CHILD}evaluation = dict(interval=2, metric='bbox')",
            'train_cfg = dict(val_interval=2)',
            "`evaluation` is `val_evaluator = test_evaluator = dict(type='mmdet.CocoMetric', metric='bbox', ann_file=...)`",
        ),
        (
            "evaluation = dict(interval=2, metric='accuracy')",
            "val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, 5))",
            '`interval=2` of `evaluation` is left out; what takes it is `val_interval` of `train_cfg`',
        ),
        (
            f"{CHILD}evaluation = dict(interval=2, save_best='bbox_mAP')",
            'train_cfg = dict(val_interval=2)',
            "`save_best='bbox_mAP'` of `evaluation` is left out; what takes it is `save_best` of the CheckpointHook in "
            '`default_hooks`, with the name of the metric today',
        ),
        (
            f'{CHILD}evaluation = dict(interval=2, metric_options=dict(topk=(1, )))',
            'train_cfg = dict(val_interval=2)',
            '`metric_options=dict(topk=(1, ))` of `evaluation` is left out; what takes it is not known',
        ),
        (
            "evaluation = dict(metric='mIoU', gpu_collect=True)",
            "val_evaluator = test_evaluator = dict(type='mmseg.IoUMetric', iou_metrics=['mIoU'])",
            '`gpu_collect=True` of `evaluation` is left out; what takes it is not known',
        ),
    ],
)
def test_of_scores_what_is_not_understood_is_told(old: str, new: str, by_hand: str) -> None:
    assert found(old) == (new, [('by hand', by_hand)])


def test_a_runner_that_is_a_loop_by_hand_has_the_interval_of_validation() -> None:
    old = "runner = dict(type='MultiLoaderEpochBasedRunner', max_epochs=5)\nevaluation = dict(interval=2, metric='accuracy')"
    assert found(old)[1] == [
        (
            'by hand',
            "the runner 'MultiLoaderEpochBasedRunner' is a loop now: train_cfg = dict(type='mmrazor.DartsEpochBasedTrainLoop', "
            '..., val_interval=2)',
        )
    ]


def test_a_fixed_rate_keeps_its_warm_up() -> None:
    assert found("lr_config = dict(policy='fixed', warmup='linear', warmup_iters=500, warmup_ratio=0.001)") == (
        "param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500)]",
        [],
    )
    assert found("lr_config = dict(policy='fixed', warmup=None)\nx = 1") == ('x = 1', [])
    assert found(f"{CHILD}lr_config = dict(policy='fixed', warmup=None)") == ('param_scheduler = []', [])
    assert found("lr_config = dict(policy='fixed', warmup='exp')") == (
        "lr_config = dict(policy='fixed', warmup='exp')",
        [('by hand', "the warm-up 'exp' of `lr_config` has no scheduler of its name")],
    )


@pytest.mark.parametrize('policy', ['step', 'exp'])
def test_a_lowest_rate_that_no_scheduler_has_is_told(policy: str) -> None:
    old = f'lr_config = dict(policy={policy!r}, step=3, gamma=0.5, min_lr=1e-5)'
    text = f'`lr_config` with policy {policy!r} has a `min_lr`, which no such scheduler has; it is a list of schedulers in '
    assert found(old) == (old, [('by hand', f'{text}`param_scheduler`')])


def test_a_config_of_mmengine_is_left_alone() -> None:
    assert (
        rewritten("optim_wrapper = dict(optimizer=dict(type='SGD'))\ntrain_cfg = dict(max_epochs=1)\nload_from = None")[1] == []
    )
    assert list(RuntimeKeys(Source('train_cfg = dict(max_epochs=1)')).changes()) == []


def test_what_is_read_again_stays() -> None:
    """A script's device, and settings that code below changes."""
    script = (
        "import torch\ndevice = torch.device('cpu')\noptimizer = torch.optim.SGD([], lr=0.1)\nx = torch.ones(1).to(device)\n"
    )
    assert found(script) == (script.rstrip('\n') + '\n', [])
    config = "data = dict(samples_per_gpu=4, val=dict(type='A'))\nfor key in ['val']:\n    data[key].update(x=1)\n"
    assert found(config) == (
        config,
        [('by hand', '`data` is of mmcv 1.x, and its value is not plain, or is read again below')],
    )


def test_a_length_with_a_name_is_written_as_its_number_where_it_is_moved() -> None:
    said, by_hand = rewritten(
        "lr_config = dict(policy='CosineAnnealing', min_lr_ratio=1e-3)\ntotal_epochs = 24\n"
        "runner = dict(type='EpochBasedRunner', max_epochs=total_epochs)"
    )
    assert said == {
        'param_scheduler': [dict(type='CosineAnnealingLR', T_max=24, eta_min_ratio=1e-3, by_epoch=True)],
        'total_epochs': 24,
        'train_cfg': dict(by_epoch=True, max_epochs=24),
    }
    assert by_hand == []
    said, _ = rewritten('total_epochs = 24\ncheckpoint_config = dict(interval=total_epochs)')
    assert said['train_cfg'] == dict(by_epoch=True, max_epochs=24)
    assert said['default_hooks'] == dict(checkpoint=dict(type='CheckpointHook', interval=24))
    said, _ = rewritten(
        "optimizer = dict(type='SGD')\nclip = dict(max_norm=2)\noptimizer_config = dict(grad_clip=clip)\ny = clip"
    )
    assert said['optim_wrapper'] == dict(optimizer=dict(type='SGD'), clip_grad=dict(max_norm=2))


def test_gradients_that_a_child_does_not_clip_are_not() -> None:
    expected = dict(optimizer=dict(lr=0.01), clip_grad=None)
    for config in ('None', 'dict(grad_clip=None)'):
        said, _ = rewritten(f'{CHILD}optimizer = dict(lr=0.01)\noptimizer_config = {config}')
        assert said['optim_wrapper'] == expected


def test_loggers_are_named_and_comments_are_none() -> None:
    text = """log_config = dict(interval=50, hooks=[
    dict(type='TextLoggerHook'),
    # dict(type='TensorboardLoggerHook')
])"""
    assert rewritten(text) == ({'default_hooks': dict(logger=dict(type='LoggerHook', interval=50))}, [])
    _, by_hand = rewritten(
        "log_config = dict(hooks=[dict(type='WandbLoggerHook', init_kwargs=dict(project='p')), dict(type='Own')])"
    )
    assert by_hand == [
        "what WandbLoggerHook writes is written by visualizer = dict(type='Visualizer', "
        "vis_backends=[dict(type='WandbVisBackend')])",
        'the hook Own of `log_config` is left out',
    ]


def test_steps_with_a_name_are_those_that_it_names() -> None:
    said, by_hand = rewritten("steps = [8, 11]\nlr_config = dict(policy='step', step=steps)")
    assert said['param_scheduler'] == [dict(type='MultiStepLR', milestones=[8, 11], gamma=0.1, by_epoch=True)]
    assert by_hand == []
    _, by_hand = rewritten("lr_config = dict(policy='step', step=list(range(30, 90, 30)))")
    assert 'has steps that are one number or several' in by_hand[0]
