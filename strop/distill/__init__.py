"""Distillation without touching model code: recorders, connectors, losses, distillers."""

from strop.distill.attention_connectors import (
    ABFConnector,
    FBKDStudentConnector,
    FBKDTeacherConnector,
    NonLocal2d,
    attention_masks,
)
from strop.distill.byot import BYOTDistiller
from strop.distill.connectors import (
    BaseConnector,
    ConvModuleConnector,
    NormConnector,
    TorchFunctionalConnector,
    TorchNNConnector,
)
from strop.distill.deliveries import DistillDelivery, DistillDeliveryManager, FunctionOutputsDelivery, MethodOutputsDelivery
from strop.distill.distiller import BaseDistiller, ConfigurableDistiller
from strop.distill.feature_connectors import (
    BYOTConnector,
    CRDConnector,
    MGDConnector,
    OFDTeacherConnector,
    Paraphraser,
    Translator,
    negative_mean,
)
from strop.distill.feature_losses import (
    ABLoss,
    ATLoss,
    ChannelWiseDivergence,
    FBKDLoss,
    FTLoss,
    HCLLoss,
    L1Loss,
    L2Loss,
    MGDLoss,
    OFDLoss,
    PKDLoss,
)
from strop.distill.fitting import distiller_for
from strop.distill.generator_losses import ActivationLoss, InformationEntropyLoss, OnehotLikeLoss
from strop.distill.logit_losses import WSLD, DKDLoss, KDSoftCELoss, KLDivergence, LSKDLoss, NKDLoss
from strop.distill.ofd import OFDDistiller
from strop.distill.recorders import (
    BaseRecorder,
    FunctionInputsRecorder,
    FunctionOutputsRecorder,
    MethodInputsRecorder,
    MethodOutputsRecorder,
    ModuleInputsRecorder,
    ModuleOutputsRecorder,
    ParameterRecorder,
    RecorderManager,
)
from strop.distill.relation_losses import AngleWiseRKD, CKALoss, CRDLoss, DistanceWiseRKD, DISTLoss
from strop.distill.token_losses import TokenKLDivergence, ViTKDLoss

__all__ = [
    'ABFConnector',
    'ABLoss',
    'ATLoss',
    'ActivationLoss',
    'AngleWiseRKD',
    'BYOTConnector',
    'BYOTDistiller',
    'BaseConnector',
    'BaseDistiller',
    'BaseRecorder',
    'CKALoss',
    'CRDConnector',
    'CRDLoss',
    'ChannelWiseDivergence',
    'ConfigurableDistiller',
    'ConvModuleConnector',
    'DISTLoss',
    'DKDLoss',
    'DistanceWiseRKD',
    'DistillDelivery',
    'DistillDeliveryManager',
    'FBKDLoss',
    'FBKDStudentConnector',
    'FBKDTeacherConnector',
    'FTLoss',
    'FunctionInputsRecorder',
    'FunctionOutputsDelivery',
    'FunctionOutputsRecorder',
    'HCLLoss',
    'InformationEntropyLoss',
    'KDSoftCELoss',
    'KLDivergence',
    'L1Loss',
    'L2Loss',
    'LSKDLoss',
    'MGDConnector',
    'MGDLoss',
    'MethodInputsRecorder',
    'MethodOutputsDelivery',
    'MethodOutputsRecorder',
    'ModuleInputsRecorder',
    'ModuleOutputsRecorder',
    'NKDLoss',
    'NonLocal2d',
    'NormConnector',
    'OFDDistiller',
    'OFDLoss',
    'OFDTeacherConnector',
    'OnehotLikeLoss',
    'PKDLoss',
    'ParameterRecorder',
    'Paraphraser',
    'RecorderManager',
    'TokenKLDivergence',
    'TorchFunctionalConnector',
    'TorchNNConnector',
    'Translator',
    'ViTKDLoss',
    'WSLD',
    'attention_masks',
    'distiller_for',
    'negative_mean',
]
