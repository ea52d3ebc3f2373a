"""What every request passes: who asks is checked, its body is bounded while it is read, and who leaves is let go of.

request -> id -> policy -> body, by bytes and by time -> the application -> a line in the log, numbers
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import Refusal, come_back, refusal_of
from .keys import Policy
from .visits import CLOSED, Metrics, Visit

GRACE_S, MIN_BYTES_PER_S = 20.0, 8192  # a body may take so long, and then must have come at this speed
LINGER_S, LINGER_BYTES = 1.0, 16 << 20  # that are read of a body that was refused, so that its sender sees why
PROTOCOL_KEY = "openai-insecure-api-key."
SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass(frozen=True)
class Limits:
    """What is taken from clients."""

    max_upload: int = 200 << 20  # bytes of audio
    max_seconds: float = 3600.0  # of audio
    timeout_s: float = 600.0  # for an answer, once it is begun
    max_open: int = 512  # requests at once, those that are read included
    max_held: int = 2 << 30  # bytes of all bodies that are there at once

    @property
    def max_body(self) -> int:
        """Bytes of a body: base64 has four for three, and there is something beside it."""
        return self.max_upload * 4 // 3 + (1 << 20)

    def check_size(self, size: int) -> None:
        """Refuse audio of more bytes than are taken.

        Raises:
            Refusal: it has more.
        """
        if size > self.max_upload:
            raise Refusal(
                413, f"the audio has {size} bytes; expected at most {self.max_upload} (--max-upload)",
                param="file", code="request_too_large",
            )  # fmt: skip


class Door:
    """The outermost part of the application."""

    def __init__(
        self, app: ASGIApp, policy: Policy, limits: Limits, metrics: Metrics, log: Callable[[str], None]
    ) -> None:
        self._app, self._policy, self._limits, self._metrics, self._log = app, policy, limits, metrics, log
        self._open = 0
        self.held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = Visit(f"req_{secrets.token_hex(12)}", scope["method"], scope["path"])
        scope.setdefault("state", {})["visit"] = visit
        body = _Body(receive, self._limits, self)
        answer = _Answer(send, visit, _cors(self._policy, _headers(scope)))
        self._open += 1
        try:
            self._policy.check(_headers(scope))
            if _is_preflight(scope):  # by a browser, which sends no key then
                await answer.empty(204)
                return
            visit.tenant = self._admitted(scope)
            body.check(_headers(scope))
            await body.run(self._app, scope, answer.send)
            if body.left and not answer.ended:
                visit.status = CLOSED
        except Exception as error:  # noqa: BLE001  # whatever it is, the client is told
            if body.left:
                visit.status = CLOSED
            else:
                await self._refused(error, answer, body)
        finally:
            self._open -= 1
            body.drop()
            self._metrics.request(visit.path, visit.status, time.monotonic() - visit.start_s)
            self._log(visit.line())

    def _admitted(self, scope: Scope) -> str:
        client = scope.get("client") or ("local", 0)
        headers = _headers(scope)
        for protocol in scope.get(
            "subprotocols", []
        ):  # where browsers can put a key of a WebSocket, and as OpenAI does
            if protocol.startswith(PROTOCOL_KEY):
                headers.setdefault("authorization", f"Bearer {protocol.removeprefix(PROTOCOL_KEY)}")
        tenant = self._policy.tenant(scope["path"], headers, str(client[0]))
        if self._open > self._limits.max_open:
            raise come_back("too many requests are open; try again", status=429, code="rate_limit_exceeded")
        return tenant

    async def _refused(self, error: Exception, answer: _Answer, body: _Body) -> None:
        refusal = refusal_of(error)
        if refusal.status == 500:
            self._tell(answer.visit, error)
        with suppress(Exception):  # the client may have gone
            if not answer.begun:  # else it ends without its last chunk, so that the client knows
                await answer.refusal(refusal, body)

    def _tell(self, visit: Visit, error: Exception) -> None:
        import traceback

        self._log(f"{visit.id} failed: {''.join(traceback.format_exception(error)).rstrip()}")

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = Visit(f"req_{secrets.token_hex(12)}", "WEBSOCKET", scope["path"])
        scope.setdefault("state", {})["visit"] = visit
        self._open += 1
        try:
            self._policy.check(_headers(scope))
            visit.tenant = self._admitted(scope)
            visit.status = 101
            await self._app(scope, receive, send)
        except Exception as error:  # noqa: BLE001  # whatever it is, the client is told
            refusal = refusal_of(error)
            visit.status = refusal.status
            if refusal.status == 500:
                self._tell(visit, error)
            with suppress(Exception):  # the client may have gone
                code = 1011 if refusal.status >= 500 else 1008
                await send({"type": "websocket.close", "code": code, "reason": str(refusal)[:100]})
        finally:
            self._open -= 1
            self._metrics.request(visit.path, visit.status, time.monotonic() - visit.start_s)
            self._log(visit.line())


class _Body:
    """What comes of a request: bounded while it is read; behind its end, it is watched whether the client leaves."""

    def __init__(self, receive: Receive, limits: Limits, door: Door) -> None:
        self._receive, self._limits, self._door = receive, limits, door
        self._size, self._start_s = 0, time.monotonic()
        self._gone = asyncio.Event()
        self._whole = asyncio.Event()
        self.ended = False

    @property
    def left(self) -> bool:
        """Whether the client has gone."""
        return self._gone.is_set()

    def check(self, headers: Mapping[str, str]) -> None:
        """Refuse what is stated to be too long before it is sent."""
        stated = headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > self._limits.max_body:
            raise self._too_long()

    async def run(self, app: ASGIApp, scope: Scope, send: Send) -> None:
        """Have it answered, unless the client leaves."""
        work = asyncio.ensure_future(app(scope, self.receive, send))
        watch = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if work.cancelled():  # by an engine that was closed
                raise come_back("the server is ending; try again", code="shutting_down")
            if work.done():
                work.result()
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def receive(self) -> Message:
        """As the server's, for the application."""
        if self.ended or self.left:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._next()
        if message["type"] == "http.disconnect":
            self._gone.set()
            return message
        self._take(len(message.get("body", b"")))
        if not message.get("more_body", False):
            self.ended = True
            self._whole.set()
        return message

    async def _next(self) -> Message:
        """The next part, as long as they come fast enough."""
        left_s = GRACE_S + self._size / MIN_BYTES_PER_S - (time.monotonic() - self._start_s)
        try:
            return await asyncio.wait_for(self._receive(), max(0.001, left_s))
        except asyncio.TimeoutError:
            raise Refusal(408, "the request came too slowly; send it again", code="request_timeout") from None

    def _take(self, size: int) -> None:
        self._size += size
        self._door.held += size
        if self._size > self._limits.max_body:
            raise self._too_long()
        if self._door.held > self._limits.max_held:
            raise come_back("too much is uploaded at once; try again", status=429, code="rate_limit_exceeded")

    def _too_long(self) -> Refusal:
        return Refusal(
            413, f"the request is longer than {self._limits.max_body} bytes (--max-upload); send less audio",
            param="file", code="request_too_large",
        )  # fmt: skip

    async def _watch(self) -> None:
        """Ends when the client has gone."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()

    async def linger(self) -> None:
        """Read on for a moment: a connection that is closed on its sender loses the answer."""
        left = LINGER_BYTES
        with suppress(asyncio.TimeoutError):
            end_s = time.monotonic() + LINGER_S
            while not self.ended and left > 0 and (left_s := end_s - time.monotonic()) > 0:
                message = await asyncio.wait_for(self._receive(), left_s)
                left -= len(message.get("body", b""))
                self.ended = not message.get("more_body", False)

    def drop(self) -> None:
        """It is held no more."""
        self._door.held -= self._size


class _Answer:
    """What is sent, with the headers of every answer."""

    def __init__(self, send: Send, visit: Visit, headers: list[tuple[bytes, bytes]]) -> None:
        self._send, self.visit = send, visit
        self._headers = [(b"x-request-id", visit.id.encode()), *SECURITY, *headers]
        self.begun = self.ended = False

    async def send(self, message: Message) -> None:
        """As the server's, for the application."""
        if message["type"] == "http.response.start":
            self.begun = True
            self.visit.status = message["status"]
            own = {name for name, _ in message.get("headers", [])}
            more = [(name, value) for name, value in self._headers if name not in own]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        elif not message.get("more_body", False):
            self.ended = True
        await self._send(message)

    async def empty(self, status: int) -> None:
        """Headers alone."""
        await self.send({"type": "http.response.start", "status": status, "headers": []})
        await self.send({"type": "http.response.body", "body": b""})

    async def refusal(self, refusal: Refusal, body: _Body) -> None:
        """An error, before anything else was sent."""
        data = json.dumps(refusal.body()).encode()
        headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        if not body.ended:
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        await body.linger()
        await self._send({"type": "http.response.body", "body": b""})


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _is_preflight(scope: Scope) -> bool:
    headers = _headers(scope)
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _cors(policy: Policy, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """What lets a page of another site read the answer, if it may."""
    if (origin := headers.get("origin")) is None or origin not in policy.origins:
        return []
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-headers", b"authorization, content-type"),
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-expose-headers", b"x-request-id, retry-after"),
        (b"vary", b"origin"),
    ]
