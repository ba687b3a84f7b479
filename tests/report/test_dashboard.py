from __future__ import annotations

import gzip
import json
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('optuna_dashboard', reason='optuna-dashboard is not installed')

from strop.errors import ConfigError, MissingDependencyError, StoreError
from strop.mutables import OneOf, Space
from strop.report import Dashboard
from strop.search import LocalProcesses, run
from tests.report.browser import CHROMIUM, Browser
from tests.search.postgres import PASSWORD, Postgres, postgres  # noqa: F401

SPACE = Space({'op': OneOf(('skip', 'conv')), 'width': OneOf((8, 16, 32))})
BOTH = {'accuracy': 'maximize', 'megaflops': 'minimize'}


def _one(subnet) -> float:
    print('training', dict(subnet))
    if subnet['width'] == 16:
        raise OSError('postgresql://ada:s3cret@db/data does not answer')
    return subnet['width'] + (subnet['op'] == 'conv')


def _two(subnet) -> dict[str, float]:
    return {'accuracy': subnet['width'] + (subnet['op'] == 'conv'), 'megaflops': subnet['width'] * 2.0}


def _get(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return answer.read()


def _json(url: str) -> Any:
    return json.loads(_get(url))


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('search')
    run(SPACE, _one, strategy='grid', store=folder, executor=LocalProcesses(1, logs=folder / 'logs'))
    return folder


@pytest.fixture(scope='module')
def served(folder: Path) -> Iterator[Dashboard]:
    with Dashboard(folder, port=0) as dashboard:
        yield dashboard


@pytest.fixture(scope='module')
def browser(tmp_path_factory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip('there is no Chromium here')
    browser = Browser(tmp_path_factory.mktemp('profile'))
    yield browser
    browser.close()


# -- by its answers ------------------------------------------------------------------------


def test_the_study_and_its_trials_come_with_their_artefacts(served: Dashboard) -> None:
    study = _json(f'{served.url}/api/studies/0')
    assert sorted(each['filename'] for each in study['artifacts']) == [
        'best_so_far.png',
        'search_space.json',
        'search_space.png',
    ]
    assert [sorted(each['filename'] for each in trial['artifacts']) for trial in study['trials']] == [
        [f'subnet_{number}.json', f'trial_{number}.log'] for number in range(6)
    ]
    assert study['objective_names'] == ['score']


def test_artefacts_are_sent_with_their_types(served: Dashboard) -> None:
    study = _json(f'{served.url}/api/studies/0')
    picture = next(each for each in study['artifacts'] if each['filename'] == 'search_space.png')
    assert _get(f'{served.url}/artifacts/0/{picture["artifact_id"]}').startswith(b'\x89PNG')
    log = next(each for each in study['trials'][0]['artifacts'] if each['filename'].endswith('.log'))
    with urllib.request.urlopen(f'{served.url}/artifacts/0/0/{log["artifact_id"]}') as answer:
        assert b"training {'op': 'skip', 'width': 8}" in answer.read()
        assert answer.headers['Content-Type'].startswith('text/plain')
        assert answer.headers['X-Content-Type-Options'] == 'nosniff'
        assert 'Access-Control-Allow-Origin' not in answer.headers


def test_an_artefact_that_is_not_there_is_not_found(served: Dashboard) -> None:
    with pytest.raises(urllib.error.HTTPError, match='404'):
        _get(f'{served.url}/artifacts/0/00000000-0000-0000-0000-000000000000')


def test_the_page_is_sent_to_a_client_that_names_no_encoding(served: Dashboard) -> None:
    assert b'<html' in _get(f'{served.url}/dashboard')
    with socket.create_connection(('127.0.0.1', served.port)) as line:
        line.sendall(b'GET /static/bundle.js HTTP/1.0\r\nHost: localhost\r\n\r\n')
        assert line.recv(15) == b'HTTP/1.0 200 OK'
    assert len(gzip.decompress(_get(f'{served.url}/static/bundle.js', **{'Accept-Encoding': 'gzip'}))) > 10**6


def test_nothing_that_is_sent_holds_a_password(served: Dashboard) -> None:
    study = _get(f'{served.url}/api/studies/0')
    answers = [study, _get(f'{served.url}/api/studies'), _get(f'{served.url}/csv/0')]
    for trial in json.loads(study)['trials']:
        answers += [_get(f'{served.url}/artifacts/0/{trial["trial_id"]}/{each["artifact_id"]}') for each in trial['artifacts']]
    assert not any(b's3cret' in answer for answer in answers)
    assert b'postgresql://ada:***@db/data' in study


@pytest.mark.parametrize(
    ('method', 'path'),
    [
        ('DELETE', '/api/studies/0'),
        ('POST', '/api/studies'),
        ('POST', '/api/studies/0/rename'),
        ('PUT', '/api/studies/0/note'),
        ('POST', '/api/trials/0/tell'),
        ('POST', '/api/artifacts/0'),
    ],
)
def test_what_would_change_the_store_is_refused(served: Dashboard, folder: Path, method: str, path: str) -> None:
    before = (folder / 'search.journal').read_bytes()
    request = urllib.request.Request(served.url + path, data=b'{}', method=method, headers={'Content-Type': 'application/json'})
    with pytest.raises(urllib.error.HTTPError, match='403') as caught:
        urllib.request.urlopen(request)
    assert 'only reads' in json.loads(caught.value.read())['reason']
    assert (folder / 'search.journal').read_bytes() == before


@pytest.mark.parametrize('host', ['evil.example', 'evil.example:8080', '10.0.0.1', ''])
def test_a_page_under_another_name_does_not_reach_a_loopback_port(served: Dashboard, host: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match='403'):
        _get(f'{served.url}/api/studies', Host=host)


@pytest.mark.parametrize('host', ['localhost', 'localhost:1234', '127.0.0.1', '[::1]:80'])
def test_this_machine_may_call_it_by_any_of_its_loopback_names(served: Dashboard, host: str) -> None:
    assert b'study_summaries' in _get(f'{served.url}/api/studies', Host=host)


def test_only_the_loopback_interface_is_listened_on(served: Dashboard) -> None:
    assert served.local
    assert served._server.socket.getsockname()[0] == '127.0.0.1'


def test_a_search_goes_on_while_it_is_looked_at(tmp_path: Path) -> None:
    run(SPACE, lambda net: net['width'], strategy='grid', store=tmp_path, trials=2)
    seen = []
    with Dashboard(tmp_path, port=0) as dashboard:

        def look(trial) -> None:
            study = dashboard.view.get_all_trials(0)
            seen.append(sum(shown.state.is_finished() for shown in study))

        watched = run(SPACE, lambda net: net['width'], strategy='grid', store=tmp_path, trials=6, callbacks=[look])
        assert len(_json(f'{dashboard.url}/api/studies/0')['trials']) in (2, 6)  # it looks every two seconds
    assert seen == [3, 4, 5, 6]
    alone = run(SPACE, lambda net: net['width'], strategy='grid', trials=6)
    assert [trial.subnet for trial in watched.trials] == [trial.subnet for trial in alone.trials]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['search.journal']


def test_a_search_in_postgresql_is_shown_without_its_password(postgres: Postgres) -> None:  # noqa: F811
    run(SPACE, _two, strategy='grid', store=postgres.url, objectives=BOTH, trials=2)
    with Dashboard(postgres.url, port=0) as dashboard:
        number = _json(f'{dashboard.url}/api/studies')['study_summaries'][0]['study_id']
        text = _get(f'{dashboard.url}/api/studies/{number}').decode()
        with pytest.raises(Exception, match=r'read-only transaction|exception is raised during the commit'):
            dashboard.view._storage.set_study_user_attr(number, 'x', 1)
    study = json.loads(text)
    assert [len(trial['artifacts']) for trial in study['trials']] == [1, 1]
    assert f'postgresql://ada:***@127.0.0.1:{postgres.port}/postgres' in study['note']['body']
    assert PASSWORD not in text


def test_a_closed_dashboard_gives_its_port_back(folder: Path) -> None:
    with Dashboard(folder, port=0) as first:
        port = first.port
    with Dashboard(folder, port=port) as second:
        assert b'study_summaries' in _get(f'{second.url}/api/studies')


def test_a_store_that_stops_answering_is_logged_without_its_password(tmp_path: Path, monkeypatch, caplog) -> None:
    run(SPACE, lambda net: net['width'], strategy='grid', store=tmp_path)

    def gone(*_: Any) -> None:
        raise OSError('no answer from postgresql://ada:s3cret@db/trials')

    with Dashboard(tmp_path, port=0) as dashboard:
        monkeypatch.setattr(dashboard.view._storage, 'get_all_studies', gone)
        with pytest.raises(urllib.error.HTTPError, match='500'):
            _get(f'{dashboard.url}/api/studies')
        monkeypatch.undo()
        assert b'study_summaries' in _get(f'{dashboard.url}/api/studies')
    assert 's3cret' not in caplog.text
    assert 'ada:***@db' in caplog.text


# -- bad input -----------------------------------------------------------------------------


def test_a_port_in_use_is_named(folder: Path, served: Dashboard) -> None:
    with pytest.raises(ConfigError, match=rf'Port {served.port} of 127.0.0.1 is in use.*0 for any free one'):
        Dashboard(folder, port=served.port)


@pytest.mark.parametrize('port', [-1, 65536])
def test_a_port_that_cannot_be_is_refused(folder: Path, port: int) -> None:
    with pytest.raises(ConfigError, match='between 0'):
        Dashboard(folder, port=port)


def test_an_address_of_another_machine_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"not possible to listen on '192\.0\.2\.1'"):
        Dashboard(folder, host='192.0.2.1', port=0)


def test_a_missing_store_and_missing_logs_are_errors(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(StoreError, match='There is no store'):
        Dashboard(tmp_path / 'none.journal', port=0)
    with pytest.raises(ConfigError, match='Logs are in a folder'):
        Dashboard(folder, port=0, logs=[tmp_path / 'none'])


def test_without_optuna_dashboard_the_extra_is_named(folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, 'optuna_dashboard._app', None)
    with pytest.raises(MissingDependencyError, match=r'strop\[dashboard\]'):
        Dashboard(folder, port=0)


# -- in a browser --------------------------------------------------------------------------


def test_the_browser_shows_a_search_with_one_objective(served: Dashboard, browser: Browser, tmp_path: Path) -> None:
    browser.errors.clear()
    browser.open(served.url)
    browser.wait_for('search')
    browser.open(f'{served.url}/dashboard/studies/0')
    browser.wait_for('History', 'score', 'best_so_far.png', 'search_space.png', 'Best Trial (number=5)', 'strategy', 'grid')
    # Both pictures are drawn, not only named.
    browser.wait(
        '[...document.images].filter(image => image.src.includes("/artifacts/") && image.naturalWidth > 300).length == 2'
    )
    browser.open(f'{served.url}/dashboard/studies/0/trials?numbers=2')
    browser.wait_for('6 Trials', 'Trial 2 (trial_id=2)', 'subnet_2.json', 'trial_2.log', 'op skip', 'width 32', 'evaluated by')
    browser.open(f'{served.url}/dashboard/studies/0/note')
    browser.wait_for('4 trials complete, 2 without a value', 'postgresql://ada:***@db/data')
    assert browser.errors == []


def test_the_browser_shows_a_search_with_two_objectives(browser: Browser, tmp_path: Path) -> None:
    browser.errors.clear()
    store = f'sqlite:///{tmp_path}/trials.db'
    run(SPACE, _two, strategy='grid', store=store, objectives=BOTH)
    with Dashboard(store, port=0) as dashboard:
        browser.open(f'{dashboard.url}/dashboard/studies/1')
        browser.wait_for('Pareto Front', 'accuracy', 'megaflops', 'pareto_front.png', 'search_space.png', 'Best Trials')
        browser.wait('[...document.images].some(image => image.alt == "pareto_front.png" && image.naturalWidth > 300)')
        browser.open('about:blank')
    assert browser.errors == []


def test_new_trials_appear_on_an_open_page(browser: Browser, tmp_path: Path) -> None:
    browser.errors.clear()
    run(SPACE, lambda net: net['width'], strategy='grid', store=tmp_path, trials=2)
    with Dashboard(tmp_path, port=0) as dashboard:
        browser.open(f'{dashboard.url}/dashboard/studies/0/trials')
        browser.wait_for('2 Trials')
        run(SPACE, lambda net: net['width'], strategy='grid', store=tmp_path, trials=5)
        browser.wait_for('5 Trials', timeout=60)
        browser.open('about:blank')
    assert browser.errors == []
