# DetNAS, last step: the backbone that was found, trained alone; best from its own training on ImageNet (`load_from`).
_base_ = ['./detnas_supernet_faster_rcnn_shufflenetv2_coco.py']

model = dict(
    _delete_=True,
    type='strop.sub_model',
    cfg=_base_.supernet,
    fix_subnet='work_dirs/detnas_search_faster_rcnn_shufflenetv2_coco/best_fix_subnet.yaml',
)
