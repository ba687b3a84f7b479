"""Models with choices in them, and the parts they are made of: layers, blocks, backbones, heads, classifiers."""

from strop.architectures.blocks import (
    BaseOP,
    ConvBnAct,
    DepthwiseSeparableConv,
    Identity,
    MBBlock,
    ShortcutLayer,
    ShuffleBlock,
    ShuffleXception,
)
from strop.architectures.classifier import ClsDataPreprocessor, ImageClassifier, SearchableImageClassifier
from strop.architectures.conv_module import (
    ConvModule,
    DepthwiseSeparableConvModule,
    build_activation_layer,
    build_conv_layer,
    build_norm_layer,
)
from strop.architectures.darts_cells import (
    DartsBackbone,
    DartsCell,
    DartsDilConv,
    DartsPoolBN,
    DartsSepConv,
    DartsSkipConnect,
    DartsSubnetClsHead,
    DartsZero,
)
from strop.architectures.generators import DAFLGenerator, ImageGenerator, ZSKTGenerator
from strop.architectures.heads import ClsHead, GlobalAveragePooling, LinearClsHead
from strop.architectures.layers import DropPath, SELayer, channel_shuffle, drop_path, make_divisible, recomputed
from strop.architectures.losses import CrossEntropyLoss, LabelSmoothLoss
from strop.architectures.mobilenet import SearchableMobileNetV2
from strop.architectures.shufflenet import SearchableShuffleNetV2
from strop.architectures.stages import StagedBackbone, build_mutable
from strop.architectures.timm_model import TimmModel, create_timm
from strop.architectures.wide_resnet import WideResNet

__all__ = [
    'BaseOP',
    'ClsDataPreprocessor',
    'ClsHead',
    'ConvBnAct',
    'ConvModule',
    'CrossEntropyLoss',
    'DAFLGenerator',
    'DartsBackbone',
    'DartsCell',
    'DartsDilConv',
    'DartsPoolBN',
    'DartsSepConv',
    'DartsSkipConnect',
    'DartsSubnetClsHead',
    'DartsZero',
    'DepthwiseSeparableConv',
    'DepthwiseSeparableConvModule',
    'DropPath',
    'GlobalAveragePooling',
    'Identity',
    'ImageClassifier',
    'ImageGenerator',
    'LabelSmoothLoss',
    'LinearClsHead',
    'MBBlock',
    'SELayer',
    'SearchableImageClassifier',
    'SearchableMobileNetV2',
    'SearchableShuffleNetV2',
    'ShortcutLayer',
    'ShuffleBlock',
    'ShuffleXception',
    'StagedBackbone',
    'TimmModel',
    'WideResNet',
    'ZSKTGenerator',
    'build_activation_layer',
    'build_conv_layer',
    'build_mutable',
    'build_norm_layer',
    'channel_shuffle',
    'create_timm',
    'drop_path',
    'make_divisible',
    'recomputed',
]
