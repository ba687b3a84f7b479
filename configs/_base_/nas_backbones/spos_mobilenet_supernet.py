# For configs written for MMRazor (mmrazor::_base_/...): kernel sizes and expansions of MobileNetV2.
_candidates = {
    f'mb_k{kernel}e{expand}': dict(type='mmrazor.MBBlock', kernel_size=kernel, expand_ratio=expand, act_cfg=dict(type='ReLU6'))
    for kernel in (3, 5, 7)
    for expand in (3, 6)
}
_choice = dict(type='mmrazor.OneShotMutableOP', candidates=_candidates)
_choice_or_none = dict(type='mmrazor.OneShotMutableOP', candidates=dict(_candidates, identity=dict(type='mmrazor.Identity')))
_first = dict(
    type='mmrazor.OneShotMutableOP',
    candidates=dict(mb_k3e1=dict(type='mmrazor.MBBlock', kernel_size=3, expand_ratio=1, act_cfg=dict(type='ReLU6'))),
)

# Rows: channels, number of blocks, stride of the first, the choice in each block.
arch_setting = [
    [16, 1, 1, _first],
    [24, 1, 2, _choice],
    [24, 3, 1, _choice_or_none],
    [32, 1, 2, _choice],
    [32, 3, 1, _choice_or_none],
    [64, 1, 2, _choice],
    [64, 3, 1, _choice_or_none],
    [96, 1, 1, _choice],
    [96, 3, 1, _choice_or_none],
    [160, 1, 2, _choice],
    [160, 3, 1, _choice_or_none],
    [320, 1, 1, _choice],
]

nas_backbone = dict(
    type='mmrazor.SearchableMobileNetV2', first_channels=40, last_channels=1728, arch_setting=arch_setting, out_indices=(12,)
)
