# A ProxylessNAS-like space on MobileNetV2: kernel sizes and expansions, or no block at all.
_candidates = {
    f'mb_k{kernel}e{expand}': dict(type='strop.MBBlock', kernel_size=kernel, expand_ratio=expand, act_cfg=dict(type='ReLU6'))
    for kernel in (3, 5, 7)
    for expand in (3, 6)
}
_choice = dict(type='strop.OneShotMutableOP', candidates=_candidates)
_choice_or_none = dict(type='strop.OneShotMutableOP', candidates=dict(_candidates, identity=dict(type='strop.Identity')))
_first = dict(
    type='strop.OneShotMutableOP',
    candidates=dict(mb_k3e1=dict(type='strop.MBBlock', kernel_size=3, expand_ratio=1, act_cfg=dict(type='ReLU6'))),
)

# Rows: channels, number of blocks, stride of the first, the choice in each block. The first block of a stage changes the
# shape and is always there.
arch_setting = [
    [16, 1, 1, _first],
    [24, 1, 2, _choice],
    [24, 3, 1, _choice_or_none],
    [32, 1, 2, _choice],
    [32, 3, 1, _choice_or_none],
    [64, 1, 2, _choice],
    [64, 3, 1, _choice_or_none],
    [96, 1, 1, _choice],
    [96, 3, 1, _choice_or_none],
    [160, 1, 2, _choice],
    [160, 3, 1, _choice_or_none],
    [320, 1, 1, _choice],
]

supernet = dict(
    type='strop.ImageClassifier',
    backbone=dict(
        type='strop.SearchableMobileNetV2',
        first_channels=32,
        last_channels=1280,
        arch_setting=arch_setting,
        out_indices=(12,),
    ),
    neck=dict(type='strop.GlobalAveragePooling'),
    head=dict(
        type='strop.LinearClsHead',
        num_classes=1000,
        in_channels=1280,
        loss=dict(type='strop.LabelSmoothLoss', num_classes=1000, label_smooth_val=0.1, mode='original', loss_weight=1.0),
        topk=(1, 5),
    ),
)
