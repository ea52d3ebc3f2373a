"""`/v1/realtime?intent=transcription`: audio comes over a WebSocket, and what is heard in it goes back.

    messages -> samples -> Listening, in a thread of its own -> events -> messages

Its windows are those of `listen`: what is louder than the background, or differs from it. Without `turn_detection`, the
client says what is one. Nothing is dropped: who sends faster than is heard waits.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.websockets import WebSocket, WebSocketDisconnect

from dasheng_edge.runtime.audio.read import ReadAudio
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.engine.clip_audio import HeardAudio
from dasheng_edge.runtime.engine.engine import Engine, Ticket
from dasheng_edge.runtime.errors import DashengEdgeError
from dasheng_edge.runtime.languages.language import language_of
from dasheng_edge.runtime.live.ear import Window, WindowPlan
from dasheng_edge.runtime.live.listening import Asked, Heard, Listening
from dasheng_edge.runtime.live.source import RATE_HZ
from dasheng_edge.runtime.prompt.prompt import SPEECH_PROMPT

from .answers import Refusal, refusal_of
from .asking import Asking
from .models import Model
from .realtime_messages import (
    NAME,
    POLL_S,
    Append,
    Arriving,
    Clear,
    ClientMessage,
    Session,
    SessionUpdate,
    read_message,
    resampler,
)
from .visits import Visit

MAX_SESSIONS = 4  # at once: each is heard all the time
IDLE_S = 600.0  # without a message
MAX_QUEUED_S = 30.0  # of audio that was not heard yet, before no more is read
JOIN_S = 5.0  # that the thread has to end: it may be hearing


class _ClearedError(DashengEdgeError):
    """A window is not asked about."""


class _Unasked:
    """Its ticket."""

    def done(self) -> bool:
        return True

    def result(self) -> Caption:
        raise _ClearedError

    def cancel(self) -> bool:
        return False


class Realtime:
    """One connection. `tell` may be called by any thread; all else by the event loop, or by the thread that listens."""

    def __init__(self, asking: Asking, visit: Visit, socket: WebSocket) -> None:
        self._asking, self._visit, self._socket = asking, visit, socket
        self._loop, self._out = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None]()
        self.session = Session()
        self._id = f"sess_{secrets.token_hex(8)}"
        self._engine: Engine | None = None
        self._first: ClientMessage | None = None  # once audio is to come
        self._source: Arriving | None = None  # where the server finds what is a sound
        self._buffer: list[NDArray[np.float32]] = []  # where the client says it
        self._item: str | None = None  # of the sound that is heard
        self._last: str | None = None  # the item before
        self._asked: deque[str | None] = deque()  # items whose captions are to come; None: not asked about
        self._tickets: set[Ticket[Caption]] = set()
        self._answers: set[asyncio.Task[None]] = set()
        self._gone = False
        self._heard_s = 0.0

    def tell(self, kind: str, **fields: Any) -> None:
        """Send an event."""
        event = {"type": kind, "event_id": f"event_{secrets.token_hex(8)}", **fields}
        self._loop.call_soon_threadsafe(self._out.put_nowait, event)

    async def run(self) -> None:
        """Serve it to its end."""
        self.tell("session.created", session=self._shown())
        sending = asyncio.ensure_future(self._send())
        try:
            model = await self._until_audio()
            if model is None:
                return
            async with self._asking.models.use(model):
                self._engine = model.opened
                listens = self._listening()
                try:
                    message = self._first
                    while message is not None:
                        await self._take(message)
                        message = await self._next()
                finally:
                    await self._end(listens)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def _shown(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "realtime.transcription_session",
            **self.session.model_dump(exclude_none=True),
        }

    async def _send(self) -> None:
        while (event := await self._out.get()) is not None:
            await self._socket.send_json(event)

    async def _next(self) -> ClientMessage | None:
        """The next message that is one; None at the end. The others are told to be none."""
        while True:
            try:
                text = await asyncio.wait_for(self._socket.receive_text(), IDLE_S)
                return read_message(text)
            except (WebSocketDisconnect, asyncio.TimeoutError, RuntimeError):  # noqa: PERF203  # of many messages
                return None
            except (ValueError, KeyError) as error:  # no text, or none of the messages
                self._refuse(error if isinstance(error, ValueError) else ValueError("expected a message of text"), None)

    def _refuse(self, error: Exception, event_id: str | None) -> None:
        self.tell("error", error={**refusal_of(error).body()["error"], "event_id": event_id})

    async def _until_audio(self) -> Model | None:
        """The model that is asked, once audio is to come; None at the end."""
        while (message := await self._next()) is not None:
            try:
                if isinstance(message, SessionUpdate):
                    self._update(message.session)
                    continue
                found, _ = self._asking.models.named(self._model)
                found.bundle.prompt_facts  # noqa: B018  # says why there is none
            except Exception as error:  # noqa: BLE001  # whatever it is, the client is told
                self._refuse(error, message.event_id)
            else:
                self._first = message
                return found
        return None

    @property
    def _model(self) -> str:
        return self.session.audio.input.transcription.model or self._asking.models.default.name

    def _update(self, session: Session) -> None:
        asked = session.audio.input.transcription
        self._asking.models.named(asked.model or self._asking.models.default.name)
        if asked.language:
            language_of(asked.language)
        if self._engine is not None and (
            session.audio.input.format != self.session.audio.input.format
            or (session.audio.input.turn_detection is None) != (self.session.audio.input.turn_detection is None)
            or asked.model != self.session.audio.input.transcription.model
        ):
            raise Refusal(400, "model, format and turn_detection cannot change once audio came", code="invalid_value")
        self.session = session
        self.tell("session.updated", session=self._shown())

    def _prompt(self) -> str | None:
        """What is asked about each window."""
        asked = self.session.audio.input.transcription
        if asked.prompt:
            return asked.prompt
        _, task = self._asking.models.named(self._model)
        language = language_of(asked.language).code if asked.language else "en"
        return SPEECH_PROMPT.format(language=language) if task == "transcribe" else None

    def _listening(self) -> threading.Thread | None:
        """The thread that hears what comes, if it finds what is a sound."""
        if self.session.audio.input.turn_detection is None:
            return None
        assert self._engine is not None
        self._source = Arriving(self.session.audio.input.format.rate)
        listening = Listening(self._source, self._engine.parts.audio, WindowPlan(), self._ask, waits=True)
        thread = threading.Thread(target=self._listen, args=(listening,), name="dasheng-edge realtime", daemon=True)
        thread.start()
        return thread

    async def _take(self, message: ClientMessage) -> None:
        try:
            if isinstance(message, SessionUpdate):
                self._update(message.session)
            elif isinstance(message, Append):
                await self._hear(message.audio)
            elif isinstance(message, Clear):
                self._clear()
            else:
                self._commit()
        except Exception as error:  # noqa: BLE001  # whatever it is, the client is told
            self._refuse(error, message.event_id)

    async def _hear(self, samples: NDArray[np.float32]) -> None:
        self._heard_s += len(samples) / self.session.audio.input.format.rate
        self._visit.facts["audio_s"] = round(self._heard_s, 2)
        if self._source is not None:
            self._source.put(samples)
            while self._source.queued_s > MAX_QUEUED_S:  # noqa: ASYNC110  # a thread takes it
                await asyncio.sleep(POLL_S / 4)
            return
        assert self._engine is not None
        longest_s, rate = self._engine.bundle.prompt_facts.comfortable_s, self.session.audio.input.format.rate
        if sum(map(len, self._buffer)) + len(samples) > longest_s * rate:
            raise Refusal(400, f"the buffer holds {longest_s:g} s; commit or clear it", code="audio_too_long")
        self._buffer.append(samples)

    def _clear(self) -> None:
        self._buffer.clear()
        if self._source is not None:
            self._source.order("clear")
        self.tell("input_audio_buffer.cleared")

    def _commit(self) -> None:
        if self._source is not None:
            self._source.order("flush")
            return
        if not self._buffer:
            raise Refusal(400, "there is no audio to commit; append some", code="input_audio_buffer_commit_empty")
        resampled = resampler(self.session.audio.input.format.rate)
        samples, self._buffer = resampled(np.concatenate(self._buffer), last=True), []
        item = self._committed(None)
        answer = asyncio.ensure_future(self._answer(item, ReadAudio(samples, 0.0, NAME), len(samples) / RATE_HZ))
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)

    async def _answer(self, item: str, audio: ReadAudio, seconds: float) -> None:
        try:
            caption: Caption = await asyncio.wrap_future(self._submitted(item, audio))
            self._told(item, caption, seconds)
        except Exception as error:  # noqa: BLE001  # as above
            self._told(item, error, seconds)

    def _committed(self, item: str | None) -> str:
        """An item of its own for some audio."""
        item = item or f"item_{secrets.token_hex(8)}"
        self.tell("input_audio_buffer.committed", item_id=item, previous_item_id=self._last)
        self._last = item
        return item

    def _submitted(self, item: str, audio: ReadAudio | HeardAudio) -> Ticket[Caption]:
        assert self._engine is not None
        name = "conversation.item.input_audio_transcription.delta"
        ticket = self._engine.submit(
            audio, self._prompt(), on_text=lambda text: self.tell(name, item_id=item, content_index=0, delta=text)
        )  # fmt: skip
        self._tickets.add(ticket)
        ticket.add_done_callback(self._tickets.discard)
        return ticket

    def _told(self, item: str, result: Caption | Exception, seconds: float) -> None:
        """Tell what came of an item."""
        name, fields = "conversation.item.input_audio_transcription", {"item_id": item, "content_index": 0}
        if isinstance(result, Caption):
            usage = {"type": "duration", "seconds": round(seconds, 3)}
            self.tell(f"{name}.completed", **fields, transcript=result.text, usage=usage)
        else:
            self.tell(f"{name}.failed", **fields, error=refusal_of(result).body()["error"])

    def _listen(self, listening: Listening) -> None:
        """In a thread of its own: hear what comes, and tell."""
        try:
            for heard in listening.run(lambda: self._watch(listening)):
                self._tell_heard(heard)
        except Exception as error:  # noqa: BLE001  # as above; when the client has gone, nobody is there to be told
            self._refuse(error, None)

    def _watch(self, listening: Listening) -> None:
        """Tell where a sound sets in."""
        if self._item is None and (began_s := listening.ear.began_s) is not None:
            self._item = f"item_{secrets.token_hex(8)}"
            self.tell("input_audio_buffer.speech_started", item_id=self._item, audio_start_ms=round(1000 * began_s))

    def _ask(self, window: Window) -> Asked:
        """A window is there."""
        item, self._item = self._item or f"item_{secrets.token_hex(8)}", None
        assert self._source is not None
        assert window.embeddings is not None
        if self._source.discards or self._gone:
            self._asked.append(None)
            return _Unasked()
        self.tell("input_audio_buffer.speech_stopped", item_id=item, audio_end_ms=round(1000 * window.end_s))
        self._asked.append(self._committed(item))
        seconds = window.end_s - window.start_s
        return self._submitted(item, HeardAudio(window.embeddings, seconds, NAME, window.encoding_ms))

    def _tell_heard(self, heard: Heard) -> None:
        result = heard.caption or heard.error
        if (item := self._asked.popleft()) is not None and result is not None:
            self._told(item, result, heard.window.end_s - heard.window.start_s)

    async def _end(self, listens: threading.Thread | None) -> None:
        self._gone = True
        if self._source is not None:
            self._source.order("end")
        for ticket in list(self._tickets):
            ticket.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)
        if listens is not None:
            await asyncio.to_thread(listens.join, JOIN_S)


async def serve_realtime(asking: Asking, visit: Visit, socket: WebSocket, sessions: set[str]) -> None:
    """One connection, from its beginning to its end; `sessions` are those that there are."""
    offered = socket.scope.get("subprotocols", [])
    await socket.accept("realtime" if "realtime" in offered else None)
    refusal: Refusal | None = None
    if socket.query_params.get("intent") != "transcription":
        refusal = Refusal(400, "expected ?intent=transcription; there are no other sessions here", code="invalid_value")
    elif len(sessions) >= MAX_SESSIONS:
        refusal = Refusal(429, f"{MAX_SESSIONS} sessions are open, and no more; try again", code="rate_limit_exceeded")
    if refusal is not None:
        await socket.send_json({"type": "error", "event_id": visit.id, "error": refusal.body()["error"]})
        await socket.close(1008 if refusal.status == 400 else 1013)
        return
    sessions.add(visit.id)
    try:
        await Realtime(asking, visit, socket).run()
        with suppress(RuntimeError, WebSocketDisconnect):  # the client closed it
            await socket.close()
    finally:
        sessions.discard(visit.id)
