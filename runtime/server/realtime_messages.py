"""What comes over the WebSocket of `/v1/realtime`: a client's messages, and the audio in them as it arrives."""

from __future__ import annotations

import base64
import binascii
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import soxr
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, TypeAdapter

from dasheng_edge.runtime.audio.read import Waveform
from dasheng_edge.runtime.live.source import NOTHING, PIECE_S, RATE_HZ, Piece

from .chat import Strict

POLL_S = 0.2
FLUSH_S = 1e-9  # that are missing: what was heard before ends there
NAME = "the stream"


def _samples(value: object) -> NDArray[np.float32]:
    """PCM of 16 bits in base64 -> float32 [n], full scale 1.

    Raises:
        ValueError: it is none.
    """
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else b"?"
    except (binascii.Error, ValueError):
        data = b"?"
    if len(data) % 2:
        raise ValueError("it is no PCM of 16 bits in base64")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768.0


class PcmFormat(Strict):
    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Annotated[int, Field(ge=8000, le=48_000)] = 24_000


class Transcribed(Strict):
    model: str | None = None
    language: str | None = None
    prompt: str | None = None


class ServerVad(Strict):
    """Taken at OpenAI's own values: what is a sound is found out otherwise here."""

    type: Literal["server_vad"] = "server_vad"
    threshold: Annotated[float, Field(ge=0.5, le=0.5)] | None = None
    prefix_padding_ms: Literal[300] | None = None
    silence_duration_ms: Literal[200, 500] | None = None
    create_response: Literal[False] | None = None
    interrupt_response: Literal[False] | None = None
    idle_timeout_ms: None = None


class Input(Strict):
    format: PcmFormat = PcmFormat()
    noise_reduction: None = None
    transcription: Transcribed = Transcribed()
    turn_detection: ServerVad | None = ServerVad()


class Audio(Strict):
    input: Input = Input()


class Session(Strict):
    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()
    include: Annotated[list[str], Field(max_length=0)] | None = None


class _Message(Strict):
    event_id: Annotated[str, Field(max_length=512)] | None = None


class SessionUpdate(_Message):
    type: Literal["session.update"]
    session: Session


class Append(_Message):
    type: Literal["input_audio_buffer.append"]
    audio: Annotated[Any, BeforeValidator(_samples, json_schema_input_type=str)]


class Commit(_Message):
    type: Literal["input_audio_buffer.commit"]


class Clear(_Message):
    type: Literal["input_audio_buffer.clear"]


ClientMessage: TypeAlias = SessionUpdate | Append | Commit | Clear
_ANY: TypeAdapter[ClientMessage] = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])


def read_message(text: str) -> ClientMessage:
    """A message of a client.

    Raises:
        ValidationError: it is none.
    """
    return _ANY.validate_json(text)


Order: TypeAlias = Literal["flush", "clear", "end"]


@dataclass
class Arriving:
    """What came of the audio, as `Listening` takes it."""

    rate: int
    name: str = NAME
    queued_s: float = 0.0
    discards: bool = False  # whether what is heard now was cleared
    _queue: queue.SimpleQueue[NDArray[np.float32] | Order] = field(default_factory=queue.SimpleQueue)

    def put(self, samples: NDArray[np.float32]) -> None:
        self.queued_s += len(samples) / self.rate
        size = round(self.rate * PIECE_S)
        for start in range(0, len(samples), size):
            self._queue.put(samples[start : start + size])

    def order(self, order: Order) -> None:
        """What is heard at present ends here; with "clear", it is not asked about, and with "end", there is no more."""
        self._queue.put(order)

    def behind_s(self) -> float:
        return 0.0  # so nothing is dropped

    def pieces(self) -> Iterator[Piece]:
        resampled = resampler(self.rate)
        while True:
            try:
                item = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                yield NOTHING
                continue
            if isinstance(item, str):
                yield Piece(resampled(np.zeros(0, np.float32), last=True))
                if item == "end":
                    return
                self.discards = item == "clear"
                yield Piece(np.zeros(0, np.float32), FLUSH_S)
                self.discards = False
                resampled = resampler(self.rate)
            else:
                self.queued_s -= len(item) / self.rate
                yield Piece(resampled(item))


def resampler(rate: int) -> Callable[..., Waveform]:
    if rate == RATE_HZ:
        return lambda samples, last=False: samples  # noqa: ARG005  # as soxr's
    resampled: Callable[..., Waveform] = soxr.ResampleStream(rate, RATE_HZ, 1, dtype="float32").resample_chunk
    return resampled
