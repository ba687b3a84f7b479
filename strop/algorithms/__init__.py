"""Algorithms: trainable wrappers of an architecture, one file for each paper."""

from strop.algorithms.algorithm import (
    BaseAlgorithm,
    ForwardResults,
    LossResults,
    PredictResults,
    TensorResults,
    build_architecture,
)
from strop.algorithms.autoslim import AutoSlim
from strop.algorithms.darts import Darts, DartsTrainer, architecture_gradient, hypergradient
from strop.algorithms.ite_prune import ItePruneAlgorithm
from strop.algorithms.plain_architecture import FunctionMetric, PlainArchitecture
from strop.algorithms.slimmable import SlimmableNetwork
from strop.algorithms.spos import SPOS

__all__ = [
    'SPOS',
    'AutoSlim',
    'BaseAlgorithm',
    'Darts',
    'DartsTrainer',
    'ForwardResults',
    'FunctionMetric',
    'ItePruneAlgorithm',
    'LossResults',
    'PlainArchitecture',
    'PredictResults',
    'SlimmableNetwork',
    'TensorResults',
    'architecture_gradient',
    'build_architecture',
    'hypergradient',
]
