from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from strop.errors import ConfigError
from strop.mutables import SearchSpaceFile
from strop.search import run
from strop.search.trial_command import TrialCommand, tail

ENTRIES = {
    'op': {'_type': 'layer_choice', '_value': ['a', 'b', 'c']},
    'lr': {'_type': 'quniform', '_value': [0, 1, 0.25]},
}
SPACE = SearchSpaceFile(ENTRIES)

# What a trial without Strop's Python does: read one file, write one line.
TRIAL = """
import json, os, pathlib, sys
folder = pathlib.Path(os.environ['STROP_TRIAL_DIR'])
p = json.loads((folder / 'parameters.json').read_text())['parameters']
print('training with', p)
value = p['op']['_idx'] + p['lr']
BODY
line = json.dumps({'type': 'final', 'sequence': 0, 'value': value})
(folder / 'metrics.jsonl').write_text(line + chr(10))
"""


def trial(tmp_path: Path, body: str = '', **options: object) -> TrialCommand:
    (tmp_path / 'trial.py').write_text(TRIAL.replace('BODY', body))
    return TrialCommand(f'{sys.executable} -S trial.py', SPACE, tmp_path / 'trials', cwd=tmp_path, **options)  # type: ignore[arg-type]


def test_a_search_over_a_script(tmp_path: Path) -> None:
    result = run(SPACE.space, trial(tmp_path), strategy='grid', trials=15)
    assert result.best.values == {'score': 3.0}
    assert dict(result.best.subnet) == {'op': 'c', 'lr': 1.0}
    folders = sorted((tmp_path / 'trials').iterdir())
    assert len(folders) == 15
    assert 'training with' in (folders[0] / 'trial.log').read_text()


def test_what_stands_beside_the_number_is_kept(tmp_path: Path) -> None:
    command = trial(tmp_path, "value = {'default': value, 'epochs': 3}", objective='accuracy')
    result = run(SPACE.space, command, strategy='grid', trials=1, objectives={'accuracy': 'maximize'})
    assert result.best.values == {'accuracy': 0.0}
    assert result.best.info == {'epochs': 3}


@pytest.mark.parametrize(
    ('body', 'text'),
    [
        ("raise RuntimeError('no memory')", r'exit code 1.*no memory'),
        ('sys.exit(3)', r'exit code 3\. Its output ends with: training with'),
        ('sys.exit(0)', 'ended without a result'),
        ("value = float('nan')", 'must be a finite number, but it reported nan'),
        ("value = 'good'", "must be a finite number, but it reported 'good'"),
        ("(folder / 'metrics.jsonl').write_text(''); value = [1]", 'finite number'),
        ('os.kill(os.getpid(), 9)', r'exit code (137|-9)'),
    ],
)
def test_a_trial_that_fails_tells_why_and_the_search_goes_on(tmp_path: Path, body: str, text: str) -> None:
    command = trial(tmp_path, f"if p['op']['_idx'] == 1:\n    {body}")
    result = run(SPACE.space, command, strategy='grid', trials=7)
    assert [dict(failed.subnet)['op'] for failed in result.failed] == ['b', 'b']
    assert len(result.complete) == 5
    assert re.search(text, str(result.failed[0].error))


def test_a_trial_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    body = "import subprocess as s; child = s.Popen(['sleep', '60']); print('child', child.pid, flush=True); child.wait()"
    command = trial(tmp_path, body, timeout=1.0)
    begin = time.monotonic()
    result = run(SPACE.space, command, strategy='grid', trials=1)
    assert time.monotonic() - begin < 30
    assert 'was killed after 1 s' in str(result.failed[0].error)
    assert gone(child_of(next((tmp_path / 'trials').iterdir()) / 'trial.log'))


def test_a_trial_dies_with_the_search(tmp_path: Path) -> None:
    lines = [
        'from strop.search import TrialCommand',
        f'command = TrialCommand("sleep 60 & echo child $!; wait", {ENTRIES!r}, "trials")',
        'command(command.space.space.first())',
    ]
    (tmp_path / 'search.py').write_text('\n'.join(lines))
    search = subprocess.Popen([sys.executable, 'search.py'], cwd=tmp_path)
    logs: list[Path] = []
    for _ in range(600):
        logs = list(tmp_path.glob('trials/*/trial.log'))
        if logs and 'child' in logs[0].read_text():
            break
        time.sleep(0.1)
    pid = child_of(logs[0])
    search.kill()
    search.wait()
    assert gone(pid)


def child_of(log: Path) -> int:
    return int(log.read_text().split('child ')[1].split()[0])


def gone(pid: int) -> bool:
    """Wait for the end of a process; if it does not come, end it."""
    for _ in range(100):
        state = Path(f'/proc/{pid}/stat')
        try:
            if state.read_text().split(')')[1].split()[0] == 'Z':
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    os.kill(pid, 9)
    return False


def test_a_script_that_uses_the_trial_side(tmp_path: Path) -> None:
    (tmp_path / 'trial.py').write_text(
        'from strop.search.trial_side import get_next_parameter, report_final_result, report_intermediate_result\n'
        'p = get_next_parameter()\n'
        'report_intermediate_result(0.5)\n'
        "report_final_result({'default': p['op']['_idx'] + p['lr'], 'name': p['op']['_value']})\n"
    )
    command = TrialCommand(f'{sys.executable} trial.py', SPACE, tmp_path / 'trials', cwd=tmp_path)
    subnet = SPACE.subnet({'op': {'_value': 'b', '_idx': 1}, 'lr': 0.25})
    assert command(subnet) == {'score': 1.25, 'name': 'b'}


def test_it_may_be_sent_to_another_process(tmp_path: Path) -> None:
    command = pickle.loads(pickle.dumps(trial(tmp_path)))
    assert command(SPACE.space.subnet({'op': 'b', 'lr': 0.5})) == {'score': 1.5}


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='needs a command'):
        TrialCommand(' ', SPACE, tmp_path)
    with pytest.raises(ConfigError, match="'nowhere' is none"):
        TrialCommand('true', SPACE, tmp_path, cwd='nowhere')


def test_the_tail_of_an_output() -> None:
    assert tail('') == 'It printed nothing.'
    assert tail('\n'.join(map(str, range(20)))) == 'Its output ends with: ' + '\n'.join(map(str, range(12, 20)))
