# One MobileNetV2 that runs at four widths. https://arxiv.org/abs/1812.08928
_base_ = ['../_base_/imagenet_1k.py', '../_base_/schedule_spos.py', '../_base_/mobilenet_v2.py']

model = dict(
    type='mmrazor.SlimmableNetwork',
    architecture=_base_.architecture,
    mutator=dict(
        type='mmrazor.SlimmableChannelMutator',
        channel_unit_cfg=dict(
            type='SlimmableChannelUnit',
            default_args=dict(candidate_choices=[0.35, 0.5, 0.75, 1.0], choice_mode='ratio', divisor=8),
        ),
        parse_cfg=dict(type='ChannelAnalyzer', demo_input=(1, 3, 224, 224)),
    ),
    data_preprocessor=_base_.data_preprocessor,
)
find_unused_parameters = True
val_cfg = dict(type='mmrazor.SlimmableValLoop')
test_cfg = dict(type='mmrazor.SlimmableValLoop')
