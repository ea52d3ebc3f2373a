"""A request's way to its captions: its turn, its audio, which is bounded, and its windows, a few at a time."""

from __future__ import annotations

import asyncio
import io
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO, TypeVar, cast

import numpy as np

from dasheng_edge.runtime.audio.read import ReadAudio, read_audio
from dasheng_edge.runtime.audio.windows import Span, spans
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.engine.engine import Engine

from .answers import come_back
from .door import Limits
from .models import Model, Models
from .visits import Metrics, Visit

MAX_RETRY_S = 60
NOTHING = ReadAudio(np.zeros(0, np.float32), 0.0, "")  # in place of the audio of a window that was asked about
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
    changes: bool = False  # whether it is found out, too, where sounds set in


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

    def __init__(  # the parts of a server
        self,
        models: Models,
        places: Places,
        limits: Limits,
        metrics: Metrics,
        readers: Executor,
        *,
        log_text: bool = False,
    ) -> None:
        self.models, self.places, self.limits, self.metrics = models, places, limits, metrics
        self._readers, self.log_text = readers, log_text

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
    ) -> AsyncGenerator[tuple[Span, Caption | str]]:
        """Windows of a clip and what was said about each, in their order; before a caption, its text as it comes.

        Raises:
            AudioError: it cannot be read, or is too long.
            TimeoutError: it took too long.
            DashengEdgeError: what else `Ticket.result` raises.
        """
        waiting: deque[_Window] = deque()
        rate_hz = engine.bundle.manifest.front_end.sample_rate_hz
        async with aclosing(self._spans(audio, rate_hz, windows)) as cut:
            try:
                more = True
                while more or waiting:
                    while more and len(waiting) < self._ahead(engine):
                        if (span := await deadline.wait(_next(cut))) is None:
                            more = False
                            break
                        waiting.append(_Window(engine, span, question))
                    if waiting:
                        while (said := await deadline.wait(waiting[0].came.get())) is not None:
                            yield waiting[0].span, said
                        yield waiting[0].span, waiting[0].ticket.result()
                        waiting.popleft()
            finally:
                for window in waiting:
                    window.ticket.cancel()

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

    async def clip(self, model: Model, data: bytes) -> ReadAudio:
        """A clip of a conversation, decoded.

        Raises:
            AudioError: it cannot be read, or is too long.
        """
        stopped, rate_hz = threading.Event(), model.bundle.manifest.front_end.sample_rate_hz

        def read() -> ReadAudio:
            start_s = time.perf_counter()
            stream = read_audio(in_memory(data), sample_rate_hz=rate_hz)
            blocks = [*stream.limited(self.limits.max_seconds, stopped.is_set)]
            ms = 1000.0 * (time.perf_counter() - start_s)
            return ReadAudio(np.concatenate(blocks), ms, stream.name, stream.warnings)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, read)
        finally:
            stopped.set()

    def count(  # noqa: PLR0913  # what is known of an answer
        self, model: Model, visit: Visit, read: int, written: int, audio_s: float, *, asked: str = "", said: str = ""
    ) -> None:
        """Tokens and seconds, for log and numbers; texts go into the log where that was asked for."""
        self.metrics.audio.labels(model.name).inc(audio_s)
        self.metrics.tokens.labels(model.name, "read").inc(read)
        self.metrics.tokens.labels(model.name, "written").inc(written)
        visit.facts |= {"audio_s": round(audio_s, 2), "tokens": written}
        visit.facts |= {"asked": asked, "said": said} if self.log_text else {}


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


class _Window:
    """A window that was asked about: `came` gives text, and then None."""

    def __init__(self, engine: Engine, span: Span, question: Question) -> None:
        loop = asyncio.get_running_loop()
        self.span, self.came = replace(span, audio=NOTHING), asyncio.Queue[str | None]()

        def put(text: str | None) -> None:  # in the engine's thread
            loop.call_soon_threadsafe(self.came.put_nowait, text)

        self.ticket = engine.submit(
            span.audio, question.prompt, sampling=question.sampling, changes=question.changes, on_text=put
        )  # fmt: skip
        self.ticket.add_done_callback(lambda _: put(None))


def in_memory(data: bytes) -> BinaryIO:
    """Bytes as a file that can be read."""
    return cast("BinaryIO", Upload(io.BytesIO(data), "the audio"))


class Places:
    """Of one event loop. Tenants take turns: one that asks for much waits for itself, not in front of others."""

    def __init__(self, waiting: int, working: int = 1) -> None:
        self._max_waiting = waiting
        self.max_working = working
        self.working = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # in the order of turns
        self._spent_s = 1.0  # by a request at its place, about
        self.ending = False

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncGenerator[None]:
        """A place, when it is this tenant's turn.

        Raises:
            Refusal: too many wait, or the server is ending.
        """
        await self._take(tenant)
        start = time.monotonic()
        try:
            yield
        finally:
            self._spent_s += 0.2 * (time.monotonic() - start - self._spent_s)
            self.working -= 1
            self._next()

    def end(self) -> None:
        """Let nobody in any more, and send those away who wait."""
        self.ending = True
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(_ending())
        self._waiting.clear()

    def retry_s(self) -> int:
        """After how many seconds there may be room."""
        turns = (self.waiting + 1) / self.max_working
        return max(1, min(MAX_RETRY_S, math.ceil(turns * self._spent_s)))

    async def _take(self, tenant: str) -> None:
        if self.ending:
            raise _ending()
        if self.working < self.max_working:  # so nobody waits
            self.working += 1
            return
        if self.waiting >= self._max_waiting:
            raise come_back(
                f"{self.waiting} requests are waiting, which is as many as this server keeps (--queue); try again",
                seconds=self.retry_s(), status=429, code="rate_limit_exceeded",
            )  # fmt: skip
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(future)
        try:
            await future
        except BaseException:
            self._leave(tenant, future)
            raise

    def _leave(self, tenant: str, future: asyncio.Future[None]) -> None:
        """Who waited does so no more; a place that was given meanwhile is the next one's."""
        if future.done() and not future.cancelled() and future.exception() is None:
            self.working -= 1
            self._next()
        elif (futures := self._waiting.get(tenant)) is not None and future in futures:
            futures.remove(future)
            if not futures:
                del self._waiting[tenant]

    def _next(self) -> None:
        while self._waiting and self.working < self.max_working:
            tenant, futures = next(iter(self._waiting.items()))
            future = futures.popleft()
            del self._waiting[tenant]
            if futures:
                self._waiting[tenant] = futures  # behind the others
            if not future.done():
                self.working += 1
                future.set_result(None)


def _ending() -> Exception:
    return come_back("the server is ending; try again", code="shutting_down")
