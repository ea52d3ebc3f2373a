"""Captions clips with a bundle: opens it, and runs one request after another."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dasheng_edge.runtime.audio.read import AudioSource
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.machine.devices import Device
from dasheng_edge.runtime.machine.user_cache import cache_folder
from dasheng_edge.runtime.text.batch_decoder import MAX_SEQUENCES, batch_answers
from dasheng_edge.runtime.text.prefix_cache import PrefixCache, prefix_model

from .caption import Caption, CaptionStream
from .errors import CaptionerBusyError, PromptError
from .parts import Parts
from .request import Request, RunningRequest
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
        `check_sha256=False` saves reading every file once more; sizes are checked in any case.

        Raises what `Bundle.open` and `Parts.open` raise, all of them `DashengEdgeError`.
        """
        options = (options or EngineOptions()).changed(
            device=device, threads=threads, weights="mapped" if few else None
        )
        bundle = Bundle.open(path, check_sha256=check_sha256)
        settings = settings_for(bundle, options)
        parts = Parts.open(bundle, settings)
        folder = cache_folder() if settings.cache is None else settings.cache
        parts.decoder.prefixes = PrefixCache(None if folder == "off" else folder, prefix_model(bundle, settings))
        return cls(bundle, parts)

    def __enter__(self) -> Captioner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder; a stream that was not read to its end is closed. Harmless when repeated.

        Raises:
            CaptionerBusyError: another thread is captioning.
        """
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
            DecoderError, DeviceError: llama.cpp or ONNX Runtime failed.
        """
        facts = self.bundle.prompt_facts
        limit = self._limit(max_new_tokens)
        stream = CaptionStream(self._run(Request(audio, prompt, system, limit, sampling or facts.sampling, live)))
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
        prefill; the time of decoding is shared equally.
        """
        if not 1 <= batch <= MAX_SEQUENCES:
            raise PromptError(f"batch is {batch}; expected 1 to {MAX_SEQUENCES}")
        facts = self.bundle.prompt_facts
        limit = self._limit(max_new_tokens)
        requests = [Request(audio, prompt, system, limit, sampling or facts.sampling) for audio in clips]
        with self._busy():
            groups = [requests[start : start + batch] for start in range(0, len(requests), batch)]
            return [caption for group in groups for caption in self._together(group)]

    def _limit(self, max_new_tokens: int | None) -> int:
        limit = self.bundle.prompt_facts.max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise PromptError(f"max_new_tokens is {limit}; expected at least 1")
        return limit

    def _run(self, request: Request) -> Generator[str, None, Caption]:
        with self._busy():
            running = RunningRequest(self.bundle, self.parts, request)
            running.prefill()
            yield from running.generate()
            return running.caption()

    @contextmanager
    def _busy(self) -> Generator[None]:
        """No other caption runs meanwhile."""
        if not self._lock.acquire(blocking=False):
            raise CaptionerBusyError(
                "the captioner is busy with another caption; finish or close that one first, "
                "or open one captioner per thread"
            )
        try:
            if self._closed:
                raise CaptionerBusyError("the captioner is closed; open a new one")
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
