"""A process that captions with a bundle when it is asked to; see `workers`.

    python -m benchmarks.peers.bundle_worker BUNDLE --threads N [--steady]

Requests: {"segments": true}, {"talkative": seconds, "tokens": n, "save": "clip.npy"}, {"caption": "clip.npy",
"tokens": n} and {"repeat": "clip.npy", "clips": n, "tokens": n, "at_most_s": seconds}.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.workers import Message
from benchmarks.synthetic.noise import GREEDY, RATE_HZ, talkative_noise
from dasheng_edge.runtime import Captioner
from dasheng_edge.runtime.child import serve
from dasheng_edge.runtime.engine_options import EngineOptions


def answer(captioner: Captioner, request: Message) -> Message:
    """The default prompt as runs of token ids with None for the audio, a clip, or what a caption took in seconds."""
    if "segments" in request:
        return {"segments": captioner.parts.prompts.build(None).rows(None)}
    if "talkative" in request:
        np.save(request["save"], talkative_noise(captioner, request["talkative"], request["tokens"]))
        return {}
    if "repeat" in request:
        return repeated(captioner, request)
    waveform: Any = np.load(request["caption"])
    said = captioner.caption((waveform, RATE_HZ), max_new_tokens=request["tokens"], sampling=GREEDY)
    spent = said.timings
    before_ms = spent.audio_decode_ms + spent.front_end_ms + spent.encoder_ms + spent.projector_ms
    return {
        "audio_s": before_ms / 1000,
        "first_token_s": spent.first_token_ms / 1000,
        "total_s": spent.total_ms / 1000,
        "tokens": list(said.tokens),
    }


def repeated(captioner: Captioner, request: Message) -> Message:
    """Seconds of the same clip over and over, and how many pieces of text were said, all or until it was broken off."""
    waveform: Any = np.load(request["repeat"])
    start, pieces = time.perf_counter(), 0
    for _ in range(request["clips"]):
        stream = captioner.stream((waveform, RATE_HZ), max_new_tokens=request["tokens"], sampling=GREEDY)
        for _ in stream:
            pieces += 1
            if time.perf_counter() - start > request["at_most_s"]:
                stream.close()
                return {"seconds": time.perf_counter() - start, "pieces": pieces}
    return {"seconds": time.perf_counter() - start, "pieces": pieces}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steady", action="store_true", help="so many threads, whatever other programs do")
    given = parser.parse_args(arguments)
    options = EngineOptions(adaptive_threads=not given.steady).changed(threads=given.threads)
    with Captioner.open(given.bundle, options=options, check_sha256=False) as captioner:
        serve(lambda request, _: answer(captioner, request))
    return 0


if __name__ == "__main__":
    sys.exit(main())
