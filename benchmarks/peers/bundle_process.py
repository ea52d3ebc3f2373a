"""A process that does one thing with a bundle and ends, for what is measured from outside: memory, and a start.

    python -m benchmarks.peers.bundle_process caption BUNDLE CLIP THREADS TOKENS [low]
    python -m benchmarks.peers.bundle_process encode BUNDLE SECONDS THREADS

A caption is printed as its token ids, `encode` as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime import Bundle, Captioner
from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.engine_options import EngineOptions

BLOCK_SAMPLES = 1 << 14  # about as much as a decoder of audio files hands on at a time


def caption(bundle: str, clip: str, threads: str, tokens: str, memory: str = "normal") -> None:
    """As the command does it, without the check of the files."""
    options = EngineOptions(weights="mapped", memory="low" if memory == "low" else "normal")
    options = options.changed(threads=int(threads))
    with Captioner.open(bundle, options=options, check_sha256=False) as captioner:
        print(*captioner.caption(clip, max_new_tokens=int(tokens), sampling=Sampling()).tokens, flush=True)


def encode(folder: str, seconds: str, threads: str) -> None:
    """Audio to embeddings, chunk by chunk, as captioning does it; the decoder would add keys and values."""
    bundle = Bundle.open(folder, check_sha256=False)
    audio = AudioInputParts.open(bundle, EngineOptions().changed(threads=int(threads)))
    heard = hear(audio, noise_blocks(round(float(seconds) * bundle.manifest.front_end.sample_rate_hz)))
    print(json.dumps({name: heard[name] for name in ("front_end_s", "encoder_s")} | {"audio_tokens": heard["rows"]}))


def noise_blocks(samples: int) -> Iterator[NDArray[np.float32]]:
    """White noise, float32, block after block: never the whole clip, like a file that is read."""
    generator = np.random.default_rng(0)
    for start in range(0, samples, BLOCK_SAMPLES):
        yield generator.uniform(-0.3, 0.3, min(BLOCK_SAMPLES, samples - start)).astype(np.float32)


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


def main() -> int:
    """Do what is asked for."""
    what, *arguments = sys.argv[1:]
    steps: dict[str, Callable[..., None]] = {"caption": caption, "encode": encode}
    steps[what](*arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
