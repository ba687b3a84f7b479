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
from strop.algorithms.self_distill import SelfDistill
from strop.algorithms.single_teacher import DistillAlgorithm, SingleTeacherDistill, build_teachers
from strop.algorithms.slimmable import SlimmableNetwork
from strop.algorithms.spos import SPOS

__all__ = [
    'AutoSlim',
    'BaseAlgorithm',
    'Darts',
    'DartsTrainer',
    'DistillAlgorithm',
    'ForwardResults',
    'FunctionMetric',
    'ItePruneAlgorithm',
    'LossResults',
    'PlainArchitecture',
    'PredictResults',
    'SPOS',
    'SelfDistill',
    'SingleTeacherDistill',
    'SlimmableNetwork',
    'TensorResults',
    'architecture_gradient',
    'build_architecture',
    'build_teachers',
    'hypergradient',
]
