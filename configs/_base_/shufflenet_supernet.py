# The search space of the SPOS paper: 20 blocks, each one of four candidates.
_choice = dict(
    type='strop.OneShotMutableOP',
    candidates=dict(
        shuffle_3x3=dict(type='strop.ShuffleBlock', kernel_size=3),
        shuffle_5x5=dict(type='strop.ShuffleBlock', kernel_size=5),
        shuffle_7x7=dict(type='strop.ShuffleBlock', kernel_size=7),
        shuffle_xception=dict(type='strop.ShuffleXception'),
    ),
)

# Rows: channels, number of blocks, the choice in each block.
arch_setting = [[64, 4, _choice], [160, 4, _choice], [320, 8, _choice], [640, 4, _choice]]

supernet = dict(
    type='strop.ImageClassifier',
    backbone=dict(type='strop.SearchableShuffleNetV2', arch_setting=arch_setting),
    neck=dict(type='strop.GlobalAveragePooling'),
    head=dict(
        type='strop.LinearClsHead',
        num_classes=1000,
        in_channels=1024,
        loss=dict(type='strop.LabelSmoothLoss', num_classes=1000, label_smooth_val=0.1, mode='original', loss_weight=1.0),
        topk=(1, 5),
    ),
)
