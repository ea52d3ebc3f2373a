"""Chromium without a screen, a server whose answers, delays and faults are ordered, and the page as it is used.

Needs the Python package playwright and Chromium; what axe and Lighthouse judge needs both of npm, where NODE_PATH says.
"""

from __future__ import annotations

import os
import shutil
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.page_server import PageServer, page_server

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream", "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip
LONG = [(30.0 * at, 30.0 * (at + 1), f"sound number {at} is heard") for at in range(12)]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> str:
    """The program."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("Chromium is not installed; the page is tried in it (apt install chromium)")
    return path


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    with playwright.sync_playwright() as run:
        running = run.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


def node_module(name: str) -> Path:
    """The folder of a package of npm."""
    for folder in os.environ.get("NODE_PATH", "").split(os.pathsep):
        if folder and (Path(folder) / name).is_dir():
            return Path(folder) / name
    pytest.skip(f"{name} is not installed; npm install {name}, and name its node_modules in NODE_PATH")


@pytest.fixture
def server() -> Iterator[PageServer]:
    with page_server() as running:
        yield running


@pytest.fixture
def visit(browser: Any, server: PageServer) -> Iterator[Open]:
    """Opens the page, in a browser without a past; nothing may go wrong in it, and nothing be loaded from elsewhere."""
    opened, troubles = [], []

    def open_page(**options: Any) -> Any:
        context = browser.new_context(permissions=["microphone", "clipboard-read", "clipboard-write"], **options)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda said: troubles.append(said.text) if "Content Security" in said.text else None)
        page.on("request", lambda request: troubles.append(request.url) if not own(request.url) else None)
        page.goto(server.url)
        opened.append(context)
        return page

    def own(url: str) -> bool:
        return url.startswith((server.url, "blob:", "data:", server.url.replace("http", "ws", 1)))

    yield open_page
    for context in opened:
        context.close()
    assert not troubles


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("clips") / "garden.wav", 3.5)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("clips") / "long.wav", 360.0)


def written(path: Path, seconds: float, rate: int = 16_000) -> Path:
    """Noise that swells."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        second = np.random.default_rng(0).normal(0, 0.1, rate) * np.abs(np.sin(np.linspace(0, np.pi, rate)))
        data = (np.tile(second, int(seconds) + 1)[: round(seconds * rate)] * 32767).clip(-32768, 32767)
        file.writeframes(data.astype("<i2").tobytes())
    return path


def load(page: Any, path: Path) -> None:
    page.set_input_files("#file", str(path))
    page.wait_for_selector("#length:not(:text-is('0:00'))")


def ask_for(page: Any, task: str = "describe", question: str = "") -> None:
    """Choose and start."""
    page.locator(f"#task-{task}").check(force=True)
    if question:
        page.fill("#question", question)
    page.click("#start")


def result(page: Any) -> list[str]:
    """What is shown when all has come."""
    page.wait_for_selector("#actions:visible")
    texts: list[str] = page.locator("#parts p:not(.asked)").all_inner_texts()
    return texts


def said(page: Any) -> list[str]:
    """What a screen reader was told."""
    texts: list[str] = page.locator("#said p").all_text_contents()
    return texts


def saved(page: Any, name: str) -> tuple[str, str]:
    """A file that is saved: its name without suffix, and its text."""
    with page.expect_download() as download:
        page.click(f"button[aria-label='Save as {name}']")
    path = Path(download.value.suggested_filename)
    assert path.suffix == f".{name.lower()}"
    return path.stem, Path(download.value.path()).read_text("utf-8")
