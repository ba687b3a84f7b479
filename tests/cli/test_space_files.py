from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from strop.mutables import SearchSpaceFile

from .running import one_error, run

# A trial as NNI's documentation writes it; the second line is what an installation without NNI needs.
TRIAL = """
import sys
import strop.compat
import nni
from torch import nn
from nni.nas.pytorch.classic_nas import get_and_apply_next_architecture
from nni.nas.pytorch.mutables import InputChoice, LayerChoice


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = LayerChoice([nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 5, padding=2)], key='first_conv')
        self.pool = LayerChoice({'max': nn.MaxPool2d(2), 'avg': nn.AvgPool2d(2)}, key='pool')
        self.skip = InputChoice(n_candidates=2, n_chosen=None, key='skip')


params = {'lr': 0.1}
params.update(nni.get_next_parameter())
model = Net()
get_and_apply_next_architecture(model)
print('training')
nni.report_final_result(0.5)
"""

SPACE = {
    'first_conv': {'_type': 'layer_choice', '_value': ['0', '1']},
    'pool': {'_type': 'layer_choice', '_value': ['max', 'avg']},
    'skip': {'_type': 'input_choice', '_value': {'candidates': ['', ''], 'n_chosen': None}},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'trial').mkdir()
    (tmp_path / 'trial' / 'trial.py').write_text(TRIAL)
    return tmp_path


def write(here: Path, lines: str) -> str:
    (here / 'trial' / 'other.py').write_text(lines)
    return f'{sys.executable} -S other.py'


# What a script without Strop does, at once: write the file that the variable names.
WRITING = 'import json, os; json.dump({content}, open(os.environ["NNI_GEN_SEARCH_SPACE"], "w"))'


def test_the_file_of_a_trial_written_for_nni(here: Path) -> None:
    done = run('ss_gen', '--trial_command', f'{sys.executable} trial.py', '--trial_dir', 'trial', '--file', 'space.json')
    assert done.exit_code == 0, done.stderr
    assert json.loads((here / 'space.json').read_text()) == SPACE
    assert done.stdout.strip() == 'space.json: 3 decisions'
    assert 'training' not in done.stderr


def test_hyper_parameters_beside_it_under_the_default_name(here: Path) -> None:
    rates = {'lr': {'_type': 'loguniform', '_value': [0.0001, 0.1]}, 'batch': {'_type': 'choice', '_value': [16, 32]}}
    (here / 'rates.json').write_text(json.dumps(rates))
    command = write(here, WRITING.format(content=SPACE))
    done = run('ss-gen', '-t', command, '-d', 'trial', '--with', 'rates.json')
    assert done.exit_code == 0, done.stderr
    path = here / 'nni_auto_gen_search_space.json'
    assert json.loads(path.read_text()) == {**SPACE, **rates}
    assert set(SearchSpaceFile.of(path).space) == {*SPACE, *rates}


def test_a_file_that_was_there_is_replaced_and_that_is_said(here: Path) -> None:
    (here / 'space.json').write_text('old')
    done = run('ss-gen', '-t', write(here, WRITING.format(content=SPACE)), '-d', 'trial', '-f', 'space.json')
    assert done.exit_code == 0
    assert 'space.json was there and is replaced' in done.stderr
    assert json.loads((here / 'space.json').read_text()) == SPACE


@pytest.mark.parametrize(
    ('lines', 'message', 'output'),
    [
        ('print("loading data")\nraise SystemExit(3)', 'failed with exit code 3 before it reached its model', 'loading data'),
        ('raise RuntimeError("no data")', 'failed with exit code 1 before it reached its model', 'RuntimeError: no data'),
        ('print("trained")', 'ended without writing a search space; its output is above', 'trained'),
        ('pass', 'it printed nothing: it must call get_and_apply_next_architecture', ''),
        ('import nni', 'Put `import strop.compat` before that import', "No module named 'nni'"),
        (WRITING.format(content={}), 'without any decision', ''),
        (WRITING.format(content={'a': 3}), "'a': an entry has the keys", ''),
        ('import os; open(os.environ["NNI_GEN_SEARCH_SPACE"], "w").write("{")', 'is not JSON', ''),
        ('import time; time.sleep(60)', 'did not reach its model within 0.5 s and was killed', ''),
    ],
)
def test_a_script_that_does_not_reach_its_model(here: Path, lines: str, message: str, output: str) -> None:
    (here / 'space.json').write_text('old')
    timeout = '0.5' if 'sleep' in lines else '30'
    done = run('ss-gen', '-t', write(here, lines), '-d', 'trial', '-f', 'space.json', '--timeout', timeout)
    assert done.exit_code == 1
    # The script's own traceback may stand above, as a part of its output.
    *shown, last = done.stderr.splitlines()
    assert last.startswith('strop: error: ')
    assert message in last
    assert output in '\n'.join(shown)
    assert (here / 'space.json').read_text() == 'old'


def test_a_script_that_does_not_end_where_it_should(here: Path) -> None:
    done = run(
        'ss-gen', '-t', write(here, WRITING.format(content=SPACE) + '; raise SystemExit(3)'), '-d', 'trial', '-f', 'space.json'
    )
    assert done.exit_code == 0
    assert 'then ended with exit code 3: something in it catches SystemExit' in done.stderr
    assert json.loads((here / 'space.json').read_text()) == SPACE


def test_wrong_usage(here: Path) -> None:
    assert "Missing option '--trial-command'" in one_error(run('ss-gen'))
    assert "'nowhere' is no folder" in one_error(run('ss-gen', '-t', 'true', '-d', 'nowhere'))
    assert '--trial-command is empty' in one_error(run('ss-gen', '-t', ' ', '-d', 'trial'))
    (here / 'bad.json').write_text('{"pool": {"_type": "unifrm", "_value": [0, 1]}}')
    done = run('ss-gen', '-t', write(here, WRITING.format(content=SPACE)), '-d', 'trial', '--with', 'bad.json')
    assert "Did you mean 'uniform'" in one_error(done)
    (here / 'both.json').write_text('{"pool": {"_type": "uniform", "_value": [0, 1]}}')
    done = run('ss-gen', '-t', write(here, WRITING.format(content=SPACE)), '-d', 'trial', '--with', 'both.json')
    assert "'pool' are in both search spaces" in one_error(done)
