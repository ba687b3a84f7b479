from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from strop.report import CompressionReport, CompressionResult, wording
from strop.report.compression_result import Export, LayerChange, LayerState, Stage, Tried
from tests.report.browser import CHROMIUM, Browser
from tests.report.compressed import compressed

EVIL = '<script>document.title="taken"</script><img src=x onerror="document.title=\'taken\'">\'"&'


class _Page(HTMLParser):
    """Tags in order, with whether each that was opened was closed, and the text."""

    VOID = {'meta', 'link', 'img', 'br', 'circle', 'rect', 'path', 'line'}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.text = ''
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _page(result: CompressionResult) -> _Page:
    page = _Page(CompressionReport(result).html())
    assert page.open == []
    return page


def _words(page: _Page) -> str:
    return re.sub(r'\s+', ' ', page.text.replace('\u00a0', ' '))


def test_the_page_says_what_was_measured() -> None:
    result = compressed()
    said = _words(_page(result))
    source, tuned = result.stages[0], result.stages[2]
    assert source.resources.macs is not None
    assert tuned.resources.macs is not None
    assert f'was {100 * source.scores["accuracy"]:.2f} %' in said
    assert f'{100 * tuned.scores["accuracy"]:.2f} %' in said
    assert f'−{100 * (1 - tuned.resources.macs / source.resources.macs):.0f} %' in said
    for words in ('budget met', 'A quarter of the width is kept.', 'noisy bars', '2 samples could not be read', 'Batch of 16',
                  "pip install 'strop[openvino]'", 'width 8', 'loss of finetune', 'PyTorch eager'):  # fmt: skip
        assert words in said
    assert result.environment['cpu'] in said


def test_the_page_needs_no_network_and_runs_no_script() -> None:
    html = CompressionReport(compressed()).html()
    page = _Page(html)
    assert not {'script', 'iframe', 'object', 'embed', 'form'} & {tag for tag, _ in page.tags}
    addresses = [value for _, attrs in page.tags for name, value in attrs.items() if name in ('src', 'href', 'action', 'data')]
    assert all(address.startswith(('#', 'data:')) for address in addresses)
    assert 'url(' not in html
    assert '@import' not in html
    policy = next(attrs['content'] for tag, attrs in page.tags if attrs.get('http-equiv') == 'Content-Security-Policy')
    assert policy.startswith("default-src 'none'")


def test_links_inside_lead_somewhere_and_names_are_unique() -> None:
    page = _page(compressed())
    names = [attrs['id'] for _, attrs in page.tags if 'id' in attrs]
    assert len(names) == len(set(names))
    assert {attrs['href'][1:] for tag, attrs in page.tags if tag == 'a'} <= set(names)
    assert {attrs['aria-labelledby'] for _, attrs in page.tags if 'aria-labelledby' in attrs} <= set(names)


def test_tables_have_heads_and_pictures_have_words() -> None:
    page = _page(compressed())
    tables = sum(tag == 'table' for tag, _ in page.tags)
    assert tables >= 6
    assert sum(tag == 'thead' for tag, _ in page.tags) == tables
    assert {attrs.get('scope') for tag, attrs in page.tags if tag == 'th'} == {'row', 'col'}
    pictures = [attrs for _, attrs in page.tags if attrs.get('role') == 'img']
    assert len(pictures) == 2
    assert all(len(picture['aria-label']) > 20 for picture in pictures)


def _evil() -> CompressionResult:
    result = compressed()
    result.model.name = result.model.source = result.data.name = EVIL
    result.asked.recipe[EVIL] = EVIL
    result.asked.budget[EVIL] = EVIL
    result.environment[EVIL] = EVIL
    result.data.parts[EVIL] = 3
    result.warnings.append(EVIL)
    result.outcome.sentences.append(EVIL)
    result.exports.append(Export(EVIL, EVIL, EVIL, None, 3, EVIL))
    result.missing[0].reason = result.missing[0].extra = EVIL
    result.tried.append(Tried(EVIL, EVIL, 10, 10, None, 0.5, True, EVIL))
    result.ratios[0].what = EVIL
    stage = result.stages[1]
    stage.explanation.append(EVIL)
    stage.scores[EVIL] = 1.0
    stage.curve = [{'step': 1.0, EVIL: 1.0}, {'step': 2.0, EVIL: 2.0}]
    stage.layers.append(LayerChange(EVIL, EVIL, LayerState([8], 9, 9, 1.0, EVIL), LayerState([4], 3, 3, 1.0)))
    for entry in result.measurements:
        if entry.stage == 'prune':
            entry.runtime = entry.precision = EVIL
    return result


def test_names_that_look_like_markup_are_text() -> None:
    page = _page(_evil())
    assert not {'script', 'img'} & {tag for tag, _ in page.tags}
    assert not any(name.startswith('on') for _, attrs in page.tags for name in attrs)
    assert _words(page).count('document.title="taken"</script>') >= 20


@pytest.mark.parametrize(
    'result',
    [
        CompressionResult(),
        CompressionResult(stages=[Stage('source', 'source')]),
        CompressionResult(stages=[Stage('source', 'source', 'running', curve=[{'step': 1.0, 'loss': None}, {'step': 2.0}])]),
        CompressionResult(tried=[Tried('a', 's', 0, score=0.0), Tried('b', 's', 0, score=0.0)]),
    ],
)
def test_a_result_with_little_in_it_has_a_page(result: CompressionResult) -> None:
    assert 'No stage has finished yet.' in _words(_page(result))
    assert CompressionReport(result).table().columns


def test_every_layer_is_in_the_page_also_where_there_are_many() -> None:
    result = compressed()
    layers = [
        LayerChange(f'block.{index}.conv', 'Conv2d', LayerState([8], 100 + index, 8), LayerState([4], 50, 4))
        for index in range(60)
    ]
    layers.append(LayerChange('block.last', 'Conv2d', LayerState([8], 100, 8)))
    result.stages[1].layers = [*layers, LayerChange('same', 'Linear', LayerState([2], 5, 5), LayerState([2], 5, 5))]
    said = _words(_page(result))
    assert all(f'block.{index}.conv' in said for index in range(60))
    assert '61 layers changed, 1 did not; shown are the 14 with the most MACs before' in said
    assert 'removed' in said


def test_the_page_is_written_beside_the_result(tmp_path: Path) -> None:
    compressed().write(tmp_path)
    report = CompressionReport(tmp_path)
    assert report.write(tmp_path) == tmp_path / 'report.html'
    assert report.write(tmp_path / 'other.html') == tmp_path / 'other.html'
    assert (tmp_path / 'report.html').read_text('utf-8') == report.html()
    assert len(report.html()) < 100_000


def test_the_table_of_the_terminal_has_a_row_for_each_stage() -> None:
    table = CompressionReport(compressed()).table()
    assert list(table.columns[0].cells) == ['source', 'prune', 'finetune']
    assert list(table.columns[6].cells)[:2] == ['', '']
    assert list(table.columns[6].cells)[2].endswith('×')


def test_the_table_of_changes_names_the_fastest_runtime_where_it_is_not_that_of_the_budget() -> None:
    result = compressed()
    told = CompressionReport(result).changes()
    assert 'fastest of all' not in list(told.columns[0].cells)
    result.asked.budget['runtime'] = 'eager'
    quick = [replace(entry, runtime='openvino', median_ms=entry.median_ms / 100) for entry in result.measurements]
    result.measurements += quick
    rows = {cells[0]: cells for cells in zip(*(column.cells for column in CompressionReport(result).changes().columns))}
    after = min(entry.median_ms for entry in quick if entry.batch == 1 and entry.stage == 'finetune')
    assert rows['fastest of all'][2] == wording.milliseconds(after)
    assert rows['fastest of all'][4].startswith('OpenVINO, ')


# -- in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip('there is no Chromium here')
    found = Browser(tmp_path_factory.mktemp('profile'))
    yield found
    found.close()


def _shown(browser: Browser, path: Path, width: int, theme: str) -> None:
    browser.send('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': theme}])
    browser.send('Emulation.setDeviceMetricsOverride', width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    browser.open(path.resolve().as_uri())
    browser.wait(f'document.readyState === "complete" && location.pathname.endsWith({path.name!r})')


def _contrast(browser: Browser) -> list[Any]:
    """Return words whose colour is too near to that of what is behind them (WCAG, ratio below 4.5)."""
    return browser.run("""(() => {
        const rgb = text => text.match(/[0-9.]+/g).map(Number);
        const light = color => {
            const [r, g, b] = color.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = node => {
            for (let each = node; each; each = each.parentElement) {
                const found = rgb(getComputedStyle(each).backgroundColor);
                if (found.length < 4 || found[3] > 0) return found.slice(0, 3);
            }
            return [255, 255, 255];
        };
        const bad = [];
        for (const node of document.querySelectorAll('body *')) {
            if (![...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) continue;
            if (node.closest('svg')) continue;
            const [one, two] = [light(rgb(getComputedStyle(node).color).slice(0, 3)), light(behind(node))];
            const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
            if (ratio < 4.5) bad.push([node.textContent.slice(0, 30), ratio]);
        }
        return bad;
    })()""")


@pytest.mark.parametrize('theme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_the_page_is_whole_and_readable(browser: Browser, tmp_path: Path, width: int, theme: str) -> None:
    result = compressed()
    result.stages[1].layers[0].name = 'backbone.stages.0.blocks.3.a_layer_with_a_very_long_name.' + 'x' * 60
    path = CompressionReport(result).write(tmp_path / f'{theme}{width}.html')
    browser.errors.clear()
    _shown(browser, path, width, theme)
    assert browser.errors == []
    assert browser.run('document.documentElement.scrollWidth') <= width
    outside = f"""[...document.querySelectorAll('body *')].filter(each =>
        each.getBoundingClientRect().right > {width + 1} && !each.closest('thead, svg')).map(each => each.outerHTML)"""
    assert browser.run(outside) == []
    dark = browser.run('getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0] < 128')
    assert dark is (theme == 'dark')
    assert _contrast(browser) == []
    # Bars are as long as the times that they stand for.
    widths = browser.run("[...document.querySelectorAll('#latency ~ table .bar b')].map(e => e.getBoundingClientRect().width)")
    assert len(widths) == len(result.measurements)
    one = [entry.median_ms for entry in result.measurements if entry.batch == 1]
    shown = widths[: len(one)]
    assert max(shown) / min(shown) == pytest.approx(max(one) / min(one), rel=0.15)


def test_nothing_that_is_shown_is_run(browser: Browser, tmp_path: Path) -> None:
    path = CompressionReport(_evil()).write(tmp_path / 'evil.html')
    browser.errors.clear()
    _shown(browser, path, 1280, 'light')
    assert 'taken' not in browser.run('document.title').replace(EVIL, '')
    assert browser.run("document.querySelectorAll('script, img').length") == 0
    assert browser.run("document.body.innerText.includes('<script>')")
    assert browser.errors == []


def test_what_is_folded_can_be_opened_with_the_keyboard(browser: Browser, tmp_path: Path) -> None:
    path = CompressionReport(compressed()).write(tmp_path / 'keys.html')
    _shown(browser, path, 1280, 'light')
    browser.run("document.querySelector('summary').focus()")
    for kind in ('keyDown', 'keyUp'):
        browser.send('Input.dispatchKeyEvent', type=kind, key='Enter', code='Enter', windowsVirtualKeyCode=13, text='\r')
    browser.wait("document.querySelector('details').open")
    assert '"stages"' in browser.text()


def test_names_with_brackets_are_shown_as_they_are() -> None:
    result = compressed()
    result.model.name, result.stages[1].name = 'net [v2] [/a]', 'prune [/b]'
    report = CompressionReport(result)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.table(), report.changes())
    said = console.export_text()
    assert 'net [v2] [/a], compressed' in said
    assert 'prune [/b]' in said


def test_scores_of_what_was_tried_are_called_what_they_are() -> None:
    result = compressed()
    result.tried = [replace(entry, metric='agreement') for entry in result.tried]
    said = _words(_page(result))
    assert re.search(r'Agreement against .* models that were tried', said)
    assert not re.search(r'Accuracy against .* models that were tried', said)
