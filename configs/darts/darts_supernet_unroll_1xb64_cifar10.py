# Search the cells of DARTS with the second order; the schedule of the paper. https://arxiv.org/abs/1806.09055
# The images are those of the "binary version" of CIFAR-10, unpacked into `data/`.
_base_ = ['../_base_/darts_space.py']

_images = dict(type='strop.ImageDataset', source='data/cifar-10-batches-bin', form='samples')
_augmented = dict(_images, transforms=[dict(type='TensorRandomCrop', size=32, padding=4), dict(type='TensorRandomFlip')])
_loader = dict(batch_size=64, num_workers=4, sampler=dict(type='strop.EpochSampler', shuffle=True))

model = dict(
    type='mmrazor.Darts',
    architecture=dict(
        type='strop.ImageClassifier',
        backbone=dict(
            type='mmrazor.DartsBackbone',
            in_channels=3,
            base_channels=16,
            num_layers=8,
            num_nodes=4,
            stem_multiplier=3,
            out_indices=(7,),
            mutable_cfg=dict(type='mmrazor.DiffMutableOP', candidates=_base_.search_operations),
            route_cfg=dict(type='mmrazor.DiffChoiceRoute', with_arch_param=False),
            norm_cfg=dict(type='BN', affine=False),
        ),
        neck=dict(type='strop.GlobalAveragePooling'),
        head=dict(type='strop.LinearClsHead', num_classes=10, in_channels=256, topk=(1, 5)),
    ),
    mutator=dict(type='mmrazor.DiffModuleMutator'),
    unroll=True,
    data_preprocessor=dict(type='strop.ClsDataPreprocessor', mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7], to_rgb=False),
)

# One half of the training images trains the weights, the other the architecture.
train_dataloader = dict(_loader, dataset=dict(_augmented, split='train', val=0.5))
train_cfg = dict(
    type='mmrazor.DartsEpochBasedTrainLoop',
    mutator_dataloader=dict(_loader, dataset=dict(_augmented, split='val', val=0.5)),
    max_epochs=50,
    val_interval=10,
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
    constructor='mmrazor.SeparateOptimWrapperConstructor',
    architecture=dict(
        optimizer=dict(type='SGD', lr=0.025, momentum=0.9, weight_decay=3e-4), clip_grad=dict(max_norm=5, norm_type=2)
    ),
    mutator=dict(optimizer=dict(type='Adam', lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)),
)
param_scheduler = dict(
    architecture=[dict(type='CosineAnnealingLR', T_max=50, eta_min=1e-3, by_epoch=True)],
    mutator=[dict(type='ConstantLR', factor=1.0, by_epoch=True)],
)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2))
custom_hooks = [dict(type='mmrazor.DumpSubnetHook', interval=5)]
randomness = dict(seed=0)
