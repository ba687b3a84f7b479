# The schedule of the SPOS paper: 150,000 iterations at batch 1,024, linear decay.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.5, momentum=0.9, weight_decay=4e-5),
    clip_grad=None,
)
param_scheduler = dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=150000)
train_cfg = dict(by_epoch=False, max_iters=150000, val_interval=10000)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=100),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=10000, max_keep_ckpts=3),
)
randomness = dict(seed=0)
