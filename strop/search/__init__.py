"""Search: strategies that propose subnets, the driver that evaluates them, the store that keeps the trials."""

from strop.search.constraints import Constraint, Constraints
from strop.search.driver import run
from strop.search.executor import Executor, InProcess, Outcome, evaluate_trial
from strop.search.result import SearchResult
from strop.search.sampling import GridSearch, RandomSearch
from strop.search.store import Store
from strop.search.strategy import STRATEGIES, Strategy, build_strategy, register_strategy
from strop.search.trial import Trial, pareto_front

__all__ = [
    'STRATEGIES',
    'Constraint',
    'Constraints',
    'Executor',
    'GridSearch',
    'InProcess',
    'Outcome',
    'RandomSearch',
    'SearchResult',
    'Store',
    'Strategy',
    'Trial',
    'build_strategy',
    'evaluate_trial',
    'pareto_front',
    'register_strategy',
    'run',
]
