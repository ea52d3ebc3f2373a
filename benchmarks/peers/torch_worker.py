"""A process that encodes or captions with PyTorch and transformers when it is asked to; see `workers`.

    python -m benchmarks.peers.torch_worker CHECKPOINT fp32|bf16 --threads N [--encoder]

Requests: {"encode": "features.npz", "save": "patches.npy"}, of which the latter may be missing, and
{"caption": "clip.npy", "prompt": [[...], null, [...]], "tokens": n}.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.torch_peer import TorchPeer, open_merged, torch_encoder, torch_patches
from benchmarks.peers.workers import Message
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.child import serve

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def read_features(path: Path) -> Features:
    """Spectrograms of a clip, by the names of their fields."""
    with np.load(path) as stored:
        return Features(stored["log_mel"], stored.get("acoustic"), int(stored["samples"]))


def encodes(checkpoint: Path, dtype: torch.dtype) -> Callable[[Message], Message]:
    """Answers with the seconds of the encoder alone."""
    encoder = torch_encoder(open_merged(checkpoint), dtype)

    def answer(request: Message) -> Message:
        features = read_features(Path(request["encode"]))
        start = time.perf_counter()
        patches = torch_patches(encoder, features)
        seconds = time.perf_counter() - start
        if request.get("save"):
            np.save(request["save"], patches[0].float().numpy())
        return {"seconds": seconds}

    return answer


def captions(checkpoint: Path, dtype: torch.dtype) -> Callable[[Message], Message]:
    """Answers with what a caption took."""
    peer = TorchPeer(checkpoint, dtype)

    def answer(request: Message) -> Message:
        waveform: Any = np.load(request["caption"])
        return dataclasses.asdict(peer.caption(waveform, request["prompt"], request["tokens"]))

    return answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--encoder", action="store_true", help="load nothing but the encoder")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    make = encodes if given.encoder else captions
    answer = make(given.checkpoint, DTYPES[given.dtype])
    serve(lambda request, _: answer(request))
    return 0


if __name__ == "__main__":
    sys.exit(main())
