# Digits at three widths of one network: about a minute on two cores.
_base_ = ['../_base_/digits_mobilenet.py']

model = dict(
    type='strop.SlimmableNetwork',
    architecture=_base_.architecture,
    mutator=dict(
        type='strop.SlimmableChannelMutator',
        channel_unit_cfg=dict(
            type='SlimmableChannelUnit',
            default_args=dict(candidate_choices=[0.25, 0.5, 1.0], choice_mode='ratio', divisor=2),
        ),
        parse_cfg=dict(demo_input=(2, 1, 28, 28)),
    ),
    data_preprocessor=_base_.data_preprocessor,
)
val_cfg = dict(type='strop.SlimmableValLoop')
test_cfg = dict(type='strop.SlimmableValLoop')
