"""What is left to answer of mmcls (now mmpretrain) and of mmcv 1.x (whose runner is MMEngine now)."""

from __future__ import annotations

from strop.compat.finder import Table

_REGISTRIES = {
    'strop.registry': 'MODELS BACKBONES=MODELS NECKS=MODELS HEADS=MODELS LOSSES=MODELS CLASSIFIERS=MODELS',
    'strop.compat.fronts': 'build_backbone=build build_neck=build build_head=build build_loss=build build_classifier=build',
}

MMCLS = Table(
    'mmcls',
    names={
        'mmcls.registry': {
            'strop.registry': 'MODELS DATASETS TRANSFORMS METRICS HOOKS LOOPS RUNNERS OPTIMIZERS OPTIM_WRAPPERS '
            'OPTIM_WRAPPER_CONSTRUCTORS PARAM_SCHEDULERS TASK_UTILS VISUALIZERS VISBACKENDS DATA_SAMPLERS MODEL_WRAPPERS',
        },
        'mmcls.models.builder': _REGISTRIES,
        'mmcls.models.backbones': {'strop.compat.fronts': 'BaseBackbone', 'strop.architectures': '*'},
        'mmcls.models.necks': {'strop.architectures': '*'},
        'mmcls.models.heads': {'strop.architectures': '*'},
        'mmcls.models.classifiers': {'strop.architectures': '*'},
        'mmcls.models.utils': {
            'strop.architectures.layers': 'channel_shuffle make_divisible SELayer',
        },
    },
    modules={
        'mmcls': 'models registry',
        'mmcls.models': 'backbones builder classifiers heads necks utils',
        'mmcls.models.backbones': 'base_backbone',
        'mmcls.models.classifiers': 'base image',
        'mmcls.models.heads': 'base_head cls_head linear_head',
        'mmcls.models.necks': 'gap',
        'mmcls.models.utils': 'channel_shuffle make_divisible se_layer',
    },
    later='BaseClassifier MobileNetV2 ShuffleNetV2 ResNet ResNet_CIFAR VGG BaseDataset InvertedResidual',
    successor='mmpretrain',
    registries='strop.registry',
)

_INITS = (
    'constant_init normal_init kaiming_init xavier_init uniform_init trunc_normal_init caffe2_xavier_init bias_init_with_prob '
    'initialize update_init_info'
)

MMCV = Table(
    'mmcv',
    names={
        'mmcv': {'mmengine.config': 'Config ConfigDict DictAction'},
        'mmcv.cnn': {
            'strop.architectures.conv_module': 'ConvModule DepthwiseSeparableConvModule build_conv_layer build_norm_layer '
            'build_activation_layer',
            'mmengine.model': _INITS,
        },
        'mmcv.runner': {
            'mmengine.model': 'BaseModule ModuleList ModuleDict Sequential',
            'mmengine.runner': 'load_checkpoint save_checkpoint load_state_dict set_random_seed',
            'mmengine.dist': 'get_dist_info init_dist master_only',
            'mmengine.hooks': 'Hook',
            'strop.registry': 'HOOKS RUNNERS',
        },
        'mmcv.utils': {
            'mmengine.registry': 'Registry build_from_cfg',
            'mmengine.config': 'Config ConfigDict DictAction',
            'mmengine.logging': 'print_log',
            'mmengine.utils': 'is_list_of is_tuple_of is_seq_of is_str mkdir_or_exist import_modules_from_strings '
            'digit_version',
        },
    },
    modules={
        'mmcv': 'cnn runner utils',
        'mmcv.cnn': 'bricks utils',
        'mmcv.cnn.bricks': 'conv_module depthwise_separable_conv_module',
        'mmcv.cnn.utils': 'weight_init',
        'mmcv.runner': 'base_module checkpoint dist_utils hooks',
    },
    later='ops parallel EpochBasedRunner IterBasedRunner OptimizerHook auto_fp16 force_fp32 get_model_complexity_info '
    'MMDataParallel MMDistributedDataParallel',
    grafts=('mmcv.runner', 'mmcv.cnn'),
)
