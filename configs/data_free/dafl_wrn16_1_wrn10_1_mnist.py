# A student of digits that sees none: DAFL by the teacher of teacher_wrn16_1_mnist.py, whose weights come by
# --cfg-options model.teachers.wrn16.ckpt_path=work_dirs/teacher_wrn16_1_mnist/epoch_4.pth
# In its minute the student gets to about 30 % (guessing: 10 %); published runs are a hundred times as long.
_base_ = ['../_base_/digits_wide_resnet.py']

model = dict(
    type='strop.DAFLDataFreeDistillation',
    architecture=dict(_base_.classifier, backbone=dict(_base_.classifier.backbone, depth=10)),
    teachers=dict(wrn16=dict(build_cfg=_base_.classifier, ckpt_path=None)),
    generator=dict(type='strop.DAFLGenerator', img_size=28, latent_dim=100, hidden_channels=32, channels=1),
    distiller=dict(
        type='strop.ConfigurableDistiller',
        student_recorders=dict(fc=dict(type='ModuleOutputs', source='head.fc')),
        teacher_recorders=dict(fc=dict(type='ModuleOutputs', source='wrn16.head.fc')),
        distill_losses=dict(loss_kl=dict(type='strop.KLDivergence', tau=2)),
        loss_forward_mappings=dict(
            loss_kl=dict(preds_S=dict(from_student=True, recorder='fc'), preds_T=dict(from_student=False, recorder='fc'))
        ),
    ),
    generator_distiller=dict(
        type='strop.ConfigurableDistiller',
        teacher_recorders=dict(
            gap=dict(type='ModuleOutputs', source='wrn16.neck'), fc=dict(type='ModuleOutputs', source='wrn16.head.fc')
        ),
        distill_losses=dict(
            loss_oh=dict(type='strop.OnehotLikeLoss', loss_weight=0.05),
            loss_ie=dict(type='strop.InformationEntropyLoss', loss_weight=5),
            loss_ac=dict(type='strop.ActivationLoss', loss_weight=0.01),
        ),
        loss_forward_mappings=dict(
            loss_oh=dict(preds_T=dict(from_student=False, recorder='fc')),
            loss_ie=dict(preds_T=dict(from_student=False, recorder='fc')),
            loss_ac=dict(feat_T=dict(from_student=False, recorder='gap')),
        ),
    ),
    data_preprocessor=_base_.data_preprocessor,
)
# Training takes nothing but the number of images from its batches.
optim_wrapper = dict(
    constructor='strop.SeparateOptimWrapperConstructor',
    architecture=dict(optimizer=dict(type='Adam', lr=3e-3)),
    generator=dict(optimizer=dict(type='Adam', lr=1e-3)),
)
train_cfg = dict(by_epoch=False, max_iters=160, val_interval=80)
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=80, max_keep_ckpts=1),
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
)
log_processor = dict(by_epoch=False)
