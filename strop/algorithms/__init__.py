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
from strop.algorithms.darts import Darts, DartsTrainer
from strop.algorithms.data_free import DAFLDataFreeDistillation, DataFreeDistillation
from strop.algorithms.fpn_teacher import FpnTeacherDistill
from strop.algorithms.ite_prune import ItePruneAlgorithm
from strop.algorithms.overhaul import OverhaulFeatureDistillation
from strop.algorithms.plain_architecture import FunctionMetric, PlainArchitecture
from strop.algorithms.proxyless import ProxylessNasTrainer, ProxylessTrainer, expected_cost
from strop.algorithms.quantized import MMArchitectureQuant
from strop.algorithms.second_order import architecture_gradient, hypergradient
from strop.algorithms.self_distill import SelfDistill
from strop.algorithms.single_path import SinglePathTrainer, SPOSSupernetTrainer, SPOSSupernetTrainingMutator
from strop.algorithms.single_teacher import DistillAlgorithm, SingleTeacherDistill, build_teachers
from strop.algorithms.slimmable import SlimmableNetwork
from strop.algorithms.spos import SPOS

__all__ = [
    'SPOS',
    'AutoSlim',
    'BaseAlgorithm',
    'DAFLDataFreeDistillation',
    'Darts',
    'DartsTrainer',
    'DataFreeDistillation',
    'DistillAlgorithm',
    'ForwardResults',
    'FpnTeacherDistill',
    'FunctionMetric',
    'ItePruneAlgorithm',
    'LossResults',
    'MMArchitectureQuant',
    'OverhaulFeatureDistillation',
    'PlainArchitecture',
    'PredictResults',
    'ProxylessNasTrainer',
    'ProxylessTrainer',
    'SPOSSupernetTrainer',
    'SPOSSupernetTrainingMutator',
    'SelfDistill',
    'SinglePathTrainer',
    'SingleTeacherDistill',
    'SlimmableNetwork',
    'TensorResults',
    'architecture_gradient',
    'build_architecture',
    'build_teachers',
    'expected_cost',
    'hypergradient',
]
