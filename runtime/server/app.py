"""The application: routes, and what is read of a request before anything is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import FastAPI, Request, WebSocket
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .answers import ErrorBody, EventStream, Refusal, come_back
from .asking import Asking, Places
from .chat import ChatRequest, complete
from .door import Door, Limits
from .embeddings import EmbeddingRequest, embed
from .keys import Keys, Policy
from .models import Models
from .page import page
from .realtime import serve_realtime
from .transcription import AudioFields, TranscriptionFields, TranslationFields, transcribe
from .visits import Metrics, stderr_log

READERS = 4  # threads that read audio
AHEAD = 2  # requests that are read while as many as are answered together are
LARGE_BODY = 1 << 18  # bytes of JSON: what has more is parsed beside the other requests
MAX_FIELDS, MAX_FIELD = 64, 64 << 10  # of a form beside its file, and bytes of each
_Fields = TypeVar("_Fields", bound=BaseModel)


@dataclass(frozen=True)
class ServerOptions:
    """What a server is told when it begins."""

    host: str = "127.0.0.1"
    keys: Keys = field(default_factory=Keys)
    origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    queue: int = 64  # requests that wait
    log: Callable[[str], None] = stderr_log
    log_text: bool = False  # whether the log says what was asked and answered


class Server:
    """Models under OpenAI's API; `app` is what an ASGI server runs."""

    def __init__(self, models: Models, options: ServerOptions) -> None:
        self.models, self.options = models, options
        self.metrics, self.places = Metrics(), Places(options.queue)
        self._readers = ThreadPoolExecutor(READERS, "dasheng-edge upload")
        self._asking = Asking(
            models, self.places, options.limits, self.metrics, self._readers, log_text=options.log_text
        )
        self._sessions: set[str] = set()
        self.ready = False
        policy = Policy(options.keys, options.host, options.origins)
        self.app: ASGIApp = Door(self._routed(), policy, options.limits, self.metrics, options.log)

    def end(self) -> None:
        """Let nobody in any more; what runs is finished."""
        self.ready = False
        self.places.end()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Requests are answered meanwhile.

        Raises what opening the first bundle raises.
        """
        async with self.models.use(self.models.default) as model:  # what is wrong with it is told before anybody asks
            self.places.max_working = (model.engine.batch if model.engine else 1) + AHEAD
        self.ready = True
        try:
            yield
        finally:
            self.end()
            self._readers.shutdown(wait=False, cancel_futures=True)
            await self.models.close()

    def _routed(self) -> FastAPI:
        app = FastAPI(
            title="dasheng-edge", version=version("dasheng-edge"), docs_url=None, redoc_url=None,
            exception_handlers={HTTPException: _refused, Exception: _unanswered},
        )  # fmt: skip
        errors: dict[int | str, dict[str, Any]] = {kind: {"model": ErrorBody} for kind in ("4XX", "5XX")}
        for path, methods, endpoint in self._endpoints():
            app.add_api_route(
                path, endpoint, methods=methods, responses=errors, response_model=None, include_in_schema=path != "/"
            )
        app.add_api_websocket_route("/v1/realtime", self.realtime)
        app.openapi_schema = described(app.openapi())
        return app

    def _endpoints(self) -> list[tuple[str, list[str], Callable[..., Awaitable[Response]]]]:
        return [
            ("/", ["GET", "HEAD"], self.page),
            ("/health", ["GET"], self.health),
            ("/ready", ["GET"], self.is_ready),
            ("/metrics", ["GET"], self.numbers),
            ("/v1/models", ["GET"], self.list_models),
            ("/v1/models/{model}", ["GET"], self.get_model),
            ("/v1/audio/transcriptions", ["POST"], self.transcriptions),
            ("/v1/audio/translations", ["POST"], self.translations),
            ("/v1/chat/completions", ["POST"], self.chat),
            ("/v1/embeddings", ["POST"], self.embeddings),
        ]

    async def page(self) -> Response:
        """The page for people."""
        return Response(page().body, headers=page().headers)

    async def health(self) -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    async def is_ready(self) -> Response:
        """Whether requests are taken."""
        if not self.ready:
            raise come_back("the server is starting or ending")
        return JSONResponse({"status": "ready"})

    async def numbers(self) -> Response:
        """Numbers for Prometheus."""
        self.metrics.working.set(self.places.working)
        self.metrics.waiting.set(self.places.waiting)
        for model in self.models:
            self.metrics.opened.labels(model.name).set(model.embedder is not None)
        return Response(self.metrics.text(), media_type=self.metrics.content_type)

    async def list_models(self) -> Response:
        """The names that may be asked for."""
        return JSONResponse({"object": "list", "data": self.models.cards()})

    async def get_model(self, model: str) -> Response:
        """One of them."""
        found, _ = self.models.named(model)
        return JSONResponse(found.card(model))

    async def transcriptions(self, request: Request) -> Response:
        """What is said in an audio file, or what is heard."""
        return await self._from_form(request, TranscriptionFields)

    async def translations(self, request: Request) -> Response:
        """What is said in an audio file, in English."""
        return await self._from_form(request, TranslationFields)

    async def realtime(self, socket: WebSocket) -> None:
        """What is heard, while it comes."""
        await serve_realtime(self._asking, socket.state.visit, socket, self._sessions)

    async def chat(self, request: Request) -> Response:
        """The next reply of a conversation with audio in it."""
        return await complete(self._asking, request.state.visit, await read_json(request, ChatRequest))

    async def embeddings(self, request: Request) -> Response:
        """A vector for each clip."""
        return await embed(self._asking, request.state.visit, await read_json(request, EmbeddingRequest))

    async def _from_form(self, request: Request, kind: type[AudioFields]) -> Response:
        form, answer = await read_form(request), None
        try:
            fields, file = form_fields(form, kind)
            self.options.limits.check_size(file.size or 0)
            answer = await transcribe(self._asking, request.state.visit, fields, file)
            return answer
        finally:
            if not isinstance(answer, EventStream):  # which reads on, and closes its file itself
                await form.close()


async def read_json(request: Request, kind: type[_Fields]) -> _Fields:
    """The body of a request.

    Raises:
        Refusal: it is none.
        ValidationError: a field is not known, or of another kind.
    """
    _check_type(request, "application/json")
    body = await request.body()
    if len(body) < LARGE_BODY:
        return kind.model_validate_json(body)
    return await asyncio.to_thread(kind.model_validate_json, body)


def _check_type(request: Request, expected: str) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != expected:
        what = kind or "of no stated type"
        raise Refusal(415, f"the body is {what}; expected {expected}", code="wrong_type")


async def read_form(request: Request) -> FormData:
    """The form of a request; its file is on disk if it is large, and gone when it is closed.

    Raises:
        Refusal: it is none.
    """
    _check_type(request, "multipart/form-data")
    try:
        return await request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD)
    except HTTPException as error:
        raise Refusal(400, f"the form cannot be read: {error.detail}", code="invalid_form") from error


def form_fields(form: FormData, kind: type[_Fields]) -> tuple[_Fields, UploadFile]:
    """The fields of a form, and its file. Names end in [] where there may be several, and a[b] is b of a.

    Raises:
        Refusal: there is no file, or a field twice.
        ValidationError: a field is not known, or of another kind.
    """
    values: dict[str, Any] = {}
    file: UploadFile | None = None
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "file":
                raise Refusal(400, f"{name} is a file; expected one, called file", param=name, code="unknown_parameter")
            file = value
            continue
        outer, bracket, inner = name.partition("[")
        inner = inner.removesuffix("]")
        if bracket and not inner:
            values.setdefault(outer, []).append(value)
        elif bracket and isinstance(values.setdefault(outer, {}), dict):
            values[outer][inner] = value
        elif outer in values:
            raise Refusal(400, f"{name} is there twice", param=name, code="invalid_value")
        elif value or name == "prompt":
            values[name] = value
    fields = kind.model_validate(values)
    if file is None:
        raise Refusal(400, "file: it is missing", param="file", code="missing_required_parameter")
    return fields, file


def described(schema: dict[str, Any]) -> dict[str, Any]:
    """The description of the routes, with bodies: those are read here, and not by FastAPI."""
    kinds: dict[str, type[BaseModel]] = {
        "/v1/audio/transcriptions": TranscriptionFields, "/v1/audio/translations": TranslationFields,
        "/v1/chat/completions": ChatRequest, "/v1/embeddings": EmbeddingRequest,
    }  # fmt: skip
    place = "#/components/schemas/{model}"
    _, models = models_json_schema([(kind, "validation") for kind in kinds.values()], ref_template=place)
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {}).update(models["$defs"])
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["paths"]["/metrics"]["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    for path, kind in kinds.items():
        body, form = components["schemas"][kind.__name__], path.startswith("/v1/audio")
        if form:  # as names of a form say that there may be several
            lists = [name for name, field in body["properties"].items() if field.get("type") == "array"]
            body["properties"] |= {f"{name}[]": body["properties"].pop(name) for name in lists}
            body["properties"]["file"] = {"type": "string", "format": "binary"}
            body["required"] = [*body["required"], "file"]
        media_type = "multipart/form-data" if form else "application/json"
        content = {media_type: {"schema": {"$ref": place.format(model=kind.__name__)}}}
        schema["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        answers = schema["paths"][path]["post"]["responses"]["200"]["content"]
        texts = ("text/plain", "application/x-subrip", "text/vtt") if form else ()
        events = () if path == "/v1/embeddings" else ("text/event-stream",)
        answers |= {kind: {"schema": {"type": "string"}} for kind in (*texts, *events)}
    return schema


async def _refused(_: Request, error: Exception) -> Response:
    """What the router refuses: a path or method that there is not."""
    assert isinstance(error, HTTPException)
    raise Refusal(error.status_code, str(error.detail), headers=error.headers)


async def _unanswered(_: Request, __: Exception) -> Response:
    """Starlette would answer what it does not know, and raises it then: the door answers all alike."""
    return _Nothing()


class _Nothing(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends nothing."""
