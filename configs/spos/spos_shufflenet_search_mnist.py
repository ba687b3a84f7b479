# Search the small supernet: strop search THIS --checkpoint work_dirs/.../epoch_10.pth
_base_ = ['./spos_shufflenet_supernet_mnist.py']

train_cfg = dict(
    _delete_=True,
    type='strop.EvolutionSearchLoop',
    dataloader=_base_.val_dataloader,
    evaluator=_base_.val_evaluator,
    max_epochs=4,
    num_candidates=12,
    top_k=4,
    num_mutation=6,
    num_crossover=6,
    calibrate_sample_num=512,
    # The 1,024 subnets of this space have 0.43 to 0.64 million MACs, half of them less than 0.52.
    constraints_range=dict(flops=(0.0, 0.52)),
)
param_scheduler = None

val_cfg = dict()
test_cfg = dict()
