import io
import json

import pytest
from rich.console import Console

from strop.errors import ConfigError
from strop.report import Comparison, Row

ROWS = [
    Row('winner', 'winner', [97.0, 98.0], macs=2_000_000, params=5_000, latency_ms={'eager': (1.5, 0.25)}, subnet={'op': 'a'}),
    Row('largest', 'largest', [98.5], macs=4_000_000, params=9_000, latency_ms={'eager': (2.5, 0.5)}),
]


def test_mean_and_spread_by_hand():
    assert ROWS[0].mean == 97.5
    assert ROWS[0].spread == pytest.approx(0.5**0.5)
    assert ROWS[1].spread is None


def test_a_row_needs_a_score():
    with pytest.raises(ConfigError, match="'empty' needs at least one score"):
        Row('empty', 'random', [], macs=1, params=1)


def test_table_shows_every_figure_in_its_unit():
    console = Console(width=120, record=True, file=open('/dev/null', 'w'))  # noqa: SIM115
    console.print(Comparison('Digits', ROWS).table())
    text = console.export_text()
    for part in ('97.50 ± 0.71', '2.000', '5.0', '1.500 (IQR 0.250)', '98.50', 'eager (ms)'):
        assert part in text


def test_json_holds_rows_settings_and_notes(tmp_path):
    Comparison('Digits', ROWS, settings={'seed': 0}, notes=['said']).write_json(tmp_path / 'report.json')
    content = json.loads((tmp_path / 'report.json').read_text())
    assert content['settings'] == {'seed': 0}
    assert content['notes'] == ['said']
    assert content['rows'][0]['mean'] == 97.5
    assert content['rows'][0]['subnet'] == {'op': 'a'}


def test_a_row_without_times_is_drawn_by_its_macs_alone(tmp_path):
    pyplot = pytest.importorskip('matplotlib.pyplot')
    rows = [Row('a', 'winner', [97.0], 10, 5, {'eager': (1.0, 0.1)}), Row('b', 'largest', [96.0], 20, 9)]
    Comparison('x', rows).write_plot(tmp_path / 'p.png')
    assert (tmp_path / 'p.png').read_bytes().startswith(b'\x89PNG')
    assert pyplot.get_fignums() == []


def test_brackets_in_names_are_shown_as_they_are():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(
        Comparison('of [two]', [Row('net [int8]', 'winner', [97.0], 10, 5), Row('a [/b]', 'other', [1.0], 2, 3)]).table()
    )
    shown = console.export_text()
    for name in ('of [two]', 'net [int8]', 'a [/b]'):
        assert name in shown


def test_plot_is_a_png_with_two_panels(tmp_path):
    Comparison('Digits', ROWS).write_plot(tmp_path / 'report.png')
    assert (tmp_path / 'report.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
    from PIL import Image

    wide = Image.open(tmp_path / 'report.png').size
    Comparison('Digits', [Row('a', 'winner', [1.0], macs=1, params=1)]).write_plot(tmp_path / 'one.png')
    assert wide[0] > Image.open(tmp_path / 'one.png').size[0]
