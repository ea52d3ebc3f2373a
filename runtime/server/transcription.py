"""`/v1/audio/transcriptions` and `/translations`: an audio file -> what is said in it, or what is heard."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, BinaryIO, Literal, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, PlainTextResponse, Response

from dasheng_edge.runtime.audio import windows as long_windows
from dasheng_edge.runtime.audio.windows import Span
from dasheng_edge.runtime.bundle.manifest import PromptFacts
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.languages.language import Language, language_of
from dasheng_edge.runtime.output.caption_formats import TextFormat
from dasheng_edge.runtime.output.rows import CaptionRow
from dasheng_edge.runtime.output.subtitle_formats import srt, vtt
from dasheng_edge.runtime.prompt.prompt import SPEECH_PROMPT, TRANSLATION_PROMPT
from dasheng_edge.runtime.subtitles.cue import HOP_S, WINDOW_S, Change, Cue, Window
from dasheng_edge.runtime.subtitles.cues import cues
from dasheng_edge.runtime.subtitles.transcript import spoken

from .answers import EventStream, Refusal, event, unsupported
from .asking import Asking, Question, Upload, Windows
from .models import Model, Task
from .visits import Visit

Format: TypeAlias = Literal["json", "text", "srt", "verbose_json", "vtt"]


class AudioFields(BaseModel):
    """The fields of a form beside its file. What is not known is refused, and nothing is ignored in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="AudioFields")

    model: Annotated[str, Field(description="A model's name; NAME:caption asks for a caption.")]
    prompt: Annotated[str | None, Field(description="What to ask, in place of the transcript.")] = None
    response_format: Format = "json"
    temperature: Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)] = None


class TranslationFields(AudioFields):
    """Of `/v1/audio/translations`."""


class TranscriptionFields(AudioFields):
    """Of `/v1/audio/transcriptions`."""

    language: Annotated[str | None, Field(description="Of the speech: a code of ISO 639, a tag or a name.")] = None
    stream: bool | None = None
    timestamp_granularities: list[Literal["segment", "word"]] = []
    chunking_strategy: Annotated[Any, Field(description='"auto" or nothing: long audio is cut in any case.')] = None
    include: list[str] = []

    def check(self) -> None:
        """Refuse what there is in OpenAI's API, and not here.

        Raises:
            Refusal: it is asked for.
        """
        if self.chunking_strategy not in (None, "", "auto"):
            raise unsupported("chunking_strategy", 'audio is cut by what is heard; expected "auto", or nothing')
        if self.include:
            raise unsupported("include", "the log-probabilities of tokens are not returned; expected nothing")
        if "word" in self.timestamp_granularities:
            raise unsupported("timestamp_granularities[]", "times of words are not known; expected segment")
        if self.timestamp_granularities and self.response_format != "verbose_json" and not self.stream:
            raise Refusal(
                400, "timestamp_granularities[] goes with response_format=verbose_json, or with stream=true",
                param="timestamp_granularities[]", code="invalid_value",
            )  # fmt: skip
        if self.stream and self.response_format == "verbose_json":
            raise unsupported("stream", "with response_format=verbose_json; expected json, text, srt or vtt")


@dataclass(frozen=True)
class _Order:
    """What a form asks for."""

    fields: AudioFields
    question: Question
    task: Task | Literal["translate"]
    language: Language | None
    timed: bool  # whether windows are short, so that they tell when
    segments: bool = False  # whether a stream tells of each window

    @property
    def subtitles(self) -> bool:
        """Whether cues are wanted."""
        return self.fields.response_format in ("srt", "vtt")

    @property
    def transcript(self) -> bool:
        """Whether answers are speech, whose windows go on in each other."""
        return self.task != "caption"


def _order(fields: AudioFields, task: Task, facts: PromptFacts) -> _Order:
    language, granular = None, False
    asked = facts.prompt
    kind: Task | Literal["translate"] = task
    if isinstance(fields, TranscriptionFields):
        fields.check()
        language = language_of(fields.language) if fields.language else None
        granular = bool(fields.timestamp_granularities)
    elif task == "transcribe":
        kind = "translate"
    if fields.prompt and fields.prompt.strip():
        asked, kind = fields.prompt, "caption"
    elif kind == "transcribe":
        asked = SPEECH_PROMPT.format(language=language.code if language else "en")
    elif kind == "translate":
        asked = TRANSLATION_PROMPT
    sampling = None
    if fields.temperature is not None:
        sampling = facts.sampling.model_copy(update={"temperature": fields.temperature})
    subtitles = fields.response_format in ("srt", "vtt")
    timed = subtitles or (granular and fields.response_format == "verbose_json")
    return _Order(fields, Question(asked, sampling, changes=timed), kind, language, timed, granular)


@dataclass
class _Heard:
    """What was said about the windows of a file so far."""

    order: _Order
    spans: list[Span] = field(default_factory=list)
    captions: list[Caption] = field(default_factory=list)

    def add(self, span: Span, caption: Caption) -> None:
        self.spans.append(span)
        self.captions.append(caption)

    @property
    def duration_s(self) -> float:
        """Up to where it was heard."""
        return self.spans[-1].end_s - self.spans[0].start_s if self.spans else 0.0

    def text(self) -> str:
        """All of it as one text: transcripts without what two windows say, captions with their times."""
        if len(self.spans) == 1 and self.spans[0].whole:
            return self.captions[0].text
        if self.order.transcript:
            return " ".join(text for _, _, text in spoken(self.windows()))
        if self.order.timed:
            return "\n".join(text for _, _, text in self.segments())
        return "\n".join(map(_line, self.spans, self.captions))

    def document(self) -> str:
        """What a stream says in the end."""
        return self.subtitles() if self.order.subtitles else self.text()

    def subtitles(self) -> str:
        """As a file."""
        return srt(self.cues()) if self.order.fields.response_format == "srt" else vtt(self.cues())

    def so_far(self) -> str:
        """As much of `document` as no later window changes."""
        if self.order.subtitles:
            return ""
        if self.spans[-1].last or not self.order.transcript:
            return self.text()
        start_s = self.spans[-1].start_s
        return " ".join(text for _, end_s, text in spoken(self.windows()[:-1]) if end_s <= start_s)

    def windows(self) -> list[Window]:
        """For subtitles."""
        return [
            Window(span.start_s, span.end_s, caption.text, tuple(Change(c.time_s, c.strength) for c in caption.changes))
            for span, caption in zip(self.spans, self.captions, strict=True)
        ]

    def cues(self) -> list[Cue]:
        """What is shown when."""
        return cues([], speech=self.windows()) if self.order.transcript else cues(self.windows())

    def usage(self) -> dict[str, Any]:
        """Tokens, as OpenAI counts them."""
        text = sum(caption.prompt_tokens for caption in self.captions)
        audio = sum(caption.audio_tokens for caption in self.captions)
        out = sum(len(caption.tokens) for caption in self.captions)
        return {
            "type": "tokens", "input_tokens": text + audio, "output_tokens": out, "total_tokens": text + audio + out,
            "input_token_details": {"text_tokens": text, "audio_tokens": audio},
        }  # fmt: skip

    def segments(self) -> list[tuple[float, float, str]]:
        """Parts with their times: of a transcript or a caption where they were asked for, else windows."""
        if not self.order.timed:
            pairs = zip(self.spans, self.captions, strict=True)
            return [(span.start_s, span.end_s, caption.text) for span, caption in pairs if caption.text]
        if self.order.transcript:
            return list(spoken(self.windows()))
        return [(cue.start_s, cue.end_s, " ".join(cue.lines)) for cue in self.cues()]


async def transcribe(asking: Asking, visit: Visit, fields: AudioFields, file: UploadFile) -> Response:
    """Answer a form.

    Raises:
        Refusal: it asks for what there is not.
        DashengEdgeError: what `Asking.captions` raises.
    """
    model, task = asking.models.named(fields.model)
    order = _order(fields, task, model.bundle.prompt_facts)
    if isinstance(fields, TranscriptionFields) and fields.stream:
        return await EventStream.begun(_streamed(asking, visit, model, order, file))
    heard = _Heard(order)
    async with aclosing(_windows(asking, visit, model, order, file)) as windows:
        async for span, said in windows:
            if isinstance(said, Caption):
                heard.add(span, said)
    return _response(heard, model)


async def _windows(
    asking: Asking, visit: Visit, model: Model, order: _Order, file: UploadFile
) -> AsyncGenerator[tuple[Span, Caption | str]]:
    async with asking.place(model, visit) as deadline:
        engine, facts = model.opened, model.bundle.prompt_facts
        windows = Windows(facts.comfortable_s, long_windows.WINDOW_S, long_windows.HOP_S)
        if order.timed:
            windows = Windows(0.0, WINDOW_S, HOP_S)
        source, read, written, heard_s = cast("BinaryIO", Upload(file.file)), 0, 0, 0.0
        texts: list[str] = []
        async with aclosing(asking.captions(engine, source, windows, order.question, deadline)) as answers:
            async for span, said in answers:
                if isinstance(said, Caption):
                    read += said.prompt_tokens + said.audio_tokens
                    written += len(said.tokens)
                    texts.append(said.text)
                    heard_s = span.end_s - span.start_s if span.whole else span.end_s
                yield span, said
        asked = order.question.prompt or ""
        asking.count(model, visit, read, written, heard_s, asked=asked, said=" | ".join(texts))


async def _streamed(
    asking: Asking, visit: Visit, model: Model, order: _Order, file: UploadFile
) -> AsyncGenerator[bytes]:
    heard, said = _Heard(order), ""
    async with AsyncExitStack() as ended:
        ended.push_async_callback(file.close)
        windows = await ended.enter_async_context(aclosing(_windows(asking, visit, model, order, file)))
        async for span, piece in windows:
            if isinstance(piece, Caption):
                heard.add(span, piece)
                text = heard.so_far()
            else:  # of a whole clip, whose text comes as it is written
                text = said + piece if span.whole and not order.subtitles else said
            if text.startswith(said) and text != said:
                yield event({"type": "transcript.text.delta", "delta": text[len(said) :]})
                said = text
            if order.segments and isinstance(piece, Caption):
                yield _segment_event(len(heard.spans) - 1, span, piece)
    text, seconds = heard.document(), round(heard.duration_s, 3)
    if text != said and text.startswith(said):
        yield event({"type": "transcript.text.delta", "delta": text[len(said) :]})
    yield event({"type": "transcript.text.done", "text": text, "usage": heard.usage(), "duration": seconds})


def _segment_event(number: int, span: Span, caption: Caption) -> bytes:
    times = {"start": round(span.start_s, 3), "end": round(span.end_s, 3)}
    return event(
        {"type": "transcript.text.segment", "id": f"seg_{number}", **times, "text": caption.text, "speaker": ""}
    )


def _response(heard: _Heard, model: Model) -> Response:
    kind = heard.order.fields.response_format
    if kind == "json":
        return JSONResponse({"text": heard.text(), "usage": heard.usage()})
    if kind == "text":
        return PlainTextResponse(heard.text() + "\n")
    if heard.order.subtitles:
        media_type = "application/x-subrip" if kind == "srt" else "text/vtt"
        return PlainTextResponse(heard.subtitles(), media_type=media_type)
    return JSONResponse(_verbose(heard, model))


def _verbose(heard: _Heard, model: Model) -> dict[str, Any]:
    order = heard.order
    language = order.language.tag if order.language else "en"
    segments = [
        _segment(heard, model, number, start_s, end_s, text)
        for number, (start_s, end_s, text) in enumerate(heard.segments())
    ]
    return {
        "task": "translate" if order.task == "translate" else "transcribe",
        "language": language, "duration": round(heard.duration_s, 3), "text": heard.text(), "segments": segments,
        "usage": {"type": "duration", "seconds": round(heard.duration_s, 3)},
    }  # fmt: skip


def _segment(heard: _Heard, model: Model, number: int, start_s: float, end_s: float, text: str) -> dict[str, Any]:
    """As Whisper's: the log-probability is that of the windows in which it lies."""
    overlapping = [
        caption.confidence
        for span, caption in zip(heard.spans, heard.captions, strict=True)
        if caption.confidence is not None and span.start_s < end_s and span.end_s > start_s
    ]
    data = text.encode()
    return {
        "id": number, "seek": 0, "start": round(start_s, 3), "end": round(end_s, 3), "text": text,
        "tokens": list(model.opened.parts.decoder.tokenize(text)), "temperature": _temperature(heard.order, model),
        "avg_logprob": round(sum(overlapping) / len(overlapping), 4) if overlapping else 0.0,
        "compression_ratio": round(len(data) / len(zlib.compress(data)), 3), "no_speech_prob": 0.0,
    }  # fmt: skip


def _temperature(order: _Order, model: Model) -> float:
    sampling = order.question.sampling or model.bundle.prompt_facts.sampling
    return sampling.temperature


def _line(span: Span, caption: Caption) -> str:
    return TextFormat().line(CaptionRow.of("", span, caption))
