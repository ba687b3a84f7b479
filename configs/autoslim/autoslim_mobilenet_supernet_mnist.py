# Digits at any of the widths of one network, the widest of which teaches the others: about two minutes on two cores.
_base_ = ['../_base_/digits_mobilenet.py', '../_base_/autoslim.py']

model = dict(
    type='strop.AutoSlim',
    architecture=_base_.architecture,
    mutator=dict(
        type='strop.OneShotChannelMutator',
        channel_unit_cfg=dict(
            type='OneShotMutableChannelUnit',
            default_args=dict(candidate_choices=[0.25, 0.5, 0.75, 1.0], choice_mode='ratio', divisor=2),
        ),
        parse_cfg=dict(demo_input=(1, 1, 28, 28)),
    ),
    distiller=_base_.distiller,
    num_samples=2,
    data_preprocessor=_base_.data_preprocessor,
)
val_cfg = dict(type='strop.SubnetValLoop', calibrate_sample_num=512)
test_cfg = dict(type='strop.SubnetValLoop', calibrate_sample_num=512)
