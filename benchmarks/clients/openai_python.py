"""OpenAI's Python package, which holds every answer against its own types here."""

# pyright: reportMissingImports=false
from __future__ import annotations

import base64
import json
import subprocess
from typing import Any

import openai

from .cells import (
    BASE,
    CAPTION,
    CLIP,
    CONTENT,
    KEY,
    LABELS,
    LONG,
    MODEL,
    QUESTION,
    SAYS,
    SCHEMA,
    leaves,
    run,
    same,
)

CLIENT: Any = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0, _strict_response_validation=True)
MESSAGES: list[Any] = [{"role": "user", "content": CONTENT}]


def transcribed(kind: str, **fields: Any) -> Any:
    return CLIENT.audio.transcriptions.create(file=CLIP, model=CAPTION, response_format=kind, **fields)


def completed(**fields: Any) -> Any:
    return CLIENT.chat.completions.create(model=MODEL, messages=MESSAGES, **fields)


def models() -> None:
    same([model.id for model in CLIENT.models.list()], [MODEL, CAPTION])


def json_() -> None:
    same(transcribed("json").text, SAYS)


def text() -> None:
    same(transcribed("text").strip(), SAYS)


def srt() -> None:
    same(transcribed("srt")[:5], "1\n00:")


def vtt() -> None:
    same(transcribed("vtt")[:6], "WEBVTT")


def verbose_json() -> None:
    same(transcribed("verbose_json").text, SAYS)
    same(transcribed("verbose_json", timestamp_granularities=["segment"]).segments[0].id, 0)


def transcript_stream() -> None:
    *deltas, done = list(transcribed("json", stream=True))
    same("".join(one.delta for one in deltas), done.text)
    same(done.text, SAYS)


def translation() -> None:
    same(type(CLIENT.audio.translations.create(file=CLIP, model=CAPTION).text), str)


def chat() -> None:
    same(completed().choices[0].message.content, LABELS)


def chat_stream() -> None:
    chunks = list(completed(stream=True, stream_options={"include_usage": True}))
    same("".join(one.choices[0].delta.content or "" for one in chunks if one.choices), LABELS)
    same(chunks[-1].usage.prompt_tokens_details.audio_tokens > 0, True)


def turns() -> None:
    first = completed().choices[0].message
    more = [*MESSAGES, first, {"role": "user", "content": QUESTION}]
    again = CLIENT.chat.completions.create(model=MODEL, messages=more)
    same(again.usage.prompt_tokens_details.cached_tokens > 0, True)


def json_schema() -> None:
    wished = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    answer = completed(response_format=wished, max_completion_tokens=64)
    same(type(json.loads(answer.choices[0].message.content)["loud"]), bool)


def logprobs() -> None:
    content = completed(logprobs=True, top_logprobs=2).choices[0].logprobs.content
    same("".join(one.token for one in content), LABELS)


def embeddings() -> None:
    answer = CLIENT.embeddings.create(model=MODEL, input=CONTENT[:1], encoding_format="float")
    same(len(answer.data[0].embedding), 256)


def error() -> None:
    try:
        completed(n=2)
    except openai.BadRequestError as refused:
        same((refused.param, refused.code, refused.type), ("n", "invalid_value", "invalid_request_error"))
        same(str(refused.request_id)[:4], "req_")
        return
    raise AssertionError("it was not refused")


def cancel() -> None:
    def leave() -> None:
        stream = completed(stream=True, **LONG)
        next(iter(stream))
        stream.close()

    leaves(leave)


def realtime() -> None:
    words = ["ffmpeg", "-v", "error", "-i", str(CLIP), "-af", "adelay=1000,apad=pad_dur=1", "-ar", "24000", "-ac", "1",
             "-f", "s16le", "-"]  # fmt: skip
    data = subprocess.run(words, check=True, capture_output=True).stdout
    with CLIENT.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        asked = {"input": {"transcription": {"model": CAPTION}}}
        connection.session.update(session={"type": "transcription", "audio": asked})
        connection.input_audio_buffer.append(audio=base64.b64encode(data).decode())
        connection.input_audio_buffer.commit()
        for event in connection:
            if event.type == "conversation.item.input_audio_transcription.completed":
                same(bool(event.transcript), True)
                return


if __name__ == "__main__":
    run({
        "models": models, "json": json_, "text": text, "srt": srt, "vtt": vtt, "verbose_json": verbose_json,
        "transcript stream": transcript_stream, "translation": translation, "chat": chat, "chat stream": chat_stream,
        "turns": turns, "json schema": json_schema, "logprobs": logprobs, "embeddings": embeddings, "error": error,
        "cancel": cancel, "realtime": realtime,
    })  # fmt: skip
