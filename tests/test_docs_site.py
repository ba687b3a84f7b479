"""The documentation site has every page, and every public name; `make docs` builds it."""

import importlib.util
import sys

import pytest

from strop import engine, search
from tests.pages import ROOT

if sys.version_info < (3, 11):
    pytest.skip('the site is built with Python 3.11 or newer', allow_module_level=True)


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(tmp_path, monkeypatch):
    module = tool('docs_site')
    monkeypatch.setattr(module, 'SOURCE', tmp_path / 'docs_source')
    return module


def test_the_navigation_has_every_page(site):
    assert site.left_out(site.gather()) == []


def test_a_page_that_the_navigation_has_not_is_named(site, monkeypatch):
    config = site.gather()
    config.write_text(config.read_text().replace('"docs/scaling.md"', '"docs/gone.md"'))
    assert site.left_out(config) == ['docs/gone.md', 'docs/scaling.md']


def test_links_of_the_pages_stay_links(site):
    site.gather()
    for path in ('docs/tutorials/nas_algorithm.md', 'README.md', 'configs/autoslim/autoslim_mobilenet_supernet_mnist.py'):
        assert (site.SOURCE / path).read_text() == (ROOT / path).read_text()


def test_the_reference_has_every_public_name(site):
    site.gather()
    for room in (engine, search):
        page = (site.SOURCE / 'reference' / f'{room.__name__}.md').read_text()
        assert all(f'::: {room.__name__}.{name}\n' in page for name in room.__all__)


def test_examples_and_formulas_become_blocks():
    pytest.importorskip('griffe')
    text = 'Say :math:`a`.\n\n.. math:: b = c,\n    d\n\nArgs:\n    x: One.\n\n>>> f(1)\n2\n>>> f(2)\n\nEnd.'
    found = tool('docstrings').as_markdown(text)
    assert found == (
        'Say `a`.\n\n```latex\nb = c,\nd\n```\n\nArgs:\n    x: One.\n\n```pycon\n>>> f(1)\n2\n>>> f(2)\n```\n\nEnd.'
    )
