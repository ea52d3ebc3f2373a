"""An answer in a conversation on its way through the engine: its clips are heard, its text is watched as it comes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter

from dasheng_edge.runtime.audio.read import AudioSource
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.errors import AudioTooLongError, DashengEdgeError, PromptError, clip_error
from dasheng_edge.runtime.parts import Parts
from dasheng_edge.runtime.prompt.json_schema import grammar_of
from dasheng_edge.runtime.text.answer import Answer
from dasheng_edge.runtime.text.decoder import Embeddings
from dasheng_edge.runtime.text.sequences import Sequences

from .clip_audio import ClipAudio, HeardAudio
from .conversation import ChatOptions, Message, Piece, Reply, TokenLogprob, Usage, checked_messages, turns_of
from .heard_clips import HeardClips, clip_key
from .request import cut_warnings, timings_of, too_long_to_hear_well
from .written_text import WrittenText


class ChatRequest:
    """What is asked in a conversation, checked.

    Raises:
        PromptError: the messages or options are not what they should be, or leave no room for an answer.
    """

    def __init__(
        self, bundle: Bundle, parts: Parts, messages: Sequence[Message], options: ChatOptions | None = None
    ) -> None:
        facts, options = bundle.prompt_facts, ChatOptions() if options is None else options
        if not isinstance(options, ChatOptions):
            raise PromptError(f"the options are of type {type(options).__name__}; expected ChatOptions, or None")
        start = perf_counter()
        checked = checked_messages(messages, facts)
        self.prompt = parts.prompts.chat(turns_of(checked))
        self.clips = [clip for message in checked for clip in message.clips]
        self.options, self.comfortable_s = options, facts.comfortable_s
        self.max_new_tokens = options.max_new_tokens or facts.max_new_tokens
        self.sampling = options.sampling or facts.sampling
        self.grammar = None if options.schema is None else grammar_of(options.schema)
        self.positions = min(bundle.decoder_facts.context_length, parts.decoder.context_length)
        taken = self.prompt.text_tokens + self.max_new_tokens
        if taken + len(self.clips) > self.positions:
            raise PromptError(
                f"the conversation and {self.max_new_tokens} new tokens take {taken} positions of the decoder's "
                f"{self.positions}, without its audio; begin a new one, or ask for fewer new tokens"
            )
        self.max_samples = bundle.manifest.front_end.samples_for_tokens(self.positions - taken)
        self.prompt_ms = 1000.0 * (perf_counter() - start)


class _Clip:
    """A clip of a conversation."""

    def __init__(self, parts: Parts, source: AudioSource | HeardAudio, request: ChatRequest) -> None:
        self.audio, self.source = ClipAudio(parts.audio, source), source
        self.heard = source if isinstance(source, HeardAudio) else None
        self.silent = False
        self._key: tuple[object, ...] | None = None
        self.audio.allow(
            request.max_samples,
            f"{self.audio.name} is longer than {request.max_samples / self.audio.rate_hz:.1f} s, which is what the "
            f"decoder's {request.positions} positions hold beside the text; cut it into shorter pieces",
        )

    def read(self, known: HeardClips, *, listens: bool, first: Callable[[], None] | None) -> None:
        """Read some of it ahead, unless it was heard before; `first` is called then."""
        if self.heard is None:
            self._key = clip_key(self.source)
            self.heard = known.get(self._key)
        if self.heard is None:
            if first is not None:
                first()
            self.audio.read_ahead()
            self.silent = self.audio.silent()
            if listens:
                self.audio.listen()

    def hear(self, known: HeardClips) -> HeardAudio:
        """What the encoder hears in it."""
        if self.heard is None:
            embeddings = self.audio.rows()
            seconds = self.audio.samples / self.audio.rate_hz
            self.heard = known.put(self._key, HeardAudio(embeddings, seconds, self.audio.name))
        return self.heard


class ChatJob:
    """From the arrival of a request to its reply or error; `on_piece` is told of the text as it comes.

    As `CaptionJob`, for the same scheduler.
    """

    def __init__(
        self,
        parts: Parts,
        request: ChatRequest,
        known: HeardClips,
        *,
        listens: bool = False,
        on_piece: Callable[[Piece], None] | None = None,
    ) -> None:
        self._parts, self._request, self._known = parts, request, known
        self._listens, self._on_piece = listens, on_piece
        self._raised: BaseException | None = None
        self._clips: list[_Clip] = []
        self._answer: Answer | None = None
        self._text = WrittenText(parts.decoder, request.options.stop)
        self._logprobs: list[TokenLogprob] = []
        self._told = 0  # of these
        self._before_reading: Callable[[], None] | None = None
        self.name = "the conversation"
        try:
            for source in request.clips:
                self._clips.append(_Clip(parts, source, request))
        except Exception as error:  # noqa: BLE001  # whatever a clip does, the others go on
            self._raised = error

    @property
    def ended(self) -> bool:
        """Whether there is a result."""
        return self._raised is not None or (self._answer is not None and self._answer.ended)

    @property
    def answers(self) -> list[Answer]:
        """The answer, once all is heard."""
        return [] if self._answer is None else [self._answer]

    def read(self) -> None:
        """As `read_here`, in a thread of the engine's, where nobody else is told that a clip's iterator exits."""
        try:
            self.read_here()
        except BaseException as error:  # noqa: BLE001  # as above
            self._raised = error

    def read_here(self) -> None:
        """Read some of the audio ahead; what fails is the `result`."""
        try:
            for clip in self._clips if not self.ended else ():
                self.name = clip.audio.name
                clip.read(self._known, listens=self._listens, first=self._before_reading)
        except Exception as error:  # noqa: BLE001  # as above
            self._raised = error

    def hear(self) -> None:
        """Bring the audio into the prompt; what fails is the `result`. Nothing if that was done."""
        if self.ended or self._answer is not None:
            return
        try:
            heard = []
            for clip in self._clips:
                self.name = clip.audio.name
                heard.append(clip.hear(self._known).embeddings)
            self._answer = self._asked(heard)
        except Exception as error:  # noqa: BLE001  # as above
            self._raised = error

    def _asked(self, heard: Sequence[Embeddings]) -> Answer:
        request, rows = self._request, self._request.prompt.rows(*heard)
        answer = Answer(rows, request.max_new_tokens, request.sampling)
        if answer.positions > request.positions:
            raise AudioTooLongError(
                f"the conversation needs {answer.positions} positions with its audio of "
                f"{sum(map(len, heard))}, the decoder has {request.positions}; use shorter audio, or begin a new one"
            )
        answer.converses, answer.grammar, answer.top = True, request.grammar, request.options.top_logprobs
        answer.told = partial(self._watch, answer)
        return answer

    def _watch(self, answer: Answer) -> bool:
        """Another token was chosen; whether it is enough."""
        token = answer.tokens[-1]
        if self._parts.decoder.is_end(token):
            return False
        if answer.top is not None:
            chosen, piece = answer.chosen[-1], self._parts.decoder.piece
            top = tuple((other, piece(other), logprob) for other, logprob in chosen.top)
            self._logprobs.append(TokenLogprob(token, piece(token), chosen.logprob, top))
        try:
            self._tell(self._text.add(token))
        except Exception as error:  # noqa: BLE001  # who listens has gone; the others are answered
            self._raised = error
            return True
        return self._text.stopped

    def _tell(self, text: str) -> None:
        if text and self._on_piece is not None:
            count = self._text.complete if self._logprobs else 0
            self._on_piece(Piece(text, tuple(self._logprobs[self._told : count])))
            self._told = count

    def generate(self, sequences: Sequences) -> Generator[str, None, Reply]:
        """Hear it and make its answer with nothing beside, piece by piece.

        Raises what went wrong.
        """
        pieces: list[str] = []
        self._on_piece = lambda piece: pieces.append(piece.text)
        self._before_reading = self._parts.make_way
        self.read_here()
        self.hear()
        try:
            if self._answer is not None:
                sequences.begin([self._answer])
            while not self.ended:
                yield from pieces
                pieces.clear()
                sequences.step()
        finally:
            if self._answer is not None:
                sequences.stop(self._answer)
        reply = self.result()
        yield from pieces
        if isinstance(reply, DashengEdgeError):
            raise reply
        return reply

    def result(self) -> Reply | DashengEdgeError:
        """The reply, or the error of its clips.

        Raises:
            DashengEdgeError: what is wrong is not a clip: see `NOT_OF_A_CLIP`.
        """
        answer = self._answer
        raised = self._raised or (answer.error if answer is not None else None)
        if raised is not None:
            return clip_error(self.name, raised)
        assert answer is not None, "it has ended"
        if rest := self._text.finish():
            with suppress(Exception):  # who listens has gone
                self._tell(rest)
        return self._reply(answer)

    def _reply(self, answer: Answer) -> Reply:
        decoder, request, clips = self._parts.decoder, self._request, self._clips
        ended = decoder.is_end(answer.tokens[-1])
        heard = [clip.heard for clip in clips if clip.heard is not None]
        audio_tokens = sum(len(one.embeddings) for one in heard)
        prompt_tokens = request.prompt.text_tokens + audio_tokens
        tokens = tuple(answer.tokens[:-1] if ended else answer.tokens)
        warnings = [warning for clip in clips for warning in clip.audio.warnings]
        warnings += [f"{clip.audio.name}: there is nothing to be heard in it" for clip in clips if clip.silent]
        warnings += [
            f"{one.name}: {too_long_to_hear_well(one.seconds, request.comfortable_s)}; cut it into pieces"
            for one in heard
            if one.seconds > request.comfortable_s
        ]
        if not self._text.stopped:
            warnings += cut_warnings(decoder, answer)
        return Reply(
            text=self._text.text,
            tokens=tokens,
            finish_reason="stop" if ended or self._text.stopped else "length",
            usage=Usage(prompt_tokens, audio_tokens, prompt_tokens - answer.prefilled, len(tokens)),
            audio_s=sum(one.seconds for one in heard),
            timings=timings_of(request.prompt_ms, [clip.audio for clip in clips], answer),
            logprobs=tuple(self._logprobs[: self._text.complete]) if answer.top is not None else None,
            warnings=tuple(warnings),
            confidence=answer.confidence,
        )
