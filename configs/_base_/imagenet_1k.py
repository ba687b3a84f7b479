# ImageNet-1k as folders: data/imagenet/train/<class>/*.JPEG and data/imagenet/val/<class>/*.JPEG.
data_root = 'data/imagenet'

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    dataset=dict(
        type='strop.ImageFolderDataset',
        root=f'{data_root}/train',
        form='samples',
        transforms=[
            dict(type='torchvision.transforms.v2.RandomResizedCrop', size=224, antialias=True),
            dict(type='torchvision.transforms.v2.RandomHorizontalFlip'),
        ],
    ),
    sampler=dict(type='strop.EpochSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    dataset=dict(
        type='strop.ImageFolderDataset',
        root=f'{data_root}/val',
        form='samples',
        transforms=[
            dict(type='torchvision.transforms.v2.Resize', size=256, antialias=True),
            dict(type='torchvision.transforms.v2.CenterCrop', size=224),
        ],
    ),
    sampler=dict(type='strop.EpochSampler', shuffle=False),
)
val_evaluator = dict(type='strop.Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

data_preprocessor = dict(type='strop.ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
