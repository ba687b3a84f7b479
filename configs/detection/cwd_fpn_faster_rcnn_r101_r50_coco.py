# A Faster R-CNN on ResNet-50 that learns from the labels and from the pyramid of one on ResNet-101, whose heads do not run.
# Needs mmdetection and COCO in data/coco; `model.teacher_ckpt` is a checkpoint of the large one.
# https://arxiv.org/abs/2011.13256
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

_levels = range(4)
_pyramid = {f'fpn{level}': dict(type='ModuleOutputs', source=f'neck.fpn_convs.{level}.conv') for level in _levels}
model = dict(
    _delete_=True,
    type='strop.FpnTeacherDistill',
    architecture=_base_.model,
    teacher=dict(_base_.model, backbone=dict(_base_.model.backbone, depth=101, init_cfg=None)),
    teacher_ckpt='faster_rcnn_r101_fpn_1x_coco.pth',
    distiller=dict(
        type='strop.ConfigurableDistiller',
        student_recorders=_pyramid,
        teacher_recorders=_pyramid,
        distill_losses={
            f'loss_fpn{level}': dict(type='strop.ChannelWiseDivergence', tau=1, loss_weight=10) for level in _levels
        },
        loss_forward_mappings={
            f'loss_fpn{level}': dict(
                preds_S=dict(recorder=f'fpn{level}', from_student=True),
                preds_T=dict(recorder=f'fpn{level}', from_student=False),
            )
            for level in _levels
        },
    ),
)
find_unused_parameters = True
