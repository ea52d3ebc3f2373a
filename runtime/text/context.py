"""A llama.cpp context: the keys and values of one or more sequences, and what is computed on them.

llama.cpp checks sizes with assertions that end the process, so callers check them first.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.manifest import KvType
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import DecoderError, MemoryShortError
from dasheng_edge.runtime.machine.forks import only_here
from dasheng_edge.runtime.machine.governor import governor
from dasheng_edge.runtime.machine.memory import require, says_memory

from .context_memory import context_bytes
from .llama import Watch, llama_cpp_library, llama_log, pointer

BATCH = 512  # rows per llama_decode call, llama.cpp's own default; memory for activations grows with it
LOW_MEMORY_ROWS = 64  # that are computed together where memory is low: 3 instead of 27 MB, of a 0.6B
_LESS = "free memory, caption fewer clips at once (--batch) or shorter ones, or quantize to a smaller recipe"
_NOT_FINITE = (
    "the decoder computed NaN or infinity; run `dasheng-edge verify` on the bundle, and try another device or precision"
)
_ONE_SEQUENCE = bytes(4) + (1).to_bytes(4, sys.byteorder)  # the first of one, in the state of a sequence
_FTYPE_F32, _TYPE_F32 = 0, 0  # enum llama_ftype, ggml_type
KV_TYPES: Mapping[KvType, int] = {"f16": 1, "q8_0": 8, "q4_0": 2}  # enum ggml_type
_NO_FLASH_ATTENTION, _FLASH_ATTENTION = 0, 1  # enum llama_flash_attn_type


class Context:
    """A context of `n_ctx` positions, of which each sequence has an equal share.

    Up to `outputs` rows of a batch may have logits: at 152,064 tokens, those of 512 rows would be 311 MB.

    Raises:
        MemoryShortError: there is not enough memory for it, counted before llama.cpp takes any.
        DecoderError: llama.cpp cannot make it.
    """

    def __init__(
        self,
        model: Any,
        n_ctx: int,
        settings: EngineSettings,
        *,
        sequences: int = 1,
        outputs: int = 1,
        watch: Watch | None = None,
    ) -> None:
        llama, log = llama_cpp_library(), llama_log()
        self._llama, self._watch, self._sequences = llama, watch, sequences
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch = n_ctx, BATCH
        params.n_ubatch = BATCH if settings.memory == "normal" else LOW_MEMORY_ROWS
        params.n_seq_max = sequences
        params.n_outputs_max = outputs
        self._set_threads: tuple[int, ...] = (settings.decode_threads, settings.prefill_threads)
        self._threads: tuple[int, ...] = self._set_threads
        params.n_threads, params.n_threads_batch = self._threads
        self._adaptive = settings.adaptive_threads and settings.text_device == "cpu" and settings.text_threads > 1
        params.offload_kqv = params.op_offload = settings.text_device != "cpu"
        # An F32 file is there to be held against the reference, so nothing beside it may round either: with
        # llama.cpp's flash attention the logits differ by 7e-4 of their RMS on CPU, without it by 4e-7.
        exact = settings.exact
        if exact is None:
            exact = llama.llama_model_ftype(model) == _FTYPE_F32 and settings.kv_type == "f16"
        if exact:
            params.type_k = params.type_v = _TYPE_F32
            params.flash_attn_type = _NO_FLASH_ATTENTION
        else:
            params.type_k = params.type_v = KV_TYPES[settings.kv_type]
            if settings.kv_type != "f16":
                params.flash_attn_type = _FLASH_ATTENTION  # without, llama.cpp has no quantized values
        if watch is not None:
            params.cb_eval = watch.callback
        params.no_perf = True
        self._require(model, params)
        log.lines.clear()
        self.pointer = llama.llama_init_from_model(model, params)
        if not self.pointer:
            if says_memory(log.last()):
                raise MemoryShortError(f"llama.cpp gets no memory for {n_ctx} positions ({log.last()}): {_LESS}")
            raise DecoderError(
                f"llama.cpp cannot make a context of {n_ctx} positions with keys and values in {settings.kv_type}: "
                f"{log.last()}; quantize with --kv f16"
            )
        self.close = weakref.finalize(self, only_here(llama.llama_free), self.pointer)
        self.n_ctx: int = llama.llama_n_ctx(self.pointer)
        self._greedy: set[int] = set()  # sequences whose tokens are chosen by llama.cpp
        self._n_vocab: int = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    @staticmethod
    def _require(model: Any, params: Any) -> None:
        filled, aside = context_bytes(model, params)
        on_gpu = bool(params.offload_kqv)
        what = f"a context of {params.n_ctx} positions for {params.n_seq_max} answers at once"
        require(what, _LESS, own=0 if on_gpu else filled, mapped=aside)

    def extend(self, rows: NDArray[Any], *, sequence: int, past: int, outputs: int) -> None:
        """Decode any number of rows, as in `decode`, behind `past` others of a sequence; the last `outputs` get logits.

        Raises:
            DecoderError: llama.cpp failed.
        """
        for start in range(0, len(rows), BATCH):
            piece = rows[start : start + BATCH]
            count = len(piece)
            wanted = np.zeros(count, np.int8)
            if start + count == len(rows):
                wanted[count - outputs :] = 1
            positions = np.arange(past + start, past + start + count, dtype=np.int32)
            self.decode(piece, positions, np.full(count, sequence, np.int32), wanted)

    def decode(
        self,
        rows: NDArray[Any],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        wanted: NDArray[np.int8],
    ) -> None:
        """Decode int32 [n] tokens or float32 [n, n_embd] embeddings, n <= BATCH; `wanted` rows get logits.

        Raises:
            DecoderError: llama.cpp failed.
        """
        count = len(rows)
        ids = np.ascontiguousarray(sequences)
        each = ids.ctypes.data + ids.itemsize * np.arange(count, dtype=np.uintp)  # a pointer to each row's sequence
        ones = np.ones(count, np.int32)
        batch = self._llama.llama_batch()
        batch.n_tokens = count
        if rows.ndim == 1:
            batch.token = pointer(rows, ctypes.c_int32)
        else:
            batch.embd = pointer(rows, ctypes.c_float)
        batch.pos = pointer(positions, ctypes.c_int32)
        batch.n_seq_id = pointer(ones, ctypes.c_int32)
        batch.seq_id = pointer(each, ctypes.POINTER(ctypes.c_int32))
        batch.logits = pointer(wanted, ctypes.c_int8)
        log = llama_log()
        require(f"decoding {count} rows", _LESS)
        log.lines.clear()
        self._adapt_threads()
        with self._watch.signals.held() if self._watch is not None else nullcontext():
            code = self._llama.llama_decode(self.pointer, batch)
        if code:
            raise DecoderError(f"llama.cpp failed to decode {count} rows at {positions[0]} (code {code}): {log.last()}")
        if self._watch is not None:
            self._watch.check()

    def _adapt_threads(self) -> None:
        """Compute with no more threads than others leave cores."""
        threads = governor().threads(*self._set_threads) if self._adaptive else self._set_threads
        if threads != self._threads:
            self._llama.llama_set_n_threads(self.pointer, *threads)
            self._threads = threads

    def synchronize(self) -> None:
        """Wait until all that was asked for is computed: a GPU is not done when `decode` returns."""
        self._llama.llama_synchronize(self.pointer)

    def choose(self, sequence: int, *, greedily: bool) -> None:
        """Whether the likeliest token of a sequence is chosen where logits are computed: `chosen` instead of `logits`.

        From a GPU, the logits of 64 rows are 39 MB a step. llama.cpp copies those that its last sampler leaves: all of
        them behind the greedy one, the largest behind a temperature of 0.
        """
        if greedily == (sequence in self._greedy):
            return
        if greedily:
            chain = self._llama.llama_sampler_chain_init(self._llama.llama_sampler_chain_default_params())
            self._llama.llama_sampler_chain_add(chain, self._llama.llama_sampler_init_temp(0.0))
            weakref.finalize(self, only_here(self._llama.llama_sampler_free), chain)
            if self._llama.llama_set_sampler(self.pointer, sequence, chain):
                self._greedy.add(sequence)
        else:
            self._llama.llama_set_sampler(self.pointer, sequence, None)
            self._greedy.discard(sequence)

    def chooses(self, sequence: int) -> bool:
        """Whether the rows of a sequence get no logits, but a token."""
        return sequence in self._greedy

    def chosen(self, row: int) -> int:
        """The likeliest token after a row of the last batch.

        Raises:
            DecoderError: its logits are NaN.
        """
        token = self._llama.llama_get_sampled_candidates_ith(self.pointer, row)
        logit = self._llama.llama_get_sampled_logits_ith(self.pointer, row)
        if not token or not logit or not isfinite(logit[0]):
            raise DecoderError(_NOT_FINITE)
        return int(token[0])

    def logits(self, row: int) -> NDArray[np.float32]:
        """Logits of a row of the last batch, float32 [n_vocab]: a view, valid until the next one is decoded.

        Raises:
            DecoderError: they hold NaN, or infinity.
        """
        values = np.ctypeslib.as_array(self._llama.llama_get_logits_ith(self.pointer, row), (self._n_vocab,))
        if not np.isfinite(values.max()):  # NaN is the largest; infinity is none to choose by
            raise DecoderError(_NOT_FINITE)
        return values

    def forget(self, sequence: int, start: int) -> None:
        """Remove the rows of a sequence from a position on."""
        self._llama.llama_memory_seq_rm(self._llama.llama_get_memory(self.pointer), sequence, start, -1)

    def move(self, sequence: int, to: int) -> None:
        """Have the rows of a sequence in an empty one instead, from the next `decode` on."""
        memory = self._llama.llama_get_memory(self.pointer)
        self._llama.llama_memory_seq_cp(memory, sequence, to, -1, -1)
        self.forget(sequence, 0)

    def state(self, sequence: int) -> bytes:
        """Keys and values of a sequence, as llama.cpp writes them of a context of one sequence."""
        size = self.state_bytes(sequence)
        buffer = np.empty(size, np.uint8)
        written = self._llama.llama_state_seq_get_data(self.pointer, pointer(buffer, ctypes.c_uint8), size, sequence)
        # All uint32: magic, sequence, how many sequences there are, then what each has: a 0 for all but this one.
        before, behind = 4 * (3 + sequence), 4 * (self._sequences - 1 - sequence)
        return b"".join((buffer[:4].data, _ONE_SEQUENCE, buffer[before : written - behind].data))

    def state_bytes(self, sequence: int) -> int:
        """How many bytes `state` takes."""
        return int(self._llama.llama_state_seq_get_size(self.pointer, sequence))

    def restore(self, sequence: int, state: bytes, rows: int) -> bool:
        """Put what `state` gave into an empty sequence.

        False if llama.cpp refuses it or it is not of so many rows, and the sequence stays empty.
        """
        sequences = self._sequences.to_bytes(4, sys.byteorder)
        own = b"".join((state[:8], sequences, memoryview(state)[12:], bytes(4 * (self._sequences - 1))))
        buffer = np.frombuffer(own, np.uint8)
        read = self._llama.llama_state_seq_set_data(
            self.pointer, pointer(buffer, ctypes.c_uint8), len(buffer), sequence
        )
        last = self._llama.llama_memory_seq_pos_max(self._llama.llama_get_memory(self.pointer), sequence)
        sound = bool(state[4:12] == _ONE_SEQUENCE and read == len(buffer) and last == rows - 1)
        if not sound:
            self.forget(sequence, 0)
        return sound
