"""Conversations over HTTP: what the engine says to the same messages, and what is refused by name."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine.conversation import ChatOptions, Message
from dasheng_edge.runtime.server.answers import refusal_of
from dasheng_edge.runtime.server.chat import ChatRequest
from tests.fixtures.asgi_client import Client

from .conftest import Run, wav_of

PATH = "/v1/chat/completions"


def audio(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def asked(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": list(content)}], **fields}


def test_a_reply_is_what_the_captioner_says(client: Client, run: Run[Any], clip: bytes, captioner: Captioner) -> None:
    other = wav_of(0.9, seed=1)
    first = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [audio(clip), audio(other), text("Are these the same?")]},
    ]
    messages = [Message("system", "Be brief."), Message("user", [clip, other, "Are these the same?"])]
    usage: dict[str, Any] = {}
    for _ in range(2):
        answer = run(client.post_json(PATH, {"model": "tiny", "messages": first, "max_tokens": 12})).json()
        want = captioner.chat(messages, ChatOptions(max_new_tokens=12))
        (choice,) = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": want.text, "refusal": None}
        assert (choice["finish_reason"], choice["index"], answer["model"]) == (want.finish_reason, 0, "tiny")
        usage = answer["usage"]
        assert usage["prompt_tokens"] == want.usage.prompt_tokens
        assert usage["prompt_tokens_details"]["audio_tokens"] == want.usage.audio_tokens
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        first += [choice["message"], {"role": "user", "content": "Why?"}]
        messages += [Message("assistant", want.text), Message("user", "Why?")]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0


def test_a_stream_says_the_same(client: Client, run: Run[Any], clip: bytes) -> None:
    body = asked(text("What is it?"), audio(clip), max_tokens=12, logprobs=True, top_logprobs=2)
    whole = run(client.post_json(PATH, body)).json()
    answer = run(client.post_json(PATH, body | {"stream": True, "stream_options": {"include_usage": True}}))
    *chunks, usage, done = answer.events
    assert done == "[DONE]"
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0] for chunk in chunks]
    assert deltas[0]["delta"]["role"] == "assistant"
    assert "".join(one["delta"].get("content") or "" for one in deltas) == whole["choices"][0]["message"]["content"]
    assert deltas[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    tokens = [token for one in deltas if one["logprobs"] for token in one["logprobs"]["content"]]
    want = whole["choices"][0]["logprobs"]["content"]
    assert [token["bytes"] for token in tokens] == [token["bytes"] for token in want]
    assert [token["logprob"] for token in tokens] == pytest.approx([token["logprob"] for token in want], abs=1e-4)
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], whole["usage"]["completion_tokens"])


def test_audio_alone_is_asked_about_as_by_default(
    client: Client, run: Run[Any], clip: bytes, captioner: Captioner
) -> None:
    answer = run(client.post_json(PATH, asked(audio(clip)))).json()
    assert answer["choices"][0]["message"]["content"] == captioner.caption(clip).text


def test_sampling_and_stop_are_those_of_the_request(
    client: Client, run: Run[Any], clip: bytes, captioner: Captioner
) -> None:
    def said(**fields: Any) -> str:
        answer = run(client.post_json(PATH, asked(audio(clip), text("Go on."), max_tokens=16, **fields)))
        return str(answer.json()["choices"][0]["message"]["content"])

    hot = {"temperature": 2, "top_p": 0.99}
    assert said(**hot, seed=1) == said(**hot, seed=1)
    assert len({said(**hot, seed=seed) for seed in range(4)}) > 1
    greedy = said()
    stop = greedy[len(greedy) // 2 :][:2]
    assert said(stop=stop) == said(stop=[stop]) == greedy.partition(stop)[0]


def test_json_is_json(client: Client, run: Run[Any], clip: bytes) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    wished = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    body = asked(audio(clip), text("Yes?"), max_tokens=60, response_format=wished)
    answer = run(client.post_json(PATH, body)).json()
    found = json.loads(answer["choices"][0]["message"]["content"])
    assert found in ({"n": True}, {"n": False})


SOUND = asked(text("Hello"))


@pytest.mark.parametrize(
    ("changed", "param", "code"),
    [
        ({"model": "other"}, "model", "model_not_found"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "unsupported_value"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages[0].name", "unknown_parameter"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "invalid_prompt"),
        ({"messages": [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "http://localhost"}}]}]},
         "messages[0].content[0]", "unsupported_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]},
         "messages[0].content[0]", "unsupported_value"),
        *(({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data}}]}]},
           "messages[0].content[0].input_audio.data", "invalid_value")
          for data in ("http://localhost/a.wav", "file:///etc/passwd", "data:audio/wav;base64,AAAA", "!", "", 1, None)),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]}]},
         "messages", "invalid_audio"),
        ({"n": 2}, "n", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1 << 20}, "messages", "invalid_prompt"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"presence_penalty": 0.5}, "presence_penalty", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "invalid_value"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "invalid_value"),
        ({"modalities": ["text", "audio"]}, "modalities[1]", "invalid_value"),
        ({"audio": {"voice": "alloy"}}, "audio", "unknown_parameter"),
        ({"store": True}, "store", "invalid_value"),
        ({"response_format": {"type": "grammar"}}, "response_format", "unsupported_value"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema", "missing_required_parameter"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
         "messages", "invalid_prompt"),
        ({"beam_width": 4}, "beam_width", "unknown_parameter"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_supported_is_refused_by_name(
    *, changed: dict[str, Any], param: str, code: str, stream: bool, client: Client, run: Run[Any]
) -> None:
    if stream and "stream_options" in changed:
        return
    answer = run(client.post_json(PATH, SOUND | changed | ({"stream": True} if stream else {})))
    assert (answer.status, answer.error["param"], answer.error["code"]) == (
        404 if code == "model_not_found" else 400, param, code
    )  # fmt: skip


@pytest.mark.parametrize(
    "inert",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "n": 1, "tools": [], "tool_choice": "none"},
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "modalities": ["text"]},
        {"response_format": {"type": "text"}, "logprobs": False, "stop": None, "parallel_tool_calls": True},
        {"stream": False, "stream_options": None, "max_tokens": 4, "max_completion_tokens": 4, "prompt_cache_key": "k"},
    ],
)
def test_what_changes_nothing_is_taken(inert: dict[str, Any], client: Client, run: Run[Any]) -> None:
    assert run(client.post_json(PATH, {"max_tokens": 4, **SOUND, **inert})).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff",
        b'{"model": NaN}',
        b"[" * 100_000,
        b'{"model":' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_no_request_is_refused(body: bytes, client: Client, run: Run[Any]) -> None:
    answer = run(client.post_json(PATH, body))
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert len(answer.text) < 1500


def test_a_body_of_another_kind_is_refused(client: Client, run: Run[Any]) -> None:
    answer = run(client.send("POST", PATH, [json.dumps(SOUND).encode()], {"content-type": "text/plain"}))
    assert answer.status == 415  # which is what a page of another site could send without asking


def test_an_error_quotes_no_audio() -> None:
    secret = base64.b64encode(b"secret" * 1000).decode() + "!"
    body = asked({"type": "input_audio", "input_audio": {"data": secret}})
    with pytest.raises(ValueError, match="base64") as error:
        ChatRequest.model_validate(body)
    assert "c2Vjcm" not in json.dumps(refusal_of(error.value).body())


def _vectors(answer: Any) -> Sequence[Sequence[float]]:
    return [row["embedding"] for row in answer.json()["data"]]


def test_embeddings_are_the_embedders(client: Client, run: Run[Any], clip: bytes, tiny_bundle: Path) -> None:
    import numpy as np

    from dasheng_edge.runtime.embedder import Embedder

    clips = [clip, wav_of(12.0, seed=2)]
    body = {"model": "tiny", "input": [audio(one) for one in clips]}
    answer = run(client.post_json("/v1/embeddings", body))
    with Embedder.open(tiny_bundle, threads=1) as embedder:
        want = [embedder.embed(one).mean for one in clips]
    np.testing.assert_allclose(_vectors(answer), want, atol=1e-5)
    assert [row["index"] for row in answer.json()["data"]] == [0, 1]
    assert answer.json()["usage"] == {"prompt_tokens": 68, "total_tokens": 68}
    packed = run(client.post_json("/v1/embeddings", body | {"encoding_format": "base64"}))
    decoded = [np.frombuffer(base64.b64decode(str(row)), "<f4") for row in _vectors(packed)]
    np.testing.assert_allclose(decoded, want, atol=1e-5)
    one = run(client.post_json("/v1/embeddings", {"model": "tiny", "input": audio(clip), "dimensions": len(want[0])}))
    np.testing.assert_allclose(_vectors(one), want[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "param"),
    [({"input": "text"}, "input"), ({"input": [1, 2]}, "input"), ({"input": []}, "input"), ({"dimensions": 3},
     "dimensions"), ({"encoding_format": "int8"}, "encoding_format"), ({"truncate": 1}, "truncate")],
)  # fmt: skip
def test_embeddings_of_anything_else_are_refused(
    changed: dict[str, Any], param: str, client: Client, run: Run[Any], clip: bytes
) -> None:
    answer = run(client.post_json("/v1/embeddings", {"model": "tiny", "input": audio(clip)} | changed))
    assert (answer.status, answer.error["param"]) == (400, param)
