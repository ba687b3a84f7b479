# For configs written for MMRazor (mmrazor::_base_/...): the cells of the DARTS paper.
_bare = dict(norm_cfg=dict(type='BN', affine=False))

mutable_cfg = dict(
    type='mmrazor.DiffMutableOP',
    candidates=dict(
        zero=dict(type='mmrazor.DartsZero'),
        skip_connect=dict(type='mmrazor.DartsSkipConnect', **_bare),
        max_pool_3x3=dict(type='mmrazor.DartsPoolBN', pool_type='max', **_bare),
        avg_pool_3x3=dict(type='mmrazor.DartsPoolBN', pool_type='avg', **_bare),
        sep_conv_3x3=dict(type='mmrazor.DartsSepConv', kernel_size=3, **_bare),
        sep_conv_5x5=dict(type='mmrazor.DartsSepConv', kernel_size=5, **_bare),
        dil_conv_3x3=dict(type='mmrazor.DartsDilConv', kernel_size=3, **_bare),
        dil_conv_5x5=dict(type='mmrazor.DartsDilConv', kernel_size=5, **_bare),
    ),
)
route_cfg = dict(type='mmrazor.DiffChoiceRoute', with_arch_param=True)

nas_backbone = dict(
    type='mmrazor.DartsBackbone',
    in_channels=3,
    base_channels=16,
    num_layers=8,
    num_nodes=4,
    stem_multiplier=3,
    out_indices=(7,),
    mutable_cfg=mutable_cfg,
    route_cfg=route_cfg,
    **_bare,
)
