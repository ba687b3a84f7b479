# The operations of the DARTS paper. https://arxiv.org/abs/1806.09055
_drop = dict(use_drop_path=True)
# While searching, norms have no scale of their own: it would compete with the weights of the operations.
_bare = dict(norm_cfg=dict(type='BN', affine=False))

search_operations = dict(
    zero=dict(type='strop.DartsZero'),
    skip_connect=dict(type='strop.DartsSkipConnect', **_bare),
    max_pool_3x3=dict(type='strop.DartsPoolBN', pool_type='max', **_bare),
    avg_pool_3x3=dict(type='strop.DartsPoolBN', pool_type='avg', **_bare),
    sep_conv_3x3=dict(type='strop.DartsSepConv', kernel_size=3, **_bare),
    sep_conv_5x5=dict(type='strop.DartsSepConv', kernel_size=5, **_bare),
    dil_conv_3x3=dict(type='strop.DartsDilConv', kernel_size=3, **_bare),
    dil_conv_5x5=dict(type='strop.DartsDilConv', kernel_size=5, **_bare),
)
# Zero is never found.
operations = dict(
    skip_connect=dict(type='strop.DartsSkipConnect', **_drop),
    max_pool_3x3=dict(type='strop.DartsPoolBN', pool_type='max', **_drop),
    avg_pool_3x3=dict(type='strop.DartsPoolBN', pool_type='avg', **_drop),
    sep_conv_3x3=dict(type='strop.DartsSepConv', kernel_size=3, **_drop),
    sep_conv_5x5=dict(type='strop.DartsSepConv', kernel_size=5, **_drop),
    dil_conv_3x3=dict(type='strop.DartsDilConv', kernel_size=3, **_drop),
    dil_conv_5x5=dict(type='strop.DartsDilConv', kernel_size=5, **_drop),
)
