from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from strop.errors import ConfigError
from strop.search.experiment_file import as_yaml, duration, experiment_schema, read_experiment, understood, without_secrets

SPACE = {'x': {'_type': 'choice', '_value': [1, 2]}}
OWN: dict[str, Any] = {'space': SPACE, 'trial': 'math:sqrt'}


def test_nni_2_is_understood() -> None:
    content = {
        'experimentName': 'digits',
        'searchSpaceFile': 'space.json',
        'trialCommand': 'python trial.py',
        'trialCodeDirectory': 'code',
        'trialConcurrency': 2,
        'trialGpuNumber': 1,
        'maxTrialNumber': 20,
        'maxExperimentDuration': '2h',
        'maxTrialDuration': '10m',
        'experimentWorkingDirectory': 'runs',
        'useAnnotation': False,
        'debug': True,
        'tuner': {'name': 'TPE', 'classArgs': {'optimize_mode': 'minimize'}},
        'assessor': {'name': 'Medianstop', 'classArgs': {'start_step': 3}},
        'trainingService': {'platform': 'local', 'useActiveGpu': False, 'gpuIndices': '0, 2'},
    }
    found, notes = understood(content)
    assert found == {
        'name': 'digits',
        'space': 'space.json',
        'trial': {'command': 'python trial.py', 'folder': 'code'},
        'executor': {'workers': 2, 'gpus': 1, 'seconds': '10m', 'devices': [0, 2]},
        'trials': 20,
        'duration': '2h',
        'folder': 'runs/digits',
        'objectives': 'minimize',
        'strategy': {'type': 'TPE'},
        'pruner': {'type': 'Medianstop', 'start_step': 3},
    }
    assert len(notes) == 2


def test_nni_1_is_understood() -> None:
    content = {
        'authorName': 'somebody',
        'experimentName': 'digits',
        'trialConcurrency': 1,
        'maxExecDuration': '1h',
        'maxTrialNum': 10,
        'trainingServicePlatform': 'local',
        'searchSpacePath': 'space.json',
        'useAnnotation': False,
        'tuner': {
            'codeDir': 'tuners',
            'classFileName': 'mine.py',
            'className': 'Mine',
            'classArgs': {'optimize_mode': 'maximize'},
        },
        'trial': {'command': 'python trial.py', 'codeDir': '.', 'gpuNum': 0},
    }
    found, notes = understood(content)
    assert found['trial'] == {'command': 'python trial.py', 'folder': '.'}
    assert found['executor'] == {'workers': 1, 'gpus': 0}
    assert found['strategy'] == {'tuner': 'mine:Mine', 'options': {'optimize_mode': 'maximize'}, 'folder': 'tuners'}
    assert found['objectives'] == 'maximize'
    assert notes == ["'authorName' has no meaning here and is left out."]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'duration': 'soon'}, "duration: 'soon' is not written as it must be. It is: Seconds, or a number with a unit"),
        ({'trial': 'python t.py --images postgresql://a:s3cret@h/d'}, 'trial.command holds a password'),
        ({'trails': 3}, "no key 'trails'. Did you mean 'trials'"),
        ({'maxTrialNumbr': 3}, "Did you mean 'maxTrialNumber'"),
        ({'trials': 0}, 'trials: 0 is less than the minimum of 1'),
        ({'trials': 'ten'}, "trials: 'ten' is not of type 'integer'"),
        ({'trial': {'command': 'a', 'function': 'm:f'}}, 'trial'),
        ({'trial': {'command': 'a', 'foldr': '.'}}, "'trial' has no key 'foldr'. Did you mean 'folder'"),
        ({'objectives': 'maximise'}, 'objectives'),
        ({'constraints': {'macs': {'function': 'm:f', 'hi': 3}}}, "'constraints.macs' has no key 'hi'"),
        ({'constraints': {'macs': {'high': 3}}}, "'function' is a required property"),
        ({'useAnnotation': True}, 'strop ss-gen'),
        ({'advisor': {'name': 'BOHB'}}, 'pruner: hyperband'),
        ({'trainingService': {'platform': 'remote'}}, "'remote' is not understood.*strop experiment work"),
        ({'trainingService': {'platform': 'local', 'maxTrialNumberPerGpu': 2}}, 'one trial at a time'),
        ({'trials': 3, 'maxTrialNumber': 3}, "both say what 'trials' is|and another key both say"),
        ({'tuner': {'nme': 'TPE'}}, "'tuner' has no key 'nme'. Did you mean 'name'"),
        ({'tuner': {'className': 'Mine'}}, "'module.Class'"),
        ({'tuner': {'name': 'TPE'}, 'strategy': 'random'}, "both say what 'strategy' is"),
        ({'assessor': {'className': 'a.B'}}, 'a pruner does its work'),
        ({'seed': -1}, 'seed'),
        ({'executor': {'memory': -1}}, 'executor.memory|executor'),
    ],
)
def test_bad_ones(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        understood({**OWN, **change})


def test_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"needs the key 'space' \(NNI: 'searchSpaceFile'"):
        understood({'trial': 'a:b'})
    with pytest.raises(ConfigError, match=r"needs the key 'trial' \(NNI: 'trialCommand'"):
        understood({'space': SPACE})
    with pytest.raises(ConfigError, match='is a mapping'):
        understood([1])


def test_a_string_is_a_function_or_a_command() -> None:
    assert understood({**OWN, 'trial': 'package.module:function'})[0]['trial'] == {'function': 'package.module:function'}
    assert understood({**OWN, 'trial': 'python trial.py --a b:c'})[0]['trial'] == {'command': 'python trial.py --a b:c'}


def test_a_duration_alone_ends_it() -> None:
    found, notes = understood({**OWN, 'duration': '30m'})
    assert found['trials'] == 10**9
    assert 'No number of trials' in notes[0]


def test_paths_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / 'in').mkdir()
    content = {'space': 'space.json', 'trial': {'command': 'run'}, 'store': 'a.journal', 'folder': '../out'}
    (tmp_path / 'in' / 'exp.yaml').write_text(as_yaml(content))
    found, _ = read_experiment(tmp_path / 'in' / 'exp.yaml')
    assert found['space'] == str(tmp_path / 'in' / 'space.json')
    assert found['trial']['folder'] == str(tmp_path / 'in')
    assert found['store'] == str(tmp_path / 'in' / 'a.journal')
    assert found['folder'] == str(tmp_path / 'out')


def test_the_file_is_named_in_errors_and_keys_come_once(tmp_path: Path) -> None:
    (tmp_path / 'exp.yaml').write_text('spce: {}\n')
    with pytest.raises(ConfigError, match=r"exp\.yaml: There is no key 'spce'. Did you mean 'space'"):
        read_experiment(tmp_path / 'exp.yaml')
    (tmp_path / 'exp.yaml').write_text('name: a\nname: b\n')
    with pytest.raises(ConfigError, match='name'):
        read_experiment(tmp_path / 'exp.yaml')


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(experiment_schema())
    for key, entry in experiment_schema()['properties'].items():
        assert key.isidentifier()
        assert entry


@pytest.mark.parametrize(
    ('given', 'seconds'), [('90', 90), ('90s', 90), ('1.5h', 5400), ('2d', 172800), (7, 7), ('30 m', 1800)]
)
def test_durations(given: Any, seconds: float) -> None:
    assert duration(given) == seconds


@pytest.mark.parametrize('given', ['', '0', 'h', '3w', '-2h', True])
def test_no_durations(given: Any) -> None:
    with pytest.raises(ConfigError, match='A duration is'):
        duration(given)


def test_secrets_are_left_out() -> None:
    content = {
        'store': 'postgresql://ada:s3cret@db/x',
        'trial': {'command': 'a', 'environment': {'WANDB_API_KEY': 's3cret', 'DB_PASSWORD': 's3cret', 'LANG': 'C'}},
    }
    shown = without_secrets(content)
    assert 's3cret' not in json.dumps(shown)
    assert shown['trial']['environment']['LANG'] == 'C'
    assert content['trial']['environment']['DB_PASSWORD'] == 's3cret'


def test_a_variable_that_holds_a_password_is_left_out_whatever_its_name() -> None:
    environment = {'IMAGES': 'postgresql://ada:s3cret@db/images', 'SEED': 3}
    shown = without_secrets({'trial': {'command': 'a', 'environment': environment}})
    assert shown['trial']['environment'] == {'IMAGES': '***', 'SEED': 3}
