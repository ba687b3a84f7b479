from __future__ import annotations

import jinja2
import pytest

from strop.report.pages import rendered


def test_text_is_never_markup() -> None:
    page = rendered('bare.html.j2', title='<b>"&\'')
    assert '<title>&lt;b&gt;&#34;&amp;&#39;</title>' in page


def test_a_number_and_its_unit_stay_together() -> None:
    page = rendered('bare.html.j2', title='was 12.5 ms, −40 % and 3 models of 2 GPUs, 5 M, 7 Main')
    assert '<title>was 12.5\u00a0ms, −40\u00a0% and 3 models of 2 GPUs, 5\u00a0M, 7 Main</title>' in page


def test_a_name_that_is_not_given_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match='title'):
        rendered('bare.html.j2')
