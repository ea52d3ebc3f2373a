"""Transcriptions: what the captioner says of the same clip, in every format of OpenAI's API."""

from __future__ import annotations

from typing import Any

import pytest

from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.prompt.prompt import SPEECH_PROMPT, TRANSLATION_PROMPT
from dasheng_edge.runtime.server.app import Server
from tests.fixtures.asgi_client import Client

from .conftest import Run, wav_of

PATH, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"


@pytest.mark.parametrize(
    ("path", "fields", "prompt"),
    [
        (PATH, {"model": "tiny:caption"}, None),
        (TRANSLATIONS, {"model": "tiny:caption"}, None),
        (PATH, {"model": "tiny"}, SPEECH_PROMPT.format(language="en")),
        (PATH, {"model": "tiny", "prompt": ""}, SPEECH_PROMPT.format(language="en")),
        (PATH, {"model": "tiny", "language": "German"}, SPEECH_PROMPT.format(language="de")),
        (PATH, {"model": "tiny", "prompt": "What is it?"}, "What is it?"),
        (TRANSLATIONS, {"model": "tiny"}, TRANSLATION_PROMPT),
    ],
)
def test_the_text_is_what_the_captioner_says(
    *, path: str, fields: dict[str, str], prompt: str | None, client: Client, run: Run[Any], clip: bytes,
    captioner: Captioner,
) -> None:  # fmt: skip
    answer = run(client.post_form(path, fields, clip))
    want = captioner.caption(clip, prompt)
    assert (answer.status, answer.json()["text"]) == (200, want.text)
    usage = answer.json()["usage"]
    assert usage["input_token_details"] == {"text_tokens": want.prompt_tokens, "audio_tokens": want.audio_tokens}
    assert usage["output_tokens"] == len(want.tokens)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert answer.headers["x-request-id"].startswith("req_")


def test_text_is_the_text(client: Client, run: Run[Any], clip: bytes, captioner: Captioner) -> None:
    answer = run(client.post_form(PATH, {"model": "tiny:caption", "response_format": "text"}, clip))
    assert answer.text == captioner.caption(clip).text + "\n"
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("model", ["tiny", "tiny:caption"])
def test_subtitles_can_be_read_by_others(model: str, client: Client, run: Run[Any]) -> None:
    srt, webvtt = pytest.importorskip("srt"), pytest.importorskip("webvtt")
    clip = wav_of(9.0)
    for kind in ("srt", "vtt"):
        answer = run(client.post_form(PATH, {"model": model, "response_format": kind}, clip))
        assert answer.status == 200
        cues = list(srt.parse(answer.text)) if kind == "srt" else webvtt.from_string(answer.text).captions
        assert len(cues) > 0


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("model", ["tiny", "tiny:caption"])
def test_segments_have_times_within_the_audio(
    model: str, timed: bool, client: Client, run: Run[Any], captioner: Captioner
) -> None:
    clip, fields = wav_of(9.0), [("model", model), ("response_format", "verbose_json")]
    fields += [("timestamp_granularities[]", "segment")] if timed else []
    answer = run(client.post_form(PATH, fields, clip)).json()
    assert (answer["duration"], answer["task"], answer["language"]) == (9.0, "transcribe", "en")
    assert answer["segments"]
    assert answer["usage"] == {"type": "duration", "seconds": 9.0}
    for number, segment in enumerate(answer["segments"]):
        assert segment["id"] == number
        assert 0 <= segment["start"] < segment["end"] <= 9.0 + 3.0  # what is read takes a while
        assert segment["avg_logprob"] < 0
    if not timed:
        prompt = None if model.endswith(":caption") else SPEECH_PROMPT.format(language="en")
        assert answer["text"] == captioner.caption(clip, prompt).text == answer["segments"][0]["text"]


@pytest.mark.parametrize("model", ["tiny", "tiny:caption"])
def test_a_stream_says_the_same_as_the_whole(
    model: str, client: Client, run: Run[Any], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In windows of a long clip, too."""
    clip = wav_of(40.0)
    for comfortable_s in (210.0, 5.0):
        bundle = server.models.default.bundle
        facts = bundle.manifest.prompt
        assert facts is not None
        changed = facts.model_copy(update={"comfortable_s": comfortable_s})
        monkeypatch.setattr(type(bundle), "prompt_facts", changed)
        whole = run(client.post_form(PATH, {"model": model}, clip)).json()
        *deltas, done = run(client.post_form(PATH, {"model": model, "stream": "true"}, clip)).events
        assert {one["type"] for one in deltas} == {"transcript.text.delta"}
        assert done == {
            "type": "transcript.text.done", "text": whole["text"], "usage": whole["usage"], "duration": 40.0
        }  # fmt: skip
        assert len(deltas) > (comfortable_s > 40)
        assert "".join(one["delta"] for one in deltas) == whole["text"]


@pytest.mark.parametrize("kind", ["json", "vtt", "srt"])
def test_a_stream_tells_of_each_window_where_that_is_asked(kind: str, client: Client, run: Run[Any]) -> None:
    clip, fields = wav_of(9.0), [("model", "tiny:caption"), ("response_format", kind)]
    asked = [*fields, ("stream", "true"), ("timestamp_granularities[]", "segment")]
    events = run(client.post_form(PATH, asked, clip)).events
    segments = [one for one in events if one["type"] == "transcript.text.segment"]
    assert [one["id"] for one in segments] == [f"seg_{number}" for number in range(len(segments))]
    assert (segments[0]["start"], segments[-1]["end"]) == (0.0, 9.0)
    whole = run(client.post_form(PATH, fields, clip))
    assert events[-1]["text"] == (whole.json()["text"] if kind == "json" else whole.text)
    assert "".join(one["delta"] for one in events if "delta" in one) == events[-1]["text"]


def test_a_stream_reads_its_file_to_the_end(client: Client, run: Run[Any]) -> None:
    """Though its answer begins when the first window is known."""
    fields = [("model", "tiny:caption"), ("response_format", "vtt"), ("stream", "true")]
    events = run(client.post_form(PATH, [*fields, ("timestamp_granularities[]", "segment")], wav_of(45.0))).events
    assert events[-1]["duration"] == 45.0


def test_silence_has_no_words(client: Client, run: Run[Any]) -> None:
    silence = wav_of(2.0, loud=0.0)
    for kind, want in (("text", "\n"), ("srt", ""), ("vtt", "WEBVTT\n")):
        assert run(client.post_form(PATH, {"model": "tiny", "response_format": kind}, silence)).text == want
    answer = run(client.post_form(PATH, {"model": "tiny", "response_format": "verbose_json"}, silence)).json()
    assert (answer["text"], answer["segments"]) == ("", [])


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({}, 400, "model", "missing_required_parameter"),
        ({"model": "other"}, 404, "model", "model_not_found"),
        ({"model": "tiny", "response_format": "diarized_json"}, 400, "response_format", "invalid_value"),
        ({"model": "tiny", "temperature": "3"}, 400, "temperature", "invalid_value"),
        ({"model": "tiny", "temperature": "nan"}, 400, "temperature", "invalid_value"),
        ({"model": "tiny", "language": "klingonese"}, 400, "language", "invalid_language"),
        ({"model": "tiny", "hotwords": "x"}, 400, "hotwords", "unknown_parameter"),
        ({"model": "tiny", "include[]": "logprobs"}, 400, "include", "unsupported_parameter"),
        ({"model": "tiny", "chunking_strategy[type]": "server_vad"}, 400, "chunking_strategy", "unsupported_parameter"),
        ({"model": "tiny", "timestamp_granularities[]": "word"}, 400, "timestamp_granularities[]",
         "unsupported_parameter"),
        ({"model": "tiny", "timestamp_granularities[]": "segment"}, 400, "timestamp_granularities[]", "invalid_value"),
        ({"model": "tiny", "stream": "true", "response_format": "verbose_json"}, 400, "stream",
         "unsupported_parameter"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused(
    *, fields: dict[str, str], status: int, param: str, code: str, client: Client, run: Run[Any], clip: bytes
) -> None:
    answer = run(client.post_form(PATH, fields, clip))
    assert (answer.status, answer.error["param"], answer.error["code"]) == (status, param, code)
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    assert answer.error["type"] == kind


@pytest.mark.parametrize("extra", [{"chunking_strategy": "auto"}, {"stream": "false"}, {"temperature": "0"}])
def test_what_changes_nothing_is_taken(extra: dict[str, str], client: Client, run: Run[Any], clip: bytes) -> None:
    assert run(client.post_form(PATH, {"model": "tiny", **extra}, clip)).status == 200


def test_a_translation_has_fewer_fields(client: Client, run: Run[Any], clip: bytes) -> None:
    assert run(client.post_form(TRANSLATIONS, {"model": "tiny", "language": "en"}, clip)).status == 400


@pytest.mark.parametrize("data", [b"", b"no audio" * 100, b"RIFF" + bytes(40), b"#EXTM3U\nhttp://localhost/a.wav\n"])
def test_what_is_no_audio_is_the_clients_mistake(data: bytes, client: Client, run: Run[Any]) -> None:
    for stream in ("false", "true"):
        answer = run(client.post_form(PATH, {"model": "tiny", "stream": stream}, data))
        assert (answer.status, answer.error["param"]) == (400, "file")


def test_a_form_without_a_file_or_with_another_one_is_refused(client: Client, run: Run[Any], clip: bytes) -> None:
    answer = run(client.post_form(PATH, {"model": "tiny"}, None))
    assert (answer.status, answer.error["param"]) == (400, "file")
    twice = run(client.post_form(PATH, [("model", "tiny"), ("model", "tiny")], clip))
    assert (twice.status, twice.error["param"]) == (400, "model")
    assert run(client.post_json(PATH, {"model": "tiny"})).status == 415
    broken = run(client.send("POST", PATH, [b"--x\r\n"], {"content-type": "multipart/form-data"}))
    assert (broken.status, broken.error["code"]) == (400, "invalid_form")
