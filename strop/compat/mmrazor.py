"""What MMRazor, 0.x and 1.x, offers: its modules, and where the classes are now.

A class that one of Strop's rooms exports under its old name is found by the `*` of its room; a line is needed only where the
name or the room differs.
"""

from __future__ import annotations

from strop.compat.finder import Table
from strop.unsupported import NEAREST

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
    'mmrazor.models.utils': {
        'strop.compat.fronts': 'add_prefix reinitialize_optim_wrapper_count_status',
        'strop.architectures.layers': 'make_divisible',
    },
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
        'strop.architectures': 'SearchableShuffleNetV2 SearchableMobileNetV2 ImageClassifier SearchableImageClassifier *',
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
        'strop.data': 'DefaultDemoInput DefaultMMClsDemoInput DefaultMMDemoInput DefaultMMDetDemoInput DefaultMMSegDemoInput',
        'strop.estimators': 'ResourceEstimator *',
        'strop.distill': 'BaseRecorder FunctionInputsRecorder FunctionOutputsRecorder MethodInputsRecorder '
        'MethodOutputsRecorder ModuleInputsRecorder ModuleOutputsRecorder ParameterRecorder RecorderManager '
        'DistillDeliveryManager DistillDelivery FunctionOutputsDelivery MethodOutputsDelivery',
        'strop.quantization': 'CustomTracer',
        'strop.mutators': 'ChannelAnalyzer',
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
        'strop.compat.subnets': 'export_fix_subnet load_fix_subnet convert_fix_subnet',
        'strop.estimators': 'ResourceEstimator',
        'strop.distill': 'DistillDeliveryManager RecorderManager',
    },
    'mmrazor.utils': {
        'strop.compat.fronts': 'register_all_modules setup_multi_processes find_latest_checkpoint ValidFixMutable FixMutable '
        'SupportRandomSubnet SingleMutatorRandomSubnet MultiMutatorsRandomSubnet VALID_PATH_TYPE',
        'strop.compat.subnets': 'DumpChosen',
        'mmengine.logging': 'print_log',
    },
    'mmrazor': {'strop.compat.fronts': '__version__ version_info', 'mmengine.utils': 'digit_version'},
    'mmrazor.version': {'strop.compat.fronts': '__version__ version_info parse_version_info'},
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
    'mmrazor': 'apis core datasets engine implementations models registry structures testing utils version visualization',
    'mmrazor.registry': 'registry',
    'mmrazor.models': 'algorithms architectures builder distillers fake_quants losses mutables mutators observers ops pruners '
    'quantizers task_modules utils',
    'mmrazor.models.algorithms': 'base space_mixin nas pruning distill quantization align_method_kd autoslim darts detnas '
    'general_distill spos',
    'mmrazor.models.algorithms.nas': 'autoformer autoslim bignas darts dsnas spos',
    'mmrazor.models.algorithms.pruning': 'dcff dmcp group_fisher_algoritho ite_prune_algorithm slimmable_network',
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
    'mmrazor.models.fake_quants': 'base lsq torch_fake_quants',
    'mmrazor.models.observers': 'base lsq torch_observers',
    'mmrazor.models.quantizers': 'academic_quantizer base exporters native_quantizer openvino_quantizer tensorrt_quantizer',
    'mmrazor.models.utils': 'expandable_utils make_divisible optim_wrapper parse_values quantization_util utils',
    'mmrazor.models.task_modules.delivery': 'deliver_manager distill_deliver function_outputs_delivery method_outputs_delivery',
    'mmrazor.models.task_modules.demo_inputs': 'default_demo_inputs demo_inputs mmpose_demo_input',
    'mmrazor.models.task_modules.estimators': 'base_estimator counters resource_estimator',
    'mmrazor.models.task_modules.estimators.counters': 'flops_params_counter latency_counter op_counters',
    'mmrazor.models.task_modules.predictor': 'handler metric_predictor',
    'mmrazor.models.task_modules.recorder': 'base_recorder function_inputs_recorder function_outputs_recorder '
    'method_inputs_recorder method_outputs_recorder module_inputs_recorder module_outputs_recorder param_recorder '
    'recorder_manager',
    'mmrazor.models.task_modules.tracer': 'backward_tracer channel_analyzer fx fx_tracer loss_calculator parsers path '
    'razor_tracer',
    'mmrazor.models.task_modules.tracer.fx': 'custom_tracer graph_utils',
    'mmrazor.implementations': 'pruning quantization',
    'mmrazor.implementations.pruning': 'group_fisher sparse_gpt',
    'mmrazor.implementations.quantization': 'gptq',
    'mmrazor.engine': 'hooks optimizers runner',
    'mmrazor.engine.hooks': 'dmcp_subnet_hook dump_subnet_hook estimate_resources_hook stop_distillation_hook '
    'visualization_hook',
    'mmrazor.engine.optimizers': 'optimizer_constructor',
    'mmrazor.engine.runner': 'autoslim_greedy_search_loop darts_loop distill_val_loop evolution_search_loop iteprune_val_loop '
    'quantization_loops slimmable_val_loop subnet_sampler_loop subnet_val_loop utils',
    'mmrazor.engine.runner.utils': 'calibrate_bn_mixin check genetic',
    'mmrazor.datasets': 'crd_dataset',
    'mmrazor.structures': 'graph quantization subnet',
    'mmrazor.structures.graph': 'base_graph channel_flow channel_graph channel_nodes module_graph',
    'mmrazor.structures.quantization': 'backend_config qconfig',
    'mmrazor.structures.subnet': 'candidate fix_subnet',
    'mmrazor.utils': 'index_dict log_tools misc placeholder runtime_info setup_env typing',
    'mmrazor.visualization': 'local_visualizer',
    'mmrazor.core': 'builder hooks optimizer recorders runners searcher tracer utils',
    'mmrazor.core.searcher': 'evolution_search greedy_search',
    'mmrazor.apis': 'mmcls mmdet mmseg utils',
}

# What was public without being registered. Names that were registered and are missing here are in `NEAREST`.
_UNREGISTERED = {
    'AlignMethodDistill': "type='SingleTeacherDistill' with a ConfigurableDistiller",
    'CalibrateBNMixin': '`calibrate_sample_num` of SubnetValLoop and EvolutionSearchLoop, or strop.pruning.recalibrate',
    'Candidates': 'the trials of a search: SearchResult.best_first and search.json',
    'DerivedMutable': 'arithmetic over a ValueChoice, such as width * 2',
    'DetNAS': "type='SPOS' with a detector as its architecture",
    'DiffMutableModule': 'DiffMutableOP and DiffChoiceRoute, or a LayerChoice under a DifferentiableMutator',
    'EvolutionSearcher': "`strop search` with train_cfg=dict(type='EvolutionSearchLoop', ...)",
    'GeneralDistill': "type='SingleTeacherDistill' with a ConfigurableDistiller",
    'GreedySearcher': "`strop test` with test_cfg=dict(type='AutoSlimGreedySearchLoop', ...)",
    'ModuleMutator': "type='NasMutator', which binds decisions of every kind",
    'RatioPruner': "type='OneShotChannelMutator', which finds the channels of any traced model",
    'SEARCHERS': 'LOOPS: a search is a loop of the runner',
    'SearchSubnetHook': "type='DumpSubnetHook' writes subnets while a supernet is trained",
    'SelfDistiller': "type='ConfigurableDistiller' in a SelfDistill",
    'SingleTeacherDistiller': "type='ConfigurableDistiller' in a SingleTeacherDistill",
    'StructurePruner': "type='ChannelMutator', which finds the channels of any traced model",
    'ValueMutator': "type='NasMutator', which binds decisions of every kind",
    'build_searcher': "`strop search` with train_cfg=dict(type='EvolutionSearchLoop', ...)",
    'init_mmcls_model': 'strop.engine.build_runner(cfg).model',
    'init_mmdet_model': 'strop.engine.build_runner(cfg).model',
    'init_mmseg_model': 'strop.engine.build_runner(cfg).model',
    'train_mmcls_model': 'strop.engine.build_runner(cfg).train()',
    'train_mmdet_model': 'strop.engine.build_runner(cfg).train()',
    'train_mmseg_model': 'strop.engine.build_runner(cfg).train()',
}

MMRAZOR = Table('mmrazor', _NAMES, _MODULES, nearest={**NEAREST, **_UNREGISTERED})
