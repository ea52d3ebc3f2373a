"""Fixtures on the bundle that is kept with the tests: the runtime is tested without the exporter and its libraries."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.text.decoder import Decoder
from tests.fixtures.places import SMALLEST_BUNDLE


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that no test can change what is kept."""
    return Path(shutil.copytree(SMALLEST_BUNDLE, tmp_path_factory.mktemp("smallest") / "tiny"))


@pytest.fixture
def decoder(tiny_bundle: Path) -> Iterator[Decoder]:
    """Its decoder, with a small context that requests outgrow."""
    opened = Decoder.open(tiny_bundle / DECODER, EngineSettings(), n_ctx=256)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def shared_captioner(tiny_bundle: Path) -> Iterator[Captioner]:
    # One thread: with more, llama.cpp's threads wait for each other on a busy machine.
    with Captioner.open(tiny_bundle, threads=1) as captioner:
        yield captioner


@pytest.fixture
def captioner(shared_captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> Captioner:
    """One for all tests; what they patch through `monkeypatch` is undone."""
    return shared_captioner
