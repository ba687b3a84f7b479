"""Search: strategies that propose subnets, the driver that evaluates them, the store that keeps the trials."""

from strop.search.constraints import Constraint, Constraints
from strop.search.driver import run
from strop.search.early_stopping import PRUNERS, EarlyStopping
from strop.search.evolution import RegularizedEvolution, SPOSEvolution
from strop.search.executor import Executor, InProcess, Outcome, evaluate_trial
from strop.search.executor_choice import EXECUTORS, build_executor
from strop.search.experiment import Experiment, stop_search
from strop.search.greedy import GreedySlimming
from strop.search.local import LocalSearch
from strop.search.optuna_sampler import NSGA2, OptunaStrategy, sampler_names
from strop.search.policy import PolicyGradient
from strop.search.processes import LocalProcesses
from strop.search.ray_actors import RayExecutor
from strop.search.reports import TrialStopped
from strop.search.result import SearchResult
from strop.search.sampling import GridSearch, RandomSearch
from strop.search.spos_evolution import SPOSTuner
from strop.search.store import Store
from strop.search.stored import StoredSearch, read_search
from strop.search.strategy import STRATEGIES, Strategy, build_strategy, register_strategy
from strop.search.surrogate import SurrogateSearch
from strop.search.trial import Trial, pareto_front
from strop.search.trial_command import TrialCommand
from strop.search.trial_side import (
    TrialReportError,
    get_current_parameter,
    get_next_parameter,
    get_sequence_id,
    report_final_result,
    report_intermediate_result,
)
from strop.search.tuner import NoMoreTrialError, StrategyTuner, Tuner, TunerError, TunerStrategy, tuner_names

__all__ = [
    'EXECUTORS',
    'NSGA2',
    'PRUNERS',
    'STRATEGIES',
    'Constraint',
    'Constraints',
    'EarlyStopping',
    'Executor',
    'Experiment',
    'GreedySlimming',
    'GridSearch',
    'InProcess',
    'LocalProcesses',
    'LocalSearch',
    'NoMoreTrialError',
    'OptunaStrategy',
    'Outcome',
    'PolicyGradient',
    'RandomSearch',
    'RayExecutor',
    'RegularizedEvolution',
    'SPOSEvolution',
    'SPOSTuner',
    'SearchResult',
    'Store',
    'StoredSearch',
    'Strategy',
    'StrategyTuner',
    'SurrogateSearch',
    'Trial',
    'TrialCommand',
    'TrialReportError',
    'TrialStopped',
    'Tuner',
    'TunerError',
    'TunerStrategy',
    'build_executor',
    'build_strategy',
    'evaluate_trial',
    'get_current_parameter',
    'get_next_parameter',
    'get_sequence_id',
    'pareto_front',
    'read_search',
    'register_strategy',
    'report_final_result',
    'report_intermediate_result',
    'run',
    'sampler_names',
    'stop_search',
    'tuner_names',
]
