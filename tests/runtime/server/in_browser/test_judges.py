"""What axe and Lighthouse say of the page, and whether it fits screens of all widths, in each of its states."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.page_server import PageServer

from .conftest import FLAGS, LONG, Open, ask_for, load, node_module, result

pytestmark = pytest.mark.slow


def empty(page: Any, _: PageServer, __: Path) -> None:
    page.wait_for_selector("#model option", state="attached")


def described(page: Any, _: PageServer, clip: Path) -> None:
    load(page, clip)
    ask_for(page)
    result(page)


def failed(page: Any, server: PageServer, clip: Path) -> None:
    server.refusal = (429, "rate_limit_exceeded", "too many")
    load(page, clip)
    ask_for(page)
    page.wait_for_selector("[role=alert] strong")


def recording(page: Any, _: PageServer, __: Path) -> None:
    page.click("#record")
    page.wait_for_selector("#take:visible")


def in_parts(page: Any, server: PageServer, clip: Path) -> None:
    server.parts, server.delay_s = LONG, 0.02
    load(page, clip)
    ask_for(page)
    page.wait_for_selector("#parts li:nth-child(3)")


def subtitled(page: Any, _: PageServer, clip: Path) -> None:
    load(page, clip)
    ask_for(page, "subtitles")
    result(page)
    page.evaluate("document.querySelector('video').currentTime = 2")
    page.wait_for_selector("#cue:has-text('[rain falling]')")


def key_asked(page: Any, _: PageServer, __: Path) -> None:
    page.click("#key-open")
    page.wait_for_selector("#key-dialog[open]")


def conversing(page: Any, server: PageServer, clip: Path) -> None:
    load(page, clip)
    ask_for(page, "ask", "How many people are speaking?")
    result(page)


STATES = [empty, described, failed, recording, in_parts, subtitled, key_asked, conversing]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("reach", STATES)
def test_axe_finds_nothing(
    visit: Open, server: PageServer, clip: Path, long_clip: Path, reach: Callable[..., None], scheme: str
) -> None:
    source = (node_module("axe-core") / "axe.min.js").read_text("utf-8")
    page = visit(color_scheme=scheme, reduced_motion="reduce")
    reach(page, server, long_clip if reach is in_parts else clip)
    page.evaluate(source)
    found = page.evaluate("() => axe.run()")["violations"]
    assert not [(one["id"], one["impact"], [node["target"] for node in one["nodes"]]) for one in found]


@pytest.mark.parametrize("width", [320, 768, 1920])
@pytest.mark.parametrize("reach", STATES)
def test_nothing_is_cut_off(
    visit: Open, server: PageServer, clip: Path, long_clip: Path, reach: Callable[..., None], width: int
) -> None:
    page = visit(viewport={"width": width, "height": 640})
    reach(page, server, long_clip if reach is in_parts else clip)
    beyond = page.evaluate(
        "() => [...document.querySelectorAll('body *')]"
        ".filter((one) => one.checkVisibility() && !one.closest('.sr, symbol'))"
        ".filter((one) => one.getBoundingClientRect().right > innerWidth + 1)"
        ".map((one) => one.outerHTML.slice(0, 80))"
    )
    assert not beyond
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_nothing_moves_where_that_is_asked_for(visit: Open, server: PageServer, long_clip: Path) -> None:
    page = visit(reduced_motion="reduce")
    in_parts(page, server, long_clip)
    assert page.evaluate("document.getAnimations().length") == 0


def test_lighthouse(server: PageServer, chromium: str, tmp_path: Path) -> None:
    program = node_module("lighthouse") / "cli" / "index.js"
    report, flags = tmp_path / "report.json", " ".join(["--headless", *FLAGS])
    command = ["node", str(program), server.url, "--quiet", "--output=json", f"--output-path={report}"]
    command += ["--only-categories=accessibility,best-practices,performance", f"--chrome-flags={flags}"]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "CHROME_PATH": chromium})
    categories = json.loads(report.read_text("utf-8"))["categories"]
    scores = {name: category["score"] for name, category in categories.items()}
    assert scores["accessibility"] == 1
    assert scores["best-practices"] >= 0.95
    assert scores["performance"] >= 0.9
