"""Registered names of MMRazor that Strop does not have yet, each with what comes nearest to it; old names of arguments.

It is one table for every door: registries, old import lines, `strop migrate` and UPGRADING.md read it. A name leaves it
when a class is registered under it.
"""

from __future__ import annotations

_STEPS = "type='ItePruneAlgorithm' prunes in steps, and `strop.prune` by any importance"
_WIDTHS = "type='AutoSlim' with type='OneShotChannelMutator' trains widths of any traced model"
_FISHER = "strop.prune(model, inputs, importance='taylor'), or importance='hessian', ranks channels by gradients"
_MEASURE = "type='EstimateResourcesHook' logs MACs and parameters while a model is trained"
_ELASTIC = "type='DynamicConv2d' and its like have an active width, and a `LayerChoice` chooses between kernel sizes"
_HIDDEN = 'strop.pruning.prune_transformer cuts heads and widths of trained transformers'
_SHAPE = "a shape will do: demo_input=(1, 3, 224, 224), or dict(type='DefaultDemoInput', input_shape=...) inside `parse_cfg`"
_TRACE = (
    "models are traced by running them once, parse_cfg=dict(type='ChannelAnalyzer', demo_input=(1, 3, 224, 224)); "
    'strop.channel_units lists what is found'
)
_PREDICTOR = (
    "subnets are scored by the supernet itself; strop.search.run(..., strategy='default') searches with a model of the scores"
)
_DDP = "type='strop.DistributedAlgorithm' wraps every algorithm"
_CHANNELS = "type='SequentialMutableChannelUnit' and its like are the decisions about widths"

#: Name -> what comes nearest, as the end of a sentence.
NEAREST: dict[str, str] = {
    'AttentiveMobileNetV3': "type='SearchableMobileNetV2' is a space of inverted residuals",
    'Autoformer': "type='SPOS' samples one subnet for each iteration",
    'AutoformerBackbone': _HIDDEN,
    'BackwardTracer': _TRACE,
    'BaseDemoInput': _SHAPE,
    'BigNAS': _WIDTHS,
    'BigNASDDP': _DDP,
    'BigNasConv2d': _ELASTIC,
    'CartsHandler': _PREDICTOR,
    'CascadeEncoderDecoderPseudoLoss': _TRACE,
    'ConvBNReLU': "type='ConvModule' is a convolution with its norm and activation",
    'DCFF': _STEPS,
    'DCFFChannelMutator': _STEPS,
    'DCFFChannelUnit': _CHANNELS,
    'DMCP': _WIDTHS,
    'DMCPBatchNorm2d': "type='DynamicBatchNorm2d' is a batch norm at an active width",
    'DMCPChannelMutator': _WIDTHS,
    'DMCPChannelUnit': _CHANNELS,
    'DMCPDDP': _DDP,
    'DMCPSubnetHook': "type='DumpSubnetHook' writes subnets while a supernet is trained",
    'DSNAS': "type='Darts' with type='OneHotMutableOP' trains sampled paths by their gradients",
    'DSNASDDP': _DDP,
    'DefaultMMPoseDemoInput': _SHAPE,
    'DefaultMMRotateDemoInput': _SHAPE,
    'DefaultMMYoloDemoInput': _SHAPE,
    'DeiTClsHead': "type='LinearClsHead' is a head of one linear layer",
    'DynamicInputResizer': "resize in the pipeline of the data: type='torchvision.transforms.v2.Resize'",
    'DynamicLinearClsHead': "type='LinearClsHead' follows the widths of a traced model",
    'DynamicPatchEmbed': "type='DynamicConv2d' is a convolution at an active width",
    'FastStopTrainingHook': '`--cfg-options train_cfg.max_epochs=1` ends a run early',
    'FuseConv2d': _STEPS,
    'GaussProcessHandler': _PREDICTOR,
    'GreedySamplerTrainLoop': "train_cfg=dict(by_epoch=False, max_iters=...) with type='SPOS' samples subnets uniformly",
    'GroupFisherAlgorithm': _FISHER,
    'GroupFisherChannelMutator': _FISHER,
    'GroupFisherChannelUnit': _CHANNELS,
    'GroupFisherConv2dCounter': 'operators are counted while a model is traced; `strop.estimators.macs_of` adds a rule',
    'GroupFisherDDP': _DDP,
    'GroupFisherDeploySubModel': "type='sub_model' gives the plain model of a subnet",
    'GroupFisherLinearCounter': 'operators are counted while a model is traced; `strop.estimators.macs_of` adds a rule',
    'GroupFisherSubModel': "type='sub_model' gives the plain model of a subnet",
    'ImageClassifierPseudoLoss': _TRACE,
    'MLPHandler': _PREDICTOR,
    'MetricPredictor': _PREDICTOR,
    'MutableChannelContainer': _CHANNELS,
    'OFAConv2d': _ELASTIC,
    'PruningStructureHook': _MEASURE,
    'RBFHandler': _PREDICTOR,
    'ResourceInfoHook': _MEASURE,
    'SimpleMutableChannel': _CHANNELS,
    'SingleStageDetectorPseudoLoss': _TRACE,
    'SqueezeMeanPoolingWithDropout': "type='GlobalAveragePooling' is the mean over positions",
    'SumPseudoLoss': _TRACE,
    'TopdownPoseEstimatorPseudoLoss': _TRACE,
    'TwoStageDetectorPseudoLoss': _TRACE,
}

#: Arguments of MMRazor's early releases -> what says the same today.
RENAMED_ARGUMENTS: dict[str, str] = {
    'bn_training_mode': '`norm_training=True` of the algorithm',
    'channel_cfg': '`channel_cfg_paths` of a SlimmableNetwork',
    'components': 'a ConfigurableDistiller with recorders, `distill_losses` and `loss_forward_mappings`',
    'flops_range': 'constraints_range=dict(flops=(low, high))',
    'global_mutable_cfgs': '`channel_unit_cfg`, one config for all units',
    'placeholder_mapping': '`arch_setting` and `mutable_cfg` of a searchable backbone; there are no placeholders',
    'resource_estimator_cfg': '`estimator_cfg`',
}


def not_yet(name: str) -> str:
    """Return the sentences for a name of MMRazor that Strop does not have yet, or an empty string for any other name.

    Args:
        name: As in `type=`, with or without a scope.

    >>> not_yet('mmrazor.DeiTClsHead')
    "'DeiTClsHead' of MMRazor is not supported yet by Strop. Nearest: type='LinearClsHead' is a head of one linear layer."
    >>> not_yet('LinearClsHead')
    ''
    """
    scope, _, short = name.rpartition('.')
    if scope not in ('', 'strop', 'mmrazor', 'mmcls') or short not in NEAREST:
        return ''
    return f'{short!r} of MMRazor is not supported yet by Strop. Nearest: {NEAREST[short]}.'
