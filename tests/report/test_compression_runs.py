from __future__ import annotations

import json
from pathlib import Path

import pytest

from strop.errors import ConfigError
from strop.report import CompressionResult, RunComparison
from tests.report.browser import CHROMIUM, Browser
from tests.report.compressed import compressed


def _two() -> RunComparison:
    first, second = compressed(), compressed()
    second.asked.budget = {}
    second.outcome.met = None
    second.measurements = [entry for entry in second.measurements if entry.batch == 1]
    for entry in second.measurements:
        if entry.stage != 'source':
            entry.median_ms /= 2
    second.stages[2].scores['accuracy'] = 0.5
    return RunComparison([('runs/first', first), ('runs/second', second)])


def test_runs_have_a_column_each_and_every_figure_a_row() -> None:
    found = _two()
    assert list(found.reports) == ['first', 'second']
    rows = dict(found.rows())
    assert rows['model'] == ['bars', 'bars']
    assert rows['asked'][1] == 'no budget'
    assert rows['met'] == ['yes', '–']
    assert rows['stages'] == ['prune → finetune'] * 2
    assert rows['accuracy'][1].startswith('50.00 % (')
    assert rows['PyTorch eager f32, batch 16'][1] == '–'
    assert rows['PyTorch eager f32, batch 16'][0].endswith('× as fast)')
    assert len(found.table().columns) == 3


def test_what_makes_runs_hard_to_compare_is_said() -> None:
    assert _two().notes() == [
        'Times of different runs were not measured in the same rounds: small differences may be the machine.'
    ]
    other = compressed()
    other.environment['cpu'] = 'another'
    other.data.name = 'others'
    notes = ' '.join(RunComparison([('a', compressed()), ('b', other)]).notes())
    assert 'different CPUs' in notes
    assert 'different data: noisy bars (192 train, 64 test); others (192 train, 64 test).' in notes
    assert 'different given models' not in notes


def test_names_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    results = [compressed() for _ in range(2)]
    same = RunComparison(list(zip(['a/x/out', 'a/y/out'], results, strict=True)))
    assert list(same.reports) == ['x/out', 'y/out']
    assert list(RunComparison(list(zip(['out', 'out'], results, strict=True))).reports) == ['1: out', '2: out']


def test_the_plot_has_each_run_before_and_after() -> None:
    plot = _two().plot()
    assert plot is not None
    assert [mark.title for mark in plot.marks] == ['first, before', 'first, after', 'second, before', 'second, after']
    assert plot.marks[3].x <= plot.marks[1].x
    assert plot.lines[1].points == tuple((mark.x, mark.y) for mark in plot.marks[2:])
    assert plot.marks[3].y > plot.marks[1].y  # a lower score is further down
    assert RunComparison([('a', CompressionResult()), ('b', CompressionResult())]).plot() is None


def test_one_run_is_no_comparison() -> None:
    with pytest.raises(ConfigError, match='two or more runs, but got 1'):
        RunComparison([('a', compressed())])


def test_a_folder_without_a_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'has no result\.json'):
        RunComparison([tmp_path, tmp_path])


def test_everything_is_there_as_json() -> None:
    content = json.loads(json.dumps(_two().to_dict()))
    assert CompressionResult.from_dict(content['runs']['first']) == compressed()
    assert {'what': 'met', 'first': 'yes', 'second': '–'} in content['rows']


@pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium here')
def test_the_page_fits_a_narrow_screen(tmp_path: Path) -> None:
    results = [compressed() for _ in range(3)]
    results[0].model.name = '<script>document.title = "taken"</script>'
    path = RunComparison([(f'run-{index}', result) for index, result in enumerate(results)]).write(tmp_path / 'runs.html')
    browser = Browser(tmp_path / 'profile')
    try:
        for width in (390, 1280):
            browser.send('Emulation.setDeviceMetricsOverride', width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
            browser.open(path.resolve().as_uri())
            browser.wait('document.readyState === "complete" && location.pathname.endsWith("runs.html")')
            assert browser.run('document.title') == 'Compressions side by side'
            assert browser.run('document.documentElement.scrollWidth') <= width
            assert browser.errors == []
    finally:
        browser.close()
