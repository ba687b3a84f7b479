# Train a cell that `darts_supernet_mnist.py` found from the start.
_base_ = ['../_base_/darts_space.py']

_images = dict(type='strop.ImageDataset', source='mnist', form='samples')

model = dict(
    type='strop.sub_model',
    fix_subnet='work_dirs/darts/subnet_epoch_4.yaml',
    cfg=dict(
        type='strop.ImageClassifier',
        backbone=dict(
            type='strop.DartsBackbone',
            in_channels=1,
            base_channels=8,
            num_layers=3,
            num_nodes=2,
            stem_multiplier=1,
            out_indices=(2,),
            mutable_cfg=dict(type='strop.OneShotMutableOP', candidates=_base_.operations),
            route_cfg=dict(type='strop.DiffChoiceRoute'),
        ),
        neck=dict(type='strop.GlobalAveragePooling'),
        head=dict(type='strop.LinearClsHead', num_classes=10, in_channels=64, topk=(1,)),
        data_preprocessor=dict(type='strop.ClsDataPreprocessor', mean=[33.3], std=[78.6], to_rgb=False),
    ),
)

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(_images, split='train'),
    sampler=dict(type='strop.EpochSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    dataset=dict(_images, split='val'),
    sampler=dict(type='strop.EpochSampler', shuffle=False),
)
val_evaluator = dict(type='strop.Accuracy', topk=(1,))
val_cfg = dict()
test_dataloader = dict(val_dataloader, dataset=dict(_images, split='test'))
test_evaluator, test_cfg = val_evaluator, dict()

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=3e-4))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, T_max=10, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=10)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2))
randomness = dict(seed=0)
