"""Configs in the structure in which users of MMRazor 1.x have them; only the data and the sizes are small."""

from __future__ import annotations

# What `_base_/settings/...` and `default_runtime.py` give.
SETTINGS = """
preprocess_cfg = dict(
    type='mmcls.ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
dataset_type = 'ImageDataset'

train_dataloader = dict(
    batch_size=6,
    num_workers=0,
    dataset=dict(type=dataset_type, source='images.npz', split='train', form='samples'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    persistent_workers=False)
val_dataloader = dict(
    batch_size=6,
    num_workers=0,
    dataset=dict(type=dataset_type, source='images.npz', split='test', form='samples'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    persistent_workers=False)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

paramwise_cfg = dict(bias_decay_mult=0.0, norm_decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=4e-5), paramwise_cfg=paramwise_cfg, clip_grad=None)
param_scheduler = dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, end=3)
train_cfg = dict(by_epoch=False, max_iters=3, val_interval=3)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=1024)

default_scope = 'mmcls'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'))
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
log_level = 'WARNING'
load_from = None
resume = False
randomness = dict(seed=0)
"""

SHUFFLENET = """
_STAGE_MUTABLE = dict(
    _scope_='mmrazor',
    type='OneShotMutableOP',
    candidates=dict(
        shuffle_3x3=dict(type='ShuffleBlock', kernel_size=3, norm_cfg=dict(type='BN')),
        shuffle_5x5=dict(type='ShuffleBlock', kernel_size=5, norm_cfg=dict(type='BN')),
        shuffle_7x7=dict(type='ShuffleBlock', kernel_size=7, norm_cfg=dict(type='BN')),
        shuffle_xception=dict(type='ShuffleXception', norm_cfg=dict(type='BN'))))

arch_setting = [
    # Parameters to build layers. 3 parameters are needed to construct a
    # layer, from left to right: channel, num_blocks, mutable_cfg.
    [16, 1, _STAGE_MUTABLE],
    [16, 1, _STAGE_MUTABLE],
    [32, 1, _STAGE_MUTABLE],
    [32, 1, _STAGE_MUTABLE]]

nas_backbone = dict(
    _scope_='mmrazor',
    type='SearchableShuffleNetV2',
    widen_factor=1.0,
    arch_setting=arch_setting)
"""

SPOS_SUPERNET = """
_base_ = ['./settings.py', './shufflenet.py']

# model
supernet = dict(
    _scope_='mmcls',
    type='ImageClassifier',
    data_preprocessor=_base_.preprocess_cfg,
    backbone=_base_.nas_backbone,
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=1024,
        loss=dict(
            type='LabelSmoothLoss',
            num_classes=10,
            label_smooth_val=0.1,
            mode='original',
            loss_weight=1.0),
        topk=(1, 5)))

model = dict(
    type='mmrazor.SPOS',
    architecture=supernet,
    mutator=dict(type='mmrazor.NasMutator'))

find_unused_parameters = True
"""

SPOS_SEARCH = """
_base_ = ['./spos_supernet.py']

model = dict(norm_training=True)

train_cfg = dict(
    _delete_=True,
    type='mmrazor.EvolutionSearchLoop',
    dataloader=_base_.val_dataloader,
    evaluator=_base_.val_evaluator,
    max_epochs=2,
    num_candidates=4,
    top_k=2,
    num_mutation=2,
    num_crossover=2,
    mutate_prob=0.1,
    calibrate_sample_num=6,
    constraints_range=dict(flops=(0., 330.)),
    score_key='accuracy/top1')
"""

SPOS_SUBNET = """
_base_ = ['./spos_supernet.py']

_base_.model = dict(
    _scope_='mmrazor',
    type='sub_model',
    cfg=_base_.supernet,
    # NOTE: You can replace the yaml with the mutable_cfg searched by yourself
    fix_subnet='best_fix_subnet.yaml',
    init_weight_from_supernet=False)

find_unused_parameters = False
"""

AUTOSLIM_SUPERNET = """
_base_ = ['./settings.py']

supernet = dict(
    _scope_='mmcls',
    type='ImageClassifier',
    backbone=dict(
        type='ConvModule', in_channels=3, out_channels=16, kernel_size=3, stride=2, norm_cfg=dict(type='BN')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=16,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)))

model = dict(
    _scope_='mmrazor',
    type='AutoSlim',
    num_random_samples=2,
    architecture=supernet,
    data_preprocessor=_base_.preprocess_cfg,
    distiller=dict(
        type='ConfigurableDistiller',
        teacher_recorders=dict(fc=dict(type='ModuleOutputs', source='head.fc')),
        student_recorders=dict(fc=dict(type='ModuleOutputs', source='head.fc')),
        distill_losses=dict(
            loss_kl=dict(type='KLDivergence', tau=1, loss_weight=1)),
        loss_forward_mappings=dict(
            loss_kl=dict(
                preds_S=dict(recorder='fc', from_student=True),
                preds_T=dict(recorder='fc', from_student=False)))),
    mutator=dict(
        type='OneShotChannelMutator',
        channel_unit_cfg=dict(
            type='OneShotMutableChannelUnit',
            default_args=dict(
                candidate_choices=list(i / 12 for i in range(2, 13)),
                choice_mode='ratio',
                divisor=8)),
        parse_cfg=dict(
            type='ChannelAnalyzer',
            demo_input=(1, 3, 32, 32),
            tracer_type='BackwardTracer')))

model_wrapper_cfg = dict(
    type='mmrazor.AutoSlimDDP',
    broadcast_buffers=False,
    find_unused_parameters=False)

optim_wrapper = dict(accumulative_counts=4)

val_cfg = dict(type='mmrazor.SubnetValLoop', calibrate_sample_num=6)
"""

AUTOSLIM_SEARCH = """
_base_ = ['./autoslim_supernet.py']

train_cfg = dict(max_iters=0)
test_cfg = dict(
    _delete_=True,
    type='mmrazor.AutoSlimGreedySearchLoop',
    dataloader=_base_.test_dataloader,
    evaluator=_base_.test_evaluator,
    target_flops=(0.08, ),
    estimator_cfg=dict(type='mmrazor.ResourceEstimator', input_shape=(1, 3, 32, 32)))
"""

SLIMMABLE = """
_base_ = ['./autoslim_supernet.py']

model = dict(
    _delete_=True,
    _scope_='mmrazor',
    type='SlimmableNetwork',
    architecture=_base_.supernet,
    data_preprocessor=_base_.preprocess_cfg,
    mutator=dict(
        type='SlimmableChannelMutator',
        channel_unit_cfg=dict(
            type='SlimmableChannelUnit',
            units={'backbone.conv': dict(init_args=dict(candidate_choices=[8, 16]))}),
        parse_cfg=dict(
            type='ChannelAnalyzer',
            demo_input=(1, 3, 32, 32),
            tracer_type='BackwardTracer')))

model_wrapper_cfg = dict(
    type='mmrazor.SlimmableNetworkDDP',
    broadcast_buffers=False,
    find_unused_parameters=True)

optim_wrapper = dict(accumulative_counts=2)

val_cfg = dict(_delete_=True, type='mmrazor.SlimmableValLoop')
"""

DARTS_SUPERNET = """
_base_ = ['./settings.py']

norm_cfg = dict(type='BN', affine=False)
mutable_cfg = dict(
    _scope_='mmrazor',
    type='mmrazor.DiffMutableOP',
    candidates=dict(
        zero=dict(type='mmrazor.DartsZero'),
        skip_connect=dict(type='mmrazor.DartsSkipConnect', norm_cfg=norm_cfg),
        max_pool_3x3=dict(type='mmrazor.DartsPoolBN', pool_type='max', norm_cfg=norm_cfg),
        sep_conv_3x3=dict(type='mmrazor.DartsSepConv', kernel_size=3, norm_cfg=norm_cfg),
        dil_conv_3x3=dict(type='mmrazor.DartsDilConv', kernel_size=3, norm_cfg=norm_cfg)))

route_cfg = dict(
    type='mmrazor.DiffChoiceRoute',
    with_arch_param=True)

supernet = dict(
    type='mmcls.ImageClassifier',
    data_preprocessor=_base_.preprocess_cfg,
    backbone=dict(
        type='mmrazor.DartsBackbone',
        in_channels=3,
        base_channels=4,
        num_layers=3,
        num_nodes=2,
        stem_multiplier=3,
        out_indices=(2, ),
        mutable_cfg=mutable_cfg,
        route_cfg=route_cfg,
        norm_cfg=norm_cfg),
    neck=dict(type='mmcls.GlobalAveragePooling'),
    head=dict(
        type='mmcls.LinearClsHead',
        num_classes=10,
        in_channels=32,
        loss=dict(type='mmcls.CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
        cal_acc=True))

mutator = dict(type='mmrazor.NasMutator')

model = dict(
    type='mmrazor.Darts',
    architecture=supernet,
    mutator=mutator,
    unroll=True)

model_wrapper_cfg = dict(
    type='mmrazor.DartsDDP',
    broadcast_buffers=False,
    find_unused_parameters=False)

optim_wrapper = dict(
    _delete_=True,
    constructor='mmrazor.SeparateOptimWrapperConstructor',
    architecture=dict(
        optimizer=dict(type='SGD', lr=0.025, momentum=0.9, weight_decay=3e-4),
        clip_grad=dict(max_norm=5, norm_type=2)),
    mutator=dict(
        optimizer=dict(type='Adam', lr=3e-4, weight_decay=1e-3)))

param_scheduler = dict(
    _delete_=True,
    architecture=[
        dict(type='CosineAnnealingLR', T_max=50, eta_min=1e-3, begin=0, end=50)],
    mutator=[])

train_cfg = dict(
    _delete_=True,
    type='mmrazor.DartsEpochBasedTrainLoop',
    mutator_dataloader=_base_.train_dataloader,
    max_epochs=1)

custom_hooks = [dict(type='mmrazor.DumpSubnetHook', interval=1, by_epoch=True)]
"""

DISTILL = """
_base_ = ['./settings.py']

student = dict(
    _scope_='mmcls',
    type='ImageClassifier',
    backbone=dict(
        type='mmrazor.WideResNet', depth=10, widen_factor=1, num_stages=3),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
teacher = dict(
    student,
    backbone=dict(
        type='mmrazor.WideResNet', depth=10, widen_factor=2, num_stages=3),
    head=dict(student['head'], in_channels=128))

model = dict(
    _scope_='mmrazor',
    type='SingleTeacherDistill',
    data_preprocessor=_base_.preprocess_cfg,
    architecture=student,
    teacher=teacher,
    teacher_ckpt=None,
    calculate_student_loss={calculate},
    distiller=dict(
        type='{distiller}',
        {parts}))

find_unused_parameters = True

val_cfg = dict(_delete_=True, type='mmrazor.SingleTeacherDistillValLoop')
"""

_KD = """student_recorders=dict(fc=dict(type='ModuleOutputs', source='head.fc')),
        teacher_recorders=dict(fc=dict(type='ModuleOutputs', source='head.fc')),
        distill_losses=dict(
            loss_kl=dict(type='KLDivergence', tau=1, loss_weight=3)),
        loss_forward_mappings=dict(
            loss_kl=dict(
                preds_S=dict(from_student=True, recorder='fc'),
                preds_T=dict(from_student=False, recorder='fc')))"""

_CWD = """student_recorders=dict(bb_s3=dict(type='ModuleOutputs', source='backbone.layer3')),
        teacher_recorders=dict(bb_s3=dict(type='ModuleOutputs', source='backbone.layer3')),
        distill_losses=dict(
            loss_cwd=dict(type='ChannelWiseDivergence', tau=1, loss_weight=5)),
        connectors=dict(
            loss_cwd_sfeat=dict(
                type='ConvModuleConnector', in_channel=64, out_channel=128, norm_cfg=dict(type='BN'))),
        loss_forward_mappings=dict(
            loss_cwd=dict(
                preds_S=dict(
                    from_student=True, recorder='bb_s3', connector='loss_cwd_sfeat'),
                preds_T=dict(from_student=False, recorder='bb_s3')))"""

_DKD = """student_recorders=dict(
            fc=dict(type='ModuleOutputs', source='head.fc'),
            gt_labels=dict(type='ModuleInputs', source='head.loss_module')),
        teacher_recorders=dict(
            fc=dict(type='ModuleOutputs', source='head.fc')),
        distill_losses=dict(
            loss_dkd=dict(type='DKDLoss', tau=1, beta=0.5, loss_weight=1, reduction='mean')),
        loss_forward_mappings=dict(
            loss_dkd=dict(
                preds_S=dict(from_student=True, recorder='fc'),
                preds_T=dict(from_student=False, recorder='fc'),
                gt_labels=dict(recorder='gt_labels', from_student=True, data_idx=1)))"""

_RKD = """student_recorders=dict(feat=dict(type='ModuleOutputs', source='neck.gap')),
        teacher_recorders=dict(feat=dict(type='ModuleOutputs', source='neck.gap')),
        distill_losses=dict(
            distance_wise_loss=dict(type='DistanceWiseRKD', loss_weight=25.0, with_l2_norm=True),
            angle_wise_loss=dict(type='AngleWiseRKD', loss_weight=50.0, with_l2_norm=True)),
        loss_forward_mappings=dict(
            distance_wise_loss=dict(
                preds_S=dict(from_student=True, recorder='feat'),
                preds_T=dict(from_student=False, recorder='feat')),
            angle_wise_loss=dict(
                preds_S=dict(from_student=True, recorder='feat'),
                preds_T=dict(from_student=False, recorder='feat')))"""


def distill(parts: str, calculate: bool = True, distiller: str = 'ConfigurableDistiller') -> str:
    """Return a config of distillation."""
    return DISTILL.format(parts=parts, calculate=calculate, distiller=distiller)


L1_NORM = """
_base_ = ['./settings.py']

architecture = dict(
    _scope_='mmcls',
    type='ImageClassifier',
    backbone=dict(type='mmrazor.WideResNet', depth=10, widen_factor=1, num_stages=3),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64))

# the pruning structure
target_pruning_ratio = {
    'backbone.layer1.0.conv1_(0, 16)_16': 0.7,
    'backbone.layer2.0.conv1_(0, 32)_32': 0.7,
    'backbone.layer3.0.conv1_(0, 64)_64': 0.7,
}

model = dict(
    _scope_='mmrazor',
    type='ItePruneAlgorithm',
    data_preprocessor=_base_.preprocess_cfg,
    architecture=architecture,
    target_pruning_ratio=target_pruning_ratio,
    mutator_cfg=dict(
        type='ChannelMutator',
        channel_unit_cfg=dict(
            type='L1MutableChannelUnit',
            default_args=dict(choice_mode='ratio')),
        parse_cfg=dict(
            type='ChannelAnalyzer',
            demo_input=(1, 3, 32, 32),
            tracer_type='FxTracer')))

val_cfg = dict(_delete_=True, type='mmrazor.ItePruneValLoop')
"""

WIDE_RESNET = """
_base_ = ['./settings.py']

model = dict(
    _scope_='mmcls',
    type='ImageClassifier',
    backbone=dict(type='mmrazor.WideResNet', depth=10, widen_factor=1, num_stages=3),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64))
"""

QUANTIZATION = """
_base_ = ['./wide_resnet.py']

architecture = _base_.model

global_qconfig = dict(
    w_observer=dict(type='mmrazor.{w_observer}'),
    a_observer=dict(type='mmrazor.{a_observer}'),
    w_fake_quant=dict(type='mmrazor.{fake_quant}'),
    a_fake_quant=dict(type='mmrazor.{fake_quant}'),
    w_qscheme=dict(qdtype='qint8', bit=8, is_symmetry=True, is_symmetric_range=True),
    a_qscheme=dict(qdtype='quint8', bit=8, is_symmetry=True, averaging_constant=0.1),
)

float_checkpoint = 'float.pth'

model = dict(
    _delete_=True,
    type='mmrazor.MMArchitectureQuant',
    data_preprocessor=_base_.preprocess_cfg,
    architecture=architecture,
    float_checkpoint=float_checkpoint,
    input_shapes=(1, 3, 32, 32),
    quantizer=dict(
        type='mmrazor.OpenVINOQuantizer',
        global_qconfig=global_qconfig,
        tracer=dict(
            type='mmrazor.CustomTracer',
            skipped_methods=[
                'mmcls.models.heads.ClsHead._get_loss',
                'mmcls.models.heads.ClsHead._get_predictions'
            ])))

{loops}

# learning policy
model_wrapper_cfg = dict(
    type='mmrazor.MMArchitectureQuantDDP',
    broadcast_buffers=False,
    find_unused_parameters=True)
custom_hooks = []
"""

_TRAINED = """optim_wrapper = dict(
    _delete_=True,
    optimizer=dict(type='SGD', lr=0.0001, momentum=0.9, weight_decay=0.0001))
param_scheduler = dict(
    _delete_=True, type='ConstantLR', factor=1.0, by_epoch=True)
train_cfg = dict(
    _delete_=True,
    type='mmrazor.{loop}',
    max_epochs=1,
    val_interval=1)
val_cfg = dict(_delete_=True, type='mmrazor.QATValLoop')"""

_CALIBRATED = """test_cfg = dict(
    type='mmrazor.PTQLoop',
    calibrate_dataloader=_base_.train_dataloader,
    calibrate_steps=2,
)"""


def quantization(loops: str, w_observer: str, a_observer: str, fake_quant: str) -> str:
    """Return a config of quantization."""
    return QUANTIZATION.format(loops=loops, w_observer=w_observer, a_observer=a_observer, fake_quant=fake_quant)


FILES = {
    'settings.py': SETTINGS,
    'shufflenet.py': SHUFFLENET,
    'wide_resnet.py': WIDE_RESNET,
    'spos_supernet.py': SPOS_SUPERNET,
    'spos_search.py': SPOS_SEARCH,
    'spos_subnet.py': SPOS_SUBNET,
    'autoslim_supernet.py': AUTOSLIM_SUPERNET,
    'autoslim_search.py': AUTOSLIM_SEARCH,
    'slimmable.py': SLIMMABLE,
    'darts_supernet.py': DARTS_SUPERNET,
    'kd.py': distill(_KD),
    'cwd.py': distill(_CWD),
    'dkd.py': distill(_DKD),
    'rkd.py': distill(_RKD, calculate=True),
    'l1_norm.py': L1_NORM,
    'ptq.py': quantization(_CALIBRATED, 'PerChannelMinMaxObserver', 'MovingAverageMinMaxObserver', 'FakeQuantize'),
    'qat.py': quantization(
        _TRAINED.format(loop='QATEpochBasedLoop'), 'PerChannelMinMaxObserver', 'MovingAverageMinMaxObserver', 'FakeQuantize'
    ),
    'lsq.py': quantization(
        _TRAINED.format(loop='LSQEpochBasedLoop'), 'LSQPerChannelObserver', 'LSQObserver', 'LearnableFakeQuantize'
    ),
}
