"""Models at an active width: any traced model, and single layers."""

from strop.elastic.layers import (
    DynamicBatchNorm1d,
    DynamicBatchNorm2d,
    DynamicBatchNorm3d,
    DynamicConv2d,
    DynamicLayer,
    DynamicLayerNorm,
    DynamicLinear,
)
from strop.elastic.widths import ElasticWidths, l1_scores

__all__ = [
    'DynamicBatchNorm1d',
    'DynamicBatchNorm2d',
    'DynamicBatchNorm3d',
    'DynamicConv2d',
    'DynamicLayer',
    'DynamicLayerNorm',
    'DynamicLinear',
    'ElasticWidths',
    'l1_scores',
]
