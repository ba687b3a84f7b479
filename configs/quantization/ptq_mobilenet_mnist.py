# 8 bits without training: steps from 20 batches of training digits, in a few seconds.
#     strop train configs/distill/teacher_mobilenet_mnist.py --work-dir runs/float
#     strop test configs/quantization/ptq_mobilenet_mnist.py --work-dir runs/ptq
_base_ = ['../_base_/digits_quantization.py']

model = dict(
    type='strop.MMArchitectureQuant',
    architecture=_base_.architecture,
    float_checkpoint=_base_.float_checkpoint,
    quantizer=dict(type='strop.OpenVINOQuantizer', global_qconfig=_base_.int8_qconfig),
    input_shapes=_base_.input_shapes,
    data_preprocessor=_base_.data_preprocessor,
)
val_cfg = dict()
test_cfg = dict(_delete_=True, type='strop.PTQLoop', calibrate_dataloader=_base_.train_dataloader, calibrate_steps=20)
