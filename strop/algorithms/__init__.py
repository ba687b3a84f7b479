"""Algorithms: trainable wrappers of an architecture, one file for each paper."""

from strop.algorithms.algorithm import (
    BaseAlgorithm,
    ForwardResults,
    LossResults,
    PredictResults,
    TensorResults,
    build_architecture,
)
from strop.algorithms.plain_architecture import FunctionMetric, PlainArchitecture
from strop.algorithms.spos import SPOS

__all__ = [
    'SPOS',
    'BaseAlgorithm',
    'ForwardResults',
    'FunctionMetric',
    'LossResults',
    'PlainArchitecture',
    'PredictResults',
    'TensorResults',
    'build_architecture',
]
