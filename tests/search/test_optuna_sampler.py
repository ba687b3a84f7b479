from __future__ import annotations

import optuna

from strop.mutables import AnyOf, Guard, KOf, OneOf, Ordered, Space
from strop.randomness import counter_rng
from strop.search import OptunaStrategy, Trial, run

SPACE = Space(
    {'op': OneOf(('a', 'b')), 'width': Ordered((8, 16, 24)), 'pair': KOf(('p', 'q', 'r'), k=2), 'any': AnyOf(('x', 'y'))},
    {'width': ((Guard.on('op', [1]),),)},
)


def test_the_sampler_learns_what_was_evaluated() -> None:
    strategy = OptunaStrategy('TPESampler').bind(SPACE, {'score': 'minimize'}, seed=3)
    assert isinstance(strategy, OptunaStrategy)
    told = []
    for number in range(24):
        subnet = strategy.ask(number, counter_rng(3, 'proposal', number))
        assert subnet is not None
        trial = Trial(number, subnet, 'complete', {'score': float(number)}) if number % 5 else Trial(number, subnet, 'failed')
        strategy.tell(trial)
        told.append(trial)
    assert strategy.study.direction == optuna.study.StudyDirection.MINIMIZE
    complete = [trial for trial in strategy.study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert [trial.value for trial in complete] == [(trial.values or {})['score'] for trial in told if trial.complete]
    for frozen, trial in zip(complete, [trial for trial in told if trial.complete], strict=True):
        assert (frozen.params['op'] == 1) == ('width' in frozen.params) == (trial.subnet['op'] == 'b')
        assert [frozen.params[f'any[{place}]'] for place in (0, 1)] == [int(name in trial.subnet['any']) for name in ('x', 'y')]


def test_options_reach_the_sampler() -> None:
    strategy = OptunaStrategy('TPESampler', n_startup_trials=3).bind(SPACE)
    assert strategy.study.sampler._n_startup_trials == 3
    result = run(SPACE, lambda subnet: 1.0, strategy={'type': 'NSGAIISampler', 'population_size': 6}, trials=20)
    assert len({trial.subnet for trial in result.trials}) == 20


def test_optuna_is_left_as_it_was() -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    run(SPACE, lambda subnet: 1.0, strategy='nsga2', trials=3)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
