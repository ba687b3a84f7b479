"""Distillation without touching model code: recorders, connectors, losses, distillers."""

from strop.distill.attention_connectors import (
    ABFConnector,
    FBKDStudentConnector,
    FBKDTeacherConnector,
    NonLocal2d,
    attention_masks,
)
from strop.distill.connectors import (
    BaseConnector,
    ConvModuleConnector,
    NormConnector,
    TorchFunctionalConnector,
    TorchNNConnector,
)
from strop.distill.feature_connectors import (
    BYOTConnector,
    CRDConnector,
    MGDConnector,
    OFDTeacherConnector,
    Paraphraser,
    Translator,
    negative_mean,
)

__all__ = [
    'ABFConnector',
    'BYOTConnector',
    'BaseConnector',
    'CRDConnector',
    'ConvModuleConnector',
    'FBKDStudentConnector',
    'FBKDTeacherConnector',
    'MGDConnector',
    'NonLocal2d',
    'NormConnector',
    'OFDTeacherConnector',
    'Paraphraser',
    'TorchFunctionalConnector',
    'TorchNNConnector',
    'Translator',
    'attention_masks',
    'negative_mean',
]
