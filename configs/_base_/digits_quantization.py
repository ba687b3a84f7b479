# What the configs of ../quantization share: the wide network of digits, begun with the weights of
#     strop train configs/distill/teacher_mobilenet_mnist.py --work-dir runs/float
_base_ = ['./digits_mobilenet.py']

float_checkpoint = 'runs/float/epoch_10.pth'
# Weights: signed, a step for each channel. Inputs: unsigned, since nearly all of them come from a ReLU.
int8_qconfig = dict(
    w_observer=dict(type='strop.PerChannelMinMaxObserver'),
    a_observer=dict(type='strop.MovingAverageMinMaxObserver'),
    w_fake_quant=dict(type='strop.FakeQuantize'),
    a_fake_quant=dict(type='strop.FakeQuantize'),
    w_qscheme=dict(qdtype='qint8', bit=8, is_symmetry=True, is_symmetric_range=True),
    a_qscheme=dict(qdtype='quint8', bit=8, is_symmetry=False, averaging_constant=0.1),
)
lsq4_qconfig = dict(
    w_observer=dict(type='strop.LSQPerChannelObserver'),
    a_observer=dict(type='strop.LSQObserver'),
    w_fake_quant=dict(type='strop.LearnableFakeQuantize'),
    a_fake_quant=dict(type='strop.LearnableFakeQuantize'),
    w_qscheme=dict(qdtype='qint8', bit=4, is_symmetry=True),
    a_qscheme=dict(qdtype='quint8', bit=4, is_symmetry=True),
)
lsq8_qconfig = dict(
    w_observer=dict(type='strop.LSQPerChannelObserver'),
    a_observer=dict(type='strop.LSQObserver'),
    w_fake_quant=dict(type='strop.LearnableFakeQuantize'),
    a_fake_quant=dict(type='strop.LearnableFakeQuantize'),
    w_qscheme=dict(qdtype='qint8', bit=8, is_symmetry=True, is_symmetric_range=True),
    a_qscheme=dict(qdtype='quint8', bit=8, is_symmetry=True),
)
input_shapes = (2, 1, 28, 28)

optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = dict(T_max=3)
val_cfg = dict(type='strop.QATValLoop')
test_cfg = dict(type='strop.QATValLoop')
