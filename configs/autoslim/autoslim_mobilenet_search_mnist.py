# Narrows the supernet of autoslim_mobilenet_supernet_mnist.py, unit by unit, to 0.6 and 0.3 million multiply-adds:
#     strop search configs/autoslim/autoslim_mobilenet_search_mnist.py --checkpoint runs/supernet/epoch_10.pth
_base_ = ['autoslim_mobilenet_supernet_mnist.py']

test_dataloader = _base_.val_dataloader  # widths are judged on validation images, never on the test images
test_cfg = dict(_delete_=True, type='strop.AutoSlimGreedySearchLoop', target_flops=[0.6, 0.3], calibrate_sample_num=512)
