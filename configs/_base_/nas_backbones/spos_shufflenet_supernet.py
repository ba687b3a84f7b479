# For configs written for MMRazor (mmrazor::_base_/...): the space of the SPOS paper.
_choice = dict(
    type='mmrazor.OneShotMutableOP',
    candidates=dict(
        shuffle_3x3=dict(type='mmrazor.ShuffleBlock', kernel_size=3),
        shuffle_5x5=dict(type='mmrazor.ShuffleBlock', kernel_size=5),
        shuffle_7x7=dict(type='mmrazor.ShuffleBlock', kernel_size=7),
        shuffle_xception=dict(type='mmrazor.ShuffleXception'),
    ),
)

# Rows: channels, number of blocks, the choice in each block.
arch_setting = [[64, 4, _choice], [160, 4, _choice], [320, 8, _choice], [640, 4, _choice]]

nas_backbone = dict(type='mmrazor.SearchableShuffleNetV2', widen_factor=1.0, arch_setting=arch_setting)
