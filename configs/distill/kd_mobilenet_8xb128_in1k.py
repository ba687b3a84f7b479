# A MobileNetV2 of half the width that learns from the labels and from the whole one. `model.teacher_ckpt` is a checkpoint of
# that. https://arxiv.org/abs/1503.02531
_base_ = ['../_base_/imagenet_1k.py', '../_base_/schedule_spos.py', '../_base_/mobilenet_v2.py']

_fc = dict(fc=dict(type='ModuleOutputs', source='head.fc'))
model = dict(
    type='mmrazor.SingleTeacherDistill',
    architecture=dict(
        type='strop.sub_model',
        cfg=dict(
            _base_.architecture.cfg,
            backbone=dict(_base_.architecture.cfg.backbone, widen_factor=0.5),
        ),
        fix_subnet=_base_.architecture.fix_subnet,
    ),
    teacher=_base_.architecture,
    teacher_ckpt='mobilenet_v2.pth',
    distiller=dict(
        type='ConfigurableDistiller',
        student_recorders=_fc,
        teacher_recorders=_fc,
        distill_losses=dict(loss_kl=dict(type='KLDivergence', tau=1, loss_weight=1)),
        loss_forward_mappings=dict(
            loss_kl=dict(preds_S=dict(recorder='fc', from_student=True), preds_T=dict(recorder='fc', from_student=False))
        ),
    ),
    data_preprocessor=_base_.data_preprocessor,
)
find_unused_parameters = True
val_cfg = dict(type='mmrazor.SingleTeacherDistillValLoop')
test_cfg = dict(type='mmrazor.SingleTeacherDistillValLoop')
