"""The least that any program must do to say the first token about a clip: what a start is compared with.

    python -m benchmarks.peers.bare TASK.json

It opens the same graphs and the same GGUF with the engines alone, runs the same work and prints the id of one token: no
manifest, no check, no template, no tokenizer, no container but plain WAV. TASK names the files and states the prompt
as token ids.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import wave
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONTEXT = 512  # what the runtime begins with


def open_graph(path: str, threads: int) -> Any:
    """An ONNX Runtime session."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    options.add_session_config_entry("session.intra_op.spin_duration_us", "10")  # as the runtime does it
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def encode(task: dict[str, Any]) -> NDArray[np.float32]:
    """The clip, which must fit into one chunk -> audio embeddings float32 [tokens, llm_dim]."""
    front_end, encoder, projector = (open_graph(path, task["threads"]) for path in task["graphs"])
    with wave.open(task["clip"]) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    mels = front_end.run(None, {"waveform": samples[None]})
    whole = mels[0].shape[-1] // 4
    valid = np.array([min(len(samples) // 640, whole)], np.int64)
    feed = {"log_mel": mels[0], "valid_patches": valid}
    if len(mels) > 1:
        feed |= {"acoustic_mel": mels[1], "kept_patches": np.array([whole], np.int64)}
    patches = encoder.run(None, feed)[0]
    rows: NDArray[np.float32] = projector.run(None, {"patches": patches[:, : whole // 5 * 5]})[0][0]
    return rows


class Llama:
    """llama.cpp with one sequence."""

    def __init__(self, path: str, threads: int) -> None:
        from llama_cpp import llama_cpp

        api: Any = llama_cpp
        self._api = api
        self._quiet = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(self._quiet, None)
        model_params = api.llama_model_default_params()
        model_params.n_gpu_layers = 0
        model_params.use_extra_bufts = False  # as the runtime does it for a few clips
        model = api.llama_model_load_from_file(path.encode(), model_params)
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_outputs_max = CONTEXT, 512, 512, 1
        params.n_threads = params.n_threads_batch = threads
        self._context = api.llama_init_from_model(model, params)
        self._vocab_size = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(model)))
        self._past = 0

    def decode(self, rows: NDArray[Any], *, last: bool) -> None:
        """int32 [n] tokens or float32 [n, width] embeddings."""
        count = len(rows)
        position = np.arange(self._past, self._past + count, dtype=np.int32)
        wanted = np.zeros(count, np.int8)
        wanted[-1] = last
        sequence = ctypes.c_int32(0)
        pointers = np.full(count, ctypes.addressof(sequence), np.uintp)
        ones = np.ones(count, np.int32)
        batch = self._api.llama_batch()
        batch.n_tokens = count
        if rows.ndim == 1:
            batch.token = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        else:
            batch.embd = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        batch.pos = position.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.n_seq_id = ones.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        batch.logits = wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        if code := self._api.llama_decode(self._context, batch):
            raise SystemExit(f"llama_decode failed with {code}")
        self._past += count

    def best(self) -> int:
        """The likeliest next token."""
        logits = np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, -1), (self._vocab_size,))
        return int(logits.argmax())


def main() -> int:
    """Print the first token."""
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123  # nothing is imported that is not needed
        task = json.load(file)
    audio = np.ascontiguousarray(encode(task), np.float32)
    llama = Llama(task["decoder"], task["threads"])
    parts = [audio if part is None else np.array(part, np.int32) for part in task["prompt"] if part != []]
    for index, part in enumerate(parts):
        llama.decode(part, last=index == len(parts) - 1)
    print(llama.best(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
