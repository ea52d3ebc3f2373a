"""Captions clips with a bundle: opens it, and runs one request after another."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count, islice, starmap
from pathlib import Path
from typing import Any, TypeAlias

from dasheng_edge.runtime.audio.read import AudioSource
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.caption import Caption, CaptionStream, TextStream
from dasheng_edge.runtime.engine.chat_job import ChatJob, ChatRequest
from dasheng_edge.runtime.engine.clip_audio import HeardAudio
from dasheng_edge.runtime.engine.conversation import ChatOptions, Message, Reply, ReplyStream
from dasheng_edge.runtime.engine.heard_clips import HeardClips
from dasheng_edge.runtime.engine.job import CaptionJob, CaptionScheduler, Job
from dasheng_edge.runtime.engine.opening import open_parts, warm_up
from dasheng_edge.runtime.engine.request import Request, RunningRequest, asked, check_count
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import (
    NOT_OF_A_CLIP,
    AudioError,
    CaptionerBusyError,
    DashengEdgeError,
    PromptError,
)
from dasheng_edge.runtime.machine.devices import Device
from dasheng_edge.runtime.machine.forks import Home, starts_pool
from dasheng_edge.runtime.machine.memory import memory_errors
from dasheng_edge.runtime.parts import Parts
from dasheng_edge.runtime.text.sequences import MAX_SEQUENCES, Sequences

_Early: TypeAlias = Callable[[int, list[Caption | DashengEdgeError]], None]  # is told of results, by numbers of clips


class Captioner:
    """Captions clips with one bundle, one at a time.

    Not for two threads at once: the second one gets `CaptionerBusyError` instead of a mixed-up caption.
    Open one captioner per thread, or hold a lock of your own.

    A clip in which there is nothing, as `is_silent` says, gets an empty caption whose `reason` is "silence", at once: a
    model that must say something makes something up. With `ask_silence = True` it is asked all the same.
    """

    def __init__(self, bundle: Bundle, parts: Parts) -> None:
        self.bundle = bundle
        self.parts = parts
        self.ask_silence = False
        self._lock = threading.Lock()
        self._streams: weakref.WeakSet[TextStream[Any]] = weakref.WeakSet()
        self._heard = HeardClips()
        self.sequences = Sequences(
            parts.decoder, MAX_SEQUENCES, choose=False, keep=True
        )  # of one request after another
        self._schedulers: set[CaptionScheduler] = set()
        self._closed = False
        self._home = Home("captioner", parts)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        options: EngineOptions | None = None,
        device: Device | None = None,
        threads: int | None = None,
        check_sha256: bool = True,
        few: bool = False,
    ) -> Captioner:
        """Open a bundle; what the options leave open is what `dasheng-edge tune` chose here, or the default.

        `device`, `threads` (of each part) and `few`, which is `weights="mapped"`, are short for those of `options`, and
        replace them. `few` is for a process that captions fewer than about ten clips.
        `check_sha256=False` saves reading every file once more; sizes are checked in any case. The cache of prompts
        goes by the hashes in the manifest, so what was not held against them neither reads it nor writes to it.

        Raises what `Bundle.open` and `Parts.open` raise, all of them `DashengEdgeError`.
        """
        options = (options or EngineOptions()).changed(
            device=device, threads=threads, weights="mapped" if few else None
        )
        captioner = cls(*open_parts(path, options, check_sha256=check_sha256))
        warm_up(captioner.bundle, captioner.parts, captioner.sequences)
        return captioner

    def __enter__(self) -> Captioner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder; a stream that was not read to its end is closed. Harmless when repeated.

        In a forked child it does nothing.

        Raises:
            CaptionerBusyError: another thread is captioning.
        """
        if not self._home.here:
            return
        busy = "cannot close the captioner while another thread is captioning"
        try:
            for stream in list(self._streams):
                stream.close()
        except (ValueError, RuntimeError):  # "generator already executing", "set changed size during iteration"
            raise CaptionerBusyError(busy) from None
        if not self._lock.acquire(blocking=False):  # a caption that began since
            raise CaptionerBusyError(busy)
        try:
            self._closed = True
            for scheduler in self._schedulers:
                scheduler.close()
            self.sequences.close()
            self.parts.decoder.close()
        finally:
            self._lock.release()

    def caption(
        self,
        audio: AudioSource | HeardAudio,
        prompt: str | None = None,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
    ) -> Caption:
        """Caption one clip; arguments and errors as in `stream`."""
        stream = self.stream(audio, prompt, system=system, max_new_tokens=max_new_tokens, sampling=sampling)
        return stream.finish()

    def stream(
        self,
        audio: AudioSource | HeardAudio,
        prompt: str | None = None,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        live: bool = False,
    ) -> CaptionStream:
        """Caption one clip piece by piece. None means the bundle's default, and `system=""` no system turn.

        `audio` is a path, bytes, a binary file object, `(array, sample_rate)` or `(iterator of arrays, sample_rate)`;
        see `read_audio`. With `live`, chunks of 10 s are encoded and prefilled while the audio comes, so that little is
        left to do after its end; `RunningFeatures` says what that changes.

        Raises (here or with the first piece):
            AudioError: the audio cannot be read, or is longer than the context has room for.
            PromptError: the prompt cannot be rendered, or leaves no room for audio.
            CaptionerBusyError: the captioner is closed, or another caption is under way.
            ForkedError: this process was forked from the one that opened it.
            DecoderError, DeviceError: llama.cpp or ONNX Runtime failed.
        """
        request = asked(self.bundle, prompt, system, max_new_tokens, sampling)
        stream = CaptionStream(self._run(replace(request, audio=audio, live=live, ask_silence=self.ask_silence)))
        self._streams.add(stream)
        return stream

    def caption_batch(
        self,
        clips: Sequence[AudioSource],
        prompt: str | None = None,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        batch: int | None = None,
    ) -> list[Caption]:
        """Caption clips, `batch` of them decoded together; arguments and errors as in `stream`.

        Greedy answers are those of `caption`, see `Sequences`. `timings` of a clip are those of its own audio; the time
        of prefills and steps is shared equally by the clips in them. The first clip that fails ends it: see
        `caption_each`.
        """
        results = self.caption_each(
            clips, prompt, system=system, max_new_tokens=max_new_tokens, sampling=sampling, batch=batch
        )
        with closing(results):
            return [_unless_failed(result) for result in results]

    def caption_each(  # noqa: PLR0913  # as `stream`, and what concerns many clips
        self,
        clips: Iterable[AudioSource],
        prompt: str | None = None,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        batch: int | None = None,
        changes: bool = False,
        early: Callable[[int, Caption | DashengEdgeError], None] | None = None,
    ) -> Generator[Caption | DashengEdgeError]:
        """As `caption_batch`, but a clip that fails gives its error, an `AudioError` mostly, and the others go on.

        Results come in the order of the clips, of which twice as many as `batch` are asked for ahead. Fewer are decoded
        together where there is no memory for more. What is wrong for all clips, such as the prompt or the captioner, is
        raised. With `changes`, captions say where something sets in. `early` is told of each result as soon as it is
        there, with the number of its clip from 0 on, before those of clips ahead of it that take longer.
        """
        first = replace(asked(self.bundle, prompt, system, max_new_tokens, sampling), changes=changes)
        told = None if early is None else lambda number, results: early(number, results[0])
        return (result for (result,) in self._results(clips, [first], batch, told))

    def ask(
        self,
        audio: AudioSource,
        questions: Mapping[str, str | None] | Sequence[str],
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
    ) -> dict[str, Caption]:
        """Ask several questions about one clip: prompts by their names, or prompts, which are their own names.

        The clip is heard once, and the answers are made together. Where the bundle's prompt has the audio before the
        text, the decoder, too, reads it once. Greedy answers are those of `caption` with each prompt, see `Sequences`;
        `timings` of each hold the time of the hearing. A prompt that is None is the bundle's. All else is as in
        `stream`; the first question that fails ends it: see `ask_each`.
        """
        named = _named(questions)
        first = [asked(self.bundle, prompt, system, max_new_tokens, sampling) for prompt in named.values()]
        requests = [replace(one, audio=audio, ask_silence=self.ask_silence) for one in first]
        with self._busy():
            self.parts.make_way()
            results = CaptionJob(self.bundle, self.parts, requests).finish(self.sequences)
            return {name: _unless_failed(result) for name, result in zip(named, results, strict=True)}

    def ask_each(  # noqa: PLR0913  # as `stream`, and what concerns many clips
        self,
        clips: Iterable[AudioSource],
        questions: Mapping[str, str | None] | Sequence[str],
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        batch: int | None = None,
        changes: bool = False,
        early: Callable[[int, dict[str, Caption | DashengEdgeError]], None] | None = None,
    ) -> Generator[dict[str, Caption | DashengEdgeError]]:
        """As `ask`, of many clips, and as `caption_each`: `batch` answers are made together.

        A question that fails, since its prompt leaves no room for the clip, has its error, and a clip that cannot be
        read is the error of each of its questions.
        """
        named = _named(questions)
        some = [asked(self.bundle, prompt, system, max_new_tokens, sampling) for prompt in named.values()]
        first = [replace(one, changes=changes) for one in some]
        told = None if early is None else lambda number, results: early(number, dict(zip(named, results, strict=True)))
        return (dict(zip(named, results, strict=True)) for results in self._results(clips, first, batch, told))

    def chat(self, messages: Sequence[Message], options: ChatOptions | None = None) -> Reply:
        """The next reply of a conversation: send all of its messages each time.

        Clips that were heard in a turn before are not heard again, nor does the decoder read again what it still has
        of the messages before. Without a system message, the bundle's system text is used; `Message("system", "")` is
        none. A clip in which there is nothing is asked about all the same, and `warnings` say so.

        Raises what `stream` raises.
        """
        return self.chat_stream(messages, options).finish()

    def chat_stream(self, messages: Sequence[Message], options: ChatOptions | None = None) -> ReplyStream:
        """As `chat`, piece by piece."""
        request = ChatRequest(self.bundle, self.parts, messages, options)
        stream = ReplyStream(self._chat(request))
        self._streams.add(stream)
        return stream

    def _chat(self, request: ChatRequest) -> Generator[str, None, Reply]:
        with self._busy():
            return (yield from ChatJob(self.parts, request, self._heard).generate(self.sequences))

    def _run(self, request: Request) -> Generator[str, None, Caption]:
        with self._busy():
            running = RunningRequest(self.bundle, self.parts, request)
            yield from running.generate(self.sequences)
            return running.caption()

    @contextmanager
    def _busy(self) -> Generator[None]:
        """No other caption runs meanwhile."""
        self._home.check()
        if not self._lock.acquire(blocking=False):
            raise CaptionerBusyError(
                "the captioner is busy with another caption; finish or close that one first, "
                "or open one captioner per thread"
            )
        try:
            if self._closed:
                raise CaptionerBusyError("the captioner is closed; open a new one")
            starts_pool(self.parts.decoder.settings.text_threads)
            with memory_errors("a caption", "free memory, caption fewer clips at once, or shorter ones"):
                yield
        finally:
            self._lock.release()

    def _results(
        self, clips: Iterable[AudioSource], questions: Sequence[Request], batch: int | None, early: _Early | None
    ) -> Generator[list[Caption | DashengEdgeError]]:
        """What came of each question about each clip; the clips are asked for a few ahead."""
        batch = self.parts.decoder.settings.batch if batch is None else batch
        check_count("batch", batch, MAX_SEQUENCES)
        if isinstance(clips, (str, bytes, os.PathLike)) or not isinstance(clips, Iterable):
            raise AudioError(f"the clips are of type {type(clips).__name__}; expected a list of paths or other audio")
        first = [replace(one, ask_silence=self.ask_silence) for one in questions]
        requests = ([replace(one, audio=audio) for one in first] for audio in clips)
        return self._scheduled(requests, batch, len(first), early)

    def _scheduled(
        self, clips: Iterator[Sequence[Request]], batch: int, questions: int, early: _Early | None
    ) -> Generator[list[Caption | DashengEdgeError]]:
        scheduler = CaptionScheduler(self.bundle, self.parts, batch, questions=questions)
        self._schedulers.add(scheduler)
        jobs: dict[CaptionJob, int] = {}  # in their order, with their numbers
        numbers = count()

        def end(job: Job) -> None:
            if early is None or not isinstance(job, CaptionJob) or job not in jobs:  # its turn came before
                return
            try:
                results = job.results()
            except NOT_OF_A_CLIP:  # raised in its turn
                return
            early(jobs[job], results)

        try:
            while True:
                new = list(islice(clips, scheduler.ahead - len(jobs)))
                if not new and not jobs:
                    return
                with self._busy():
                    for job in starmap(scheduler.job, new):
                        jobs[job] = next(numbers)
                        scheduler.add(job)
                    first = next(iter(jobs))
                    while not first.ended:
                        scheduler.advance(end)
                    del jobs[first]
                    results = first.results()
                yield results
        finally:
            self._schedulers.discard(scheduler)
            scheduler.close()


def _named(questions: Mapping[str, str | None] | Sequence[str]) -> Mapping[str, str | None]:
    if isinstance(questions, str) or not isinstance(questions, Mapping | Sequence):
        what = f"the questions are of type {type(questions).__name__}"
        raise PromptError(f"{what}; expected a list of prompts, or prompts by their names")
    if not questions:
        raise PromptError("there is no question; expected at least one")
    return questions if isinstance(questions, Mapping) else {question: question for question in questions}


def _unless_failed(result: Caption | DashengEdgeError) -> Caption:
    if isinstance(result, DashengEdgeError):
        raise result
    return result
