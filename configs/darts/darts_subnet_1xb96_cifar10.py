# Train a found cell in the large network of the DARTS paper, with its auxiliary classifier and cutout.
_base_ = ['../_base_/darts_space.py']

_images = dict(type='strop.ImageDataset', source='data/cifar-10-batches-bin', form='samples')
_cutout = dict(type='torchvision.transforms.v2.RandomErasing', p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0))

model = dict(
    type='mmrazor.sub_model',
    fix_subnet='work_dirs/darts/subnet_epoch_50.yaml',
    cfg=dict(
        type='strop.ImageClassifier',
        backbone=dict(
            type='mmrazor.DartsBackbone',
            in_channels=3,
            base_channels=36,
            num_layers=20,
            num_nodes=4,
            stem_multiplier=3,
            out_indices=(19,),
            auxliary=True,
            aux_channels=128,
            aux_out_channels=768,
            mutable_cfg=dict(type='mmrazor.OneShotMutableOP', candidates=_base_.operations),
            route_cfg=dict(type='mmrazor.DiffChoiceRoute'),
        ),
        neck=dict(type='strop.GlobalAveragePooling'),
        head=dict(
            type='mmrazor.DartsSubnetClsHead',
            num_classes=10,
            in_channels=576,
            aux_in_channels=768,
            loss=dict(type='strop.CrossEntropyLoss', loss_weight=1.0),
            aux_loss=dict(type='strop.CrossEntropyLoss', loss_weight=0.4),
            topk=(1, 5),
        ),
        data_preprocessor=dict(
            type='strop.ClsDataPreprocessor', mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7], to_rgb=False
        ),
    ),
)

train_dataloader = dict(
    batch_size=96,
    num_workers=4,
    dataset=dict(
        _images,
        split='trainval',
        transforms=[dict(type='TensorRandomCrop', size=32, padding=4), dict(type='TensorRandomFlip'), _cutout],
    ),
    sampler=dict(type='strop.EpochSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=4,
    dataset=dict(_images, split='test'),
    sampler=dict(type='strop.EpochSampler', shuffle=False),
)
val_evaluator = dict(type='strop.Accuracy', topk=(1, 5))
val_cfg = dict()
test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, dict()

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.025, momentum=0.9, weight_decay=3e-4), clip_grad=dict(max_norm=5, norm_type=2)
)
param_scheduler = dict(type='CosineAnnealingLR', T_max=600, by_epoch=True)
train_cfg = dict(by_epoch=True, max_epochs=600, val_interval=10)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2))
custom_hooks = [dict(type='mmrazor.DropPathProbHook', max_prob=0.2)]
randomness = dict(seed=0)
