# The parts of AutoSlim that do not depend on the network (https://arxiv.org/abs/1903.11728).
_fc = dict(fc=dict(type='ModuleOutputs', source='head.fc'))
distiller = dict(
    type='strop.ConfigurableDistiller',
    teacher_recorders=_fc,
    student_recorders=_fc,
    distill_losses=dict(loss_kl=dict(type='strop.KLDivergence', tau=1, loss_weight=1)),
    loss_forward_mappings=dict(
        loss_kl=dict(preds_S=dict(recorder='fc', from_student=True), preds_T=dict(recorder='fc', from_student=False))
    ),
)
