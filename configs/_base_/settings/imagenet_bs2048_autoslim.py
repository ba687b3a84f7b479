# For configs written for MMRazor (mmrazor::_base_/...): ImageNet-1k by mmpretrain, the schedule of AutoSlim.
# Eight processes of 256 images make a batch.
dataset_type = 'mmcls.ImageNet'
preprocess_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

train_pipeline = [
    dict(type='mmcls.LoadImageFromFile'),
    dict(type='mmcls.RandomResizedCrop', scale=224),
    dict(type='mmcls.ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4),
    dict(type='mmcls.RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmcls.PackInputs'),
]
test_pipeline = [
    dict(type='mmcls.LoadImageFromFile'),
    dict(type='mmcls.ResizeEdge', scale=256, edge='short'),
    dict(type='mmcls.CenterCrop', crop_size=224),
    dict(type='mmcls.PackInputs'),
]

train_dataloader = dict(
    batch_size=256,
    num_workers=4,
    dataset=dict(type=dataset_type, data_root='data/imagenet', split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
    persistent_workers=True,
)
val_dataloader = dict(
    batch_size=256,
    num_workers=4,
    dataset=dict(type=dataset_type, data_root='data/imagenet', split='val', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
    persistent_workers=True,
)
val_evaluator = dict(type='mmcls.Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

paramwise_cfg = dict(bias_decay_mult=0.0, norm_decay_mult=0.0, dwconv_decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.5, momentum=0.9, weight_decay=4e-5), paramwise_cfg=paramwise_cfg, clip_grad=None
)
param_scheduler = dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=True, end=50, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=50)
val_cfg = dict()
test_cfg = dict()
