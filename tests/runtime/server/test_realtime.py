"""Audio over a WebSocket: the windows of `listen`, the captions of the captioner, and messages that are none."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine.engine import Engine
from dasheng_edge.runtime.live.ear import WindowPlan
from dasheng_edge.runtime.live.listening import Listening, captions_of
from dasheng_edge.runtime.live.source import FileSource
from dasheng_edge.runtime.prompt.prompt import SPEECH_PROMPT
from dasheng_edge.runtime.server import realtime
from dasheng_edge.runtime.server.app import Server
from tests.fixtures.asgi_client import Socket

from .conftest import Run

PATH, QUERY, RATE = "/v1/realtime", "intent=transcription", 16_000
ITEM = "conversation.item.input_audio_transcription"


def noise(seconds: float, loud: float = 0.3) -> NDArray[np.float32]:
    samples: NDArray[np.float32] = np.random.default_rng(0).normal(0, loud, round(seconds * RATE)).astype(np.float32)
    return samples.clip(-1, 1)


def pcm(samples: NDArray[np.float32]) -> str:
    return base64.b64encode((samples * 32767).astype("<i2").tobytes()).decode()


def connect(server: Server, query: str = QUERY, **others: Any) -> Socket:
    return Socket(server.app, PATH, query, **others)


def session(**fields: Any) -> dict[str, Any]:
    return {"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcm", "rate": RATE}, **fields}}}


SCENE = np.concatenate([noise(1, 1e-3), noise(1.5), noise(2, 1e-3), noise(1.2), noise(2, 1e-3)])


def test_windows_are_those_of_listen(server: Server, run: Run[Any]) -> None:
    engine = server.models.default.engine
    assert isinstance(engine, Engine)
    file = FileSource(((SCENE * 32767).astype(np.int16), RATE), RATE)
    want = [*Listening(file, engine.parts.audio, WindowPlan(), captions_of(engine, "file"), waits=True).run()]
    assert len(want) == 2

    async def main() -> None:
        socket = connect(server)
        await socket.until("session.created")
        socket.send("session.update", session=session(transcription={"model": "tiny:caption"}))
        updated = await socket.until("session.updated")
        assert updated["session"]["audio"]["input"]["format"]["rate"] == RATE
        for start in range(0, len(SCENE), 1000):
            socket.send("input_audio_buffer.append", audio=pcm(SCENE[start : start + 1000]))
        socket.send("input_audio_buffer.commit")
        items: list[str] = []
        for count, heard in enumerate(want, 1):
            done = await socket.until(f"{ITEM}.completed", count)
            assert heard.caption is not None
            assert done["transcript"] == heard.caption.text
            deltas = [e["delta"] for e in socket.received if e["type"] == f"{ITEM}.delta"
                      and e["item_id"] == done["item_id"]]  # fmt: skip
            assert "".join(deltas) == done["transcript"]
            started = await socket.until("input_audio_buffer.speech_started", count)
            stopped = await socket.until("input_audio_buffer.speech_stopped", count)
            committed = await socket.until("input_audio_buffer.committed", count)
            assert {event["item_id"] for event in (started, stopped, committed)} == {done["item_id"]}
            assert (started["audio_start_ms"], stopped["audio_end_ms"]) == (
                round(1000 * heard.window.start_s), round(1000 * heard.window.end_s)
            )  # fmt: skip
            assert committed["previous_item_id"] == (items[-1] if items else None)
            items.append(done["item_id"])
        assert len({event["event_id"] for event in socket.received}) == len(socket.received)
        await socket.leave()

    run(main())
    assert not server._sessions


def test_the_client_may_say_what_is_one(server: Server, run: Run[Any], captioner: Captioner) -> None:
    samples = noise(1.5)
    heard = ((samples * 32767).astype("<i2").astype(np.float32) / 32768, RATE)
    want = captioner.caption(heard, SPEECH_PROMPT.format(language="de"))

    async def main() -> None:
        socket = connect(server)
        socket.send(
            "session.update", session=session(turn_detection=None, transcription={"model": "tiny", "language": "de"})
        )
        socket.send("input_audio_buffer.commit", event_id="mine")
        empty = await socket.until("error")
        assert (empty["error"]["code"], empty["error"]["event_id"]) == ("input_audio_buffer_commit_empty", "mine")
        socket.send("input_audio_buffer.append", audio=pcm(noise(0.5)))
        socket.send("input_audio_buffer.clear")
        await socket.until("input_audio_buffer.cleared")
        for half in np.split(samples, 2):
            socket.send("input_audio_buffer.append", audio=pcm(half))
        socket.send("input_audio_buffer.commit")
        done = await socket.until(f"{ITEM}.completed")
        assert done["transcript"] == want.text
        assert done["usage"] == {"type": "duration", "seconds": 1.5}
        await socket.leave()

    run(main())


def test_what_is_cleared_is_not_asked_about(server: Server, run: Run[Any]) -> None:
    async def main() -> None:
        socket = connect(server)
        socket.send("session.update", session=session(transcription={"model": "tiny:caption"}))
        socket.send("input_audio_buffer.append", audio=pcm(np.concatenate([noise(1, 1e-3), noise(1)])))
        socket.send("input_audio_buffer.clear")
        socket.send("input_audio_buffer.append", audio=pcm(np.concatenate([noise(1, 1e-3), noise(1)])))
        socket.send("input_audio_buffer.commit")
        await socket.until(f"{ITEM}.completed")
        assert sum(event["type"] == "input_audio_buffer.committed" for event in socket.received) == 1
        await socket.leave()

    run(main())


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ("no json", None),
        ("[]", None),
        ('{"type": "response.create"}', None),
        ('{"type": "input_audio_buffer.append", "audio": "!"}', "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "audio"),
        ('{"type": "input_audio_buffer.append"}', "audio"),
        ('{"type": "session.update", "session": {"type": "realtime"}}', "session.type"),
        ('{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}',
         "session.audio.input.format.type"),
        ('{"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"threshold": 0.9}}}}}',
         "session.audio.input.turn_detection.threshold"),
        ('{"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "huge"}}}}}', "model"),
        ('{"type": "session.update", "session": {"audio": {"input": {"transcription": {"language": "x1"}}}}}',
         "language"),
    ],
)  # fmt: skip
def test_messages_that_are_none_are_told_so(text: str, param: str | None, server: Server, run: Run[Any]) -> None:
    async def main() -> None:
        socket = connect(server)
        socket.text(text)
        error = (await socket.until("error"))["error"]
        assert (error["type"] in ("invalid_request_error", "not_found_error"), error["param"]) == (True, param)
        socket.send("session.update", session=session())  # and it goes on
        await socket.until("session.updated")
        await socket.leave()

    run(main())


def test_who_may_connect(server: Server, run: Run[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        other = connect(server, origin="https://evil.example")
        await other.task
        assert (other.closed, other.received) == (1008, [])
        wrong = connect(server, "model=gpt-realtime")
        await wrong.task
        assert (wrong.closed, wrong.received[0]["type"]) == (1008, "error")
        browser = connect(server, protocols=["realtime", "openai-insecure-api-key.x"])
        await browser.until("session.created")
        assert browser.protocol == "realtime"
        monkeypatch.setattr(realtime, "MAX_SESSIONS", 1)
        many = connect(server)
        await many.task
        assert (many.closed, many.received[0]["error"]["code"]) == (1013, "rate_limit_exceeded")
        await browser.leave()

    run(main())


def test_who_leaves_is_let_go_of(server: Server, run: Run[Any]) -> None:
    async def main() -> float:
        socket = connect(server)
        socket.send("session.update", session=session(transcription={"model": "tiny:caption"}))
        socket.send("input_audio_buffer.append", audio=pcm(np.concatenate([noise(1, 1e-3), noise(8)])))
        await socket.until("input_audio_buffer.speech_started")
        start = asyncio.get_running_loop().time()
        await socket.leave()
        return asyncio.get_running_loop().time() - start

    assert run(main()) < 3
    assert server.models.default.users == 0
