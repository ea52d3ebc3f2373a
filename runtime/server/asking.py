"""A request's way to its captions: its audio is read and bounded, and its windows are asked about, a few at a time."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO, TypeVar, cast

from dasheng_edge.runtime.audio.read import read_audio
from dasheng_edge.runtime.audio.windows import Span, spans
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.engine.engine import Engine

from .door import Limits
from .models import Model, Models
from .places import Places
from .visits import Metrics, Visit

_T = TypeVar("_T")


@dataclass(frozen=True)
class Windows:
    """How a clip is cut: up to `whole_s` it is one, and what is longer is cut into windows."""

    whole_s: float
    window_s: float
    hop_s: float


@dataclass(frozen=True)
class Question:
    """What is asked about each window; None is the bundle's."""

    prompt: str | None
    sampling: Sampling | None = None
    max_new_tokens: int | None = None
    system: str | None = None


class Upload(io.RawIOBase):
    """A file of a form, or bytes, under a name that messages may say; read once, from its start.

    Python 3.10's spooled files do not say that they can seek.
    """

    def __init__(self, file: BinaryIO, name: str = "the file") -> None:
        self._file, self.name = file, name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        self._file.seek(place, whence)
        return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()


class Asking:
    """What all routes ask through. Of one event loop."""

    def __init__(self, models: Models, places: Places, limits: Limits, metrics: Metrics, readers: Executor) -> None:
        self.models, self.places, self.limits, self.metrics = models, places, limits, metrics
        self._readers = readers

    @asynccontextmanager
    async def place(self, model: Model, visit: Visit) -> AsyncGenerator[Deadline]:
        """A place at an open model, and the time by which its answer is to be there.

        Raises:
            Refusal: too many wait, or the server is ending; and what opening a bundle raises.
        """
        start_s = time.monotonic()
        async with self.places.place(visit.tenant):
            waited_s = time.monotonic() - start_s
            self.metrics.waited.observe(waited_s)
            visit.facts |= {"model": model.name, "waited_ms": round(1000 * waited_s)}
            async with self.models.use(model):
                yield Deadline(self.limits.timeout_s)

    async def captions(
        self, engine: Engine, audio: BinaryIO, windows: Windows, question: Question, deadline: Deadline
    ) -> AsyncGenerator[tuple[Span, Caption]]:
        """Windows of a clip and what was said about each, in their order.

        Raises:
            AudioError: it cannot be read, or is too long.
            TimeoutError: it took too long.
            DashengEdgeError: what else `Ticket.result` raises.
        """
        waiting: deque[tuple[Span, asyncio.Future[Caption]]] = deque()
        rate_hz = engine.bundle.manifest.front_end.sample_rate_hz
        async with aclosing(self._spans(audio, rate_hz, windows)) as cut:
            try:
                more = True
                while more or waiting:
                    while more and len(waiting) < self._ahead(engine):
                        if (span := await deadline.wait(_next(cut))) is None:
                            more = False
                            break
                        waiting.append((span, _submitted(engine, span, question)))
                    if waiting:
                        span, future = waiting[0]
                        caption = await deadline.wait(future)
                        waiting.popleft()
                        yield span, caption
            finally:
                for _, future in waiting:
                    future.cancel()

    def _ahead(self, engine: Engine) -> int:
        """Windows of one request at once: those that work share the engine."""
        return max(1, engine.batch // max(1, self.places.working))

    async def _spans(self, audio: BinaryIO, rate_hz: int, windows: Windows) -> AsyncGenerator[Span]:
        loop, stopped = asyncio.get_running_loop(), threading.Event()
        stream = read_audio(audio, sample_rate_hz=rate_hz).limited(self.limits.max_seconds, stopped.is_set)
        cut = spans(
            stream, rate_hz, whole_s=windows.whole_s, window_s=windows.window_s, hop_s=windows.hop_s
        )  # fmt: skip
        try:
            while (span := await loop.run_in_executor(self._readers, next, cut, None)) is not None:
                yield span
        finally:
            stopped.set()  # a thread that reads ends with its next block

    def count(self, model: Model, visit: Visit, captions: list[Caption], audio_s: float) -> None:
        """For log and numbers."""
        read = sum(caption.prompt_tokens + caption.audio_tokens for caption in captions)
        written = sum(len(caption.tokens) for caption in captions)
        self.metrics.audio.labels(model.name).inc(audio_s)
        self.metrics.tokens.labels(model.name, "read").inc(read)
        self.metrics.tokens.labels(model.name, "written").inc(written)
        visit.facts |= {"audio_s": round(audio_s, 2), "tokens": written}


class Deadline:
    """The time by which an answer is to be there."""

    def __init__(self, seconds: float) -> None:
        self._end_s = time.monotonic() + seconds

    async def wait(self, work: Coroutine[None, None, _T] | asyncio.Future[_T]) -> _T:
        """What comes of it.

        Raises:
            TimeoutError: it takes too long; it is cancelled.
        """
        return await asyncio.wait_for(work, max(0.001, self._end_s - time.monotonic()))


async def _next(cut: AsyncGenerator[Span]) -> Span | None:
    return await anext(cut, None)


def _submitted(engine: Engine, span: Span, question: Question) -> asyncio.Future[Caption]:
    ticket = engine.submit(
        span.audio, question.prompt, system=question.system, max_new_tokens=question.max_new_tokens,
        sampling=question.sampling,
    )  # fmt: skip
    return asyncio.wrap_future(ticket)


def in_memory(data: bytes) -> BinaryIO:
    """Bytes as a file that can be read."""
    return cast("BinaryIO", Upload(io.BytesIO(data), "the audio"))
