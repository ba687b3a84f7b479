"""Resources of models and subnets: multiply-adds, parameters and memory counted, latency measured."""

from strop.estimators.counting import ModuleCost, Resources, count, example_arguments
from strop.estimators.latency import Latency, Machine, Measurements, Ratio, measure, ratio
from strop.estimators.op_costs import macs_of
from strop.estimators.recorder import Trace, record
from strop.estimators.resources import BaseEstimator, ResourceEstimator
from strop.estimators.runtimes import Runtime, runtimes
from strop.estimators.space_estimator import Extreme, SpaceEstimator
from strop.estimators.widths import WidthCosts

__all__ = [
    'BaseEstimator', 'Extreme', 'Latency', 'Machine', 'Measurements', 'ModuleCost', 'Ratio', 'ResourceEstimator', 'Resources',
    'Runtime', 'SpaceEstimator', 'Trace', 'WidthCosts', 'count', 'example_arguments', 'macs_of', 'measure', 'ratio', 'record',
    'runtimes',
]  # fmt: skip
