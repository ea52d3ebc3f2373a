"""The pages of a report: self-contained, escaped, complete, and replaced whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dasheng_edge.quant.compare.recommend import recommend
from dasheng_edge.quant.compare.record import Report
from dasheng_edge.quant.report import report as report_module
from dasheng_edge.quant.report.report import write_report
from tests.fixtures import fake_report

REPORTS: dict[str, Callable[[], Report]] = {
    "full": fake_report.report, "bare": fake_report.bare_report,
    "one": lambda: fake_report.report(fake_report.NAMES[:1], 3),
}  # fmt: skip
MOST_BYTES = 600_000


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
    assert len(page.encode()) < MOST_BYTES


def test_what_models_say_is_text(tmp_path: Path) -> None:
    report = fake_report.bare_report()
    assert "<script>" in report.clips[0].references[0]
    paths = write_report(report, tmp_path)
    assert "<script" not in paths[2].read_text("utf-8")
    assert "<script" not in paths[1].read_text("utf-8")


def test_numbers_on_the_page_are_those_of_the_record(tmp_path: Path) -> None:
    report = fake_report.report()
    page = write_report(report, tmp_path)[2].read_text("utf-8")
    for one in report.candidates:
        assert one.both is not None
        assert f"{one.both.kl_mean.value:.3g}" in page or one.both.kl_mean.value < 1e-4
        assert f"{100 * one.both.same_top1.value:.1f}" in page


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(fake_report.report(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(_: Report) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(report_module, "page", fail)
    with pytest.raises(KeyboardInterrupt):
        write_report(fake_report.bare_report(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_recommendation_is_the_smallest_that_is_good_enough(report: Report) -> None:
    found = recommend(report.reference, report.candidates, report.noise_floor)
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
    found = recommend(report.reference, bad, report.noise_floor)
    assert found.choice is None
    assert found.reason
    assert {one.name for one in found.rejected} == set(names)


def test_ticks_can_be_told_apart(tmp_path: Path) -> None:
    page = write_report(fake_report.report(), tmp_path)[2].read_text("utf-8")
    plots = re.findall(r'<svg class="plot".*?</svg>', page, re.DOTALL)
    assert plots
    ticks = [re.findall(r"<text[^>]*>([-\d.e−]+)</text>", plot) for plot in plots]
    assert any("0.01" in one for one in ticks)
    assert not any(one.count("0.0") > 1 or one.count("1.0") > 1 for one in ticks)


def test_numbers_of_candidates_break_between_ranges_and_not_within(tmp_path: Path) -> None:
    page = write_report(fake_report.report(), tmp_path)[2].read_text("utf-8")
    assert re.search(r'<td class="number"><span>\d+–\d+</span>, <span>', page)
    assert re.search(r"td\.number \{[^}]*white-space: normal", page)
    assert re.search(r"td\.number span \{[^}]*white-space: nowrap", page)
