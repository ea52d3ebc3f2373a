"""Fixtures: a tiny random checkpoint, and the bundle that the exporter makes of it."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.text.decoder import Decoder

if TYPE_CHECKING:
    import typer


def pytest_configure() -> None:
    """Nothing that is collected is garbage: looking for some would take a quarter of the time of collecting tests.

    The models are so small that threads of PyTorch wait for each other longer than they compute; those of llama.cpp
    wait without computing.

    A shell lets its background jobs ignore Ctrl-C, and so would every program that a test starts and interrupts.
    """
    gc.disable()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in [name for name in os.environ if name.startswith("DASHENG_EDGE_")]:
        del os.environ[name]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["DASHENG_EDGE_CACHE"] = "off"  # nothing is kept for the next run, by subprocesses neither
    os.environ["DASHENG_EDGE_CONFIG"] = "off"  # and whoever runs the tests has no settings and no bundles
    os.environ["XDG_DATA_HOME"] = os.path.join(os.devnull, "none")  # noqa: PTH118  # no path that can be
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """From here on there is garbage, but not among what is there already."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def parsers_made_once() -> Iterator[None]:
    """Making the parser of all commands takes as long as most commands that are tried; it keeps nothing of a run."""
    from typer.main import get_command

    made = dict[object, Any]()

    def parser(app: typer.Typer) -> Any:
        key = tuple(command.callback for command in app.registered_commands)
        if key not in made:
            made[key] = get_command(app)
        return made[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("typer.testing._get_command", parser)
        yield


@pytest.fixture(autouse=True)
def unknown_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements do not see what else this machine does: they would wait for its end, and judge otherwise."""
    from dasheng_edge.runtime.machine import load, meters

    monkeypatch.setattr(load, "cpu_use", lambda: meters.CpuUse(0.0, None, 0.0, 1))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.fixtures.tiny_checkpoint import write_tiny_adapter

    return write_tiny_adapter(tmp_path_factory.mktemp("adapter") / "tiny")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """Its decoder is F32, so that it can be held against the reference."""
    from dasheng_edge.export.bundle_export import export_bundle
    from dasheng_edge.export.options import ExportOptions

    out = tiny_checkpoint.parent / "bundle"
    export_bundle(ExportOptions(checkpoint=tiny_checkpoint, out=out, encoder="fp32", decoder="F32"))
    return out


@pytest.fixture
def decoder(tiny_bundle: Path) -> Iterator[Decoder]:
    """Its decoder, with a small context that requests outgrow."""
    opened = Decoder.open(tiny_bundle / DECODER, EngineSettings(), n_ctx=256)
    yield opened
    opened.close()


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def shared_captioner(tiny_bundle: Path) -> Iterator[Captioner]:
    # One thread: with more, llama.cpp's threads wait for each other on a busy machine.
    with Captioner.open(tiny_bundle, threads=1) as captioner:
        yield captioner


@pytest.fixture
def captioner(shared_captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> Captioner:
    """One for all tests; what they patch through `monkeypatch` is undone."""
    return shared_captioner
