# Retrain the subnet that was found, from scratch.
_base_ = ['./spos_shufflenet_supernet_mnist.py']

fix_subnet = 'work_dirs/spos_shufflenet_search_mnist/best_fix_subnet.yaml'

model = dict(
    _delete_=True,
    type='strop.sub_model',
    cfg=dict(_base_.model.architecture, data_preprocessor=_base_.model.data_preprocessor),
    fix_subnet=fix_subnet,
)
val_cfg = dict(_delete_=True)
test_cfg = dict(_delete_=True)
