"""What it takes to hear a clip: samples to the rows that a decoder is given, as captioning does it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.audio_parts import AudioInputParts


def hear(audio: AudioInputParts, blocks: Iterable[NDArray[np.float32]]) -> dict[str, float]:
    """Seconds of the front end, of the encoder with the projector, and of both; and how many rows there are."""
    start = time.perf_counter()
    chunks = audio.front_end.chunks(blocks)
    head = next(chunks)  # when the spectrograms of all are there
    middle = time.perf_counter()
    patches = (part for chunk in chain([head], chunks) for part in audio.encoder.chunks(*chunk))
    rows = [audio.projector.embeddings(group) for group in audio.projector.groups(patches)]
    end = time.perf_counter()
    return {
        "front_end_s": middle - start, "encoder_s": end - middle, "seconds": end - start, "rows": sum(map(len, rows))
    }  # fmt: skip
