# AutoSlim's supernet of MobileNetV2, 1.5 times as wide, on eight GPUs. https://arxiv.org/abs/1903.11728
_base_ = ['../_base_/imagenet_1k.py', '../_base_/schedule_spos.py', '../_base_/mobilenet_v2.py', '../_base_/autoslim.py']

_architecture = _base_.architecture
_architecture.cfg.backbone.widen_factor = 1.5
_architecture.cfg.backbone.last_channels = 1280
_architecture.cfg.head.in_channels = 1920

model = dict(
    type='mmrazor.AutoSlim',
    architecture=_architecture,
    mutator=dict(
        type='mmrazor.OneShotChannelMutator',
        channel_unit_cfg=dict(
            type='OneShotMutableChannelUnit',
            default_args=dict(candidate_choices=[i / 12 for i in range(2, 13)], choice_mode='ratio', divisor=8),
        ),
        parse_cfg=dict(type='ChannelAnalyzer', demo_input=(1, 3, 224, 224)),
    ),
    distiller=_base_.distiller,
    data_preprocessor=_base_.data_preprocessor,
)
find_unused_parameters = True
optim_wrapper = dict(accumulative_counts=4)  # the mean over the four widths of a step, not their sum
val_cfg = dict(type='mmrazor.SubnetValLoop', calibrate_sample_num=4096)
test_cfg = dict(type='mmrazor.SubnetValLoop', calibrate_sample_num=4096)
