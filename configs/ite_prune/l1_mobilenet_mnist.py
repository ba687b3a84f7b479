# Digits: half of the channels are given up during the first epochs of training, in five steps.
_base_ = ['../_base_/digits_mobilenet.py']

model = dict(
    type='strop.ItePruneAlgorithm',
    architecture=_base_.architecture,
    mutator_cfg=dict(
        type='strop.ChannelMutator',
        channel_unit_cfg=dict(type='L1MutableChannelUnit'),
        parse_cfg=dict(demo_input=(2, 1, 28, 28)),
    ),
    target_pruning_ratio=0.5,
    step_freq=40,
    prune_times=5,
    data_preprocessor=_base_.data_preprocessor,
)
val_cfg = dict(type='strop.ItePruneValLoop')
test_cfg = dict()
