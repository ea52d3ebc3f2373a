"""A clip on its way through the engine, and the scheduler of a bundle's parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import TypeAlias

from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.errors import DashengEdgeError, PromptError, clip_error
from dasheng_edge.runtime.parts import Parts
from dasheng_edge.runtime.text.answer import Answer, share_beginning
from dasheng_edge.runtime.text.decoder import Embeddings
from dasheng_edge.runtime.text.sequences import Sequences

from .chat_job import ChatJob, ChatRequest
from .clip_audio import ClipAudio
from .conversation import Piece
from .heard_clips import HeardClips
from .hearing import Hearing
from .request import Request, RunningRequest
from .scheduler import Scheduler
from .written_text import WrittenText

READERS = 1  # threads that read audio: one reads 300 times as fast as two cores encode
GPU_READERS, GPU_TOGETHER = 4, 8  # which compute spectrograms, too; clips that are encoded together
# Clips that are heard before any is answered, where parts take turns: a turn costs the 0.6B 0.3 s. Each waits as its
# samples, 4 MB at most, and then as its rows.
HEARD_APART = 8


class _Question:
    """One of those that are asked about a clip, to its caption or error."""

    def __init__(self, bundle: Bundle, parts: Parts, request: Request, audio: ClipAudio) -> None:
        self._request, self._parts = request, parts
        self.answer: Answer | None = None
        self.raised: Exception | None = None
        try:
            self._running = RunningRequest(bundle, parts, request, audio)
        except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
            self.raised = error

    @property
    def ended(self) -> bool:
        return self.raised is not None or (self.answer is not None and self.answer.ended)

    def ask(self, embeddings: Embeddings) -> None:
        try:
            rows = self._running.rows(embeddings)
            self.answer = Answer(rows, self._request.max_new_tokens, self._request.sampling)
            if self._request.on_text is not None:
                self.answer.told = partial(self._tell, self.answer, WrittenText(self._parts.decoder))
        except Exception as error:  # noqa: BLE001  # as above
            self.raised = error

    def _tell(self, answer: Answer, text: WrittenText) -> bool:
        """Another token was chosen."""
        assert self._request.on_text is not None
        if not self._parts.decoder.is_end(answer.tokens[-1]) and (piece := text.add(answer.tokens[-1])):
            with suppress(Exception):  # who listens has gone
                self._request.on_text(piece)
        return False

    def caption(self) -> Caption:
        if self.answer is None:
            self._running.be_silent()
        else:
            self._running.answered(self.answer)
        return self._running.caption()


class CaptionJob:
    """What is asked about a clip, one question or several, from its arrival to its captions or errors."""

    def __init__(self, bundle: Bundle, parts: Parts, requests: Sequence[Request], *, listens: bool = False) -> None:
        self._request, self._listens = requests[0], listens  # whether spectrograms are computed where audio is read
        self._raised: BaseException | None = None
        self._silent = False
        self._questions: list[_Question] = []
        try:
            self.audio = ClipAudio(parts.audio, self._request.audio, watch=self._request.changes)
            self._questions = [_Question(bundle, parts, request, self.audio) for request in requests]
        except Exception as error:  # noqa: BLE001  # whatever a clip does, the others go on
            self._raised = error

    @property
    def name(self) -> str:
        """Its audio, for messages."""
        return self._request.name

    @property
    def ended(self) -> bool:
        """Whether there are results."""
        return self._raised is not None or self._silent or all(question.ended for question in self._questions)

    @property
    def answers(self) -> list[Answer]:
        """Those to the questions, once it is heard."""
        return [question.answer for question in self._questions if question.answer is not None]

    def read(self) -> None:
        """As `read_here`, in a thread of the engine's, where nobody else is told that a clip's iterator exits."""
        try:
            self.read_here()
        except BaseException as error:  # noqa: BLE001  # as above
            self._raised = error

    def read_here(self) -> None:
        """Read some of the audio ahead; what fails is the `result`."""
        if not self.ended:
            try:
                self.audio.read_ahead()
                self._silent = not self._request.ask_silence and self.audio.silent()
                if self._listens and not self._silent:
                    self.audio.listen()
            except Exception as error:  # noqa: BLE001  # as above
                self._raised = error

    def hear(self) -> None:
        """Bring the audio into rows of the prompts; what fails is the `result`. Nothing if that was done."""
        if not self.ended and not self.answers:
            try:
                self.ask(self.audio.rows())
            except Exception as error:  # noqa: BLE001  # as above
                self._raised = error

    def ask(self, embeddings: Embeddings) -> None:
        """The audio is there."""
        for question in self._questions:
            if not question.ended:
                question.ask(embeddings)
        share_beginning(self.answers)

    def finish(self, sequences: Sequences) -> list[Caption | DashengEdgeError]:
        """Hear it and make its answers with nothing beside; the `results`."""
        places = _Places(sequences)
        self.read_here()
        self.hear()
        try:
            if not self.ended:
                places.begin([self])
            while not self.ended:
                places.step()
        except BaseException:
            sequences.close()
            raise
        return self.results()

    def results(self) -> list[Caption | DashengEdgeError]:
        """The caption of each question, or its error.

        Raises:
            DashengEdgeError: what is wrong is not this clip: see `NOT_OF_A_CLIP`.
        """
        if self._raised is not None:
            return [clip_error(self.name, self._raised)] * max(1, len(self._questions))
        return [self._result(question) for question in self._questions]

    def result(self) -> Caption | DashengEdgeError:
        """As `results`, of the only question."""
        (result,) = self.results()
        return result

    def _result(self, question: _Question) -> Caption | DashengEdgeError:
        raised = question.raised or (question.answer.error if question.answer is not None else None)
        if raised is None:
            return question.caption()
        if isinstance(raised, PromptError) and len(self._questions) > 1:
            return raised  # what is wrong with one question is not wrong with all
        return clip_error(self.name, raised)


Job: TypeAlias = CaptionJob | ChatJob


class _Places:
    """The sequences of a decoder, as the scheduler sees them: a job has begun when one of its answers has."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self._waiting: list[Answer] = []  # of jobs that have begun
        self.close = sequences.close

    def begin(self, jobs: Sequence[Job]) -> int:
        answers = [answer for job in jobs for answer in job.answers]
        begun = 0 if self._waiting else self._sequences.begin(answers)
        jobs_begun = 0
        for job in jobs:
            if begun <= 0:
                break
            jobs_begun += 1
            self._waiting += job.answers[begun:]
            begun -= len(job.answers)
        return jobs_begun

    def step(self) -> None:
        if self._waiting:
            del self._waiting[: self._sequences.begin(self._waiting)]
        self._sequences.step()

    def stop(self, job: Job) -> None:
        answers = job.answers
        self._waiting = [one for one in self._waiting if not any(one is answer for answer in answers)]
        for answer in answers:
            self._sequences.stop(answer)


class CaptionScheduler(Scheduler[Job]):
    """A scheduler of answers on a bundle's parts, of which it makes up to `most` together; a clip has `questions`.

    `beside`, encoder and decoder work at the same time: by default where one of them is on a GPU.
    """

    def __init__(
        self, bundle: Bundle, parts: Parts, most: int, *, questions: int = 1, beside: bool | None = None
    ) -> None:
        settings = parts.decoder.settings
        self._bundle, self._parts = bundle, parts
        self._listens = settings.device != "cpu" if beside is None else beside
        beside = self._listens or settings.text_device != "cpu"
        readers, together = (GPU_READERS, GPU_TOGETHER) if self._listens else (READERS, 1)
        clips, apart = -(-most // questions), settings.memory == "low"
        if apart:
            together = max(clips, HEARD_APART)
        self.ahead = together + clips if apart else 2 * clips  # how many are to be added before one is waited for
        hearing = Hearing(self._hear, readers=readers, together=together, beside=beside, apart=apart, ahead=clips)
        super().__init__(hearing, _Places(Sequences(parts.decoder, most)), clips, beside=beside)

    def job(self, *requests: Request) -> CaptionJob:
        """What is asked about a clip, to `add`. What is wrong with it is its `result`."""
        return CaptionJob(self._bundle, self._parts, requests, listens=self._listens)

    def chat(self, request: ChatRequest, known: HeardClips, on_piece: Callable[[Piece], None] | None) -> ChatJob:
        """As `job`, of a conversation."""
        return ChatJob(self._parts, request, known, listens=self._listens, on_piece=on_piece)

    def _hear(self, jobs: Sequence[Job]) -> None:
        alone = [job for job in jobs if isinstance(job, CaptionJob)]
        if len(alone) > 1:
            with suppress(Exception):  # what is wrong with one is seen when it is heard alone
                self._hear_together(alone)
        for job in jobs:
            job.hear()

    def _hear_together(self, jobs: Sequence[CaptionJob]) -> None:
        """Those whose spectrograms are there share runs of the encoder; time is shared equally."""
        start, audio = perf_counter(), self._parts.audio
        ready = [(job, feeds) for job in jobs if not job.ended and (feeds := job.audio.feeds())]
        clips = audio.encoder.clips([feeds for _, feeds in ready])
        encoded = perf_counter()
        embeddings = audio.projector.together(clips)
        share = 1000.0 / max(1, len(ready))
        encoder_ms, projector_ms = share * (encoded - start), share * (perf_counter() - encoded)
        for (job, _), patches, rows in zip(ready, clips, embeddings, strict=True):
            job.audio.heard(rows, patches, encoder_ms=encoder_ms, projector_ms=projector_ms)
            job.ask(rows)
