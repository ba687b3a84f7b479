# A network of digits whose last layers teach its first ones. https://arxiv.org/abs/1905.08094
_base_ = ['../_base_/digits_mobilenet.py']

model = dict(
    type='strop.SelfDistill',
    architecture=_base_.architecture,
    distiller=dict(
        type='strop.BYOTDistiller',
        student_recorders=dict(early=dict(type='ModuleOutputs', source='backbone.layer1.1')),
        teacher_recorders=dict(
            late=dict(type='ModuleOutputs', source='backbone.conv2'),
            fc=dict(type='ModuleOutputs', source='head.fc'),
        ),
        connectors=dict(
            branch=dict(type='strop.BYOTConnector', in_channel=24, out_channel=96, num_classes=10, expansion=1, pool_size=7)
        ),
        distill_losses=dict(loss_soft=dict(type='strop.KDSoftCELoss', tau=3, loss_weight=0.3)),
        loss_forward_mappings=dict(
            loss_soft=dict(
                preds_S=dict(recorder='early', from_student=True, connector='branch', connector_idx=1),
                preds_T=dict(recorder='fc', from_student=False),
            ),
        ),
    ),
    data_preprocessor=_base_.data_preprocessor,
)
val_cfg = dict(type='strop.SelfDistillValLoop')
test_cfg = dict()
