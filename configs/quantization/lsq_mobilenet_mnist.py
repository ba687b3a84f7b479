# 4 bits with learned steps (LSQ, https://arxiv.org/abs/1902.08153); the first and the last layer have 8, as in the paper.
#     strop train configs/distill/teacher_mobilenet_mnist.py --work-dir runs/float
#     strop train configs/quantization/lsq_mobilenet_mnist.py --work-dir runs/lsq
_base_ = ['../_base_/digits_quantization.py']

model = dict(
    type='strop.MMArchitectureQuant',
    architecture=_base_.architecture,
    float_checkpoint=_base_.float_checkpoint,
    quantizer=dict(
        type='strop.AcademicQuantizer',
        qconfig_mapping=dict(_global_=_base_.lsq4_qconfig),
        first_last=_base_.lsq8_qconfig,
    ),
    input_shapes=_base_.input_shapes,
    data_preprocessor=_base_.data_preprocessor,
)
train_cfg = dict(_delete_=True, type='strop.LSQEpochBasedLoop', max_epochs=3, val_interval=3, freeze_bn_begin=3)
