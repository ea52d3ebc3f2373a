"""LiteLLM, which other programs stand on: it asks for verbose_json, whatever its caller wants."""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
from typing import Any

import litellm

from .cells import BASE, CAPTION, CLIP, CONTENT, KEY, LABELS, LONG, MODEL, QUESTION, SAYS, SCHEMA, leaves, run, same

PLACE: dict[str, Any] = {"api_base": BASE, "api_key": KEY, "num_retries": 0}
MESSAGES: list[Any] = [{"role": "user", "content": CONTENT}]


def transcribed(**fields: Any) -> Any:
    with CLIP.open("rb") as file:
        return litellm.transcription(model=f"openai/{CAPTION}", file=file, **PLACE, **fields)


def completed(**fields: Any) -> Any:
    return litellm.completion(model=f"openai/{MODEL}", messages=MESSAGES, **PLACE, **fields)


def json_() -> None:
    same(transcribed().text, SAYS)


def text() -> None:
    same(transcribed(response_format="text").text.strip(), SAYS)


def srt() -> None:
    same(transcribed(response_format="srt").text[:5], "1\n00:")


def vtt() -> None:
    same(transcribed(response_format="vtt").text[:6], "WEBVTT")


def verbose_json() -> None:
    same(transcribed(response_format="verbose_json").text, SAYS)


def chat() -> None:
    same(completed().choices[0].message.content, LABELS)


def chat_stream() -> None:
    chunks = list(completed(stream=True, stream_options={"include_usage": True}))
    same("".join(one.choices[0].delta.content or "" for one in chunks if one.choices), LABELS)


def turns() -> None:
    said = completed().choices[0].message.content
    more = [*MESSAGES, {"role": "assistant", "content": said}, {"role": "user", "content": QUESTION}]
    answer = litellm.completion(model=f"openai/{MODEL}", messages=more, **PLACE)
    same(type(answer.choices[0].message.content), str)


def json_schema() -> None:
    wished = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    answer = completed(response_format=wished, max_tokens=64)
    same(type(json.loads(answer.choices[0].message.content)["loud"]), bool)


def error() -> None:
    try:
        completed(n=2)
    except litellm.BadRequestError as refused:
        same("n: " in str(refused), True)
        return
    raise AssertionError("it was not refused")


def cancel() -> None:
    def leave() -> None:
        stream = completed(stream=True, **LONG)
        next(iter(stream))
        stream.completion_stream.close()

    leaves(leave)


if __name__ == "__main__":
    run({
        "json": json_, "text": text, "srt": srt, "vtt": vtt, "verbose_json": verbose_json, "chat": chat,
        "chat stream": chat_stream, "turns": turns, "json schema": json_schema, "error": error, "cancel": cancel,
    })  # fmt: skip
