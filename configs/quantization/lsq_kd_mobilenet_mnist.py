# 4 bits with learned steps, taught by the float model that it began with.
#     strop train configs/distill/teacher_mobilenet_mnist.py --work-dir runs/float
#     strop train configs/quantization/lsq_kd_mobilenet_mnist.py --work-dir runs/lsq_kd
_base_ = ['../_base_/digits_quantization.py']

_logits = dict(type='strop.KLDivergence', tau=4, loss_weight=1)
model = dict(
    type='strop.SingleTeacherDistill',
    architecture=dict(
        type='strop.MMArchitectureQuant',
        architecture=_base_.architecture,
        float_checkpoint=_base_.float_checkpoint,
        quantizer=dict(
            type='strop.AcademicQuantizer',
            qconfig_mapping=dict(_global_=_base_.lsq4_qconfig),
            first_last=_base_.lsq8_qconfig,
        ),
        input_shapes=_base_.input_shapes,
    ),
    teacher=_base_.architecture,
    teacher_ckpt=_base_.float_checkpoint,
    distiller=dict(
        type='strop.ConfigurableDistiller',
        student_recorders=dict(fc=dict(type='ModuleOutputs', source='architecture.head.fc')),
        teacher_recorders=dict(fc=dict(type='ModuleOutputs', source='head.fc')),
        distill_losses=dict(loss_kl=_logits),
        loss_forward_mappings=dict(
            loss_kl=dict(preds_S=dict(recorder='fc', from_student=True), preds_T=dict(recorder='fc', from_student=False))
        ),
    ),
    data_preprocessor=_base_.data_preprocessor,
)
train_cfg = dict(_delete_=True, type='strop.LSQEpochBasedLoop', max_epochs=3, val_interval=3, freeze_bn_begin=3)
