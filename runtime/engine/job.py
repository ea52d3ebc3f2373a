"""A request on its way through the engine, and the scheduler of a bundle's parts."""

from __future__ import annotations

from collections.abc import Sequence

from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.errors import DashengEdgeError, clip_error
from dasheng_edge.runtime.parts import Parts
from dasheng_edge.runtime.request import Request, RunningRequest
from dasheng_edge.runtime.text.sequences import Answer, Sequences

from .hearing import Hearing
from .scheduler import Scheduler

READERS = 1  # threads that read audio: one reads 300 times as fast as two cores encode
GPU_READERS, GPU_TOGETHER = 4, 8  # which compute spectrograms, too; clips that are encoded together


class CaptionJob:
    """A request, from its arrival to its caption or error."""

    def __init__(self, bundle: Bundle, parts: Parts, request: Request) -> None:
        self._request = request
        self._running: RunningRequest | None = None
        self._raised: Exception | None = None
        self.answer: Answer | None = None
        try:
            self._running = RunningRequest(bundle, parts, request)
        except Exception as error:  # noqa: BLE001  # whatever a clip does, the others go on
            self._raised = error

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
        if self._running is not None:
            try:
                self._running.read_ahead()
            except Exception as error:  # noqa: BLE001  # as above
                self._raised = error

    def hear(self) -> None:
        """Bring the audio into rows of the prompt; what fails is the `result`."""
        if self._running is not None and not self.failed:
            try:
                rows = self._running.rows()
            except Exception as error:  # noqa: BLE001  # as above
                self._raised = error
            else:
                self.answer = Answer(rows, self._request.max_new_tokens, self._request.sampling)

    def result(self) -> Caption | DashengEdgeError:
        """Its caption, or the error of this clip.

        Raises:
            DashengEdgeError: what is wrong is not this clip: see `NOT_OF_A_CLIP`.
        """
        raised = self._raised or (self.answer.error if self.answer is not None else None)
        if raised is not None:
            return clip_error(self._request.name, raised)
        assert self._running is not None
        assert self.answer is not None
        return self._running.answered(self.answer)


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


def new_scheduler(parts: Parts, most: int) -> Scheduler[CaptionJob]:
    """A scheduler of captions on a bundle's parts, of which it makes up to `most` together."""
    beside = parts.decoder.settings.device != "cpu"

    def hear(jobs: Sequence[CaptionJob]) -> None:
        for job in jobs:
            job.hear()

    hearing = Hearing(
        hear, readers=GPU_READERS if beside else READERS, together=GPU_TOGETHER if beside else 1, beside=beside,
        ahead=most,
    )  # fmt: skip
    return Scheduler(hearing, _Places(Sequences(parts.decoder, most)), most, beside=beside)
