"""What clients get that is no plain answer: refusals, in the words of OpenAI's API, and events while it is made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import aclosing, asynccontextmanager
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dasheng_edge.runtime.errors import (
    AudioError,
    AudioTooLongError,
    BundleKindError,
    CaptionerBusyError,
    DashengEdgeError,
    LanguageError,
    MemoryShortError,
    PromptError,
)

INVALID, RETRY_S = "invalid_request_error", 5
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "union_tag_invalid": "unsupported_value",
}
# Pydantic puts the kind of what is one of several kinds into the path to it: behind an index, or one of these fields.
_TAGS = ("user", "system", "developer", "assistant", "text", "input_audio", "json_object", "json_schema")
_TAGGED = ("response_format",)
DONE = b"data: [DONE]\n\n"
MAX_TEXT = 1000  # characters of a message: it may quote what was sent


class Refusal(Exception):  # noqa: N818  # no error of ours, but an answer
    """A request that is not answered, and why."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, INVALID)
        message = str(self)
        message = message if len(message) <= MAX_TEXT else f"{message[:MAX_TEXT]}..."
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


class ErrorDetails(BaseModel):
    """What went wrong; the rest of this module as a schema."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetails


def unsupported(param: str, why: str) -> Refusal:
    """A field that this server does not act on, and so does not take."""
    return Refusal(400, f"{param} is not supported: {why}", param=param, code="unsupported_parameter")


def come_back(message: str, *, seconds: int = RETRY_S, status: int = 503, code: str = "overloaded") -> Refusal:
    """It would be answered later."""
    return Refusal(status, message, code=code, headers={"retry-after": str(seconds)})


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of an error; what nobody foresaw tells nothing of this machine."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, (CancelledError, asyncio.CancelledError, CaptionerBusyError)):
        return come_back("the server is ending, or let go of this model; try again", code="shutting_down")
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return Refusal(504, "the answer took longer than this server's --timeout allows", code="timeout")
    if isinstance(error, MemoryShortError):
        return come_back(f"there is not enough memory at present: {error}", code="memory_short")
    if isinstance(error, DashengEdgeError):
        return _ours(error)
    return Refusal(500, "the server failed in a way that nobody foresaw; its log says how, under this request's id")


@asynccontextmanager
async def blamed(param: str) -> AsyncGenerator[None]:
    """What is wrong with a request is wrong with this field of it.

    Raises:
        Refusal: something is.
    """
    try:
        yield
    except DashengEdgeError as error:
        refusal = refusal_of(error)
        if refusal.status != 400:
            raise
        refusal.param = param
        raise refusal from error


def _ours(error: DashengEdgeError) -> Refusal:
    for kind, param, code in (
        (AudioTooLongError, "file", "audio_too_long"),
        (AudioError, "file", "invalid_audio"),
        (LanguageError, "language", "invalid_language"),
        (PromptError, "prompt", "invalid_prompt"),
        (BundleKindError, "model", "model_not_capable"),
    ):
        if isinstance(error, kind):
            return Refusal(400, str(error), param=param, code=code)
    return Refusal(500, f"the model failed: {type(error).__name__}", code="model_failed")


def _invalid(error: ValidationError) -> Refusal:
    """What is wrong with a body, the first thing, without what was sent: it may be long, and private."""
    first = error.errors(include_url=False, include_input=False)[0]
    param, code = _path(first["loc"]) or None, _CODES.get(first["type"], "invalid_value")
    what = first["msg"].removeprefix("Value error, ")
    if code == "unknown_parameter":
        what = "it is not known here, and nothing is ignored in silence; leave it out"
    elif code == "missing_required_parameter":
        what = "it is missing"
    elif code == "unsupported_value":
        tag, expected = (str(first.get("ctx", {}).get(name, "")) for name in ("tag", "expected_tags"))
        address = "; addresses are never fetched: send audio as input_audio, in base64" if "url" in tag else ""
        what = f"{tag[:50]!r} is not supported; expected {expected}{address}"
    return Refusal(400, f"{param or 'the request'}: {what}", param=param, code=code)


def _path(loc: Sequence[int | str]) -> str:
    """Where something is in a body, as OpenAI writes it: messages[0].content[1].text; kinds are no part of it."""
    path, tagged = "", False  # whether a kind may come next
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif "." in part and not path:  # the kind of a message over a WebSocket
            continue
        elif not (tagged and part in _TAGS):
            path += f".{part}" if path else part
        tagged = isinstance(part, int) or part in _TAGGED
    return path


def event(data: object) -> bytes:
    """One event; OpenAI's have no names."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


class EventStream(Response):
    """Events as they come. What fails behind the first is an event that says so, and the last one."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest = first, rest

    @classmethod
    async def begun(cls, events: AsyncGenerator[bytes]) -> EventStream:
        """With its first event; what that raises is raised here."""
        try:
            return cls(await anext(events), events)
        except BaseException:
            await events.aclose()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # as every answer
        async def part(body: bytes) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": True})

        async with aclosing(self._rest):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await part(self._first)
            try:
                async for one in self._rest:
                    await part(one)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, the client is told
                body: dict[str, Any] = refusal_of(error).body()
                await part(event(body))
            await send({"type": "http.response.body", "body": b""})
