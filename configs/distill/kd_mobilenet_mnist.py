# A small network of digits that learns from the labels and from the soft outputs of a wide one:
#     strop train configs/distill/teacher_mobilenet_mnist.py --work-dir runs/teacher
#     strop train configs/distill/kd_mobilenet_mnist.py --cfg-options model.teacher_ckpt=runs/teacher/epoch_10.pth
# https://arxiv.org/abs/1503.02531
_base_ = ['../_base_/digits_mobilenet.py']

_fc = dict(fc=dict(type='ModuleOutputs', source='head.fc'))
model = dict(
    type='strop.SingleTeacherDistill',
    architecture=dict(
        type='strop.sub_model',
        cfg=dict(
            _base_.architecture.cfg,
            backbone=dict(
                _base_.architecture.cfg.backbone,
                first_channels=8,
                last_channels=32,
                arch_setting=[
                    [8, 2, 2, _base_.architecture.cfg.backbone.arch_setting[0][3]],
                    [16, 2, 2, _base_.architecture.cfg.backbone.arch_setting[1][3]],
                ],
            ),
            head=dict(_base_.architecture.cfg.head, in_channels=32),
        ),
        fix_subnet=_base_.architecture.fix_subnet,
    ),
    teacher=_base_.architecture,
    teacher_ckpt='runs/teacher/epoch_10.pth',
    distiller=dict(
        type='strop.ConfigurableDistiller',
        student_recorders=_fc,
        teacher_recorders=_fc,
        distill_losses=dict(loss_kl=dict(type='strop.KLDivergence', tau=4, loss_weight=1)),
        loss_forward_mappings=dict(
            loss_kl=dict(preds_S=dict(recorder='fc', from_student=True), preds_T=dict(recorder='fc', from_student=False))
        ),
    ),
    data_preprocessor=_base_.data_preprocessor,
)
val_cfg = dict(type='strop.SingleTeacherDistillValLoop')
test_cfg = dict(type='strop.SingleTeacherDistillValLoop')
