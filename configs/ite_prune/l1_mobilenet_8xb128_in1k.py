# Prune a trained MobileNetV2 by L1 norms to 70 % of its channels, in ten steps of training. https://arxiv.org/abs/1608.08710
_base_ = ['../_base_/imagenet_1k.py', '../_base_/schedule_spos.py', '../_base_/mobilenet_v2.py']

model = dict(
    type='mmrazor.ItePruneAlgorithm',
    architecture=_base_.architecture,
    mutator_cfg=dict(
        type='mmrazor.ChannelMutator',
        channel_unit_cfg=dict(type='L1MutableChannelUnit', default_args=dict(choice_mode='ratio', divisor=8)),
        parse_cfg=dict(type='ChannelAnalyzer', demo_input=(1, 3, 224, 224)),
    ),
    target_pruning_ratio=0.7,
    step_freq=1000,
    prune_times=10,
    linear_schedule=True,
    data_preprocessor=_base_.data_preprocessor,
)
# `load_from` is where the trained weights are: load_from = 'mobilenet_v2.pth'
optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = dict(end=60000)
train_cfg = dict(max_iters=60000)
val_cfg = dict(type='mmrazor.ItePruneValLoop')
test_cfg = dict()
