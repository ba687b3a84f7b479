"""What MMRazor, 0.x and 1.x, offers: its modules, and where the classes are now.

A class that one of Strop's rooms exports under its old name is found by the `*` of its room; a line is needed only where the
name or the room differs.
"""

from __future__ import annotations

from strop.compat.finder import Table

_NAMES = {
    'mmrazor.registry': {
        'strop.registry': 'MODELS MODEL_WRAPPERS DATASETS DATA_SAMPLERS TRANSFORMS METRICS LOOPS HOOKS RUNNERS OPTIMIZERS '
        'OPTIM_WRAPPERS OPTIM_WRAPPER_CONSTRUCTORS PARAM_SCHEDULERS TASK_UTILS VISUALIZERS VISBACKENDS '
        'EVALUATORS EVALUATOR=EVALUATORS',
        'mmengine.registry': 'RUNNER_CONSTRUCTORS WEIGHT_INITIALIZERS INFERENCERS LOG_PROCESSORS',
        'strop.engine': 'sub_model',
    },
    'mmrazor.models.builder': {
        'strop.registry': 'ALGORITHMS MUTATORS MUTABLES DISTILLERS PRUNERS LOSSES ARCHITECTURES OPS',
        'strop.compat.fronts': 'build_algorithm=build build_architecture=build build_mutator=build build_mutable=build '
        'build_distiller=build build_pruner=build build_loss=build build_op=build',
    },
    'mmrazor.models.utils': {'strop.compat.fronts': 'add_prefix reinitialize_optim_wrapper_count_status'},
    'mmrazor.models.algorithms': {
        'strop.algorithms': 'BaseAlgorithm SPOS SlimmableNetwork ItePruneAlgorithm LossResults TensorResults PredictResults '
        'ForwardResults *',
        'strop.engine.distributed': 'SlimmableNetworkDDP=DistributedAlgorithm AutoSlimDDP=DistributedAlgorithm '
        'DartsDDP=DistributedAlgorithm MMArchitectureQuantDDP=DistributedAlgorithm',
    },
    'mmrazor.models.mutators': {
        'strop.mutators': 'BaseMutator OneShotMutator OneShotModuleMutator NasMutator ChannelMutator OneShotChannelMutator '
        'SlimmableChannelMutator DiffModuleMutator=DifferentiableMutator *',
    },
    'mmrazor.models.mutables': {
        'strop.mutables': 'BaseMutable=Mutable MutableModule=LayerChoice OneShotMutableModule=LayerChoice OneShotMutableOP '
        'OneShotOP=OneShotMutableOP OneShotProbMutableOP MutableValue OneShotMutableValue '
        'MutableChannelUnit SequentialMutableChannelUnit L1MutableChannelUnit OneShotMutableChannelUnit SlimmableChannelUnit '
        'OneShotMutableChannel=OneShotMutableChannelUnit SquentialMutableChannel=SequentialMutableChannelUnit *',
    },
    'mmrazor.models.architectures': {
        'strop.architectures': 'SearchableShuffleNetV2 SearchableMobileNetV2 ImageClassifier '
        'SearchableImageClassifier=ImageClassifier *',
    },
    'mmrazor.models.losses': {
        'strop.distill': 'ABLoss ATLoss ActivationLoss AngleWiseRKD CRDLoss ChannelWiseDivergence DISTLoss DKDLoss '
        'DistanceWiseRKD FBKDLoss FTLoss InformationEntropyLoss KDSoftCELoss KLDivergence L1Loss L2Loss '
        'MGDLoss OFDLoss OnehotLikeLoss PKDLoss WSLD',
        'strop.architectures': 'CrossEntropyLoss',
    },
    'mmrazor.models.architectures.connectors': {
        'strop.distill': 'BaseConnector BYOTConnector CRDConnector ConvModuleConnector FBKDStudentConnector '
        'FBKDTeacherConnector MGDConnector NormConnector OFDTeacherConnector Paraphraser TorchFunctionalConnector '
        'TorchNNConnector Translator',
    },
    'mmrazor.models.distillers': {
        'strop.distill': 'BaseDistiller BYOTDistiller ConfigurableDistiller OFDDistiller',
    },
    'mmrazor.models.architectures.ops': {
        'strop.architectures.blocks': 'BaseOP ShortcutLayer ShuffleBlock ShuffleXception MBBlock Identity ConvBnAct '
        'DepthwiseSeparableConv',
        'strop.architectures.darts_cells': 'DartsPoolBN DartsDilConv DartsSepConv DartsSkipConnect DartsZero',
    },
    'mmrazor.models.architectures.dynamic_ops': {
        'strop.elastic': 'DynamicConv2d DynamicLinear DynamicBatchNorm1d DynamicBatchNorm2d DynamicBatchNorm3d '
        'DynamicLayerNorm *',
    },
    'mmrazor.models.ops': {
        'strop.architectures.blocks': 'BaseOP ShuffleBlock ShuffleXception MBBlock Identity',
        'strop.architectures.darts_cells': 'DartsPoolBN DartsDilConv DartsSepConv DartsSkipConnect DartsZero',
    },
    'mmrazor.models.task_modules': {
        'strop.estimators': 'ResourceEstimator *',
        'strop.distill': 'BaseRecorder FunctionInputsRecorder FunctionOutputsRecorder MethodInputsRecorder '
        'MethodOutputsRecorder ModuleInputsRecorder ModuleOutputsRecorder ParameterRecorder RecorderManager '
        'DistillDeliveryManager DistillDelivery FunctionOutputsDelivery MethodOutputsDelivery',
        'strop.quantization': 'CustomTracer',
    },
    'mmrazor.models.fake_quants': {
        'strop.quantization': 'LearnableFakeQuantize FakeQuantize',
    },
    'mmrazor.models.observers': {
        'strop.quantization': 'LSQObserver LSQPerChannelObserver',
    },
    'mmrazor.models.quantizers': {
        'strop.quantization': 'AcademicQuantizer BaseQuantizer OpenVINOQuantizer TensorRTQuantizer TorchNativeQuantizer',
    },
    'mmrazor.engine': {
        'strop.engine': 'EvolutionSearchLoop AutoSlimGreedySearchLoop SubnetValLoop SlimmableValLoop ItePruneValLoop '
        'DumpSubnetHook EstimateResourcesHook *',
    },
    'mmrazor.datasets': {
        'strop.data': 'CRDDataset',
    },
    'mmrazor.structures': {
        'strop.engine': 'sub_model',
        'strop.estimators': 'ResourceEstimator',
        'strop.distill': 'DistillDeliveryManager RecorderManager',
    },
    'mmrazor.core': {
        'strop.distill': 'BaseRecorder FunctionInputsRecorder FunctionOutputsRecorder MethodInputsRecorder '
        'MethodOutputsRecorder ModuleInputsRecorder ModuleOutputsRecorder ParameterRecorder RecorderManager '
        'DistillDeliveryManager DistillDelivery FunctionOutputsDelivery MethodOutputsDelivery',
    },
    'mmrazor.apis': {
        'mmengine.runner': 'set_random_seed',
    },
}

_MODULES = {
    'mmrazor': 'apis core datasets engine models registry structures utils version',
    'mmrazor.registry': 'registry',
    'mmrazor.models': 'algorithms architectures builder distillers fake_quants losses mutables mutators observers ops pruners '
    'quantizers task_modules utils',
    'mmrazor.models.algorithms': 'base space_mixin nas pruning distill quantization align_method_kd autoslim darts detnas '
    'general_distill spos',
    'mmrazor.models.algorithms.nas': 'autoformer autoslim bignas darts dsnas spos',
    'mmrazor.models.algorithms.pruning': 'dcff dmcp ite_prune_algorithm slimmable_network',
    'mmrazor.models.algorithms.distill': 'configurable',
    'mmrazor.models.algorithms.distill.configurable': 'datafree_distillation fpn_teacher_distill '
    'overhaul_feature_distillation self_distill single_teacher_distill',
    'mmrazor.models.algorithms.quantization': 'mm_architecture',
    'mmrazor.models.architectures': 'backbones base classifiers components connectors dynamic_ops generators heads necks '
    'ops utils',
    'mmrazor.models.architectures.backbones': 'darts_backbone searchable_autoformer searchable_mobilenet_v2 '
    'searchable_mobilenet_v3 searchable_shufflenet_v2 wideresnet',
    'mmrazor.models.architectures.classifiers': 'image',
    'mmrazor.models.architectures.components': 'backbones heads',
    'mmrazor.models.architectures.components.backbones': 'darts_backbone searchable_mobilenet searchable_shufflenet_v2',
    'mmrazor.models.architectures.components.heads': 'darts_head',
    'mmrazor.models.architectures.connectors': 'base_connector byot_connector convmodule_connector crd_connector '
    'factor_transfer_connectors fbkd_connector mgd_connector norm_connector ofd_connector torch_connector',
    'mmrazor.models.architectures.dynamic_ops': 'bricks head mixins',
    'mmrazor.models.architectures.dynamic_ops.bricks': 'dynamic_container dynamic_conv dynamic_embed dynamic_function '
    'dynamic_linear dynamic_norm dynamic_relative_position',
    'mmrazor.models.architectures.generators': 'dafl_generator zskt_generator',
    'mmrazor.models.architectures.heads': 'darts_subnet_head deit_head',
    'mmrazor.models.architectures.necks': 'squeezemean_with_dropout',
    'mmrazor.models.architectures.ops': 'base common darts_series efficientnet_series function gather_tensors mobilenet_series '
    'shufflenet_series transformer_series',
    'mmrazor.models.architectures.utils': 'mutable_register set_dropout',
    'mmrazor.models.losses': 'ab_loss at_loss crd_loss cross_entropy_loss cwd dafl_loss decoupled_kd dist_loss '
    'factor_transfer_loss fbkd_loss kd_soft_ce_loss kl_divergence l1_loss l2_loss mgd_loss ofd_loss pkd_loss relational_kd '
    'weighted_soft_label_distillation',
    'mmrazor.models.distillers': 'base base_distiller byot_distiller configurable_distiller ofd_distiller self_distiller '
    'single_teacher',
    'mmrazor.models.mutables': 'base_mutable derived_mutable mutable_channel mutable_edge mutable_module '
    'mutable_op mutable_value',
    'mmrazor.models.mutables.mutable_channel': 'base_mutable_channel mutable_channel_container oneshot_mutable_channel '
    'sequential_mutable_channel simple_mutable_channel units',
    'mmrazor.models.mutables.mutable_channel.units': 'channel_unit dcff_channel_unit dmcp_channel_unit l1_mutable_channel_unit '
    'mutable_channel_unit one_shot_mutable_channel_unit sequential_mutable_channel_unit slimmable_channel_unit',
    'mmrazor.models.mutables.mutable_module': 'diff_mutable_module mutable_module one_shot_mutable_module',
    'mmrazor.models.mutables.mutable_value': 'mutable_value',
    'mmrazor.models.mutators': 'base base_mutator channel_mutator darts_mutator differentiable_mutator group_mixin '
    'module_mutator nas_mutator one_shot_mutator value_mutator',
    'mmrazor.models.mutators.channel_mutator': 'channel_mutator dcff_channel_mutator dmcp_channel_mutator '
    'one_shot_channel_mutator slimmable_channel_mutator',
    'mmrazor.models.mutators.module_mutator': 'diff_module_mutator module_mutator one_shot_module_mutator',
    'mmrazor.models.ops': 'base common darts_series mobilenet_series shufflenet_series',
    'mmrazor.models.pruners': 'ratio_pruning structure_pruning',
    'mmrazor.models.task_modules': 'delivery demo_inputs estimators predictor recorder tracer',
    'mmrazor.models.task_modules.estimators': 'base_estimator counters resource_estimator',
    'mmrazor.engine': 'hooks optimizers runner',
    'mmrazor.engine.hooks': 'dmcp_subnet_hook dump_subnet_hook estimate_resources_hook stop_distillation_hook '
    'visualization_hook',
    'mmrazor.engine.optimizers': 'optimizer_constructor',
    'mmrazor.engine.runner': 'autoslim_greedy_search_loop darts_loop distill_val_loop evolution_search_loop iteprune_val_loop '
    'quantization_loops slimmable_val_loop subnet_sampler_loop subnet_val_loop utils',
    'mmrazor.engine.runner.utils': 'calibrate_bn_mixin check genetic',
    'mmrazor.datasets': 'crd_dataset',
    'mmrazor.structures': 'graph quantization subnet',
    'mmrazor.structures.subnet': 'candidate fix_subnet',
    'mmrazor.core': 'builder hooks optimizer recorders runners searcher tracer utils',
    'mmrazor.core.searcher': 'evolution_search greedy_search',
    'mmrazor.apis': 'mmcls mmdet mmseg utils',
}

# The registered names of 1.x and the public ones of 0.x, so that an error can tell "not yet" from "never was".
_LATER = """
AlignMethodDistill AttentiveMobileNetV3 Autoformer AutoformerBackbone BackwardTracer BaseDemoInput BaseEstimator BigNAS
BigNASDDP BigNasConv2d CalibrateBNMixin Candidates CartsHandler CascadeEncoderDecoderPseudoLoss ChannelAnalyzer ConvBNReLU DCFF
DCFFChannelMutator DCFFChannelUnit DMCP DMCPBatchNorm2d DMCPChannelMutator DMCPChannelUnit DMCPDDP DMCPSubnetHook DSNAS
DSNASDDP DefaultDemoInput DefaultMMClsDemoInput DefaultMMDemoInput DefaultMMDetDemoInput DefaultMMPoseDemoInput
DefaultMMRotateDemoInput DefaultMMSegDemoInput DefaultMMYoloDemoInput DeiTClsHead DerivedMutable DetNAS DiffMutableModule
DynamicInputResizer DynamicLinearClsHead DynamicPatchEmbed EvolutionSearcher FastStopTrainingHook FuseConv2d
GaussProcessHandler GeneralDistill GreedySamplerTrainLoop GreedySearcher GroupFisherAlgorithm GroupFisherChannelMutator
GroupFisherChannelUnit GroupFisherDDP GroupFisherDeploySubModel GroupFisherSubModel ImageClassifierPseudoLoss MLPHandler
MetricPredictor ModuleMutator MutableChannelContainer OFAConv2d PruningStructureHook RBFHandler RatioPruner ResourceInfoHook
SEARCHERS SearchSubnetHook SelfDistiller SimpleMutableChannel SingleStageDetectorPseudoLoss SingleTeacherDistiller
SqueezeMeanPoolingWithDropout StructurePruner SumPseudoLoss TopdownPoseEstimatorPseudoLoss TwoStageDetectorPseudoLoss
ValueMutator build_searcher convert_fix_subnet export_fix_subnet init_mmcls_model load_fix_subnet train_mmcls_model
train_mmdet_model train_mmseg_model
"""

MMRAZOR = Table('mmrazor', _NAMES, _MODULES, _LATER)
