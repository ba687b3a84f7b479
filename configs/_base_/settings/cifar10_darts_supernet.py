# For configs written for MMRazor (mmrazor::_base_/...): CIFAR-10 by mmpretrain, the schedule of DARTS' search. One half of the
# training images trains the weights, the other the architecture.
_base_ = ['./cifar10_darts_subnet.py']

train_pipeline = [
    dict(type='mmcls.RandomCrop', crop_size=32, padding=4),
    dict(type='mmcls.RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmcls.PackInputs'),
]

train_dataloader = dict(batch_size=64, num_workers=4, dataset=dict(indices=-25000, pipeline=train_pipeline))
val_dataloader = dict(batch_size=128, num_workers=4)
test_dataloader = dict(batch_size=128, num_workers=4)

optim_wrapper = dict(
    _delete_=True,
    constructor='mmrazor.SeparateOptimWrapperConstructor',
    architecture=dict(
        optimizer=dict(type='SGD', lr=0.025, momentum=0.9, weight_decay=3e-4), clip_grad=dict(max_norm=5, norm_type=2)
    ),
    mutator=dict(optimizer=dict(type='Adam', lr=3e-4, weight_decay=1e-3)),
)
search_epochs = 50
param_scheduler = [dict(type='CosineAnnealingLR', T_max=search_epochs, eta_min=1e-3, begin=0, end=search_epochs)]
train_cfg = dict(
    _delete_=True,
    type='mmrazor.DartsEpochBasedTrainLoop',
    mutator_dataloader=dict(
        batch_size=64,
        num_workers=4,
        dataset=dict(type='mmcls.CIFAR10', data_root='data/cifar10', split='train', indices=25000, pipeline=train_pipeline),
        sampler=dict(type='DefaultSampler', shuffle=True),
        persistent_workers=True,
    ),
    max_epochs=search_epochs,
)
