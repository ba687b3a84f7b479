from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from strop.errors import StropError
from strop.mutables import AnyOf, Guard, OneOf, Space, Subnet
from strop.search import SearchResult, report_intermediate_result, run

SPACE = Space({'op': OneOf(('skip', 'conv')), 'k': OneOf((3, 5)), 'x': AnyOf(('a', 'b'))}, {'k': ((Guard.on('op', [1]),),)})
OBJECTIVES = {'acc': 'maximize', 'macs': 'minimize'}


def evaluate(subnet: Subnet) -> dict[str, object]:
    if subnet['x'] == ['a']:
        raise ValueError('no')
    return {'acc': float(len(subnet)), 'macs': len(subnet['x']) + float(subnet['op'] == 'conv'), 'curve': [1, 2]}


@pytest.fixture
def result() -> SearchResult:
    return run(SPACE, evaluate, strategy='grid', objectives=OBJECTIVES)


def test_front_and_best(result: SearchResult) -> None:
    assert result.stopped == 'exhausted'
    assert len(result.trials) == SPACE.count() == 12
    assert len(result.failed) == 3
    assert [trial.values for trial in result.front] == [{'acc': 2.0, 'macs': 0.0}, {'acc': 3.0, 'macs': 1.0}]
    assert result.best.values == {'acc': 3.0, 'macs': 1.0}
    assert result.ranked()[0] in result.front


def test_json_and_csv(result: SearchResult, tmp_path: Path) -> None:
    result.write_json(tmp_path / 'out' / 'result.json')
    read = json.loads((tmp_path / 'out' / 'result.json').read_text())
    assert read == json.loads(json.dumps(result.to_dict()))
    assert read['objectives'] == OBJECTIVES
    assert [SPACE.subnet(trial['choices']) for trial in read['trials']] == [trial.subnet for trial in result.trials]
    result.write_csv(tmp_path / 'result.csv')
    rows = list(csv.DictReader((tmp_path / 'result.csv').open()))
    assert len(rows) == 12
    for row, trial in zip(rows, result.trials, strict=True):
        assert row['state'] == trial.state
        assert row['acc'] == ('' if trial.values is None else str(trial.values['acc']))
        assert row['choice: op'] == trial.subnet['op']
        assert row['choice: k'] == str(trial.subnet.get('k', ''))
        assert json.loads(row['choice: x']) == trial.subnet['x']
        assert row['curve'] == ('[1, 2]' if trial.complete else '')


def test_no_best_where_all_failed() -> None:
    def fail(subnet: Subnet) -> float:
        raise ValueError('no')

    result = run(SPACE, fail, strategy='random', trials=5)
    assert len(result.failed) == 5
    assert result.front == []
    with pytest.raises(StropError, match='no trial of this search is complete'):
        _ = result.best


def test_numbers_that_are_none_are_text_in_json(tmp_path: Path) -> None:
    def evaluate(subnet: Subnet) -> float:
        report_intermediate_result(float('nan'))
        return 1.0

    run(Space({'a': OneOf((0, 1))}), evaluate, trials=1, strategy='random').write_json(tmp_path / 'result.json')
    assert 'NaN' not in (tmp_path / 'result.json').read_text()
    json.loads((tmp_path / 'result.json').read_text(), parse_constant=pytest.fail)
