# 8 bits, trained for three epochs; in the last one observed ranges and statistics of batch norms stay as they are.
#     strop train configs/distill/teacher_mobilenet_mnist.py --work-dir runs/float
#     strop train configs/quantization/qat_mobilenet_mnist.py --work-dir runs/qat
_base_ = ['../_base_/digits_quantization.py']

model = dict(
    type='strop.MMArchitectureQuant',
    architecture=_base_.architecture,
    float_checkpoint=_base_.float_checkpoint,
    quantizer=dict(type='strop.OpenVINOQuantizer', global_qconfig=_base_.int8_qconfig),
    input_shapes=_base_.input_shapes,
    data_preprocessor=_base_.data_preprocessor,
)
train_cfg = dict(
    _delete_=True, type='strop.QATEpochBasedLoop', max_epochs=3, val_interval=3, disable_observer_begin=3, freeze_bn_begin=3
)
