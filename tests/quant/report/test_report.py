"""The pages of a report: self-contained, escaped, complete, and replaced whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dasheng_edge.quant.compare.recommend import recommend
from dasheng_edge.quant.compare.record import Report
from dasheng_edge.quant.report import report as report_module
from dasheng_edge.quant.report.report import document, page, recommendation, write_report
from tests.fixtures import fake_report

REPORTS: dict[str, Callable[[], Report]] = {
    "full": fake_report.report, "bare": fake_report.bare_report,
    "one": lambda: fake_report.report(fake_report.NAMES[:1], 3),
}  # fmt: skip
MAX_BYTES = 600_000


@pytest.fixture(params=REPORTS)
def report(request: pytest.FixtureRequest) -> Report:
    return REPORTS[request.param]()


class Tags(HTMLParser):
    """Collects tags, and the addresses that they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_what_is_written_is_the_record(report: Report, tmp_path: Path) -> None:
    paths = write_report(report, tmp_path / "deep" / "out")
    assert Report.model_validate_json(paths[0].read_text("utf-8")) == report
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    page, document = (path.read_text("utf-8") for path in paths[:0:-1])
    plain = [one.name for one in report.candidates if "<" not in one.name]  # others are escaped
    assert all(name in page for name in plain)
    assert all(name in document.replace("\\", "") for name in plain)


def test_the_page_needs_nothing_else(report: Report, tmp_path: Path) -> None:
    page = write_report(report, tmp_path)[2].read_text("utf-8")
    tags = Tags()
    tags.feed(page)
    assert not tags.tags & {"script", "iframe", "object", "embed", "form", "img"}
    assert all(address.startswith("#") for address in tags.addresses)
    assert not re.search(r"url\(\s*['\"]?(?!#)", page)
    assert '<meta name="viewport"' in page
    assert len(page.encode()) < MAX_BYTES


def test_what_models_say_is_text(tmp_path: Path) -> None:
    report = fake_report.bare_report()
    assert "<script>" in report.clips[0].references[0]
    paths = write_report(report, tmp_path)
    assert "<script" not in paths[2].read_text("utf-8")
    assert "<script" not in paths[1].read_text("utf-8")


def test_numbers_on_the_page_are_those_of_the_record() -> None:
    report, page = fake_report.report(), fake_report.full_page()
    for one in report.candidates:
        assert one.both is not None
        assert f"{one.both.kl_mean.value:.3g}" in page or one.both.kl_mean.value < 1e-4
        assert f"{100 * one.both.same_top1.value:.1f}" in page


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(fake_report.report(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(report_module, "page", fail)
    with pytest.raises(KeyboardInterrupt):
        write_report(fake_report.bare_report(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_recommendation_is_the_smallest_that_is_good_enough(report: Report) -> None:
    found = recommendation(recommend(report.reference, report.candidates, report.noise_floor))
    named = {one.name for one in found.rejected}
    assert len(found.rejected) == len(named)
    assert named | {found.choice} - {None} == {one.name for one in report.candidates}
    sizes = {one.name: one.cost.total_bytes for one in report.candidates}
    if found.choice is not None:
        smaller = [one for one in found.rejected if sizes[one.name] < 0.98 * sizes[found.choice]]
        assert all(re.search(r"KL|SNR|loses|adds|point", one.why) for one in smaller), smaller


def test_nothing_is_recommended_where_all_lose_too_much() -> None:
    names = ("int8+Q2_K-imatrix", "int8+IQ2_XXS-imatrix")
    report = fake_report.report(fake_report.NAMES, 5)
    bad = [one for one in report.candidates if one.name in names]
    found = recommendation(recommend(report.reference, bad, report.noise_floor))
    assert found.choice is None
    assert found.reason
    assert {one.name for one in found.rejected} == set(names)


def test_ticks_can_be_told_apart() -> None:
    page = fake_report.full_page()
    plots = re.findall(r'<svg class="plot".*?</svg>', page, re.DOTALL)
    assert plots
    ticks = [re.findall(r"<text[^>]*>([-\d.e−]+)</text>", plot) for plot in plots]
    assert any("0.01" in one for one in ticks)
    assert not any(one.count("0.0") > 1 or one.count("1.0") > 1 for one in ticks)


def test_numbers_of_candidates_break_between_ranges_and_not_within() -> None:
    page = fake_report.full_page()
    assert re.search(r'<td class="number"><span>\d+–\d+</span>, <span>', page)
    assert re.search(r"td\.number \{[^}]*white-space: normal", page)
    assert re.search(r"td\.number span \{[^}]*white-space: nowrap", page)


# Whole figures, with sign, thousands and exponent, as they are read.
FIGURES = re.compile(r"(?<![\w.])[−+-]?\d[\d,]*(?:\.\d+)?(?:e[−-]?\d+)?")


def figures(text: str) -> set[str]:
    text = re.sub(r"<head>.*?</head>|<svg.*?</svg>", " ", text, flags=re.DOTALL)
    text = unescape(re.sub(r"<[^>]+>", " ", text)).replace("\\", "")
    return {found.rstrip(",") for found in FIGURES.findall(text)}


def test_both_documents_hold_all_figures_that_they_held_before_they_were_templates() -> None:
    """`report_figures.txt` was read off the documents that Python strings made of the same record."""
    known = (Path(fake_report.__file__).parent / "report_figures.txt").read_text("utf-8").split()
    assert len(known) > 800
    for text in (fake_report.full_page(), fake_report.full_document()):
        assert set(known) - figures(text) == set()


def test_names_in_a_row_stand_apart() -> None:
    report = fake_report.report()
    every = "|".join(re.escape(candidate.name) for candidate in report.candidates)
    lists = re.findall(rf"^- \d+ (?:{every}).*?: ", document(report).replace("\\", ""), re.MULTILINE)
    assert any(", " in line for line in lists)
    assert not any(re.search(r",\S", line) for line in lists)


def test_commands_are_marked_as_code() -> None:
    report = fake_report.report(fake_report.NAMES[:1], 1)
    html = page(report)
    assert "`" not in html
    assert "<code>dasheng-edge compare</code>" in html
    assert "`dasheng-edge compare`" in document(report)


def test_terms_are_explained_once(report: Report) -> None:
    html, text = page(report), document(report)
    assert html.count('id="glossary"') == html.count('href="#glossary"') == 1
    assert text.count("\n## Glossary\n") == 1
    for term in ("KL divergence", "Importance matrix", "Noise floor", "Interval"):
        assert html.count(f"<dt>{term}</dt>") == text.count(f"- **{term}**: ") == 1


def test_a_wide_table_tells_that_it_can_be_scrolled(report: Report) -> None:
    html = page(report)
    tables = re.findall(
        r'<p class="hint (\w+)"[^>]*>[^<]+</p>\n<div class="scroll"[^>]*><table>\n<thead>(.*?)</thead>', html
    )
    assert len(tables) == html.count("<table>")
    assert all((kind == "wide") == (head.count("<th ") > 9) for kind, head in tables)
