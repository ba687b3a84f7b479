# DetNAS, second step: the supernet of ShuffleNetV2 blocks trained inside the detector. Its first step is the supernet of
# spos/spos_shufflenet_supernet_8xb128_in1k.py, whose checkpoint is `load_from`. Needs mmdetection and COCO in data/coco.
# https://arxiv.org/abs/1903.10979
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

# Batches of a detector are small: several processes share their statistics. With one process it is BN.
norm_cfg = dict(type='SyncBN', requires_grad=True)
_choice = dict(
    type='strop.OneShotMutableOP',
    candidates=dict(
        shuffle_3x3=dict(type='strop.ShuffleBlock', kernel_size=3, norm_cfg=norm_cfg),
        shuffle_5x5=dict(type='strop.ShuffleBlock', kernel_size=5, norm_cfg=norm_cfg),
        shuffle_7x7=dict(type='strop.ShuffleBlock', kernel_size=7, norm_cfg=norm_cfg),
        shuffle_xception=dict(type='strop.ShuffleXception', norm_cfg=norm_cfg),
    ),
)

supernet = dict(
    _base_.model,
    backbone=dict(
        type='strop.SearchableShuffleNetV2',
        arch_setting=[[64, 4, _choice], [160, 4, _choice], [320, 8, _choice], [640, 4, _choice]],
        norm_cfg=norm_cfg,
        out_indices=(0, 1, 2, 3),
        with_last_layer=False,
    ),
    neck=dict(type='FPN', norm_cfg=norm_cfg, in_channels=[64, 160, 320, 640], out_channels=256, num_outs=5),
    roi_head=dict(
        _base_.model.roi_head,
        bbox_head=dict(
            _base_.model.roi_head.bbox_head, type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg
        ),
    ),
)
model = dict(
    _delete_=True,
    type='strop.SPOS',
    architecture=supernet,
    mutator=dict(type='strop.OneShotMutator'),
)
find_unused_parameters = True
