"""A process that encodes or captions with PyTorch and transformers when it is asked to; see `workers`.

    python -m benchmarks.peers.torch_worker CHECKPOINT fp32|bf16 --threads N [--encoder]

Requests: {"encode": "features.npz", "save": "patches.npy"}, of which the latter may be missing, and
{"caption": "clip.npy", "prompt": [[...], null, [...]], "tokens": n}. The model is that of `bench --against`; it keeps
nothing from one clip to the next, and no token ends its text.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.workers import Message
from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.reference.bench import TransformersModel
from dasheng_edge.export.reference.encoder import load_encoder
from dasheng_edge.runtime.child import serve

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def encodes(checkpoint: Path, dtype: torch.dtype) -> Callable[[Message], Message]:
    """Answers with the seconds of the encoder alone."""
    encoder = load_encoder(MergedTensors(open_checkpoint(checkpoint))).to(dtype)

    @torch.inference_mode()
    def answer(request: Message) -> Message:
        with np.load(request["encode"]) as stored:
            mels = {name: torch.from_numpy(stored[name])[None].to(dtype) for name in stored if name != "samples"}
            samples = int(stored["samples"])
        start = time.perf_counter()
        patches = encoder(mels["log_mel"], samples, mels.get("acoustic"))
        seconds = time.perf_counter() - start
        if request.get("save"):
            np.save(request["save"], patches[0].float().numpy())
        return {"seconds": seconds}

    return answer


def captions(checkpoint: Path, dtype: torch.dtype) -> Callable[[Message], Message]:
    """Answers with the seconds until there is the audio, the first token, and all of them."""
    model = TransformersModel(open_checkpoint(checkpoint), dtype)

    def answer(request: Message) -> Message:
        waveform: Any = np.load(request["caption"])
        prompt = [part for part in request["prompt"] if part != []]
        stages_ms, tokens = model.answer(torch.from_numpy(waveform), prompt, request["tokens"])
        audio_s = sum(stages_ms[name] for name in ("front_end", "encoder", "projector")) / 1000
        return {
            "audio_s": audio_s,
            "first_token_s": audio_s + stages_ms["prefill"] / 1000,
            "total_s": stages_ms["total"] / 1000,
            "tokens": tokens,
        }

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
    answer = (encodes if given.encoder else captions)(given.checkpoint, DTYPES[given.dtype])
    serve(lambda request, _: answer(request))
    return 0


if __name__ == "__main__":
    sys.exit(main())
