# Retrain the subnet that was found, from scratch.
_base_ = ['./spos_shufflenet_supernet_8xb128_in1k.py']

fix_subnet = 'work_dirs/spos_shufflenet_search_8xb128_in1k/best_fix_subnet.yaml'

model = dict(
    _delete_=True,
    type='strop.sub_model',
    cfg=dict(_base_.supernet, data_preprocessor=_base_.data_preprocessor),
    fix_subnet=fix_subnet,
)
find_unused_parameters = False
param_scheduler = dict(end=300000)
train_cfg = dict(max_iters=300000)
val_cfg = dict(_delete_=True)
test_cfg = dict(_delete_=True)
