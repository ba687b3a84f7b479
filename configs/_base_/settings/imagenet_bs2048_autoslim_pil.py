# For configs written for MMRazor (mmrazor::_base_/...): as imagenet_bs2048_autoslim.py, images read and resized by Pillow.
_base_ = ['./imagenet_bs2048_autoslim.py']

train_pipeline = [
    dict(type='mmcls.LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='mmcls.RandomResizedCrop', scale=224, backend='pillow'),
    dict(type='mmcls.ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4),
    dict(type='mmcls.RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmcls.PackInputs'),
]
test_pipeline = [
    dict(type='mmcls.LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='mmcls.ResizeEdge', scale=256, edge='short', backend='pillow'),
    dict(type='mmcls.CenterCrop', crop_size=224),
    dict(type='mmcls.PackInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
