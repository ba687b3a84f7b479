# A PSPNet on ResNet-18 that learns from the labels and, channel by channel, from the class maps of one on ResNet-101.
# Needs mmsegmentation and Cityscapes in data/cityscapes; `model.teacher_ckpt` is a checkpoint of the large one.
# https://arxiv.org/abs/2011.13256
_base_ = [
    'mmseg::_base_/models/pspnet_r50-d8.py',
    'mmseg::_base_/datasets/cityscapes.py',
    'mmseg::_base_/schedules/schedule_80k.py',
    'mmseg::_base_/default_runtime.py',
]

# One process can use it, too; SyncBN asks for several.
_norm = dict(type='BN', requires_grad=True)
data_preprocessor = dict(size=(512, 1024))


def _pspnet(depth, wide):
    return dict(
        _base_.model,
        pretrained=None,
        data_preprocessor=None,
        backbone=dict(_base_.model.backbone, depth=depth, norm_cfg=_norm),
        decode_head=dict(_base_.model.decode_head, in_channels=wide, channels=wide // 4, norm_cfg=_norm),
        auxiliary_head=dict(_base_.model.auxiliary_head, in_channels=wide // 2, channels=wide // 8, norm_cfg=_norm),
    )


_logits = dict(logits=dict(type='ModuleOutputs', source='decode_head.conv_seg'))
model = dict(
    _delete_=True,
    type='strop.SingleTeacherDistill',
    architecture=_pspnet(18, 512),
    teacher=_pspnet(101, 2048),
    teacher_ckpt='pspnet_r101-d8_512x1024_80k_cityscapes.pth',
    distiller=dict(
        type='strop.ConfigurableDistiller',
        student_recorders=_logits,
        teacher_recorders=_logits,
        distill_losses=dict(loss_cwd=dict(type='strop.ChannelWiseDivergence', tau=1, loss_weight=5)),
        loss_forward_mappings=dict(
            loss_cwd=dict(
                preds_S=dict(recorder='logits', from_student=True),
                preds_T=dict(recorder='logits', from_student=False),
            )
        ),
    ),
)
find_unused_parameters = True
