"""Search: strategies that propose subnets, the driver that evaluates them, the store that keeps the trials."""

from strop.search.constraints import Constraint, Constraints
from strop.search.driver import run
from strop.search.evolution import RegularizedEvolution, SPOSEvolution
from strop.search.executor import Executor, InProcess, Outcome, evaluate_trial
from strop.search.greedy import GreedySlimming
from strop.search.local import LocalSearch
from strop.search.optuna_sampler import NSGA2, OptunaStrategy, sampler_names
from strop.search.result import SearchResult
from strop.search.sampling import GridSearch, RandomSearch
from strop.search.store import Store
from strop.search.strategy import STRATEGIES, Strategy, build_strategy, register_strategy
from strop.search.surrogate import SurrogateSearch
from strop.search.trial import Trial, pareto_front

__all__ = [
    'NSGA2',
    'STRATEGIES',
    'Constraint',
    'Constraints',
    'Executor',
    'GreedySlimming',
    'GridSearch',
    'InProcess',
    'LocalSearch',
    'OptunaStrategy',
    'Outcome',
    'RandomSearch',
    'RegularizedEvolution',
    'SPOSEvolution',
    'SearchResult',
    'Store',
    'Strategy',
    'SurrogateSearch',
    'Trial',
    'build_strategy',
    'evaluate_trial',
    'pareto_front',
    'register_strategy',
    'run',
    'sampler_names',
]
