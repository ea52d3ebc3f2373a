"""`/v1/chat/completions`: a conversation with audio in it -> the next reply, whole or as it is written."""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from dasheng_edge.runtime.bundle.manifest import PromptFacts
from dasheng_edge.runtime.engine.conversation import (
    MAX_MESSAGES,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    MAX_TOP,
    ChatOptions,
    Message,
    Piece,
    Reply,
    TokenLogprob,
    Usage,
)

from .answers import DONE, EventStream, Refusal, blamed, event
from .asking import Asking
from .models import Model
from .visits import Visit

MAX_PARTS = 64


def audio_bytes(value: object) -> bytes:
    """The bytes of a text in base64.

    Raises:
        ValueError: it is none, or an address: those are never fetched.
    """
    if not isinstance(value, str):
        raise ValueError(  # noqa: TRY004  # pydantic makes a ValidationError of it
            "it is no text; expected the bytes of an audio file in base64"
        )
    if "://" in value[:32] or value.startswith("data:"):
        raise ValueError("addresses are never fetched; send the bytes of the audio file in base64")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it is no base64; expected the bytes of an audio file") from None
    if not data:
        raise ValueError("it is empty; expected the bytes of an audio file in base64")
    return data


class Strict(BaseModel):
    """What is not known is refused, and nothing is ignored in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InputAudio(Strict):
    """An audio file. What kind it is, its bytes say."""

    data: Annotated[bytes, BeforeValidator(audio_bytes, json_schema_input_type=str), Field(repr=False)]
    format: Annotated[str | None, Field(max_length=64)] = None


class AudioPart(Strict):
    type: Literal["input_audio"]
    input_audio: InputAudio


class TextPart(Strict):
    type: Literal["text"]
    text: str


def _parts(value: object) -> object:
    """A text as a list of one part."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


_Listed = BeforeValidator(_parts, json_schema_input_type=str | list[TextPart])
_ListedAudio = BeforeValidator(_parts, json_schema_input_type=str | list[TextPart | AudioPart])
_SomeParts = Field(min_length=1, max_length=MAX_PARTS)
Texts: TypeAlias = Annotated[list[TextPart], _Listed, _SomeParts]
Parts: TypeAlias = Annotated[
    list[Annotated[TextPart | AudioPart, Field(discriminator="type")]], _ListedAudio, _SomeParts
]


class UserMessage(Strict):
    role: Literal["user"]
    content: Parts


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: Texts


class AssistantMessage(Strict):
    """As an earlier answer came; what else clients send back with it is there and empty."""

    role: Literal["assistant"]
    content: Texts
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SchemaOfJson(Strict):
    name: Annotated[str, Field(max_length=64)]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextFormat(Strict):
    type: Literal["text"]


class ObjectFormat(Strict):
    type: Literal["json_object"]


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: SchemaOfJson


_Count: TypeAlias = Annotated[int, Field(ge=1, le=1 << 20)]
_Nothing: TypeAlias = Annotated[list[Any], Field(max_length=0)] | None
_Zero: TypeAlias = Annotated[float, Field(ge=0, le=0, allow_inf_nan=False)] | None
_Stop: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
_Stops: TypeAlias = Annotated[list[_Stop], Field(max_length=MAX_STOPS)]
_Name: TypeAlias = Annotated[str, Field(max_length=1024)] | None


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class ChatRequest(Strict):
    """A conversation, and what is wished of the reply."""

    model: str
    messages: Annotated[
        list[Annotated[UserMessage | SystemMessage | AssistantMessage, Field(discriminator="role")]],
        Field(min_length=1, max_length=MAX_MESSAGES),
    ]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stop: Annotated[_Stops | None, BeforeValidator(_listed, json_schema_input_type=_Stop | _Stops | None)] = None
    n: Literal[1] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    response_format: Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    # Not OpenAI's: further settings of the sampling, under the names that other servers have for them.
    top_k: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    # What clients send unasked: taken at the value that changes nothing, and names that only their sender needs.
    user: _Name = None
    safety_identifier: _Name = None
    prompt_cache_key: _Name = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    frequency_penalty: _Zero = None
    presence_penalty: _Zero = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    modalities: list[Literal["text"]] | None = None
    tools: _Nothing = None
    functions: _Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None

    def options(self, facts: PromptFacts) -> ChatOptions:
        """What is wished, with the bundle's own sampling where nothing is said.

        Raises:
            Refusal: two fields contradict each other.
        """
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise Refusal(
                400, "max_tokens and max_completion_tokens differ; give one of them", param="max_tokens",
                code="invalid_value",
            )  # fmt: skip
        if self.top_logprobs and not self.logprobs:
            raise Refusal(400, "top_logprobs goes with logprobs=true", param="top_logprobs", code="invalid_value")
        if self.stream_options is not None and not self.stream:
            raise Refusal(400, "stream_options goes with stream=true", param="stream_options", code="invalid_value")
        names = ("temperature", "top_p", "seed", "top_k", "min_p", "repetition_penalty")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        schema: Mapping[str, Any] | Literal["object"] | None = None
        if isinstance(self.response_format, SchemaFormat):
            schema = self.response_format.json_schema.schema_
        elif isinstance(self.response_format, ObjectFormat):
            schema = "object"
        return ChatOptions(
            max_new_tokens=self.max_completion_tokens or self.max_tokens,
            sampling=facts.sampling.model_copy(update=given) if given else None,
            stop=tuple(self.stop or ()),
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            schema=schema,
        )


async def complete(asking: Asking, visit: Visit, request: ChatRequest) -> Response:
    """Answer a conversation.

    Raises:
        Refusal: it asks for what there is not.
        DashengEdgeError: what `Engine.chat` and its ticket raise.
    """
    model, _ = asking.models.named(request.model)
    options = request.options(model.bundle.prompt_facts)
    frame = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": request.model}
    if request.stream:
        return await EventStream.begun(_streamed(asking, visit, model, request, options, frame))
    async with aclosing(_pieces(asking, visit, model, request, options)) as pieces:
        reply = [piece async for piece in pieces][-1]
    assert isinstance(reply, Reply)
    message = {"role": "assistant", "content": reply.text, "refusal": None}
    choice = {
        "index": 0, "message": message, "logprobs": _logprobs(reply.logprobs), "finish_reason": reply.finish_reason
    }  # fmt: skip
    return JSONResponse({**frame, "object": "chat.completion", "choices": [choice], "usage": _usage(reply.usage)})


async def _streamed(
    asking: Asking, visit: Visit, model: Model, request: ChatRequest, options: ChatOptions, frame: Mapping[str, Any]
) -> AsyncGenerator[bytes]:
    counted = request.stream_options is not None and bool(request.stream_options.include_usage)

    def chunk(delta: Mapping[str, Any], logprobs: Any = None, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if counted else {}
        return event({**frame, "object": "chat.completion.chunk", "choices": [choice], **usage})

    begun = False
    async with aclosing(_pieces(asking, visit, model, request, options)) as pieces:
        async for piece in pieces:
            if not begun:
                begun = True
                yield chunk({"role": "assistant", "content": "", "refusal": None})
            if isinstance(piece, Piece):
                yield chunk({"content": piece.text}, _logprobs(piece.logprobs) if piece.logprobs else None)
                continue
            yield chunk({}, finish_reason=piece.finish_reason)
            if counted:
                yield event({**frame, "object": "chat.completion.chunk", "choices": [], "usage": _usage(piece.usage)})
    yield DONE


async def _pieces(
    asking: Asking, visit: Visit, model: Model, request: ChatRequest, options: ChatOptions
) -> AsyncGenerator[Piece | Reply]:
    """Pieces of the reply as they come, if they are streamed, and then the reply."""
    loop, came = asyncio.get_running_loop(), asyncio.Queue[Piece | None]()

    def told(piece: Piece) -> None:  # in the engine's thread
        loop.call_soon_threadsafe(came.put_nowait, piece)

    async with asking.place(model, visit) as deadline, blamed("messages"):
        engine, facts = model.opened, model.bundle.prompt_facts
        messages = await deadline.wait(_messages(asking, model, request, facts))
        ticket = await asyncio.to_thread(engine.chat, messages, options, on_piece=told if request.stream else None)
        ticket.add_done_callback(lambda _: loop.call_soon_threadsafe(came.put_nowait, None))
        try:
            while (piece := await deadline.wait(came.get())) is not None:
                yield piece
            reply: Reply = ticket.result()
        finally:
            ticket.cancel()  # harmless when it is done
        asked = " ".join(part for part in messages[-1].parts if isinstance(part, str))
        usage = reply.usage
        asking.count(
            model, visit, usage.prompt_tokens, usage.completion_tokens, reply.audio_s, asked=asked, said=reply.text
        )  # fmt: skip
        yield reply


async def _messages(asking: Asking, model: Model, request: ChatRequest, facts: PromptFacts) -> list[Message]:
    """The messages as the engine takes them, their audio decoded. Audio without a word is asked about as by default."""
    messages = []
    for message in request.messages:
        parts = [
            part.text if isinstance(part, TextPart) else await asking.clip(model, part.input_audio.data)
            for part in message.content
        ]
        messages.append(Message(_role(message.role), parts))
    last = messages[-1]
    if last.clips and not any(isinstance(part, str) and part.strip() for part in last.parts):
        heard = list(last.parts)
        messages[-1] = Message("user", [*heard, facts.prompt] if facts.audio_first else [facts.prompt, *heard])
    return messages


def _role(role: str) -> Literal["system", "user", "assistant"]:
    return "user" if role == "user" else "assistant" if role == "assistant" else "system"


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None

    def one(text: bytes, logprob: float) -> dict[str, Any]:
        return {"token": text.decode("utf-8", "replace"), "bytes": list(text), "logprob": max(logprob, -9999.0)}

    content = [
        {**one(token.text, token.logprob), "top_logprobs": [one(text, logprob) for _, text, logprob in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"audio_tokens": usage.audio_tokens, "cached_tokens": usage.cached_tokens},
    }  # fmt: skip
