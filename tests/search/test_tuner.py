from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from strop.errors import BudgetError, ComponentTypeError, ConfigError, SpaceError
from strop.mutables import AnyOf, KOf, Numeric, OneOf, SearchSpaceFile, Space, Subnet
from strop.search import (
    Constraint,
    NoMoreTrialError,
    SPOSTuner,
    StrategyTuner,
    Trial,
    Tuner,
    TunerError,
    TunerStrategy,
    run,
    tuner_names,
)
from strop.search.executor import Outcome, evaluate_trial
from strop.search.tuner import NNI_TUNERS, OptimizeMode, extract_scalar_reward
from strop.testing import check_strategy, check_tuner

ENTRIES = {
    'op': {'_type': 'layer_choice', '_value': ['conv', 'pool', 'skip']},
    'one': {'_type': 'input_choice', '_value': {'candidates': ['', ''], 'n_chosen': 1}},
    'two': {'_type': 'input_choice', '_value': {'candidates': ['', '', '', ''], 'n_chosen': 2}},
    'any': {'_type': 'input_choice', '_value': {'candidates': ['op', 'one'], 'n_chosen': None}},
    'lr': {'_type': 'loguniform', '_value': [0.001, 0.1]},
}
FILE = SearchSpaceFile(ENTRIES)
# These list every value, which a learning rate has too many of, or cannot be built by name.
LISTING = ('grid', 'GridSampler', 'BruteForceSampler', 'PartialFixedSampler')
SMALL = Space({'a': OneOf((0, 1, 2)), 'b': OneOf((0, 1))})


class RandomNas(Tuner):
    """The random tuner that NNI's documentation shows, with a generator of its own."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.RandomState(seed)
        self.results: list[tuple[int, dict, Any]] = []
        self.ends: list[tuple[int, bool]] = []
        self.imported: list[dict] = []

    def update_search_space(self, search_space: dict) -> None:
        self.space = search_space

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> dict:
        return {key: self.draw(entry) for key, entry in self.space.items()}

    def draw(self, entry: dict) -> Any:
        value = entry['_value']
        if entry['_type'] == 'layer_choice':
            index = int(self.random.randint(len(value)))
            return {'_value': value[index], '_idx': index}
        if entry['_type'] == 'input_choice':
            names, number = value['candidates'], value['n_chosen']
            number = int(self.random.randint(len(names) + 1)) if number is None else number
            indices = sorted(int(index) for index in self.random.permutation(len(names))[:number])
            return {'_value': [names[index] for index in indices], '_idx': indices}
        if entry['_type'] == 'choice':
            return value[int(self.random.randint(len(value)))]
        return float(np.exp(self.random.uniform(*np.log(value))))

    def receive_trial_result(self, parameter_id: int, parameters: dict, value: Any, **kwargs: Any) -> None:
        assert set(kwargs) == {'customized', 'trial_job_id'}
        self.results.append((parameter_id, parameters, value))

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        self.ends.append((parameter_id, success))

    def import_data(self, data: list[dict]) -> None:
        self.imported.extend(data)


class Later(Tuner):
    """Sends everything by `st_callback`, a generation at a time, when the one before it has ended; as NNI's SPOS does."""

    size = 4

    def __init__(self, generations: int = 3) -> None:
        self.generations = generations
        self.numbers: list[int] = []
        self.ready: list[dict] = []
        self.running = 0

    def update_search_space(self, search_space: dict) -> None:
        self.space = search_space
        self.refill()

    def refill(self) -> None:
        if self.generations:
            self.generations -= 1
            self.ready = [{key: random.choice(entry['_value']) for key, entry in self.space.items()} for _ in range(self.size)]

    def send(self) -> None:
        while self.numbers and self.ready:
            self.running += 1
            self.callback(self.numbers.pop(0), self.ready.pop(0))

    def generate_multiple_parameters(self, parameter_id_list: list[int], **kwargs: Any) -> list:
        self.callback = kwargs['st_callback']
        self.numbers += parameter_id_list
        self.send()
        return []

    def receive_trial_result(self, parameter_id: int, parameters: dict, value: Any, **kwargs: Any) -> None:
        pass

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        self.running -= 1
        if not self.running and not self.ready:
            self.refill()
            self.send()


class Several:
    """An executor of several trials at once, which end in the reverse order."""

    capacity = 3

    def start(self, evaluate: Callable[[Subnet], Any], seed: int) -> None:
        self.evaluate, self.seed, self.queue = evaluate, seed, []  # type: ignore[var-annotated]

    def submit(self, trial: Trial) -> None:
        self.queue.append(trial)

    def wait(self) -> list[Outcome]:
        return [evaluate_trial(self.evaluate, self.queue.pop(), self.seed)]

    def close(self) -> None:
        pass


def score(subnet: Subnet) -> float:
    return float(subnet.choices['op'][0] + len(subnet['any']))


def outcome(result: Any) -> list:
    return [(trial.subnet, trial.values) for trial in result.trials]


class TestATunerAsAStrategy:
    def test_it_is_asked_and_told_as_nni_does_it(self) -> None:
        strategy = TunerStrategy(RandomNas(), ENTRIES)

        def evaluate(subnet: Subnet) -> Any:
            if subnet['op'] == 'skip':
                raise RuntimeError('no memory')
            return score(subnet)

        result = run(FILE.space, evaluate, strategy=strategy, trials=12)
        tuner = strategy.tuner
        assert tuner.space == ENTRIES
        assert len(result.complete) + len(result.failed) == 12
        assert result.failed
        assert [number for number, _ in tuner.ends] == list(range(12))
        assert [success for _, success in tuner.ends] == [trial.complete for trial in result.trials]
        told = {number: (parameters, value) for number, parameters, value in tuner.results}
        for trial in result.complete:
            parameters, value = told[trial.number]
            assert FILE.subnet(parameters) == trial.subnet
            assert value == trial.values['score']  # type: ignore[index]

    def test_several_results_are_a_mapping_with_default(self) -> None:
        strategy = TunerStrategy(RandomNas())
        objectives = {'accuracy': 'maximize', 'macs': 'minimize'}
        run(SMALL, lambda subnet: {'accuracy': 0.5, 'macs': 3, 'note': 'x'}, strategy=strategy, trials=1, objectives=objectives)
        assert strategy.tuner.results[0][2] == {'default': 0.5, 'macs': 3.0, 'note': 'x'}

    def test_the_space_of_a_search_without_a_file(self) -> None:
        space = Space(
            {
                'op': OneOf(('a', 'b'), mixable=True), 'k': KOf((0, 1, 2), k=2), 'x': AnyOf(('p', 'q')), 'n': OneOf((3, 5)),
                'one': OneOf((0, 1), inputs=True),
            }
        )  # fmt: skip
        strategy = TunerStrategy(RandomNas)
        result = run(space, lambda subnet: subnet['n'], strategy=strategy, trials=8)
        assert len(result.complete) == 8
        assert strategy.tuner.space['k'] == {'_type': 'input_choice', '_value': {'candidates': ['', '', ''], 'n_chosen': 2}}
        assert strategy.tuner.space['n'] == {'_type': 'choice', '_value': [3, 5]}
        assert strategy.tuner.space['one'] == {'_type': 'input_choice', '_value': {'candidates': ['', ''], 'n_chosen': 1}}

    @pytest.mark.parametrize('executor', [None, Several()])
    def test_parameters_that_come_later_are_waited_for(self, executor: Any) -> None:
        result = run(SMALL, lambda subnet: subnet['a'], strategy=TunerStrategy(Later()), trials=100, executor=executor)
        assert len(result.complete) == 3 * Later.size
        assert result.stopped == 'exhausted'

    def test_repetitions_are_evaluated_unless_they_are_unwanted(self) -> None:
        assert len(run(SMALL, lambda subnet: 1.0, strategy=TunerStrategy(RandomNas()), trials=30).complete) == 30
        strategy = TunerStrategy(RandomNas(), unique=True)
        result = run(SMALL, lambda subnet: 1.0, strategy=strategy, trials=30)
        assert len({trial.subnet for trial in result.trials}) == len(result.trials) == 6
        assert sum(not success for _, success in strategy.tuner.ends) > 0

    def test_constraints_hold(self) -> None:
        bound = Constraint('a', lambda subnet: subnet['a'], high=1)
        strategy = TunerStrategy(RandomNas())
        result = run(SMALL, lambda subnet: 1.0, strategy=strategy, trials=10, constraints=[bound])
        assert all(trial.subnet['a'] <= 1 for trial in result.trials)
        with pytest.raises(BudgetError, match='50 subnets in a row that break a constraint'):
            run(
                SMALL, lambda subnet: 1.0, strategy=strategy, constraints=[Constraint('a', lambda subnet: subnet['a'], high=-1)]
            )

    def test_one_that_takes_no_options(self) -> None:
        class Old(Tuner):
            def update_search_space(self, search_space: dict) -> None:
                self.space = search_space

            def generate_parameters(self, parameter_id: int) -> dict:  # type: ignore[override]
                return {'a': parameter_id % 3, 'b': 0}

            def receive_trial_result(self, parameter_id: int, parameters: dict, value: float) -> None:  # type: ignore[override]
                self.last = parameter_id, value

        strategy = TunerStrategy(Old)
        run(SMALL, lambda subnet: subnet['a'], strategy=strategy, trials=3)
        assert strategy.tuner.last == (2, 2.0)

    def test_a_search_each_of_one_instance_starts_afresh(self) -> None:
        strategy = TunerStrategy(RandomNas())
        first, second = (run(SMALL, lambda subnet: 1.0, strategy=strategy, trials=10) for _ in range(2))
        assert outcome(first) == outcome(second)

    @pytest.mark.parametrize('name', ['random', 'regularized', 'policy', 'TPESampler'])
    def test_there_and_back_keeps_the_contract_of_strategies(self, name: str) -> None:
        check_strategy(lambda: TunerStrategy(StrategyTuner(name), unique=True))

    def test_the_spos_tuner_keeps_it_too(self) -> None:
        check_strategy(
            lambda: TunerStrategy(
                lambda: SPOSTuner(num_population=8, num_mutation=3, num_crossover=3, num_select=4, checkpoints=None),
                unique=True,
            )
        )


class TestResuming:
    @pytest.mark.parametrize(
        'make',
        [RandomNas, lambda: StrategyTuner('regularized'), lambda: StrategyTuner('policy'), lambda: StrategyTuner('TPESampler')],
    )
    def test_it_goes_on_as_if_it_had_never_stopped(self, make: Callable[[], Any], tmp_path: Any) -> None:
        whole = run(FILE.space, score, strategy=TunerStrategy(make, FILE), trials=30)
        for trials in (1, 8, 23, 30):
            strategy = TunerStrategy(make, FILE)
            parts = run(FILE.space, score, strategy=strategy, trials=trials, store=f'{tmp_path}/search.journal')
        assert outcome(parts) == outcome(whole)

    def test_one_that_sends_later_and_draws_from_the_global_generators(self, tmp_path: Any) -> None:
        whole = run(SMALL, lambda subnet: subnet['a'], strategy=TunerStrategy(Later), trials=12)
        for trials in (3, 5, 12):
            parts = run(
                SMALL, lambda subnet: subnet['a'], strategy=TunerStrategy(Later), trials=trials, store=f'{tmp_path}/s.journal'
            )
        assert outcome(parts) == outcome(whole)
        assert len(parts.complete) == 12

    @pytest.mark.parametrize('make', [RandomNas, lambda: StrategyTuner('regularized')])
    def test_a_trial_that_was_under_way_when_the_search_died_is_its_own_again(
        self, make: Callable[[], Any], tmp_path: Any
    ) -> None:
        whole = run(FILE.space, score, strategy=TunerStrategy(make, FILE), trials=12)
        store, calls = f'{tmp_path}/search.journal', iter(range(100))

        def dies(subnet: Subnet) -> float:
            if next(calls) in (3, 7):
                raise KeyboardInterrupt
            return score(subnet)

        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run(FILE.space, dies, strategy=TunerStrategy(make, FILE), trials=12, store=store)
        parts = run(FILE.space, dies, strategy=TunerStrategy(make, FILE), trials=12, store=store)
        assert outcome(parts) == outcome(whole)

    def test_one_that_cannot_repeat_itself_is_told_by_import_data(self, tmp_path: Any) -> None:
        def make() -> RandomNas:
            return RandomNas(int.from_bytes(os.urandom(4), 'little'))

        store = f'{tmp_path}/search.journal'
        first = run(FILE.space, score, strategy=TunerStrategy(make, FILE), trials=6, store=store)
        strategy = TunerStrategy(make, FILE)
        second = run(FILE.space, score, strategy=strategy, trials=10, store=store)
        assert outcome(second)[:6] == outcome(first)
        imported = [(FILE.subnet(entry['parameter']), entry['value']) for entry in strategy.tuner.imported]
        assert imported == [(subnet, values['score']) for subnet, values in outcome(first)]
        assert len(strategy.tuner.results) == 4
        assert [success for _, success in strategy.tuner.ends] == [False] * 6 + [True] * 4

    def test_initial_subnets_are_imported(self) -> None:
        strategy = TunerStrategy(RandomNas(), initial=[{'a': 2, 'b': 1}])
        result = run(SMALL, lambda subnet: subnet['a'], strategy=strategy, trials=3)
        assert dict(result.trials[0].subnet) == {'a': 2, 'b': 1}
        assert strategy.tuner.imported == [{'parameter': {'a': 2, 'b': 1}, 'value': 2.0}]


def faulty(**verbs: Any) -> RandomNas:
    return type('Faulty', (RandomNas,), {name: lambda self, *a, _v=value, **k: _v(*a, **k) for name, value in verbs.items()})()


def fail(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError('division by zero')


def no_more(*_: Any, **__: Any) -> Any:
    raise NoMoreTrialError


class TestFaultyTuners:
    @pytest.mark.parametrize(
        ('verbs', 'text'),
        [
            ({'generate_parameters': lambda i, **k: {'a': 7, 'b': 0}}, "parameter id 0: 'a': 7 is none of .* It proposed"),
            ({'generate_parameters': lambda i, **k: {'a': 1}}, "no choice for 'b'"),
            ({'generate_parameters': lambda i, **k: {'a': 1, 'b': 0, 'c': 2}}, "'c' is not a decision of this space"),
            ({'generate_parameters': lambda i, **k: {'a': [0, 1], 'b': 0}}, "'a': Exactly one"),
            ({'generate_parameters': lambda i, **k: {'a': float('nan'), 'b': 0}}, "'a': nan is none of"),
            ({'generate_parameters': lambda i, **k: None}, 'mapping of keys to values, but got None'),
            ({'generate_parameters': lambda i, **k: '{"a": 1}'}, 'mapping of keys to values'),
            ({'generate_multiple_parameters': lambda ids, **k: None}, 'must return a list of one mapping'),
            ({'generate_multiple_parameters': lambda ids, **k: [{'a': 0, 'b': 0}] * 2}, 'must return a list of one mapping'),
            (
                {'generate_multiple_parameters': lambda ids, **k: k['st_callback'](5, {})},
                'for the number 5, for which it was not',
            ),
            ({'generate_parameters': fail}, 'tuner Faulty raised ZeroDivisionError in generate_multiple_parameters: division'),
            ({'update_search_space': fail}, 'raised ZeroDivisionError in update_search_space'),
            ({'receive_trial_result': fail}, 'raised ZeroDivisionError in receive_trial_result.*goes on from there'),
            ({'trial_end': fail}, 'raised ZeroDivisionError in trial_end'),
        ],
    )
    def test_what_it_did_is_told(self, verbs: dict, text: str) -> None:
        with pytest.raises(TunerError, match=text):
            run(SMALL, lambda subnet: 1.0, strategy=TunerStrategy(faulty(**verbs)), trials=5)

    def test_the_finished_trials_stay_when_it_raises(self, tmp_path: Any) -> None:
        class Breaks(RandomNas):
            def generate_parameters(self, parameter_id: int, **kwargs: Any) -> dict:
                return fail() if parameter_id == 3 else super().generate_parameters(parameter_id, **kwargs)

        store = f'{tmp_path}/search.journal'
        with pytest.raises(TunerError):
            run(SMALL, lambda subnet: 1.0, strategy=TunerStrategy(Breaks), trials=5, store=store)
        mended = run(SMALL, lambda subnet: 1.0, strategy=TunerStrategy(RandomNas), trials=5, store=store)
        whole = run(SMALL, lambda subnet: 1.0, strategy=TunerStrategy(RandomNas), trials=5)
        assert outcome(mended) == outcome(whole)

    @pytest.mark.parametrize('verb', ['generate_parameters', 'generate_multiple_parameters'])
    def test_no_more_trials_end_the_search(self, verb: str) -> None:
        class Ends(RandomNas):
            pass

        def generate(self: RandomNas, given: Any, **kwargs: Any) -> Any:
            if len(self.results) == 4:
                raise NoMoreTrialError('that was all')
            return getattr(RandomNas, verb)(self, given, **kwargs)

        setattr(Ends, verb, generate)
        result = run(SMALL, lambda subnet: 1.0, strategy=TunerStrategy(Ends), trials=50)
        assert (len(result.complete), result.stopped) == (4, 'exhausted')

    def test_an_empty_list_ends_the_search_too(self) -> None:
        tuner = faulty(generate_multiple_parameters=lambda ids, **k: [])
        result = run(SMALL, lambda subnet: 1.0, strategy=TunerStrategy(tuner), trials=50)
        assert (len(result.trials), result.stopped) == (0, 'exhausted')

    def test_no_more_trials_at_the_end_of_one_is_no_error(self) -> None:
        result = run(SMALL, lambda subnet: 1.0, strategy=TunerStrategy(faulty(trial_end=no_more)), trials=5)
        assert len(result.complete) == 5

    def test_what_is_no_tuner(self) -> None:
        with pytest.raises(ComponentTypeError, match='but object lacks update_search_space'):
            TunerStrategy(object())
        with pytest.raises(SpaceError, match=r"has the keys 'op'.*the search 'a', 'b'"):
            run(SMALL, lambda subnet: 1.0, strategy=TunerStrategy(RandomNas, ENTRIES))

    def test_a_contract_that_is_not_kept_names_the_verb(self) -> None:
        for verb, args in (('update_search_space', [{}]), ('generate_parameters', [0]), ('receive_trial_result', [0, {}, 1])):
            with pytest.raises(ConfigError, match=f'Tuner must define {verb}'):
                getattr(Tuner(), verb)(*args)


class TestAStrategyAsATuner:
    @pytest.mark.parametrize('name', [name for name in tuner_names() if name not in LISTING])
    def test_every_name_proposes_what_is_in_the_space(self, name: str) -> None:
        if name in ('GPSampler', 'CmaEsSampler'):
            pytest.importorskip({'GPSampler': 'scipy', 'CmaEsSampler': 'cmaes'}[name])
        tuner = StrategyTuner(name)
        tuner.update_search_space(json.loads(json.dumps(ENTRIES)))
        seen = []
        for number in range(14):
            (parameters,) = tuner.generate_multiple_parameters([number])
            assert list(json.loads(json.dumps(parameters))) == list(ENTRIES)
            assert len(set(parameters['two']['_idx'])) == 2
            seen.append(FILE.subnet(parameters))
            tuner.receive_trial_result(number, parameters, float(parameters['op']['_idx']))
            tuner.trial_end(number, True)
        assert len(set(seen)) == 14
        # Inputs without keys are more than their first one, and any number of inputs is any number.
        assert {subnet['one'] for subnet in seen} == {0, 1}
        assert name == 'local' or len({len(subnet['any']) for subnet in seen}) > 1
        assert tuner.best['op']['_value'] == 'skip'

    @pytest.mark.parametrize('name', LISTING[:3])
    def test_those_that_list_every_value_need_a_list(self, name: str) -> None:
        tuner = StrategyTuner(name)
        with pytest.raises((ConfigError, SpaceError), match=r'cannot be enumerated|lists every value'):
            tuner.update_search_space(ENTRIES)
            tuner.generate_parameters(0)
        entries = {key: entry for key, entry in ENTRIES.items() if key not in ('lr', 'two')}
        tuner.update_search_space(entries)
        proposals = tuner.generate_multiple_parameters(list(range(50)))
        assert len({json.dumps(parameters) for parameters in proposals}) == SearchSpaceFile(entries).space.count() == 24

    def test_proposals_are_a_function_of_seed_and_number(self) -> None:
        def proposals(seed: int) -> list:
            tuner = StrategyTuner('random', seed=seed)
            tuner.update_search_space(ENTRIES)
            random.seed(None)
            return [tuner.generate_parameters(number) for number in range(5)]

        assert proposals(3) == proposals(3) != proposals(4)

    def test_a_small_space_ends(self) -> None:
        for name in ('random', 'grid', 'spos', 'regularized', 'policy', 'TPESampler'):
            tuner = StrategyTuner(name)
            tuner.update_search_space({'op': ENTRIES['op']})
            assert len(tuner.generate_multiple_parameters(list(range(10)))) == 3
            with pytest.raises(NoMoreTrialError, match='proposed every subnet'):
                tuner.generate_parameters(10)

    def test_a_child_differs_from_its_parent_and_from_all_before(self) -> None:
        tuner = StrategyTuner({'type': 'regularized', 'population': 5, 'sample_size': 3})
        entries = {f'op{place}': ENTRIES['op'] for place in range(4)}
        tuner.update_search_space(entries)
        seen = set()
        for number in range(60):
            parameters = tuner.generate_parameters(number)
            seen.add(json.dumps(parameters))
            tuner.receive_trial_result(number, parameters, sum(value['_idx'] for value in parameters.values()))
        assert len(seen) == 60
        assert all(value['_value'] == 'skip' for value in tuner.best.values())

    def test_minimize(self) -> None:
        tuner = StrategyTuner('grid', optimize_mode='minimize')
        tuner.update_search_space({'op': ENTRIES['op']})
        for number, parameters in enumerate(tuner.generate_multiple_parameters([0, 1, 2])):
            tuner.receive_trial_result(number, parameters, {'default': [3, 1, 2][number], 'more': 'x'})
        assert tuner.best['op']['_value'] == 'pool'

    @pytest.mark.parametrize(
        ('value', 'text'), [(float('nan'), 'no finite number'), ('0.9', "got '0.9'"), ({'acc': 1}, 'under'), (None, 'None')]
    )
    def test_a_result_that_is_none_counts_as_a_failure(self, value: Any, text: str) -> None:
        tuner = StrategyTuner('random')
        tuner.update_search_space(ENTRIES)
        parameters = tuner.generate_parameters(0)
        with pytest.warns(UserWarning, match=f'counts as failed: .*{text}'):
            tuner.receive_trial_result(0, parameters, value)
        tuner.trial_end(0, True)
        assert [trial.state for trial in tuner.strategy.trials] == ['failed']

    def test_a_second_result_is_left_out_and_none_is_a_failure(self) -> None:
        tuner = StrategyTuner('random')
        tuner.update_search_space(ENTRIES)
        first, _ = tuner.generate_multiple_parameters([0, 1])
        tuner.receive_trial_result(0, first, 0.5)
        with pytest.warns(UserWarning, match='has a result already; 0.7 is left out'):
            tuner.receive_trial_result(0, first, 0.7)
        tuner.trial_end(0, True)
        tuner.trial_end(1, False)
        assert [(trial.state, trial.values) for trial in tuner.strategy.trials] == [
            ('complete', {'score': 0.5}),
            ('failed', None),
        ]

    def test_imported_and_customized_results_are_learnt(self) -> None:
        tuner = StrategyTuner('random')
        tuner.update_search_space({'op': ENTRIES['op']})
        with pytest.warns(UserWarning, match="Imported data is left out: 'op'"):
            tuner.import_data(
                [
                    {'parameter': {'op': {'_value': 'pool', '_idx': 1}}, 'value': 0.5},
                    {'parameter': {'op': {'_value': 'dense', '_idx': 7}}, 'value': 0.9},
                ]
            )
        tuner.receive_trial_result('mine', {'op': {'_value': 'conv', '_idx': 0}}, 0.6, customized=True)
        assert tuner.generate_parameters(0)['op']['_value'] == 'skip'
        assert tuner.best['op']['_value'] == 'conv'
        with pytest.raises(ComponentTypeError, match='Data to import'):
            tuner.import_data([{'op': 1}])

    def test_the_search_space_may_change(self) -> None:
        tuner = StrategyTuner('grid')
        tuner.update_search_space({'op': ENTRIES['op']})
        for number, parameters in enumerate(tuner.generate_multiple_parameters([0, 1, 2])):
            if number < 2:
                tuner.receive_trial_result(number, parameters, number)
        tuner.update_search_space({'op': {'_type': 'layer_choice', '_value': ['pool', 'dense']}})
        assert tuner.best == {'op': {'_value': 'pool', '_idx': 0}}
        assert tuner.generate_parameters(3) == {'op': {'_value': 'dense', '_idx': 1}}
        with pytest.warns(UserWarning, match='The result of 2 is left out'):
            tuner.receive_trial_result(2, {'op': {'_value': 'skip', '_idx': 2}}, 1.0)

    def test_constraints_hold(self) -> None:
        tuner = StrategyTuner('regularized', constraints=[Constraint('lr', lambda subnet: subnet['lr'], high=0.01)])
        tuner.update_search_space(ENTRIES)
        assert all(parameters['lr'] <= 0.01 for parameters in tuner.generate_multiple_parameters(list(range(10))))

    def test_names_of_nni(self) -> None:
        for name in NNI_TUNERS:
            if name != 'GPTuner':
                assert StrategyTuner(name).strategy is not None
        evolution = StrategyTuner({'type': 'RegularizedEvolutionTuner', 'population_size': 30}).strategy
        assert (evolution.name, evolution.population, evolution.sample_size) == ('regularized', 30, 25)  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match='trials_per_update'):
            StrategyTuner({'type': 'PPOTuner', 'trials_per_update': 20})
        with pytest.raises(ConfigError, match=r"no tuner 'TPESampl'\. Did you mean 'TPESampler'"):
            StrategyTuner('TPESampl')
        with pytest.raises(ConfigError, match="'maximize' or 'minimize'"):
            StrategyTuner('random', optimize_mode='max')
        assert StrategyTuner('random', optimize_mode=OptimizeMode.Minimize).optimize_mode == 'minimize'
        with pytest.raises(ConfigError, match=r'needs update_search_space\(search_space\) first'):
            StrategyTuner('random').generate_parameters(0)


class TestTheContractOfTuners:
    @pytest.mark.parametrize('name', ['random', 'grid', 'regularized', 'policy', 'default', 'local', 'NSGAIISampler'])
    def test_every_strategy_keeps_it(self, name: str) -> None:
        check_tuner(lambda: StrategyTuner(name))

    def test_tuners_in_files_of_their_own_keep_it(self) -> None:
        check_tuner(RandomNas)
        check_tuner(lambda: RandomNas(int.from_bytes(os.urandom(4), 'little')), repeats=False)
        check_tuner(lambda: SPOSTuner(checkpoints=None))
        choices = {key: {'_type': 'choice', '_value': [1, 2, 3]} for key in 'abc'}
        check_tuner(Later, choices)

    @pytest.mark.parametrize(
        ('make', 'text'),
        [
            (lambda: RandomNas(int.from_bytes(os.urandom(4), 'little')), 'as if it had never stopped'),
            (lambda: Later(generations=2), 'parameters for 12 trials, not only for 8'),
            (lambda: faulty(import_data=fail), 'division by zero'),
            (lambda: faulty(generate_parameters=lambda i, **k: {}), 'no choice for'),
            (lambda: faulty(trial_end=fail), 'raised ZeroDivisionError in trial_end'),
        ],
    )
    def test_a_broken_rule_is_told(self, make: Callable[[], Any], text: str) -> None:
        with pytest.raises((AssertionError, TunerError, ZeroDivisionError), match=text):
            check_tuner(make, {key: {'_type': 'choice', '_value': [1, 2, 3]} for key in 'abc'})


def test_the_number_of_a_result() -> None:
    assert extract_scalar_reward(np.float32(0.5)) == 0.5
    assert extract_scalar_reward({'default': 1}) == 1.0
    for wrong in ('1', None, True, {'accuracy': 1}):
        with pytest.raises(TunerError, match='A result is a number'):
            extract_scalar_reward(wrong)


def test_numbers_pass_through_a_tuner_unchanged() -> None:
    space = Space({'lr': Numeric(law='loguniform', arguments=(1e-4, 1e-1)), 'n': Numeric(law='randint', arguments=(0, 5))})
    strategy = TunerStrategy(faulty(generate_parameters=lambda i, **k: {'lr': 0.0123456789 + i / 1000, 'n': i}))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        result = run(space, lambda subnet: subnet['lr'], strategy=strategy, trials=5)
    assert [trial.subnet['lr'] for trial in result.trials] == [0.0123456789 + number / 1000 for number in range(5)]
