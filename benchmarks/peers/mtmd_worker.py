"""A process that encodes audio with llama.cpp's mtmd when it is asked to; see `workers`.

    python -m benchmarks.peers.mtmd_worker DECODER ENCODER --threads N

Requests: {"encode": "clip.npy"}, of float32 at 16 kHz.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.workers import Message
from benchmarks.records.record import BenchmarkError
from dasheng_edge.runtime.child import serve
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.text.llama import llama_log, pointer
from dasheng_edge.runtime.text.model import load_model

_AUDIO = 2  # enum mtmd_input_chunk_type


class Mtmd:
    """llama.cpp's way from samples to embeddings."""

    def __init__(self, decoder: Path, encoder: Path, threads: int) -> None:
        llama_log()
        from llama_cpp import mtmd_cpp

        api: Any = mtmd_cpp
        self._api = api
        self._model = load_model(decoder, EngineSettings())[0]  # of which only the vocabulary is used
        params = api.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.n_threads = False, False, threads
        self._context = api.mtmd_init_from_file(str(encoder).encode(), self._model, params)
        if not self._context:
            raise BenchmarkError(f"llama.cpp's mtmd cannot load {encoder}: {llama_log().last()}")

    def encode(self, waveform: Any) -> tuple[float, float, int]:
        """Seconds of the spectrogram, of the encoder and the projector, and how many rows that makes."""
        api, samples = self._api, np.ascontiguousarray(waveform, np.float32)
        bitmap = api.mtmd_bitmap_init_from_audio(len(samples), pointer(samples, ctypes.c_float))
        chunks, marker = api.mtmd_input_chunks_init(), api.mtmd_default_marker()
        text = api.mtmd_input_text(marker, len(marker), False, True)
        bitmaps = (ctypes.c_void_p * 1)(bitmap)
        try:
            start = time.perf_counter()
            if code := api.mtmd_tokenize(self._context, chunks, ctypes.byref(text), bitmaps, 1):
                raise BenchmarkError(f"llama.cpp's mtmd cannot read the clip (code {code})")
            middle, rows = time.perf_counter(), 0
            for index in range(api.mtmd_input_chunks_size(chunks)):
                chunk = api.mtmd_input_chunks_get(chunks, index)
                if api.mtmd_input_chunk_get_type(chunk) == _AUDIO:
                    rows += api.mtmd_input_chunk_get_n_tokens(chunk)
                    if code := api.mtmd_encode_chunk(self._context, chunk):
                        raise BenchmarkError(f"llama.cpp's mtmd cannot encode the clip (code {code})")
            return middle - start, time.perf_counter() - middle, rows
        finally:
            api.mtmd_input_chunks_free(chunks)
            api.mtmd_bitmap_free(bitmap)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("decoder", type=Path)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args(arguments)
    mtmd = Mtmd(given.decoder, given.encoder, given.threads)

    def answer(request: Message) -> Message:
        front_end_s, encoder_s, rows = mtmd.encode(np.load(request["encode"]))
        return {"front_end_s": front_end_s, "encoder_s": encoder_s, "seconds": front_end_s + encoder_s, "rows": rows}

    serve(lambda request, _: answer(request))
    return 0


if __name__ == "__main__":
    sys.exit(main())
