from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.storages import BaseStorage, InMemoryStorage

from strop.errors import StoreError
from strop.mutables import OneOf, Space, load_subnet
from strop.report import StudyView
from strop.report.stores import open_read_only
from strop.report.study_view import LOG_FOLDERS
from strop.search import LocalProcesses, TrialCommand, run

SPACE = Space({'op': OneOf(('skip', 'conv')), 'width': OneOf((8, 16, 32))})
BOTH = {'accuracy': 'maximize', 'macs': 'minimize'}


def _score(subnet) -> float:
    print('training', dict(subnet))
    if subnet['width'] == 16:
        raise OSError('postgresql://ada:s3cret@db/data does not answer')
    return subnet['width'] + (subnet['op'] == 'conv')


def _search(store, **options):
    return run(SPACE, _score, strategy='grid', store=store, **options)


def _study(view: StudyView, name: str = 'search') -> optuna.Study:
    return optuna.load_study(study_name=name, storage=view)


def _artefacts(view: StudyView, of) -> dict[str, bytes]:
    return {meta.filename: view.open_reader(meta.artifact_id).read() for meta in get_all_artifact_meta(of, storage=view)}


@pytest.fixture
def storage() -> InMemoryStorage:
    return InMemoryStorage()


def test_each_trial_has_its_subnet_as_a_file_that_loads(storage: BaseStorage, tmp_path: Path) -> None:
    result = _search(storage)
    view = StudyView(storage)
    for trial, shown in zip(result.trials, _study(view).trials, strict=True):
        content = _artefacts(view, shown)[f'subnet_{trial.number}.json']
        (tmp_path / 'subnet.json').write_bytes(content)
        assert load_subnet(tmp_path / 'subnet.json', SPACE) == trial.subnet


def test_the_study_has_its_space_and_pictures(storage: BaseStorage) -> None:
    _search(storage)
    files = _artefacts(view := StudyView(storage), _study(view))
    assert set(files) == {'best_so_far.png', 'search_space.png', 'search_space.json'}
    assert Space.from_dict(json.loads(files['search_space.json'])) == SPACE
    assert all(content.startswith(b'\x89PNG') for name, content in files.items() if name.endswith('.png'))


def test_several_objectives_have_a_pareto_front(storage: BaseStorage) -> None:
    run(SPACE, lambda net: {'accuracy': net['width'], 'macs': net['width']}, strategy='grid', store=storage, objectives=BOTH)
    view = StudyView(storage)
    assert 'pareto_front.png' in _artefacts(view, _study(view))


def test_logs_of_local_processes_are_found(tmp_path: Path) -> None:
    _search(tmp_path, executor=LocalProcesses(1, logs=tmp_path / 'logs'))
    storage, _ = open_read_only(tmp_path)
    view = StudyView(storage, [tmp_path / 'logs'])
    shown = _study(view).trials[0]
    assert b"training {'op': 'skip', 'width': 8}" in _artefacts(view, shown)['trial_0.log']


def test_logs_of_trial_commands_are_found(tmp_path: Path) -> None:
    line = '{"type": "final", "sequence": 0, "value": 4}'
    command = f"echo this is the trial; echo '{line}' > $STROP_TRIAL_DIR/metrics.jsonl"
    run(SPACE, TrialCommand(command, SPACE, tmp_path / 'trials'), strategy='grid', store=tmp_path, trials=2)
    storage, _ = open_read_only(tmp_path)
    view = StudyView(storage, [tmp_path / 'trials'])
    assert [_artefacts(view, trial).get(f'trial_{trial.number}.log') for trial in _study(view).trials] == [
        b'this is the trial\n'
    ] * 2


def test_the_logs_of_two_searches_of_one_store_are_kept_apart(storage: BaseStorage, tmp_path: Path) -> None:
    for name in ('first', 'second'):
        _search(storage, name=name, trials=1)
    (tmp_path / 'first').mkdir()
    (tmp_path / 'first' / 'trial_0.log').write_text('of the first')
    (tmp_path / 'trial_0.log').write_text('of nobody knows whom')
    view = StudyView(storage, [tmp_path])
    assert _artefacts(view, _study(view, 'first').trials[0])['trial_0.log'] == b'of the first'
    assert 'trial_0.log' not in _artefacts(view, _study(view, 'second').trials[0])


@pytest.mark.parametrize('given', ['.', 'second', 'second/trials'])
def test_logs_lie_in_the_folders_of_experiments_that_share_a_store(given: str, storage: BaseStorage, tmp_path: Path) -> None:
    for name in ('first', 'second'):
        run(SPACE, lambda net: net['width'], strategy='grid', store=storage, name=name, trials=1)
        (tmp_path / name / 'trials' / 'trial_0').mkdir(parents=True)
        (tmp_path / name / 'trials' / 'trial_0' / 'trial.log').write_text(f'of the {name}')
    folders = [tmp_path / given / name for name in LOG_FOLDERS]
    view = StudyView(storage, folders)
    assert _artefacts(view, _study(view, 'second').trials[0])['trial_0.log'] == b'of the second'
    of_first = _artefacts(view, _study(view, 'first').trials[0]).get('trial_0.log')
    assert of_first == (b'of the first' if given == '.' else None)


def test_a_long_log_is_cut_at_its_beginning(storage: BaseStorage, tmp_path: Path) -> None:
    _search(storage, trials=1)
    (tmp_path / 'trial_0.log').write_bytes(b'x' * (6 * 2**20) + b'the end')
    view = StudyView(storage, [tmp_path])
    content = _artefacts(view, _study(view).trials[0])['trial_0.log']
    assert content.startswith(b'[the first ')
    assert content.endswith(b'the end')
    assert len(content) < 5.1 * 2**20


def test_a_log_that_vanished_says_so(storage: BaseStorage, tmp_path: Path) -> None:
    _search(storage, trials=1)
    (tmp_path / 'trial_0.log').write_text('short-lived')
    view = StudyView(storage, [tmp_path])
    metas = {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(_study(view).trials[0], storage=view)}
    (tmp_path / 'trial_0.log').unlink()
    assert b'cannot be read: No such file' in view.open_reader(metas['trial_0.log']).read()


def test_no_password_is_shown_anywhere(storage: BaseStorage, tmp_path: Path) -> None:
    _search(storage)
    (tmp_path / 'trial_2.log').write_text('connecting to postgresql://ada:s3cret@db/data')
    view = StudyView(storage, [tmp_path], 'postgresql://ada:s3cret@db/trials')
    study = _study(view)
    seen = [repr(view.get_all_studies()[0].__dict__), repr(study.user_attrs)]
    seen += [repr((trial.user_attrs, trial._system_attrs, _artefacts(view, trial))) for trial in study.trials]
    text = '\n'.join(seen)
    assert 's3cret' not in text
    assert text.count('postgresql://ada:***@db/') >= 4


def test_what_was_measured_becomes_a_column(storage: BaseStorage) -> None:
    run(SPACE, lambda net: {'score': net['width'], 'macs': 2.0 * net['width']}, strategy='grid', store=storage)
    view = StudyView(storage)
    shown = _study(view).trials[0].user_attrs
    assert shown['macs'] == 16.0
    assert 'subnet' not in shown
    assert ':' in shown['evaluated by']


def test_the_note_says_what_the_search_is_and_how_far(storage: BaseStorage) -> None:
    _search(storage)
    note = StudyView(storage, where='runs/search').get_all_studies()[0].system_attrs['dashboard:note_str:0']
    assert 'strategy `grid`, seed 0' in note
    assert '4 trials complete, 2 without a value, 0 under way' in note
    assert '| 5 | 33 |' in note
    assert 'runs/search' in note


def test_a_note_that_somebody_wrote_stays(storage: BaseStorage) -> None:
    _search(storage)
    storage.set_study_system_attr(0, 'dashboard:note_ver', 3)
    storage.set_study_system_attr(0, 'dashboard:note_str:0', 'half of ')
    storage.set_study_system_attr(0, 'dashboard:note_str:1', 'what I think')
    attributes = StudyView(storage).get_all_studies()[0].system_attrs
    assert attributes['dashboard:note_ver'] > 3
    assert attributes['dashboard:note_str:0'].endswith('half of what I think')
    assert attributes['dashboard:note_str:1'] == ''


def test_pictures_follow_the_search_and_old_addresses_still_answer(storage: BaseStorage) -> None:
    _search(storage, trials=2)
    view = StudyView(storage)
    before = {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(_study(view))}
    first = view.open_reader(before['best_so_far.png']).read()
    _search(storage, trials=6)
    listed = [
        json.loads(text)['artifact_id'] for key, text in view.get_all_studies()[0].system_attrs.items() if key.startswith('art')
    ]
    assert before['best_so_far.png'] not in listed
    assert f'artifacts:{before["best_so_far.png"]}' in view.get_study_system_attrs(0)
    assert view.open_reader(before['best_so_far.png']).read() != first
    assert before['search_space.json'] in listed


def test_new_trials_and_new_logs_appear(storage: BaseStorage, tmp_path: Path) -> None:
    _search(storage, trials=1)
    view = StudyView(storage, [tmp_path])
    assert [list(_artefacts(view, trial)) for trial in _study(view).trials] == [['subnet_0.json']]
    _search(storage, trials=2)
    (tmp_path / 'trial_0.log').write_text('late')
    shown = [sorted(_artefacts(view, trial)) for trial in _study(view).trials]
    assert shown == [['subnet_0.json', 'trial_0.log'], ['subnet_1.json']]


def test_a_study_of_another_tool_beside_ours_is_left_as_it_is(storage: BaseStorage) -> None:
    other = optuna.create_study(storage=storage, study_name='other')
    other.optimize(lambda trial: trial.suggest_float('x', 0, 1), n_trials=2)
    _search(storage)
    view = StudyView(storage)
    shown = next(study for study in view.get_all_studies() if study.study_name == 'other')
    assert shown.system_attrs == {}
    assert [trial.params for trial in _study(view, 'other').trials] == [trial.params for trial in other.trials]
    assert get_all_artifact_meta(_study(view, 'other').trials[0], storage=view) == []


def test_a_store_without_a_search_of_ours_is_refused(storage: BaseStorage) -> None:
    with pytest.raises(StoreError, match='it is empty so far'):
        StudyView(storage)
    optuna.create_study(storage=storage)
    with pytest.raises(StoreError, match='holds no search that Strop made'):
        StudyView(storage)


WRITES = [
    lambda view: view.create_new_study([]),
    lambda view: view.delete_study(0),
    lambda view: view.set_study_user_attr(0, 'a', 1),
    lambda view: view.set_study_system_attr(0, 'a', 1),
    lambda view: view.create_new_trial(0),
    lambda view: view.set_trial_param(0, 'a', 1.0, None),
    lambda view: view.set_trial_state_values(0, optuna.trial.TrialState.FAIL),
    lambda view: view.set_trial_intermediate_value(0, 1, 1.0),
    lambda view: view.set_trial_user_attr(0, 'a', 1),
    lambda view: view.set_trial_system_attr(0, 'a', 1),
    lambda view: view.write('id', None),
    lambda view: view.remove('id'),
]


@pytest.mark.parametrize('write', WRITES)
def test_nothing_can_be_written(storage: BaseStorage, write) -> None:
    _search(storage, trials=1)
    with pytest.raises(StoreError, match='only reads'):
        write(StudyView(storage))


def test_every_writing_method_of_optuna_is_among_those() -> None:
    names = {name for name in dir(BaseStorage) if name.startswith(('set_', 'create_', 'delete_'))}
    assert len(names) == len(WRITES) - 2
