"""A process that captions with a bundle when it is asked to; see `workers`.

    python -m benchmarks.peers.bundle_worker BUNDLE --threads N

Requests: {"segments": true}, {"talkative": seconds, "tokens": n, "save": "clip.npy"} and
{"caption": "clip.npy", "tokens": n}.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.workers import Message
from benchmarks.synthetic.noise import GREEDY, RATE_HZ, talkative_noise
from dasheng_edge.runtime import Captioner
from dasheng_edge.runtime.child import serve


def answer(captioner: Captioner, request: Message) -> Message:
    """The default prompt as runs of token ids with None for the audio, a clip, or what a caption took in seconds."""
    if "segments" in request:
        return {"segments": captioner.parts.prompts.build(None).rows(None)}
    if "talkative" in request:
        np.save(request["save"], talkative_noise(captioner, request["talkative"], request["tokens"]))
        return {}
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args(arguments)
    with Captioner.open(given.bundle, threads=given.threads, check_sha256=False) as captioner:
        serve(lambda request, _: answer(captioner, request))
    return 0


if __name__ == "__main__":
    sys.exit(main())
