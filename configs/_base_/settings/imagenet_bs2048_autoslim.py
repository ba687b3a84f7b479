# For configs written for MMRazor (mmrazor::_base_/...): ImageNet-1k by mmpretrain, the schedule of AutoSlim.
# Eight processes of 256 images make a batch.
_base_ = ['./imagenet_bs1024_spos.py']

train_dataloader = dict(batch_size=256)
val_dataloader = dict(batch_size=256)
test_dataloader = dict(batch_size=256)
param_scheduler = dict(end=50)
train_cfg = dict(max_epochs=50)
