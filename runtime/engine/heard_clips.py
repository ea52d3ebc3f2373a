"""Clips that were heard, by what is in them: a conversation sends its audio again with every turn."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import TypeAlias

import numpy as np

from dasheng_edge.runtime.audio.read import AudioSource, ReadAudio

from .clip_audio import HeardAudio

MAX_BYTES = 64 << 20  # of embeddings: an hour of audio of the 0.6B, 15 minutes of the 7B
Key: TypeAlias = "tuple[object, ...] | None"


def clip_key(source: AudioSource | HeardAudio) -> Key:
    """What tells a clip from all others; None of what can be read once only."""
    if isinstance(source, (str, os.PathLike)):
        with suppress(OSError, ValueError):  # it is said when it is read
            path = os.path.realpath(os.fsdecode(source))
            stat = os.stat(path)  # noqa: PTH116  # of whatever kind the path is
            return "file", path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
        return None
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "bytes", hashlib.sha256(source).digest()
    if isinstance(source, ReadAudio):
        return _array_key(source.samples, source.start_s)
    if isinstance(source, tuple) and isinstance(source[0], np.ndarray):
        return _array_key(*source)
    return None


def _array_key(samples: np.ndarray, rate: object) -> Key:
    if samples.dtype.hasobject:
        return None
    return "array", str(samples.dtype), samples.shape, repr(rate), hashlib.sha256(samples.tobytes()).digest()


class HeardClips:
    """The last ones, those that were asked for least recently dropped first. For any number of threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, HeardAudio] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> HeardAudio | None:
        """What was heard of a clip, if it is kept: the same arrays as before."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Key, heard: HeardAudio) -> HeardAudio:
        """Keep what was heard of a clip; returns what is kept of it, which may be what another thread heard."""
        if key is None:
            return heard
        with self._lock:
            heard = self._kept.setdefault(key, heard)
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(one.embeddings.nbytes for one in self._kept.values()) > MAX_BYTES:
                self._kept.popitem(last=False)
        return heard
