# DetNAS, third step: the backbone with the best boxes among those of at most 300 million multiply-adds for 224 pixels.
_base_ = ['./detnas_supernet_faster_rcnn_shufflenetv2_coco.py']

train_cfg = dict(
    _delete_=True,
    type='strop.EvolutionSearchLoop',
    dataloader=_base_.val_dataloader,
    evaluator=_base_.val_evaluator,
    max_epochs=20,
    num_candidates=50,
    top_k=10,
    num_mutation=20,
    num_crossover=20,
    calibrate_sample_num=500,
    score_key='coco/bbox_mAP',
    constraints_range=dict(flops=(0.0, 300.0)),
    estimator_cfg=dict(input_shape=(1, 3, 224, 224), part='backbone'),
)
param_scheduler = None
val_cfg = dict()
test_cfg = dict()
