"""What every request passes: who may ask, how much is taken, and what happens when a client leaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine.engine import Engine, Ticket
from dasheng_edge.runtime.errors import DecoderError, MemoryShortError
from dasheng_edge.runtime.server import door
from dasheng_edge.runtime.server.app import Server
from dasheng_edge.runtime.server.keys import Keys
from dasheng_edge.runtime.server.visits import CLOSED
from tests.fixtures.asgi_client import Client, form
from tests.fixtures.audio_files import Format, write_audio

from .conftest import Run, wav_of

PATH = "/v1/audio/transcriptions"
FIELDS = {"model": "tiny:caption"}


class Waiting(Ticket[Caption]):
    """A caption that is made when somebody says so."""

    def __init__(self) -> None:
        super(Ticket, self).__init__()

    def cancel(self) -> bool:
        return super(Ticket, self).cancel()


@pytest.fixture
def tickets(monkeypatch: pytest.MonkeyPatch) -> list[Waiting]:
    """What was asked of the engine, which does not answer."""
    asked: list[Waiting] = []

    def submit(*_: object, **__: object) -> Waiting:
        asked.append(Waiting())
        return asked[-1]

    monkeypatch.setattr(Engine, "submit", submit)
    return asked


async def until(condition: Any) -> float:
    """Seconds until something is so."""
    start = time.monotonic()
    while not condition():  # noqa: ASYNC110  # what is waited for tells nobody
        await asyncio.sleep(0.005)
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8000"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "192.168.1.7:8000"}, 200),
        ({"host": "evil.example:8000"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"host": ""}, 421),
        ({"host": "[x"}, 421),
        ({"origin": "http://localhost:8000"}, 200),
        ({"origin": "http://localhost:8001"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 421),
    ],
)
def test_pages_of_other_sites_do_not_reach_it(
    headers: dict[str, str], status: int, client: Client, run: Run[Any]
) -> None:
    answer = run(client.get("/v1/models", **headers))
    assert answer.status == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    if status != 200:
        assert answer.error["code"] in ("wrong_host", "wrong_origin")


KEY, OTHER = "k" * 16, "l" * 24


@pytest.fixture
def locked(server: Server, monkeypatch: pytest.MonkeyPatch) -> Client:
    """The same server with keys, for pages of one other site too."""
    keys = Keys.read(None, {"DASHENG_EDGE_API_KEY": f"# two\n{KEY}\n{OTHER}\n"})
    policy = replace(server.app._policy, keys=keys, origins=("https://app.example",))  # type: ignore[attr-defined]
    monkeypatch.setattr(server.app, "_policy", policy)
    return Client(server.app)


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/nothing"])
def test_with_keys_those_alone_are_answered_who_have_one(path: str, locked: Client, run: Run[Any]) -> None:
    for authorization in ("", "Bearer", "Bearer x", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xff"):
        refused = run(locked.get(path, authorization=authorization))
        assert (refused.status, refused.error["type"]) == (401, "authentication_error")
        assert refused.headers["www-authenticate"] == "Bearer"
    for key in (KEY, OTHER):
        assert run(locked.get(path, authorization=f"Bearer {key}")).status in (200, 404)


def test_whether_it_lives_may_be_asked_without_a_key(locked: Client, run: Run[Any]) -> None:
    assert {run(locked.get(path)).status for path in ("/health", "/ready")} == {200}


def test_with_a_key_it_may_have_any_name(locked: Client, run: Run[Any]) -> None:
    assert run(locked.get("/v1/models", host="captions.example", authorization=f"Bearer {KEY}")).status == 200


def test_a_page_that_is_allowed_may_read_answers(locked: Client, run: Run[Any]) -> None:
    origin = "https://app.example"
    asks = {"origin": origin, "access-control-request-method": "POST"}
    before = run(locked.send("OPTIONS", "/v1/models", headers=asks))
    assert before.status == 204
    assert before.headers["access-control-allow-origin"] == origin
    assert "authorization" in before.headers["access-control-allow-headers"]
    answer = run(locked.get("/v1/models", origin=origin, authorization=f"Bearer {KEY}"))
    assert answer.headers["access-control-allow-origin"] == origin
    assert run(locked.get("/v1/models", origin="https://b.example", authorization=f"Bearer {KEY}")).status == 403


@pytest.fixture
def small(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The same server, which takes 64 kB and five seconds."""
    limits = door.Limits(max_upload=64 << 10, max_seconds=5.0)
    monkeypatch.setattr(server.app, "_limits", limits)
    monkeypatch.setattr(server._asking, "limits", limits)
    monkeypatch.setattr(server, "options", replace(server.options, limits=limits))
    return server


@pytest.mark.parametrize("stated", [True, False])
def test_what_is_too_long_is_not_read_to_its_end(
    stated: bool, small: Server, run: Run[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "LINGER_BYTES", 1 << 20)
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        yield from form([*FIELDS.items()], bytes(1 << 16))[:1]
        for _ in range(10_000):
            sent += 1 << 16
            yield bytes(1 << 16)

    kind = {"content-type": "multipart/form-data; boundary=boundary-of-the-tests"}
    kind |= {"content-length": str(1 << 31)} if stated else {}
    answer = run(Client(small.app).send("POST", PATH, parts(), kind))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert (answer.headers["connection"], answer.complete) == ("close", True)
    assert sent < 4 << 20


def test_a_file_of_more_bytes_than_are_taken_is_refused(small: Server, run: Run[Any]) -> None:
    answer = run(Client(small.app).post_form(PATH, FIELDS, wav_of(2.5)))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


def test_audio_that_is_too_long_is_refused_while_it_is_decoded(small: Server, run: Run[Any], tmp_path: Any) -> None:
    """A minute of silence in a few kB."""
    bomb = write_audio(tmp_path / "a.flac", np.zeros(16_000 * 60, np.float32), Format("flac", "flac", "flac", 16_000))
    answer = run(Client(small.app).post_form(PATH, FIELDS, bomb.read_bytes()))
    assert (answer.status, answer.error["code"]) == (400, "audio_too_long")


def test_a_body_that_comes_a_byte_at_a_time_is_not_waited_for(
    client: Client, run: Run[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "GRACE_S", 0.1)
    monkeypatch.setattr(door, "LINGER_S", 0.01)
    kind = {"content-type": "multipart/form-data; boundary=boundary-of-the-tests"}
    slow = [bytes([byte]) for byte in form([*FIELDS.items()], None)[0]]
    start = time.monotonic()
    answer = run(client.send("POST", PATH, slow, kind, pause_s=0.03))
    assert answer.status == 408
    assert time.monotonic() - start < 2


def test_bodies_together_are_bounded(server: Server, client: Client, run: Run[Any], clip: bytes) -> None:
    server.app.held += 2 << 30  # type: ignore[attr-defined]
    try:
        answer = run(client.post_form(PATH, FIELDS, clip))
    finally:
        server.app.held -= 2 << 30  # type: ignore[attr-defined]
    assert (answer.status, server.app.held) == (429, 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", ["false", "true"])
def test_who_leaves_has_no_place_any_more(
    *, stream: str, server: Server, client: Client, run: Run[Any], tickets: list[Waiting], clip: bytes, lines: list[str]
) -> None:
    async def leaves() -> float:
        leave = asyncio.Event()
        fields = {**FIELDS, "stream": stream}
        task = asyncio.ensure_future(client.post_form(PATH, fields, clip, leave=leave))
        await until(lambda: tickets)
        assert server.places.working == 1
        leave.set()
        freed_s = await until(lambda: not server.places.working and tickets[0].cancelled())
        await task
        return freed_s

    assert run(leaves()) < 0.5
    assert json.loads(lines[-1])["status"] == CLOSED


def test_too_many_are_told_when_to_come_back(
    *, server: Server, client: Client, run: Run[Any], tickets: list[Waiting], clip: bytes, captioner: Captioner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(server.places, "max_working", 1)
    monkeypatch.setattr(server.places, "_max_waiting", 1)
    caption: Caption = captioner.caption(clip)

    async def three() -> None:
        first, second = (asyncio.ensure_future(client.post_form(PATH, FIELDS, clip)) for _ in range(2))
        await until(lambda: server.places.waiting == 1)
        third = await client.post_form(PATH, FIELDS, clip)
        assert (third.status, third.error["type"]) == (429, "rate_limit_error")
        assert 1 <= int(third.headers["retry-after"]) <= 60
        for number in range(2):
            await until(lambda: len(tickets) > number)  # noqa: B023
            tickets[number].set_result(caption)
        assert [(await one).json()["text"] for one in (first, second)] == [caption.text] * 2

    run(three())
    assert (server.places.working, server.places.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (MemoryShortError("the model needs 3 MB: free memory"), 503, "memory"),
        (DecoderError("llama.cpp said /home/user/secret"), 500, "DecoderError"),
        (RuntimeError("/home/user/secret"), 500, "log"),
    ],
)
def test_what_fails_is_an_answer_that_tells_nothing_of_this_machine(
    *, error: Exception, status: int, says: str, client: Client, run: Run[Any], tickets: list[Waiting], clip: bytes,
    lines: list[str],
) -> None:  # fmt: skip
    async def fails() -> Any:
        task = asyncio.ensure_future(client.post_form(PATH, FIELDS, clip))
        await until(lambda: tickets)
        tickets[0].set_exception(error)
        return await task

    answer = run(fails())
    assert (answer.status, answer.error["type"]) == (status, "server_error")
    assert says in answer.error["message"]
    assert "secret" not in answer.text
    if status == 500:
        assert "secret" in "".join(lines[-2:])  # which is where it helps


def test_an_answer_that_takes_too_long_ends(
    server: Server, client: Client, run: Run[Any], tickets: list[Waiting], clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server._asking, "limits", door.Limits(timeout_s=0.5))
    answer = run(client.post_form(PATH, FIELDS, clip))
    assert (answer.status, answer.error["code"]) == (504, "timeout")
    assert all(ticket.cancelled() for ticket in tickets)


def test_the_log_says_what_happened_and_not_what_was_said(
    client: Client, run: Run[Any], clip: bytes, lines: list[str]
) -> None:
    answer = run(client.post_form(PATH, {**FIELDS, "prompt": "a very private question"}, clip))
    line = json.loads(lines[-1])
    assert line["id"] == answer.headers["x-request-id"]
    assert line | {"status": 200, "path": PATH, "audio_s": 1.5, "model": "tiny", "from": "127.0.0.1"} == line
    assert "private" not in lines[-1]
    assert answer.json()["text"] not in lines[-1]


def test_the_log_says_what_was_said_where_that_is_asked_for(
    server: Server, client: Client, run: Run[Any], clip: bytes, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server._asking, "log_text", True)
    answer = run(client.post_form(PATH, {**FIELDS, "prompt": "a question"}, clip))
    line = json.loads(lines[-1])
    assert (line["asked"], line["said"]) == ("a question", answer.json()["text"])


def test_paths_and_methods_that_there_are_not(client: Client, run: Run[Any]) -> None:
    assert run(client.get("/v2/models")).error["type"] == "not_found_error"
    wrong = run(client.get(PATH))
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")


def test_models_health_and_numbers(client: Client, run: Run[Any]) -> None:
    cards = run(client.get("/v1/models")).json()
    assert [card["id"] for card in cards["data"]] == ["tiny", "tiny:caption"]
    assert run(client.get("/v1/models/tiny:caption")).json() == cards["data"][1]
    assert run(client.get("/v1/models/huge")).status == 404
    assert run(client.get("/health")).json() == {"status": "ok"}
    numbers = run(client.get("/metrics"))
    assert numbers.headers["content-type"].startswith("text/plain")
    assert 'dasheng_edge_model_open{model="tiny"} 1.0' in numbers.text
    assert 'path="other"' in numbers.text or "/v1/models" in numbers.text
