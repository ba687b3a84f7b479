# Train the supernet, one random path a step. https://arxiv.org/abs/1904.00420
_base_ = ['../_base_/imagenet_1k.py', '../_base_/schedule_spos.py', '../_base_/shufflenet_supernet.py']

model = dict(
    type='mmrazor.SPOS',
    architecture=_base_.supernet,
    mutator=dict(type='mmrazor.OneShotModuleMutator'),
    data_preprocessor=_base_.data_preprocessor,
)
find_unused_parameters = True
val_cfg = dict(type='mmrazor.SubnetValLoop', calibrate_sample_num=4096)
test_cfg = dict(type='mmrazor.SubnetValLoop', calibrate_sample_num=4096)
