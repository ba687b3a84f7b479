# MobileNetV2 (https://arxiv.org/abs/1801.04381): the searchable backbone with one operator everywhere.
_block = dict(
    type='strop.OneShotMutableOP',
    candidates=dict(
        mb_k3e6=dict(type='strop.MBBlock', kernel_size=3, expand_ratio=6, act_cfg=dict(type='ReLU6')),
    ),
)
_first = dict(
    type='strop.OneShotMutableOP',
    candidates=dict(mb_k3e1=dict(type='strop.MBBlock', kernel_size=3, expand_ratio=1, act_cfg=dict(type='ReLU6'))),
)
_rows = [(24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)]

architecture = dict(
    type='strop.sub_model',
    cfg=dict(
        type='strop.ImageClassifier',
        backbone=dict(
            type='strop.SearchableMobileNetV2',
            first_channels=32,
            last_channels=1280,
            arch_setting=[[16, 1, 1, _first], *([channels, blocks, stride, _block] for channels, blocks, stride in _rows)],
            out_indices=(7,),
        ),
        neck=dict(type='strop.GlobalAveragePooling'),
        head=dict(
            type='strop.LinearClsHead',
            num_classes=1000,
            in_channels=1280,
            loss=dict(type='strop.LabelSmoothLoss', num_classes=1000, label_smooth_val=0.1, mode='original', loss_weight=1.0),
            topk=(1, 5),
        ),
    ),
    fix_subnet={
        'backbone.layer1.0': 'mb_k3e1',
        **{f'backbone.layer{row}.{block}': 'mb_k3e6' for row, (_, blocks, _) in enumerate(_rows, 2) for block in range(blocks)},
    },
)
