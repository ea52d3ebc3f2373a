"""A conversation about audio: its messages, what is wished of the answer, and the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

from dasheng_edge.runtime.audio.read import AudioSource
from dasheng_edge.runtime.bundle.manifest import PromptFacts, Sampling
from dasheng_edge.runtime.caption import TextStream, Timings
from dasheng_edge.runtime.errors import PromptError
from dasheng_edge.runtime.prompt.prompt import Audio, Role, Turn
from dasheng_edge.runtime.text.model import Tokens

from .clip_audio import HeardAudio
from .request import check_count, checked_sampling

MAX_MESSAGES = 1000
MAX_STOPS, MAX_STOP_LENGTH = 16, 256  # texts that end an answer, and characters of each
MAX_TOP = 20  # alternatives of a token, as OpenAI's API has them

Part: TypeAlias = "str | AudioSource | HeardAudio"


@dataclass(frozen=True)
class Message:
    """What somebody says: a text, or texts and clips in any order. In a list, a `str` is text, all else is audio.

    Audio is what `read_audio` takes: a `Path`, bytes, a binary file, `(array, sample_rate)`; or a `HeardAudio`.

    Raises:
        PromptError: this is no message.
    """

    role: Role
    content: str | Sequence[Part]

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise PromptError(f"the role of a message is {self.role!r}; expected {', '.join(get_args(Role))}")
        if not isinstance(self.content, (str, list, tuple)):
            what = type(self.content).__name__
            raise PromptError(
                f"the content of a message is of type {what}; expected a text, or a list of texts and audio"
            )
        if self.role != "user" and self.clips:
            raise PromptError(f"a message of the {self.role} holds audio; only those of the user can")

    @property
    def parts(self) -> Sequence[Part]:
        """Its content as a list."""
        return (self.content,) if isinstance(self.content, str) else self.content

    @property
    def clips(self) -> list[AudioSource | HeardAudio]:
        """The audio in it, in order."""
        return [part for part in self.parts if not isinstance(part, str)]


@dataclass(frozen=True)
class ChatOptions:
    """What is wished of an answer; None means the bundle's default.

    Raises:
        PromptError: something is of another type, or out of range.
    """

    max_new_tokens: int | None = None
    sampling: Sampling | None = None
    stop: Sequence[str] = ()  # the answer ends before the first of these texts
    top_logprobs: int | None = None  # how many alternatives come with each token; None: no log-probabilities at all
    # The form of the answer: a JSON schema, or "object" for any JSON object.
    schema: Mapping[str, Any] | Literal["object"] | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            check_count("max_new_tokens", self.max_new_tokens)
        if self.sampling is not None:
            checked_sampling(self.sampling)
        stops = self.stop
        sound = isinstance(stops, (list, tuple)) and all(isinstance(stop, str) and stop for stop in stops)
        if not sound or len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_LENGTH for stop in stops):
            raise PromptError(
                f"stop is {stops!r:.200}; expected a list of at most {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} "
                "characters"
            )
        if self.top_logprobs is not None and self.top_logprobs != 0:
            check_count("top_logprobs", self.top_logprobs, MAX_TOP)


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer; log-probabilities are natural ones by the model alone, at temperature 1."""

    token: int
    text: bytes  # which may end inside a character
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()  # the likeliest tokens in its place


@dataclass(frozen=True)
class Piece:
    """Some of an answer, as it comes."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Usage:
    """How many positions of the decoder an answer took."""

    prompt_tokens: int  # of text and audio
    audio_tokens: int  # of these, rows of audio embeddings
    cached_tokens: int  # of these, what was not computed anew
    completion_tokens: int  # without the one that ended it


@dataclass(frozen=True)
class Reply:
    """What the model said in a conversation."""

    text: str
    tokens: Tokens  # without the token that ended it; those of a text that stopped it are among them
    finish_reason: Literal["stop", "length"]  # as of a caption; "stop" at one of `ChatOptions.stop`, too
    usage: Usage
    audio_s: float  # of all clips
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None = None
    warnings: tuple[str, ...] = ()
    confidence: float | None = None  # as of a caption


class ReplyStream(TextStream[Reply]):
    """Pieces of a reply as they are generated; once exhausted, `reply` holds all of it."""

    @property
    def reply(self) -> Reply:
        """The whole reply.

        Raises:
            RuntimeError: the stream was not read to its end.
        """
        return self._whole


def checked_messages(messages: object, facts: PromptFacts) -> list[Message]:
    """The messages, with the bundle's system text before them unless they have one.

    Raises:
        PromptError: they are no conversation that ends with a question.
    """
    if not isinstance(messages, (list, tuple)) or not all(isinstance(message, Message) for message in messages):
        raise PromptError(f"the messages are of type {type(messages).__name__}; expected a list of Message")
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise PromptError(f"there are {len(messages)} messages; expected 1 to {MAX_MESSAGES}")
    sound = cast("list[Message]", list(messages))
    if sound[-1].role != "user":
        raise PromptError(f"the last message is of the {sound[-1].role}; expected one of the user, to be answered")
    if facts.system and sound[0].role != "system":
        sound.insert(0, Message("system", facts.system))
    return sound


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """The messages as a prompt is built of them; a system message without text is no turn."""
    turns, clips = list[Turn](), 0
    for message in messages:
        parts: list[str | Audio] = []
        for part in message.parts:
            parts.append(part if isinstance(part, str) else Audio(clips))
            clips += not isinstance(part, str)
        if message.role != "system" or any(parts):
            turns.append(Turn(message.role, tuple(parts)))
    return turns
