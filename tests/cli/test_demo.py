"""The demo on scikit-learn's digits, as small as it gets."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner

from strop.cli.demo import DemoSettings, findings, run_demo
from strop.cli.main import main
from strop.errors import StoreError
from strop.export import load_recipe
from strop.report import Row

pytest.importorskip('sklearn', reason='the digits come with scikit-learn (extra demo)')
SMALL = ['--data', 'digits', '--epochs', '2', '--retrain-epochs', '1', '--generations', '1', '--candidates', '4']
SMALL += ['--random-subnets', '1', '--retrain-seeds', '1']


def test_demo_from_images_to_an_exported_winner(tmp_path):
    out = tmp_path / 'demo'
    first = CliRunner().invoke(main, ['demo', *SMALL, '--out', str(out)], catch_exceptions=False)
    assert first.exit_code == 0, first.output
    report = json.loads((out / 'report.json').read_text())
    kinds = [row['kind'] for row in report['rows']]
    assert kinds == ['winner', 'largest', 'random']
    winner, largest, other = report['rows']
    assert winner['macs'] <= report['settings']['budget_macs_m'] * 1e6 < largest['macs']
    assert 0.85 * report['settings']['budget_macs_m'] * 1e6 <= other['macs'] <= report['settings']['budget_macs_m'] * 1e6
    assert all(0 <= row['mean'] <= 100 and row['latency_ms']['eager'][0] > 0 for row in report['rows'])
    assert (out / 'report.png').stat().st_size > 10_000
    network = load_recipe(out / 'export')
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == winner['params']

    again = CliRunner().invoke(main, ['demo', *SMALL, '--out', str(out)], catch_exceptions=False)
    assert 'Going on with what' in again.output
    assert [row['mean'] for row in json.loads((out / 'report.json').read_text())['rows']] == [
        row['mean'] for row in report['rows']
    ]

    with pytest.raises(StoreError, match='other settings'):
        run_demo(DemoSettings(data='digits', seed=5), out)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / 'mine.txt').write_text('keep')
    result = CliRunner().invoke(main, ['demo', *SMALL, '--out', str(tmp_path)])
    assert result.exit_code != 0
    assert 'is not of a demo' in result.output
    assert (tmp_path / 'mine.txt').read_text() == 'keep'


@pytest.mark.parametrize('content', ['{"editor.fontSize": 12}', '[1]', '{"digest": "ab", "data": "digits"}', 'no json'])
@pytest.mark.parametrize('fresh', [False, True])
def test_settings_of_another_program_do_not_make_a_folder_a_demo(tmp_path, content, fresh):
    (tmp_path / 'settings.json').write_text(content)
    (tmp_path / 'mine.txt').write_text('keep')
    with pytest.raises(StoreError, match='is not of a demo'):
        run_demo(DemoSettings(data='digits'), tmp_path, fresh)
    assert {path.name for path in tmp_path.iterdir()} == {'settings.json', 'mine.txt'}
    assert (tmp_path / 'settings.json').read_text() == content


def test_findings_also_say_what_is_disappointing():
    def row(kind, score, macs, milliseconds):
        return Row(kind, kind, [score, score + 1], macs=macs, params=1, latency_ms={'eager': (milliseconds, 0.1)})

    notes = findings([row('winner', 90.0, 50, 2.0), row('largest', 95.0, 100, 2.0), row('random', 91.0, 50, 2.0)])
    assert '-1.00 points against the mean of 1 random subnets' in notes[0]
    assert 'beats 0 of them' in notes[0]
    assert '50% of the MACs' in notes[1]
    assert '-5.00 points' in notes[1]
    assert 'fewer MACs did not make it faster there' in notes[2]
    assert '0.71 points' in notes[3]


@pytest.mark.slow
def test_a_demo_that_is_killed_again_and_again_ends_with_the_same_scores(tmp_path):
    def command(out):
        return [sys.executable, '-m', 'strop', 'demo', *SMALL, '--out', str(out)]

    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    begin = time.monotonic()
    subprocess.run(command(tmp_path / 'whole'), env=environment, check=True, capture_output=True)
    seconds = time.monotonic() - begin
    for attempt in range(6):
        process = subprocess.Popen(
            command(tmp_path / 'killed'), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(random.Random(attempt).uniform(0.3, 0.8) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(tmp_path / 'killed'), env=environment, check=True, capture_output=True)
    rows = [json.loads((tmp_path / name / 'report.json').read_text())['rows'] for name in ('whole', 'killed')]
    assert [row['scores'] for row in rows[0]] == [row['scores'] for row in rows[1]]
    assert [row['subnet'] for row in rows[0]] == [row['subnet'] for row in rows[1]]
