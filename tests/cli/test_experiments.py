from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import signal
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from strop.cli.experiments import experiment

from .running import environment, one_error, run

TRIAL = """
import json, os
folder = os.environ['STROP_TRIAL_DIR']
p = json.load(open(folder + '/parameters.json'))['parameters']
line = json.dumps({'type': 'final', 'value': {'default': p['x'] * p['y'], 'cost': p['y']}})
if p['x'] == 1: raise SystemExit(4)
open(folder + '/metrics.jsonl', 'w').write(line + chr(10))
"""
CONTENT: dict[str, Any] = {
    'experimentName': 'first',
    'searchSpaceFile': 'space.json',
    'trialCommand': f'{sys.executable} -S trial.py',
    'trialConcurrency': 1,
    'maxTrialNumber': 6,
    'debug': False,
    'tuner': {'name': 'GridSearch'},
    'trainingService': {'platform': 'local'},
}
SPACE = {'x': {'_type': 'choice', '_value': [1, 2, 3]}, 'y': {'_type': 'choice', '_value': [1, 4]}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'trial.py').write_text(TRIAL)
    (tmp_path / 'space.json').write_text(json.dumps(SPACE))
    write(tmp_path)
    return tmp_path


def write(here: Path, **changes: Any) -> None:
    (here / 'exp.yaml').write_text(yaml.safe_dump({**CONTENT, **changes}, sort_keys=False))


def test_a_dry_run_prints_the_plan_and_runs_nothing(here: Path) -> None:
    done = run('experiment', 'run', 'exp.yaml', '--dry-run')
    assert done.exit_code == 0, done.output
    assert 'nothing was run' in done.stdout
    assert '2 decisions, 6 subnets' in done.stdout
    assert "'debug' has no meaning here" in done.stderr
    assert not (here / 'experiments').exists()
    plan = json.loads(run('experiment', 'run', 'exp.yaml', '--dry-run', '--json', '--trials', '3').stdout)
    assert plan['ends after'] == '3 trials'


def test_the_whole_life_of_an_experiment(here: Path) -> None:
    done = run('experiment', 'run', 'exp.yaml', '--trials', '4')
    assert done.exit_code == 0, done.stderr
    assert 'trial 3 complete' in done.stderr
    assert 'trial 0 failed' in done.stderr
    assert 'exit code 4' in done.stderr
    where = 'experiments/first'

    again = run('experiment', 'run', 'exp.yaml')
    assert again.exit_code == 1
    assert 'strop experiment resume' in one_error(again)

    more = run('experiment', 'resume', where, '--trials', '6', '--json')
    lines = [json.loads(line) for line in more.stdout.splitlines()]
    assert [line['event'] for line in lines] == ['trial', 'trial', 'end']
    assert lines[-1]['best'] == {'trial': 5, 'values': {'score': 12.0}, 'parameters': {'x': 3, 'y': 4}}
    assert more.stderr == ''

    status = json.loads(run('experiment', 'status', where, '--json').stdout)
    assert status['trials'] == {'complete': 4, 'failed': 2, 'stopped': 0, 'running': 0}
    assert (status['state'], status['asked for'], status['best']['trial']) == ('not running', 6, 5)
    assert '4 complete, 2 failed (asked for: 6)' in run('experiment', 'status', where).stdout
    assert 'nobody works on this' in run('experiment', 'stop', where).stderr

    shown = run('experiment', 'view', where, '--top', '1', '--failed')
    assert '12.0000' in shown.stdout
    assert shown.stdout.count('exit code 4') == 2
    assert len(json.loads(run('experiment', 'view', where, '--json').stdout)['trials']) == 6

    out = run('experiment', 'export', where, '--best', 'best.json', '--trials', 'all.csv', '--front', 'front.json')
    assert out.exit_code == 0, out.stderr
    assert json.loads((here / 'best.json').read_text()) == {'x': 3, 'y': 4}
    with open(here / 'all.csv') as stream:
        assert [row['state'] for row in csv.DictReader(stream)] == ['failed', 'failed', *['complete'] * 4]
    assert [trial['number'] for trial in json.loads((here / 'front.json').read_text())['trials']] == [5]
    assert json.loads(run('experiment', 'export', where).stdout)['parameters'] == {'x': 3, 'y': 4}
    assert 'ends in neither' in one_error(run('experiment', 'export', where, '--front', 'front.txt'))


def test_several_objectives_and_the_front(here: Path) -> None:
    write(here, objectives={'score': 'maximize', 'cost': 'minimize'})
    done = run('experiment', 'run', 'exp.yaml', '--quiet')
    assert done.exit_code == 0, done.stderr
    assert 'trial' not in done.stderr.replace("'debug'", '')
    assert 'Pareto front: 2 trials' in run('experiment', 'view', 'experiments/first').stdout


def test_a_worker_joins_a_finished_experiment_and_has_nothing_to_do(here: Path) -> None:
    run('experiment', 'run', 'exp.yaml')
    done = run('experiment', 'work', '--store', 'experiments/first/search.journal', '--json')
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {
        'event': 'end',
        'stopped': 'trials',
        'trials': 6,
        'best': {'trial': 5, 'values': {'score': 12.0}, 'parameters': {'x': 3, 'y': 4}},
    }


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'maxTrialNumbr': 3}, "exp.yaml: There is no key 'maxTrialNumbr'. Did you mean 'maxTrialNumber'"),
        ({'searchSpaceFile': 'nope.json'}, 'nope.json'),
        ({'tuner': {'name': 'TPF'}}, "There is no tuner 'TPF'"),
        ({'assessor': {'name': 'Curvefitting'}}, "nearest are 'median' and 'hyperband'"),
        ({'trialCommand': 'false', 'trialCodeDirectory': 'no/such'}, 'there is no folder'),
    ],
)
def test_mistakes_in_the_file(here: Path, changes: dict[str, Any], message: str) -> None:
    write(here, **changes)
    done = run('experiment', 'run', 'exp.yaml', '--dry-run')
    assert done.exit_code == 1
    assert message in one_error(done)
    assert not (here / 'experiments').exists()


def test_all_trials_fail(here: Path) -> None:
    write(here, trialCommand='echo out of luck; false', maxTrialNumber=3)
    done = run('experiment', 'run', 'exp.yaml')
    assert done.exit_code == 1
    assert 'None of the 3 trials is complete' in one_error(done)
    assert 'out of luck' in done.stderr
    told = run('experiment', 'run', 'exp.yaml', '--folder', 'other', '--json')
    assert told.exit_code == 1
    assert 'None of the 3 trials is complete' in one_error(told)
    assert json.loads(told.stdout.splitlines()[-1])['best'] is None


def test_unknown_commands_and_places(here: Path) -> None:
    done = run('experiment', 'resum', 'x')
    assert done.exit_code == 2
    assert "Did you mean 'resume'" in one_error(done)
    for name in ('status', 'view', 'stop', 'export'):
        assert 'There is no store' in one_error(run('experiment', name, 'nowhere'))
    assert 'no folder of an experiment' in one_error(run('experiment', 'resume', '.'))


def test_a_password_is_shown_nowhere(here: Path) -> None:
    write(here, store='postgresql+psycopg://ada:s3cret@127.0.0.1:9/none?connect_timeout=2')
    done = run('experiment', 'run', 'exp.yaml')
    assert done.exit_code == 1
    assert 'ada:***@127.0.0.1' in one_error(done)
    said = done.output + done.stderr + ''.join(path.read_text() for path in here.rglob('experiment.*'))
    assert 's3cret' not in said
    assert 's3cret' not in run('experiment', 'run', 'exp.yaml', '--debug').output


@pytest.mark.parametrize('name', list(experiment.commands))
def test_every_help_has_examples_that_parse(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run('experiment', name, '--help')
    assert done.exit_code == 0
    lines = [line.strip() for line in done.output.partition('Examples:')[2].splitlines()]
    examples = [line for line in lines if line.startswith(f'strop experiment {name}')]
    assert examples
    monkeypatch.setattr(click.Path, 'convert', lambda self, value, parameter, context: value)
    for example in examples:
        experiment.commands[name].make_context(name, example.split()[3:])


def test_a_terminal_gets_a_bar_with_the_best_and_ctrl_c_says_how_to_go_on(here: Path) -> None:
    write(here, trialCommand=f'sleep 0.3; {sys.executable} -S trial.py')
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execve(sys.executable, [sys.executable, '-m', 'strop', 'experiment', 'run', 'exp.yaml'], environment(TERM='xterm'))
    shown = b''
    while b'4/6' not in shown:
        shown += os.read(terminal, 4096)
    os.kill(pid, signal.SIGINT)
    with contextlib.suppress(OSError):  # the terminal closes
        while True:
            shown += os.read(terminal, 4096)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    text = shown.decode()
    assert 'best score 2, 2 failed' in text
    assert 'trial 3 complete' in text
    assert f'strop experiment resume {here}/experiments/first' in text.replace('\r\n', '')
    status = run('experiment', 'status', 'experiments/first').stdout
    assert 'left unfinished' in status
    assert 'not running' in status


@pytest.mark.parametrize('command', ['status', 'view', 'export', 'stop'])
def test_variables_are_put_into_no_address_that_a_folder_brings(
    here: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    done = run('experiment', 'run', 'exp.yaml', '--quiet')
    assert done.exit_code == 0, done.output
    file = next(here.glob('experiments/*/experiment.yaml'))
    content = yaml.safe_load(file.read_text())
    monkeypatch.setenv('A_SECRET', 'hush')
    file.write_text(yaml.safe_dump({**content, 'store': 'postgresql://me@somewhere.else/x?application_name=${A_SECRET}'}))
    error = one_error(run('experiment', command, file.parent))
    assert 'could have them sent to another machine' in error
    assert '--name' in error
    assert 'hush' not in error
    # A variable that is the whole address leads nowhere that a stranger chose.
    monkeypatch.setenv('A_STORE', str(file.parent / 'search.journal'))
    file.write_text(yaml.safe_dump({**content, 'store': '$A_STORE'}))
    done = run('experiment', command, file.parent)
    assert done.exit_code == 0, done.output
