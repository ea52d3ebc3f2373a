"""A server on the smallest bundle, in this process; all tests of it need the serve extra."""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pytest

from dasheng_edge.runtime.embedder import Embedder
from dasheng_edge.runtime.engine.engine import Engine
from dasheng_edge.runtime.engine_options import EngineOptions
from tests.fixtures.asgi_client import Client

if TYPE_CHECKING:
    from dasheng_edge.runtime.server.app import Server

for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(module, reason="needs the extra serve")

_T = TypeVar("_T")
Run = Callable[[Coroutine[Any, Any, _T]], _T]
RATE = 16_000


def wav_of(seconds: float, *, seed: int = 0, loud: float = 0.3) -> bytes:
    """Noise, as the bytes of a WAV file."""
    samples = np.random.default_rng(seed).normal(0, loud, round(seconds * RATE)).clip(-1, 1)
    with io.BytesIO() as out, wave.open(out, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
        return out.getvalue()


@pytest.fixture(scope="session")
def clip() -> bytes:
    """Noise of 1.5 s."""
    return wav_of(1.5)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The log."""
    return []


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, loop: asyncio.AbstractEventLoop, lines: list[str]) -> Iterator[Server]:
    from dasheng_edge.runtime.server.app import Server, ServerOptions

    running = Server(opened_models(tiny_bundle), ServerOptions(log=lines.append))
    context = running.running()
    loop.run_until_complete(context.__aenter__())
    yield running
    loop.run_until_complete(context.__aexit__(None, None, None))


def opened_models(*bundles: Path, aliases: dict[str, str] | None = None) -> Any:
    """Models that compute in one thread."""
    from dasheng_edge.runtime.server.models import Models, Opening

    options = EngineOptions(weights="mapped").changed(threads=1)
    opening = Opening(
        lambda path: Engine.open(path, options=options, check_sha256=False),
        lambda path: Embedder.open(path, options=options, check_sha256=False),
    )
    return Models(bundles, opening, aliases)


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.app)


@pytest.fixture
def run(loop: asyncio.AbstractEventLoop) -> Run[Any]:
    """Runs a coroutine to its end."""
    return lambda work: loop.run_until_complete(asyncio.wait_for(work, 20))
