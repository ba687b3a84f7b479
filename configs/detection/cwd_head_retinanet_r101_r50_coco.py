# A RetinaNet on ResNet-50 that learns from the labels and, channel by channel, from the class maps of one on ResNet-101.
# Needs mmdetection and COCO in data/coco; `model.teacher_ckpt` is a checkpoint of the large one.
# https://arxiv.org/abs/2011.13256
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

# The head runs once for each of the five levels of the pyramid.
_levels = range(5)
_maps = dict(maps=dict(type='ModuleOutputs', source='bbox_head.retina_cls'))
model = dict(
    _delete_=True,
    type='strop.SingleTeacherDistill',
    architecture=_base_.model,
    teacher=dict(_base_.model, backbone=dict(_base_.model.backbone, depth=101, init_cfg=None)),
    teacher_ckpt='retinanet_r101_fpn_1x_coco.pth',
    distiller=dict(
        type='strop.ConfigurableDistiller',
        student_recorders=_maps,
        teacher_recorders=_maps,
        distill_losses={
            f'loss_cwd{level}': dict(type='strop.ChannelWiseDivergence', tau=1, loss_weight=5) for level in _levels
        },
        loss_forward_mappings={
            f'loss_cwd{level}': dict(
                preds_S=dict(recorder='maps', record_idx=level, from_student=True),
                preds_T=dict(recorder='maps', record_idx=level, from_student=False),
            )
            for level in _levels
        },
    ),
)
find_unused_parameters = True
