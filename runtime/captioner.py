"""Captions clips with a bundle: opens it, and runs one request after another."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

from dasheng_edge.runtime.audio.read import AudioSource, describe_audio
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.machine.devices import Device
from dasheng_edge.runtime.machine.forks import Home, check_pool, starts_pool
from dasheng_edge.runtime.machine.memory import memory_errors
from dasheng_edge.runtime.machine.user_cache import cache_folder
from dasheng_edge.runtime.text.batch_decoder import MAX_SEQUENCES, batch_answers
from dasheng_edge.runtime.text.decoder import Embeddings
from dasheng_edge.runtime.text.model import Tokens
from dasheng_edge.runtime.text.prefix_cache import PrefixCache, prefix_model

from .caption import Caption, CaptionStream
from .errors import AudioError, CaptionerBusyError, DashengEdgeError, clip_error
from .parts import Parts
from .request import Request, RunningRequest, check_count
from .tuned import settings_for

# Eight clips of 10 s with 40 tokens each, 0.6B Q4_K_M on two cores: 5.9 s one by one, 5.5 s in twos, 4.7 s in fours and
# 4.0 s in one batch of eight, which writes 1.9 times as many tokens a second. Each clip needs its own keys and values.
DEFAULT_BATCH = 8


class Captioner:
    """Captions clips with one bundle, one at a time.

    Not for two threads at once: the second one gets `CaptionerBusyError` instead of a mixed-up caption.
    Open one captioner per thread, or hold a lock of your own.
    """

    def __init__(self, bundle: Bundle, parts: Parts) -> None:
        self.bundle = bundle
        self.parts = parts
        self._lock = threading.Lock()
        self._streams: weakref.WeakSet[CaptionStream] = weakref.WeakSet()
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
        with memory_errors(f"opening {path}", 'free memory, take `weights="mapped"`, or quantize to a smaller recipe'):
            bundle = Bundle.open(path, check_sha256=check_sha256)
            settings = settings_for(bundle, options)
            check_pool(settings.text_threads)
            parts = Parts.open(bundle, settings)
            parts.warm_up()
        folder = cache_folder() if settings.cache is None else settings.cache
        folder = folder if check_sha256 and folder != "off" else None
        parts.decoder.prefixes = PrefixCache(folder, prefix_model(bundle, settings))
        return cls(bundle, parts)

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
            self.parts.decoder.close()
        finally:
            self._lock.release()

    def caption(
        self,
        audio: AudioSource,
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
        audio: AudioSource,
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
        asked = self._asked(prompt, system, max_new_tokens, sampling)
        stream = CaptionStream(self._run(replace(asked, audio=audio, live=live)))
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
        batch: int = DEFAULT_BATCH,
    ) -> list[Caption]:
        """Caption clips, `batch` of them decoded together; arguments and errors as in `stream`.

        Greedy answers are those of `caption`, see `batch_answers`. `timings` of a clip are those of its own audio and
        prefill; the time of decoding is shared equally. The first clip that fails ends it: see `caption_each`.
        """
        check_count("batch", batch, MAX_SEQUENCES)
        asked = self._asked(prompt, system, max_new_tokens, sampling)
        with self._busy():
            return [caption for group in _groups(asked, clips, batch) for caption in self._together(group)]

    def caption_each(
        self,
        clips: Iterable[AudioSource],
        prompt: str | None = None,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> Iterator[Caption | DashengEdgeError]:
        """As `caption_batch`, but a clip that fails gives its error, an `AudioError` mostly, and the others go on.

        Results come in the order of the clips, as each batch is done. Clips that cannot be decoded together are decoded
        in smaller batches. What is wrong for all clips, such as the prompt or the captioner, is raised.
        """
        check_count("batch", batch, MAX_SEQUENCES)
        asked = self._asked(prompt, system, max_new_tokens, sampling)
        return self._results(_groups(asked, clips, batch))

    def _asked(
        self, prompt: str | None, system: str | None, max_new_tokens: int | None, sampling: Sampling | None
    ) -> Request:
        """What is asked about any audio."""
        facts = self.bundle.prompt_facts
        limit = facts.max_new_tokens if max_new_tokens is None else max_new_tokens
        return Request(b"", prompt, system, limit, facts.sampling if sampling is None else sampling)

    def _run(self, request: Request) -> Generator[str, None, Caption]:
        with self._busy():
            running = RunningRequest(self.bundle, self.parts, request)
            running.prefill()
            yield from running.generate()
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

    def _together(self, requests: Sequence[Request]) -> list[Caption]:
        """Captions of requests that agree in everything but the audio, whose answers are decoded in one batch."""
        running, prompts = [], []
        for asked in requests:
            running.append(RunningRequest(self.bundle, self.parts, asked))
            prompts.append(running[-1].rows())
        answers = batch_answers(self.parts.decoder, prompts, requests[0].max_new_tokens, requests[0].sampling)
        return [request.answered(answer) for request, answer in zip(running, answers, strict=True)]

    def _results(self, groups: Iterator[list[Request]]) -> Iterator[Caption | DashengEdgeError]:
        for group in groups:
            with self._busy():
                results = self._each(group)
            yield from results

    def _each(self, requests: Sequence[Request]) -> list[Caption | DashengEdgeError]:
        """As `_together`, with the error of a clip that fails in its place."""
        results: list[Caption | DashengEdgeError | None] = []
        running: list[RunningRequest] = []
        prompts: list[list[Tokens | Embeddings]] = []
        for asked in requests:
            try:
                one = RunningRequest(self.bundle, self.parts, asked)
                prompts.append(one.rows())
            except Exception as error:  # noqa: BLE001, PERF203  # whatever a clip does, the others go on
                results.append(clip_error(describe_audio(asked.audio), error))
            else:
                running.append(one)
                results.append(None)
        answers = iter(self._answers(running, prompts, requests[0]))
        return [next(answers) if result is None else result for result in results]

    def _answers(
        self, running: Sequence[RunningRequest], prompts: Sequence[list[Tokens | Embeddings]], asked: Request
    ) -> list[Caption | DashengEdgeError]:
        """Of requests that are ready, in halves where they cannot be decoded together."""
        if not running:
            return []
        try:
            answers = batch_answers(self.parts.decoder, prompts, asked.max_new_tokens, asked.sampling)
            return [one.answered(answer) for one, answer in zip(running, answers, strict=True)]
        except Exception as error:  # noqa: BLE001  # as above
            if len(running) == 1:
                return [clip_error(running[0].name, error)]
        half = len(running) // 2
        return [
            answer
            for part in (slice(half), slice(half, None))
            for answer in self._answers(running[part], prompts[part], asked)
        ]


def _groups(asked: Request, clips: Iterable[AudioSource], size: int) -> Iterator[list[Request]]:
    """The same asked about each clip, in lists of so many."""
    if isinstance(clips, (str, bytes, os.PathLike)) or not isinstance(clips, Iterable):
        raise AudioError(f"the clips are of type {type(clips).__name__}; expected a list of paths or other audio")
    requests = (replace(asked, audio=audio) for audio in clips)
    return iter(lambda: list(islice(requests, size)), [])
