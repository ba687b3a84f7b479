import json
import signal

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric

from strop.engine import EvolutionSearchLoop, build_runner
from strop.errors import BudgetError, ConfigError, StoreError, StropError
from strop.estimators import count
from strop.mutables import dump_subnet, extract, load_subnet
from strop.registry import LOOPS, METRICS

from .forked import die, forked
from .tiny import loader, preprocessor, search_config, supernet, train_config

KEYS = ['backbone.layers.0.0', 'backbone.layers.0.1', 'backbone.layers.1.0']


def searched(tmp_path, resume=False, **changes):
    runner = build_runner(search_config(**changes), task='search', work_dir=tmp_path, resume=resume)
    runner.train()
    return runner, runner.train_loop.result


def facts(result):
    return [(trial.number, trial.subnet, trial.values) for trial in result.trials]


@pytest.fixture
def metrics():
    METRICS.import_from_location()
    kept = dict(METRICS._module_dict)
    yield
    METRICS._module_dict.clear()
    METRICS._module_dict.update(kept)


# -- what it writes ------------------------------------------------------------------------------------


def test_search_keeps_to_its_numbers_and_writes_its_files(tmp_path):
    runner, result = searched(tmp_path, max_keep_ckpts=2)
    assert len(result.trials) == 8
    assert len({trial.subnet for trial in result.trials}) == 8
    assert all(0 <= trial.values['accuracy/top1'] <= 100 for trial in result.trials)
    best = load_subnet(tmp_path / 'best_fix_subnet.yaml', runner.model.mutator.space)
    assert best == result.best.subnet == runner.model.mutator.current_subnet()
    assert result.best.values['accuracy/top1'] == max(trial.values['accuracy/top1'] for trial in result.trials)
    assert {path.name for path in tmp_path.glob('subnet_top*')} == {'subnet_top1.yaml', 'subnet_top2.yaml'}
    written = json.loads((tmp_path / 'search.json').read_text())
    assert [trial['number'] for trial in written['trials']] == list(range(8))


def test_same_seed_same_search(tmp_path):
    _, first = searched(tmp_path / 'a')
    _, second = searched(tmp_path / 'b')
    _, third = searched(tmp_path / 'c', seed=7)
    assert facts(first) == facts(second)
    assert [trial.subnet for trial in third.trials] != [trial.subnet for trial in first.trials]


def test_score_is_the_one_of_the_evaluator(tmp_path):
    runner, result = searched(tmp_path, max_epochs=1)
    subnet = result.trials[2].subnet
    model = extract(runner.model.architecture, subnet).eval()
    dataset = runner.train_loop.dataloader.dataset
    images = torch.stack([dataset[index]['inputs'] for index in range(60)])
    labels = torch.tensor([int(label) for label in dataset.labels])
    with torch.no_grad():
        predicted = model((images.float() - 78.0) / 96.0).argmax(1)
    assert result.trials[2].values['accuracy/top1'] == pytest.approx(100 * (predicted == labels).double().mean().item())


def test_weights_statistics_and_modes_are_left_as_they_were(tmp_path):
    config = search_config(calibrate_sample_num=64)
    runner = build_runner(config, task='search', work_dir=tmp_path)
    runner.model.train()
    runner.call_hook('before_run')
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    modes = [module.training for module in runner.model.modules()]
    loop = runner.build_train_loop(runner._train_loop)
    loop.run()
    assert all(torch.equal(before[name], value) for name, value in runner.model.state_dict().items())
    assert [module.training for module in runner.model.modules()] == modes


def test_recalibration_changes_scores_and_needs_training_data(tmp_path):
    _, without = searched(tmp_path / 'a')
    _, calibrated = searched(tmp_path / 'b', calibrate_sample_num=64)
    assert [trial.values for trial in without.trials] != [trial.values for trial in calibrated.trials]
    config = search_config(calibrate_sample_num=64)
    runner = build_runner(config, task='search', work_dir=tmp_path / 'c')
    runner._train_dataloader = None
    with pytest.raises(ConfigError, match='train_dataloader'):
        runner.train_loop.run()


def test_log_has_the_time_left(tmp_path):
    config = search_config()
    config.log_level = 'INFO'
    build_runner(config, task='search', work_dir=tmp_path).train()
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert '[generation 2/2] trial 8/8 eta: 0:00:00 accuracy/top1=' in log
    assert 'flops=' in log


# -- constraints -----------------------------------------------------------------------------------------


def test_constraints_are_met_by_counts_of_the_extracted_models(tmp_path):
    limit = 0.0100
    runner, result = searched(tmp_path, constraints_range=dict(flops=(0.0, limit), params=(0.0, 0.0125)))
    for trial in result.trials:
        resources = count(extract(runner.model.architecture, trial.subnet), torch.zeros(1, 1, 8, 8))
        assert resources.macs / 1e6 <= limit
        assert resources.params / 1e6 <= 0.0125
        assert trial.info['flops'] * 1e6 == resources.macs


def test_impossible_budget_says_what_is_reachable(tmp_path):
    smallest = searched(tmp_path / 'a', max_epochs=7)[1]
    least = min(trial.info['flops'] for trial in smallest.trials)
    with pytest.raises(BudgetError) as caught:
        searched(tmp_path / 'b', constraints_range=dict(flops=(0.0, 0.001)))
    assert 'flops' in str(caught.value)
    assert f'{least:g}'[:7] in str(caught.value)


@pytest.mark.parametrize('bad', [(1.0,), 3.0, ('a', 'b'), (0, True)])
def test_malformed_ranges(tmp_path, bad):
    with pytest.raises(ConfigError, match=r'constraints_range\[.flops.\]'):
        searched(tmp_path, constraints_range=dict(flops=bad))


def test_unknown_resource_names_a_near_one(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'flops'"):
        searched(tmp_path, constraints_range=dict(flop=(0.0, 1.0)))


def test_latency_and_memory_are_constraints(tmp_path):
    _, result = searched(tmp_path, max_epochs=1, constraints_range=dict(latency=(0.0, 1e4), memory=(0.0, 1e3)))
    assert all(trial.info['latency'] > 0 < trial.info['memory'] for trial in result.trials)


# -- arguments --------------------------------------------------------------------------------------------


def test_wrong_score_key_names_a_near_one(tmp_path):
    with pytest.raises(ConfigError, match=r"'accuracy/top_1'.*Did you mean 'accuracy/top1'"):
        searched(tmp_path, score_key='accuracy/top_1')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(max_epochs=0), '`max_epochs`'),
        (dict(num_candidates=0), '`num_candidates`'),
        (dict(top_k='a'), '`top_k`'),
        (dict(num_mutation=4, num_crossover=4), 'must not exceed'),
        (dict(predictor_cfg=dict(type='x')), 'predictor_cfg'),
        (dict(mutate_prob=1.5), r'mutate_prob|\[0, 1\]'),
    ],
)
def test_bad_arguments(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        searched(tmp_path, **changes)


def test_all_arguments_of_mmrazor_are_taken(tmp_path):
    _, result = searched(
        tmp_path,
        max_epochs=1,
        max_keep_ckpts=1,
        resume_from=None,
        mutate_prob=0.1,
        crossover_prob=0.5,
        calibrate_sample_num=-1,
        estimator_cfg=dict(type='mmrazor.ResourceEstimator', input_shape=(1, 1, 16, 16)),
        predictor_cfg=None,
        score_key='accuracy/top1',
        init_candidates=None,
    )
    assert all(trial.info['flops'] > 0.02 for trial in result.trials)  # of 16 x 16 images, not of the data's 8 x 8


@pytest.mark.parametrize('form', ['list', 'file', 'one'])
def test_initial_candidates_are_scored_first(tmp_path, form):
    given = [dict.fromkeys(KEYS, 'shuffle_5x5'), dict.fromkeys(KEYS, 'shuffle_3x3')]
    if form == 'file':
        path = tmp_path / 'first.json'
        path.write_text(json.dumps([{'strop': 'subnet', 'version': 1, 'choices': choices} for choices in given]))
        value = str(path)
    else:
        value = given if form == 'list' else given[0]
    _, result = searched(tmp_path / 'work', init_candidates=value)
    expected = given if form != 'one' else given[:1]
    assert [dict(trial.subnet) for trial in result.trials[: len(expected)]] == expected
    assert len(result.trials) == 8


def test_bad_initial_candidate(tmp_path):
    with pytest.raises(StropError, match='Did you mean'):
        searched(tmp_path, init_candidates=[dict.fromkeys(KEYS, 'shufle_5x5')])


def test_model_without_mutator(tmp_path):
    model = dict(type='sub_model', cfg=dict(supernet, data_preprocessor=preprocessor), fix_subnet=dict.fromkeys(KEYS, 0))
    with pytest.raises(StropError, match='has no mutator'):
        searched(tmp_path, model=model)


# -- failures of the score -----------------------------------------------------------------------------------


def test_score_that_raises_for_some_subnets_is_recorded(tmp_path, metrics):
    @METRICS.register_module()
    class Fragile(BaseMetric):
        default_prefix = 'fragile'

        def process(self, data_batch, data_samples):
            self.results.append(1)

        def compute_metrics(self, results):
            Fragile.calls = getattr(Fragile, 'calls', 0) + 1
            if Fragile.calls % 3 == 1:
                raise ZeroDivisionError('no score for this one')
            return {'score': float(Fragile.calls)}

    _, result = searched(tmp_path, evaluator=dict(type='Fragile'), score_key='fragile/score')
    assert [trial.number for trial in result.failed] == [0, 3, 6]
    assert all('no score for this one' in trial.error for trial in result.failed)
    assert len(result.complete) == 5
    assert result.best.number == 7


def test_a_failed_subnet_leaves_nothing_to_the_next(tmp_path, metrics):
    @METRICS.register_module()
    class Counting(BaseMetric):
        def process(self, data_batch, data_samples):
            self.results.append(1)
            Counting.calls = getattr(Counting, 'calls', 0) + 1
            if Counting.calls == 2:
                raise ZeroDivisionError('the second batch breaks')

        def compute_metrics(self, results):
            return {'score': float(Counting.calls), 'held': len(self.results)}

    batches = loader('val', 60, 20)
    _, result = searched(tmp_path, dataloader=batches, evaluator=dict(type='Counting'), score_key='score')
    assert [trial.number for trial in result.failed] == [0]
    assert len({trial.info['held'] for trial in result.complete}) == 1


def test_score_that_is_nan_is_a_failed_trial(tmp_path, metrics):
    @METRICS.register_module()
    class Sometimes(BaseMetric):
        def process(self, data_batch, data_samples):
            self.results.append(1)

        def compute_metrics(self, results):
            Sometimes.calls = getattr(Sometimes, 'calls', 0) + 1
            return {'score': float('nan') if Sometimes.calls == 2 else 1.0}

    _, result = searched(tmp_path, evaluator=dict(type='Sometimes'), score_key='score')
    assert [trial.number for trial in result.failed] == [1]


@pytest.mark.parametrize('candidates', [4, 12])
def test_score_that_always_raises_stops(tmp_path, metrics, candidates):
    @METRICS.register_module()
    class Broken(BaseMetric):
        def process(self, data_batch, data_samples):
            raise ZeroDivisionError('broken')

        def compute_metrics(self, results):
            return {}

    with pytest.raises(StropError, match='broken'):
        searched(tmp_path, num_candidates=candidates, evaluator=dict(type='Broken'), score_key='score')


def test_space_smaller_than_the_population_ends(tmp_path):
    _, result = searched(tmp_path, num_candidates=50, num_mutation=25, num_crossover=25)
    assert len(result.trials) == 27 == len({trial.subnet for trial in result.trials})
    assert result.stopped == 'exhausted'
    assert (tmp_path / 'best_fix_subnet.yaml').exists()


# -- resuming ------------------------------------------------------------------------------------------------


def test_second_search_in_one_folder_is_refused_unless_resumed(tmp_path):
    _, first = searched(tmp_path)
    with pytest.raises(StoreError, match='--resume'):
        searched(tmp_path)
    _, again = searched(tmp_path, resume=True)
    assert facts(again) == facts(first)
    _, longer = searched(tmp_path, resume=True, max_epochs=3)
    assert facts(longer)[:8] == facts(first)
    assert len(longer.trials) == 12
    _, elsewhere = searched(tmp_path / 'other', resume_from=str(tmp_path / 'search.journal'), max_epochs=3)
    assert facts(elsewhere) == facts(longer)


def search(work_dir, resume, kill):
    """Search, and die after the score of the `kill`-th candidate, before it is stored."""
    config = search_config(max_epochs=3, calibrate_sample_num=64)
    runner = build_runner(config, task='search', work_dir=work_dir, resume=resume)
    score, count = runner.train_loop.scorer.metrics, iter(range(1, 1000))

    def metrics(subnet=None):
        result = score(subnet)
        if next(count) == kill:
            die()
        return result

    runner.train_loop.scorer.metrics = metrics
    runner.train()


def trials_of(work_dir):
    return [
        (trial['number'], trial['choices'], trial['values'], trial['state'])
        for trial in json.loads((work_dir / 'search.json').read_text())['trials']
    ]


def test_killed_search_resumes_to_the_same_trials(tmp_path):
    errors = tmp_path / 'error.txt'
    assert forked(search, tmp_path / 'unbroken', False, 0, errors=errors) == 0, errors.read_text()
    for resume, kill in [(False, 2), (True, 4), (True, 3)]:
        assert forked(search, tmp_path / 'killed', resume, kill, errors=errors) == -signal.SIGKILL
        assert not (tmp_path / 'killed' / 'search.json').exists()
    assert forked(search, tmp_path / 'killed', True, 0, errors=errors) == 0, errors.read_text()
    assert trials_of(tmp_path / 'killed') == trials_of(tmp_path / 'unbroken')
    assert len(trials_of(tmp_path / 'killed')) == 12


@pytest.mark.slow
def test_search_killed_at_any_time_resumes_to_the_same_trials(tmp_path):
    errors = tmp_path / 'error.txt'
    assert forked(search, tmp_path / 'unbroken', False, 0, errors=errors) == 0

    def search_for(work_dir, seconds):
        signal.signal(signal.SIGALRM, lambda *_: die())
        signal.setitimer(signal.ITIMER_REAL, seconds)
        search(work_dir, False, 0)

    for attempt in range(30):
        work_dir = tmp_path / f'killed{attempt}'
        forked(search_for, work_dir, 0.3 + 0.05 * attempt, errors=errors)
        assert forked(search, work_dir, True, 0, errors=errors) == 0, errors.read_text()
        assert trials_of(work_dir) == trials_of(tmp_path / 'unbroken')


# -- as the old configs say it ------------------------------------------------------------------------------------


def test_names_reach_the_loop():
    assert LOOPS.get('mmrazor.EvolutionSearchLoop') is LOOPS.get('EvolutionSearchLoop') is EvolutionSearchLoop


def test_search_goes_on_with_a_trained_supernet(tmp_path):
    trainer = build_runner(train_config(), work_dir=tmp_path / 'train')
    trainer.train()
    config = search_config()
    config.load_from = str(tmp_path / 'train' / 'epoch_2.pth')
    runner = build_runner(config, task='search', work_dir=tmp_path / 'search')
    runner.train()
    state = trainer.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in runner.model.state_dict().items())


def test_candidates_of_a_dumped_subnet(tmp_path):
    _, result = searched(tmp_path / 'a', max_epochs=1)
    dump_subnet(result.best.subnet, tmp_path / 'first.yaml')
    _, second = searched(tmp_path / 'b', init_candidates=str(tmp_path / 'first.yaml'))
    assert second.trials[0].subnet == result.best.subnet
    assert second.trials[0].values == result.best.values


def test_config_with_delete_and_base(tmp_path):
    (tmp_path / 'spos_supernet.py').write_text(train_config().pretty_text)
    (tmp_path / 'search.py').write_text(
        "_base_ = ['./spos_supernet.py']\n\n"
        'train_cfg = dict(\n'
        '    _delete_=True,\n'
        "    type='mmrazor.EvolutionSearchLoop',\n"
        '    dataloader=_base_.val_dataloader,\n'
        '    evaluator=_base_.val_evaluator)\n\n'
        'val_cfg = dict()\n'
        'test_cfg = dict()\n'
    )
    config = Config.fromfile(tmp_path / 'search.py')
    config.merge_from_dict({'train_cfg.max_epochs': 1, 'train_cfg.num_candidates': 30, 'train_cfg.num_mutation': 2})
    config.merge_from_dict({'train_cfg.num_crossover': 2})
    assert config.train_cfg.dataloader.batch_size == loader('val', 60, 60)['batch_size']
    runner = build_runner(config, task='search', work_dir=tmp_path / 'work')
    runner.train()
    assert len(runner.train_loop.result.trials) == 27
