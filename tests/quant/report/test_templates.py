"""How text gets into the documents: shown as it is, and with no more escapes than that takes."""

from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from dasheng_edge.quant.report.templates import environment, html, markdown
from dasheng_edge.quant.report.wording import visible
from tests.fixtures import fake_report

GITHUB = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
# A few of each kind, so that marks of one kind meet.
TEXTS = st.text("ab 1.:;,!?#+-=/\\()'\"%é雨`*_[]<>~$&|@{}", max_size=14)


def shown(source: str) -> str:
    """What a reader of a Markdown source sees."""
    return " ".join(unescape(re.sub(r"<[^>]*>", "", GITHUB.render(source))).split())


@given(text=TEXTS)
@example(text="__init__ a_b _c_ * d *")
@example(text="[a](b) [c][d] ![e](f) <a@b.c> &amp; &#65;")
@example(text=fake_report.HOSTILE)
def test_markdown_shows_text_as_it_is(text: str) -> None:
    plain = " ".join(visible(text).split())
    assert shown(f"- Asked: {markdown(text)}") == f"Asked: {plain}".strip()
    table = f"| # | name |\n|:--|--:|\n| 1 | {markdown(text)} |\n"
    assert shown(table) == f"# name 1 {plain}".strip()
    assert GITHUB.render(table).count("<td") == 2


@pytest.mark.parametrize(
    "text",
    [
        "int8/Q4_K_M, 7.26 MB (25 %): 10:55, -3.4 [a]", "0.00369 [0.0025, 0.0050]", "−3.4 [−8.4, +0.6]",
        "<5 s> & more, R&D, 2 * 3 ~ 6", "a_b <|en|", "C:\\temp", "#1 - it's @ 5 $",
    ],
)  # fmt: skip
def test_what_means_nothing_is_not_escaped(text: str) -> None:
    assert markdown(text) == text.replace("|", "\\|")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("_so_ and *so*, `so`, a|b, ~~so~~, $1$", r"\_so\_ and \*so\*, \`so\`, a\|b, \~\~so\~\~, \$1\$"),
        ("see https://x.y, www.x.y or :bug:", r"see https\://x.y, www\.x.y or \:bug:"),
        ("<b>a &amp; b</b>", "&lt;b>a &amp;amp; b&lt;/b>"),
        ("a\\*b\n- c", r"a\\\*b - c"),
    ],
)
def test_what_means_something_on_github_is_escaped(text: str, written: str) -> None:
    assert markdown(text) == written


@pytest.mark.parametrize("escaped", [html, markdown])
def test_nothing_gets_into_a_document_unescaped(escaped: object) -> None:
    made = environment(escaped)  # type: ignore[arg-type]
    source = "{% macro m(x) %}<i>{{ x }}</i>{% endmacro %}{{ m(x) }}{{ x }}"
    assert made.from_string(source).render(x="<b>") == "<i>&lt;b{0}</i>&lt;b{0}".format(
        "&gt;" if escaped is html else ">"
    )
