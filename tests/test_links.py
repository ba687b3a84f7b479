"""Links between the project's pages lead somewhere: to a file that exists and, where they name one, to a heading in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages import ROOT

PAGES = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')])
FENCED = re.compile(r'^(```|~~~).*?^\1', re.DOTALL | re.MULTILINE)
LINK = re.compile(r'(?<!\\)\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)')


def prose(page: Path) -> str:
    return re.sub(r'`[^`\n]*`', '', FENCED.sub('', page.read_text(encoding='utf-8')))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r'^#+ +(.+?)\s*$', FENCED.sub('', page.read_text(encoding='utf-8')), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-') for heading in headings}


def broken(page: Path) -> list[str]:
    found = []
    for link in LINK.findall(prose(page)):
        if re.match(r'[a-z]+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        if (
            not target.is_relative_to(ROOT)
            or not target.exists()
            or (anchor and (target.suffix != '.md' or anchor not in anchors(target)))
        ):
            found.append(link)
    return found


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_a_link_to_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), 'ROOT', tmp_path)
    (tmp_path / 'other.md').write_text('# Two Words, `code`\n```\n# no heading\n```\n')
    page = tmp_path / 'page.md'
    page.write_text('[a](gone.md) [b](other.md#two-words-code) [c](other.md#no-heading) [d](https://x.org) `[e](no.md)`')
    assert broken(page) == ['gone.md', 'other.md#no-heading']


def test_every_page_is_reached_from_the_readme() -> None:
    reached, rest = set(), [ROOT / 'README.md']
    while rest:
        page = rest.pop()
        if page in reached or page.suffix != '.md':
            continue
        reached.add(page)
        links = [link.partition('#')[0] for link in LINK.findall(prose(page)) if not re.match(r'[a-z]+:', link)]
        rest += [(page.parent / link).resolve() for link in links if link]
    assert set(PAGES) - reached == set()
