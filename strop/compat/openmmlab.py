"""What is left to answer of mmcls (now mmpretrain) and of mmcv 1.x (whose runner is MMEngine now), and their configs.

With the codebases themselves installed, two things that MMEngine does are extended: `_base_ = ['mmdet::...']` also finds files
that were renamed since, and a type that the codebase of the default scope does not have is looked up in Strop. That is in
`strop.compat.fallbacks`; here is what puts it in place as soon as MMEngine is imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

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


class _ExtendingLoader(Loader):
    """Load MMEngine, then extend it."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module('strop.compat.fallbacks').extend_mmengine()


class ExtendingFinder(MetaPathFinder):
    """Have MMEngine extended when it is imported: activating old names imports nothing heavy by itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where MMEngine is, with a loader that extends it; None for everything else."""
        if fullname != 'mmengine':
            return None
        for finder in sys.meta_path:
            find = getattr(finder, 'find_spec', None)
            spec = find(fullname, path, target) if finder is not self and find is not None else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _ExtendingLoader(spec.loader)
                return spec
        return None

    def activate(self) -> None:
        """Extend MMEngine: now, if it is imported already, else when it is. Calling it again does no harm."""
        if 'mmengine' in sys.modules:
            importlib.import_module('strop.compat.fallbacks').extend_mmengine()
        elif self not in sys.meta_path:
            sys.meta_path.insert(0, self)
