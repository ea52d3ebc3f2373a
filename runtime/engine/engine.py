"""One bundle for many callers: any thread asks, and a thread of the engine's own does the work."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitedTooLongError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from dasheng_edge.runtime.audio.read import AudioSource
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import CaptionerBusyError, DashengEdgeError, clip_error
from dasheng_edge.runtime.machine.forks import Home, starts_pool
from dasheng_edge.runtime.machine.memory import started_thread
from dasheng_edge.runtime.parts import Parts
from dasheng_edge.runtime.text.sequences import MAX_SEQUENCES

from .chat_job import ChatRequest
from .clip_audio import HeardAudio
from .conversation import ChatOptions, Message, Piece, Reply
from .heard_clips import HeardClips
from .job import CaptionScheduler, Job
from .opening import open_parts, warm_up
from .request import asked, check_count

_Result = TypeVar("_Result")


class Ticket(Future[_Result]):
    """A caption or reply that was asked for: a future of Python's, so `as_completed` and `asyncio.wrap_future` take it.

    Callbacks are called in the engine's thread, which waits for them.
    """

    def __init__(self, engine: Engine, job: Job) -> None:
        super().__init__()
        self._engine = engine
        self.job: Job | None = job  # until it is done: it has the audio, and the rows of its prompt

    def result(self, timeout: float | None = None) -> _Result:
        """The caption or reply, when it is there.

        Raises:
            TimeoutError: it is not there after so many seconds; it is still made.
            CancelledError: it was cancelled, or the engine was closed.
            ForkedError: it was not there when this process was forked from the engine's.
            DashengEdgeError: what `Captioner.caption` raises.
        """
        if not self.done():
            self._engine.check_home()
        try:
            return super().result(timeout)
        except WaitedTooLongError:
            raise WaitedTooLongError(f"there is no caption after {timeout} s; wait longer, or cancel it") from None

    def cancel(self) -> bool:
        """Do not make it: its place is free within one step. False if it is done, and in a forked child."""
        return self._engine.cancel(self)

    def settle(self, result: _Result | Exception | Literal["cancelled"]) -> None:
        """This is what came of it; the engine says so, once, and holds no lock."""
        self.job = None
        if isinstance(result, Exception):
            self.set_exception(result)
        elif result == "cancelled":
            super().cancel()
            self.set_running_or_notify_cancel()
        else:
            self.set_result(result)


class Engine:
    """Answers for any number of threads at once, `batch` of them together, in the order in which they were asked for.

    Greedy captions are those of `Captioner.caption`: see `Sequences`. `ask_silence` is as in `Captioner`.
    """

    def __init__(self, bundle: Bundle, parts: Parts, *, batch: int | None = None) -> None:
        self.bundle, self.parts = bundle, parts
        self.batch = parts.decoder.settings.batch if batch is None else batch
        check_count("batch", self.batch, MAX_SEQUENCES)
        self.ask_silence = False
        self._home = Home("engine", parts)
        self._changed = threading.Condition()
        self._tickets: dict[Job, Ticket[Any]] = {}  # that are not done
        self._cancelled: list[Job] = []
        self._heard = HeardClips()
        self._closed = False
        starts_pool(parts.decoder.settings.text_threads)
        self._scheduler = self._new_scheduler()
        try:
            self._thread = started_thread("engine", self._work)
        except BaseException:
            self._scheduler.close()
            raise
        atexit.register(self.close)  # before what it computes with is freed

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        options: EngineOptions | None = None,
        batch: int | None = None,
        check_sha256: bool = True,
    ) -> Engine:
        """Open a bundle, as `Captioner.open`; by default, weights stay as stored, and parts on a GPU are warmed up."""
        options = options or EngineOptions(weights="mapped")
        if options.warm_up is None:
            options = replace(options, warm_up=True)
        bundle, parts = open_parts(path, options, check_sha256=check_sha256)
        warm_up(bundle, parts)
        return cls(bundle, parts, batch=batch)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(  # noqa: PLR0913  # as `Captioner.stream`
        self,
        audio: AudioSource | HeardAudio,
        prompt: str | None = None,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        changes: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> Ticket[Caption]:
        """Ask for a caption; arguments as in `Captioner.stream`. What is wrong with the clip is said by `result`.

        With `changes`, the caption says where something sets in. `on_text` is told of the text as it comes, in the
        engine's thread, which waits for it; a character that never becomes whole is in the caption alone.

        Raises:
            PromptError: an argument is of another type, or out of range.
            CaptionerBusyError: the engine is closed.
            ForkedError: this process was forked from the one that opened it.
            MemoryShortError: there is not enough memory to go on after an error.
        """
        self.check_home()
        request = asked(self.bundle, prompt, system, max_new_tokens, sampling)
        request = replace(
            request, audio=audio, ask_silence=self.ask_silence, changes=changes, on_text=on_text
        )  # fmt: skip
        return self._added(lambda scheduler: scheduler.job(request))

    def chat(
        self,
        messages: Sequence[Message],
        options: ChatOptions | None = None,
        *,
        on_piece: Callable[[Piece], None] | None = None,
    ) -> Ticket[Reply]:
        """Ask for the next reply of a conversation, as `Captioner.chat`; what is wrong with clips is said by `result`.

        `on_piece` is told of the text as it comes, in the engine's thread, which waits for it; what it raises ends the
        answer, and is its error.

        Raises what `submit` raises.
        """
        self.check_home()
        request = ChatRequest(self.bundle, self.parts, messages, options)
        return self._added(lambda scheduler: scheduler.chat(request, self._heard, on_piece))

    def _added(self, new_job: Callable[[CaptionScheduler], Job]) -> Ticket[Any]:
        with self._changed:
            if self._closed:
                raise CaptionerBusyError("the engine is closed; open a new one")
            if self._scheduler.closed:
                self._scheduler = self._new_scheduler()
            job = new_job(self._scheduler)
            ticket: Ticket[Any] = Ticket(self, job)
            self._tickets[job] = ticket
            self._scheduler.add(job)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket[Any]) -> bool:
        """As `Ticket.cancel`."""
        if not self._home.here:
            return False
        with self._changed:
            job = ticket.job
            if job is None or self._tickets.pop(job, None) is None:
                return ticket.cancelled()
            self._cancelled.append(job)
            self._changed.notify()
        ticket.settle("cancelled")
        return True

    def check_home(self) -> None:
        """Refuse what would wait for ever in a child that was forked.

        Raises:
            ForkedError: this process is one.
        """
        self._home.check()

    def close(self) -> None:
        """Cancel what is not done, and free the decoder. Harmless when repeated; in a forked child it does nothing."""
        if not self._home.here:
            return
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self.parts.decoder.close()
        atexit.unregister(self.close)

    def _new_scheduler(self) -> CaptionScheduler:
        return CaptionScheduler(self.bundle, self.parts, self.batch)

    def _work(self) -> None:
        while self._waited_for_work():
            self._advance()
        self._scheduler.close()
        with self._changed:
            left, self._tickets = self._tickets, {}
        for ticket in left.values():
            ticket.settle("cancelled")

    def _advance(self) -> None:
        try:
            self._let_go()
            self._scheduler.advance(self._settle)
        except BaseException as error:  # noqa: BLE001  # whatever it is, callers are told, and the next ones served
            self._fail_all(error)

    def _waited_for_work(self) -> bool:
        """False when the engine is closed."""
        with self._changed:
            while not (self._closed or self._cancelled or len(self._scheduler)):
                self._changed.wait()
            return not self._closed

    def _let_go(self) -> None:
        """Of what was cancelled."""
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
        for job in cancelled:
            self._scheduler.cancel(job)

    def _settle(self, job: Job) -> None:
        """A job is done: its caller has the result."""
        with self._changed:
            ticket = self._tickets.pop(job, None)
        if ticket is not None:
            ticket.settle(_outcome(job))

    def _fail_all(self, error: BaseException) -> None:
        self._scheduler.close()
        with self._changed:
            failed, self._tickets = self._tickets, {}
            with suppress(Exception):  # then it is tried again when somebody asks
                self._scheduler = self._new_scheduler()
        for job, ticket in failed.items():
            ticket.settle(_named(job, error))


def _outcome(job: Job) -> Caption | Reply | Exception:
    try:
        return job.result()
    except Exception as error:  # noqa: BLE001  # whatever it is, the caller is told
        return _named(job, error)


def _named(job: Job, error: BaseException) -> Exception:
    try:
        return clip_error(job.name, error)
    except DashengEdgeError as same:
        return same
