"""A request on its way through the engine, and the scheduler of a bundle's parts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from time import perf_counter

import numpy as np

from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.errors import DashengEdgeError, clip_error
from dasheng_edge.runtime.parts import Parts
from dasheng_edge.runtime.request import Request, RunningRequest
from dasheng_edge.runtime.text.decoder import Embeddings
from dasheng_edge.runtime.text.model import Tokens
from dasheng_edge.runtime.text.sequences import Answer, Sequences

from .hearing import Hearing
from .scheduler import Scheduler

READERS = 1  # threads that read audio: one reads 300 times as fast as two cores encode
GPU_READERS, GPU_TOGETHER = 4, 8  # which compute spectrograms, too; clips that are encoded together


class CaptionJob:
    """A request, from its arrival to its caption or error."""

    def __init__(self, bundle: Bundle, parts: Parts, request: Request, *, listens: bool = False) -> None:
        self._request, self._listens = request, listens  # whether spectrograms are computed where audio is read
        self.running: RunningRequest | None = None
        self._raised: Exception | None = None
        self.answer: Answer | None = None
        try:
            self.running = RunningRequest(bundle, parts, request)
        except Exception as error:  # noqa: BLE001  # whatever a clip does, the others go on
            self._raised = error

    @property
    def name(self) -> str:
        """Its audio, for messages."""
        return self._request.name

    @property
    def failed(self) -> bool:
        """Whether it could not be heard."""
        return self._raised is not None

    @property
    def ended(self) -> bool:
        """Whether there is a result."""
        return self.failed or (self.answer is not None and self.answer.ended)

    def read(self) -> None:
        """Read some of the audio ahead; what fails is the `result`."""
        if self.running is not None:
            try:
                self.running.read_ahead()
                if self._listens:
                    self.running.listen()
            except Exception as error:  # noqa: BLE001  # as above
                self._raised = error

    def hear(self) -> None:
        """Bring the audio into rows of the prompt; what fails is the `result`. Nothing if that was done."""
        if self.running is not None and not self.failed and self.answer is None:
            try:
                self.ask(self.running.rows())
            except Exception as error:  # noqa: BLE001  # as above
                self._raised = error

    def ask(self, rows: Sequence[Tokens | Embeddings]) -> None:
        """The prompt with the audio is there."""
        self.answer = Answer(rows, self._request.max_new_tokens, self._request.sampling)

    def result(self) -> Caption | DashengEdgeError:
        """Its caption, or the error of this clip.

        Raises:
            DashengEdgeError: what is wrong is not this clip: see `NOT_OF_A_CLIP`.
        """
        raised = self._raised or (self.answer.error if self.answer is not None else None)
        if raised is not None:
            return clip_error(self._request.name, raised)
        assert self.running is not None
        assert self.answer is not None
        return self.running.answered(self.answer)


class _Places:
    """The sequences of a decoder, as the scheduler sees them."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self.step, self.close = sequences.step, sequences.close

    def __len__(self) -> int:
        return len(self._sequences)

    def begin(self, jobs: Sequence[CaptionJob]) -> int:
        return self._sequences.begin([job.answer for job in jobs if job.answer is not None])

    def stop(self, job: CaptionJob) -> None:
        if job.answer is not None:
            self._sequences.stop(job.answer)


class CaptionScheduler(Scheduler[CaptionJob]):
    """A scheduler of captions on a bundle's parts, of which it makes up to `most` together.

    `beside`, encoder and decoder work at the same time: by default where one of them is on a GPU.
    """

    def __init__(self, bundle: Bundle, parts: Parts, most: int, *, beside: bool | None = None) -> None:
        settings = parts.decoder.settings
        self._bundle, self._parts = bundle, parts
        self._listens = settings.device != "cpu" if beside is None else beside
        beside = self._listens or settings.text_device != "cpu"
        readers, together = (GPU_READERS, GPU_TOGETHER) if self._listens else (READERS, 1)
        hearing = Hearing(self._hear, readers=readers, together=together, beside=beside, ahead=most)
        super().__init__(hearing, _Places(Sequences(parts.decoder, most)), most, beside=beside)

    def job(self, request: Request) -> CaptionJob:
        """A request to `add`. What is wrong with it is its `result`."""
        return CaptionJob(self._bundle, self._parts, request, listens=self._listens)

    def _hear(self, jobs: Sequence[CaptionJob]) -> None:
        if len(jobs) > 1:
            with suppress(Exception):  # what is wrong with one is seen when it is heard alone
                self._hear_together(jobs)
        for job in jobs:
            job.hear()

    def _hear_together(self, jobs: Sequence[CaptionJob]) -> None:
        """Those whose spectrograms are there share runs of the encoder; time is shared equally."""
        start, audio = perf_counter(), self._parts.audio
        running = [(job, job.running) for job in jobs if job.running is not None and not job.failed]
        ready = [(job, request, feeds) for job, request in running if (feeds := request.feeds())]
        patches = iter(audio.encoder.together([feed for _, _, feeds in ready for feed in feeds]))
        clips = [np.concatenate(list(islice(patches, len(feeds)))) for _, _, feeds in ready]
        encoded = perf_counter()
        embeddings = audio.projector.together(clips)
        share = 1000.0 / max(1, len(ready))
        encoder_ms, projector_ms = share * (encoded - start), share * (perf_counter() - encoded)
        for (job, request, _), rows in zip(ready, embeddings, strict=True):
            job.ask(request.heard(rows, encoder_ms=encoder_ms, projector_ms=projector_ms))
