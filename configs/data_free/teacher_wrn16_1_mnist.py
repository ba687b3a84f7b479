# The teacher of the data-free configs, trained on digits: under a minute on two cores.
_base_ = ['../_base_/digits_wide_resnet.py']

model = dict(type='strop.BaseAlgorithm', architecture=_base_.classifier, data_preprocessor=_base_.data_preprocessor)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, T_max=4, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=4)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1))
