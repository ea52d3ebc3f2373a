"""One process whose memory is measured: it captions a clip, or encodes so many seconds of noise; see `memory`.

    python -m benchmarks.peers.memory_worker caption BUNDLE CLIP THREADS TOKENS
    python -m benchmarks.peers.memory_worker encode BUNDLE SECONDS THREADS

The last line is JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.hearing import hear
from dasheng_edge.runtime import Bundle, Captioner
from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.engine_options import EngineOptions

BLOCK_SAMPLES = 1 << 14  # about as much as a decoder of audio files hands on at a time


def noise_blocks(samples: int) -> Iterator[NDArray[np.float32]]:
    """White noise, float32, block after block: never the whole clip, like a file that is read."""
    generator = np.random.default_rng(0)
    for start in range(0, samples, BLOCK_SAMPLES):
        yield generator.uniform(-0.3, 0.3, min(BLOCK_SAMPLES, samples - start)).astype(np.float32)


def caption(bundle: Path, clip: Path, threads: int, tokens: int) -> dict[str, float]:
    """As the command does it, without the check of the files."""
    options = EngineOptions(weights="mapped").changed(threads=threads)
    with Captioner.open(bundle, options=options, check_sha256=False) as captioner:
        said = captioner.caption(clip, max_new_tokens=tokens, sampling=Sampling())
    return {"tokens": len(said.tokens), "audio_s": said.audio_s}


def encode(folder: Path, seconds: float, threads: int) -> dict[str, float]:
    """Audio to embeddings, chunk by chunk, as captioning does it; the decoder would add keys and values."""
    bundle = Bundle.open(folder, check_sha256=False)
    audio = AudioInputParts.open(bundle, EngineOptions().changed(threads=threads))
    heard = hear(audio, noise_blocks(round(seconds * bundle.manifest.front_end.sample_rate_hz)))
    return {"front_end_s": heard["front_end_s"], "encoder_s": heard["encoder_s"], "audio_tokens": heard["rows"]}


def main() -> int:
    """Do what is asked for and print what it was."""
    what, folder, *others = sys.argv[1:]
    if what == "caption":
        clip, threads, tokens = others
        found = caption(Path(folder), Path(clip), int(threads), int(tokens))
    else:
        seconds, threads = others
        found = encode(Path(folder), float(seconds), int(threads))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
