# Trains the widths that were found, from scratch and from the labels. `model.mutable_cfg` is the file that the search
# wrote into its work directory: --cfg-options model.mutable_cfg=work_dirs/widths/best_fix_subnet.yaml
_base_ = ['autoslim_mobilenet_supernet_mnist.py']

model = dict(mutable_cfg='best_fix_subnet.yaml', distiller=None)
val_cfg = dict(_delete_=True)
test_cfg = dict(_delete_=True)
