from __future__ import annotations

import json
import shutil
from pathlib import Path

from strop.mutables import OneOf, Space, Subnet
from strop.search import report_intermediate_result
from strop.search import run as search

from .running import one_error, run


def test_a_space(project: Path) -> None:
    done = run('show', project / 'supernet.py')
    assert done.exit_code == 0, done.stderr
    assert '3 decisions, 27 subnets' in done.stdout
    assert 'k1 k3 k5' in done.stdout
    content = json.loads(run('show', project / 'supernet.py', '--json').stdout)
    assert content['subnets'] == 27
    assert set(content['domains']) == {'module.first', 'module.second', 'module.third'}


def test_conditions_are_shown(project: Path, tmp_path: Path) -> None:
    (tmp_path / 'nested_of_a_test.py').write_text(
        'from torch import nn\n'
        'from strop.mutables import LayerChoice\n'
        "def make():\n    inner = LayerChoice({'a': nn.Identity(), 'b': nn.ReLU()})\n"
        "    return LayerChoice({'none': nn.Identity(), 'some': nn.Sequential(inner)}, key='outer')\n"
    )
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        done = run('show', 'nested_of_a_test:make')
    finally:
        sys.path.remove(str(tmp_path))
    assert done.exit_code == 0, done.stderr
    assert '2 decisions, 3 subnets' in done.stdout
    assert 'outer=some' in done.stdout


def test_a_subnet(project: Path, tmp_path: Path) -> None:
    file = tmp_path / 'subnet.json'
    choices = {'module.first': 'k1', 'module.second': 'k3', 'module.third': 'k5'}
    file.write_text(json.dumps(choices))
    done = run('show', file, '--config', project / 'supernet.py')
    assert done.exit_code == 0, done.stderr
    assert 'digest' in done.stdout
    assert json.loads(run('show', file, '--json').stdout)['choices'] == choices
    file.write_text(json.dumps({**choices, 'module.fourth': 'k1'}))
    done = run('show', file, '--config', project / 'supernet.py')
    assert done.exit_code == 1
    assert "'module.fourth' is not a decision" in one_error(done)
    file.write_text('{"a": ')
    assert 'is not JSON' in one_error(run('show', file))
    file.write_bytes(b'PK\x03\x04rest')
    assert 'never unpickled' in one_error(run('show', file))


def test_a_search(searched: Path, tmp_path: Path) -> None:
    contents = [json.loads(run('show', path, '--json', '--top', 3).stdout) for path in (
        searched / 'search.json', searched / 'search.journal', searched,
    )]  # fmt: skip
    for content in contents:
        assert content['complete'] == 12
        assert content['failed'] == content['running'] == 0
        assert [trial['number'] for trial in content['best']] == [trial['number'] for trial in contents[0]['best']]
        assert len(content['best']) == 3
    done = run('show', searched / 'search.journal')
    assert '12 complete, 0 failed, 0 unfinished' in done.stdout
    # A search that is still running, or was killed, is read as far as it has come.
    part = tmp_path / 'search.journal'
    lines = (searched / 'search.journal').read_text().splitlines(keepends=True)
    part.write_text(''.join(lines[: len(lines) * 2 // 3]))
    before = part.read_bytes()
    content = json.loads(run('show', part, '--json').stdout)
    assert 0 < content['complete'] < 12
    assert part.read_bytes() == before


def test_trials_that_were_stopped_early_have_not_failed(tmp_path: Path) -> None:
    def rising(subnet: Subnet) -> float:
        for step in range(3):
            report_intermediate_result(float(subnet['a']), step)
        return float(subnet['a'])

    space = Space({'a': OneOf(tuple(range(12)))})
    pruner = {'type': 'median', 'n_startup_trials': 1}
    result = search(space, rising, strategy='grid', trials=12, objectives='minimize', pruner=pruner, store=tmp_path)
    stopped = sum(trial.stopped for trial in result.trials)
    assert stopped > 0
    content = json.loads(run('show', tmp_path, '--json').stdout)
    assert (content['complete'], content['stopped'], content['failed']) == (12 - stopped, stopped, 0)
    done = run('show', tmp_path)
    assert f'{12 - stopped} complete, {stopped} stopped early, 0 failed' in ' '.join(done.stdout.split())
    assert 'failure' not in done.stdout


def test_bad_targets(searched: Path, tmp_path: Path) -> None:
    assert 'no search.journal' in one_error(run('show', tmp_path))
    assert "Did you mean 'search.json'" in one_error(run('show', searched / 'serch.json'))
    broken = tmp_path / 'search.json'
    broken.write_text('{"strop": "search", "trials": [{}]}')
    assert 'not a whole search.json' in one_error(run('show', broken))
    journal = tmp_path / 'other.journal'
    shutil.copy(searched / 'search.json', journal)
    assert run('show', journal).exit_code == 1
