"""The decoder: llama.cpp fed with tokens and audio embeddings.

It drives `llama_decode` itself: `llama_cpp.Llama` cannot take embeddings, and erases rows that it did not
decode. llama.cpp checks sizes with assertions that end the process, so all are checked here first.
"""

from __future__ import annotations

import codecs
import ctypes
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .bundle import KvType, Sampling
from .devices import Device, checked_device, checked_threads
from .errors import DecoderError, DeviceError
from .llama import Watch, llama_cpp_library, llama_log, pointer

Tokens: TypeAlias = tuple[int, ...]
Embeddings: TypeAlias = NDArray[np.float32]

ARCHITECTURES = ("qwen2", "qwen3")  # one position per row; qwen2vl and its kind need four
BATCH = 512  # rows per llama_decode call, llama.cpp's own default; memory for activations grows with it
SCORED_ROWS = 64  # rows with logits per llama_decode call in `score`; at 152,064 tokens, 39 MB
FIRST_CONTEXT = 2048  # positions, which hold about 6 minutes of audio
CONTEXT_STEP = 256  # llama.cpp rounds the context up to a multiple of this
PENALTY_WINDOW = 64  # generated tokens that the repetition penalty looks back on, llama.cpp's own default
_GREEDY = Sampling()
_SPECIAL_IDS = {"bos_token": "bos_token", "eos_token": "eos_token", "pad_token": "padding_token"}  # name -> GGUF's
_FTYPE_F32, _TYPE_F32 = 0, 0  # enum llama_ftype, ggml_type
_KV_TYPES: Mapping[KvType, int] = {"f16": 1, "q8_0": 8, "q4_0": 2}  # enum ggml_type
_NO_FLASH_ATTENTION, _FLASH_ATTENTION = 0, 1  # enum llama_flash_attn_type
_ATTR_CONTROL, _ATTR_USER_DEFINED = 1 << 3, 1 << 4  # enum llama_token_attr


class Decoder:
    """A GGUF text decoder (Qwen2 or Qwen3) with its tokenizer, and one sequence in its KV cache.

    Not for two threads at once. The context starts with `n_ctx` positions, because its KV cache is allocated
    in full, and is made anew with more when a request needs more, up to `context_length`.
    """

    def __init__(self, model: Any, *, n_ctx: int, n_threads: int, device: Device, kv_type: KvType = "f16") -> None:
        llama = llama_cpp_library()
        self._llama, self._model, self._device, self._n_threads = llama, model, device, n_threads
        self._kv_type: KvType = kv_type
        self._outputs = 1  # rows that may have logits in one batch
        self._watch: Watch | None = None
        self._free_model = weakref.finalize(self, llama.llama_model_free, model)
        self._free_context: weakref.finalize[..., Any] | None = None
        self._context: Any = None
        self._vocab = llama.llama_model_get_vocab(model)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        # Tokens by their text: those that plain text never contains, e.g. `<|im_end|>`, ...
        self.control_tokens: Mapping[str, int] = self._tokens_with(_ATTR_CONTROL)
        # ... and whole words that are found in plain text too, e.g. `<tool_call>`.
        self.added_tokens: Mapping[str, int] = self._tokens_with(_ATTR_USER_DEFINED)
        self.n_embd: int = llama.llama_model_n_embd_inp(model)
        self.context_length: int = llama.llama_model_n_ctx_train(model)
        self._first_ctx = n_ctx
        self.n_ctx = 0  # of the context there is; 0 without one
        self._kept: Tokens = ()  # leading tokens whose keys and values are in the cache
        self._past = 0  # rows in the cache
        self.prefilled = 0  # rows that the last prefill had to decode
        self._has_logits = False
        self._seq_id = ctypes.c_int32(0)
        pointers = np.full(BATCH, ctypes.addressof(self._seq_id), np.uintp)
        self._rows = (np.ones(BATCH, np.int32), pointers)  # n_seq_id and seq_id of every batch

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        n_ctx: int = FIRST_CONTEXT,
        n_threads: int | None = None,
        device: Device = "cpu",
        kv_type: KvType = "f16",
        repack: bool = True,
    ) -> Decoder:
        """Load a GGUF file; `cuda` puts all layers on the GPU, `kv_type` is how keys and values are kept.

        `repack` lets llama.cpp copy weights into layouts that compute faster; without, they stay in the file's pages.

        Raises:
            MissingExtraError: llama-cpp-python is not installed.
            DeviceError: llama.cpp was built without GPU support and `cuda` was asked for.
            DecoderError: llama.cpp cannot load the file, or it is not a Qwen2 or Qwen3 decoder.
        """
        llama, threads = llama_cpp_library(), checked_threads(n_threads)
        log = llama_log()
        if checked_device(device) != "cpu" and not llama.llama_supports_gpu_offload():
            raise DeviceError(
                f"device {device!r} needs llama.cpp with GPU support, this one is built for CPU; run "
                "CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir llama-cpp-python, "
                "or choose cpu"
            )
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0 if device == "cpu" else -1
        # llama.cpp's AMX kernels end the process on quantized weights (ggml-org/llama.cpp#20824). The switch
        # that keeps weights out of their layout turns off repacking too, so it is left on elsewhere.
        params.use_extra_bufts = repack and b"AMX_INT8 = 1" not in llama.llama_print_system_info()
        log.lines.clear()
        model = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise DecoderError(f"llama.cpp cannot load {path}: {log.last()}; export the bundle again")
        decoder = cls(model, n_ctx=n_ctx, n_threads=threads, device=device, kv_type=kv_type)
        if (arch := decoder.metadata.get("general.architecture")) not in ARCHITECTURES:
            decoder.close()
            raise DecoderError(f"{path} is a {arch} model; expected one of {', '.join(ARCHITECTURES)}")
        return decoder

    def close(self) -> None:
        """Free the model and the context; harmless when repeated."""
        self._drop_context()
        self._free_model()

    def _drop_context(self) -> None:
        if self._free_context is not None:
            self._free_context()
        self._context, self._free_context, self._kept = None, None, ()
        self.n_ctx, self._past, self._has_logits = 0, 0, False

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """All scalar metadata of the GGUF, as text."""
        key, value = self._llama.llama_model_meta_key_by_index, self._llama.llama_model_meta_val_str_by_index
        count = self._llama.llama_model_meta_count(self._model)
        return {self._string(key, index): self._string(value, index) for index in range(count)}

    def _string(self, function: Any, index: int) -> str:
        """Calls a C function that writes into a buffer and returns the length that it needs."""
        size = function(self._model, index, ctypes.create_string_buffer(1), 1) + 1
        buffer = ctypes.create_string_buffer(size)
        function(self._model, index, buffer, size)
        return buffer.value.decode("utf-8", "replace")

    @property
    def chat_template(self) -> str:
        """The chat template, Jinja; empty where the GGUF has none."""
        return self.metadata.get("tokenizer.chat_template", "")

    @property
    def special_texts(self) -> Mapping[str, str]:
        """Texts of `bos_token`, `eos_token` and `pad_token`, of those that the GGUF names."""
        # Not from llama_vocab_bos and its kind, which answer for a GGUF that names none with a default.
        ids = {kind: self.metadata.get(f"tokenizer.ggml.{key}_id") for kind, key in _SPECIAL_IDS.items()}
        return {kind: self._text(int(token)) for kind, token in ids.items() if token is not None}

    def _text(self, token: int) -> str:
        return str(self._llama.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace"))

    def _tokens_with(self, attribute: int) -> dict[str, int]:
        attributes = self._llama.llama_vocab_get_attr
        return {self._text(token): token for token in range(self.n_vocab) if attributes(self._vocab, token) & attribute}

    def tokenize(self, text: str, parse_special: bool = False) -> Tokens:
        """Token ids of a text, none added; control tokens in it are plain text unless `parse_special`."""
        data = text.encode("utf-8")
        ids = np.empty(len(data) + 1, np.int32)  # a token is at least one byte
        args = (self._vocab, data, len(data), pointer(ids, ctypes.c_int32), len(ids), False, parse_special)
        return tuple(ids[: self._llama.llama_tokenize(*args)].tolist())

    def piece(self, token: int) -> bytes:
        """The bytes of a token, empty for control tokens; they may end inside a character."""
        buffer = ctypes.create_string_buffer(32)
        size = self._llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self._llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:size]

    def text_pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """Pieces of text as their characters become complete; bytes that never do become U+FFFD."""
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        for token in tokens:
            yield decode(self.piece(token))
        yield decode(b"", final=True)

    def detokenize(self, tokens: Iterable[int]) -> str:
        """The text of tokens, without control tokens."""
        return "".join(self.text_pieces(tokens))

    def is_end(self, token: int) -> bool:
        """Whether the vocabulary says that generation ends with this token."""
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))

    def prefill(self, segments: Sequence[Tokens | Embeddings], *, reserve: int = 0) -> None:
        """Decode a prompt of token ids and embeddings float32 [n, n_embd]; keep room for `reserve` more rows.

        Leading tokens that equal those of the previous request stay in the cache.

        Raises:
            DecoderError: no rows, rows of another width or with NaN, more than `context_length`, or llama.cpp
                failed.
        """
        blocks = [self._checked(segment) for segment in segments if len(segment)]
        total = sum(map(len, blocks))
        if not total:
            raise DecoderError("the prompt is empty; expected at least one token")
        self._fit(total + reserve)
        lead: Tokens = tuple(blocks[0].tolist()) if blocks[0].ndim == 1 else ()
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(lead, self._kept, strict=False)))
        self._rewind(min(same, total - 1))  # the last row is decoded in any case: its logits are needed
        self.prefilled = total - self._past
        blocks[0] = blocks[0][self._past :]
        for block in blocks:
            for start in range(0, len(block), BATCH):
                rows = block[start : start + BATCH]
                self._decode(rows, outputs=int(self._past + len(rows) == total))
        self._kept = lead

    def _checked(self, segment: Tokens | Embeddings) -> NDArray[Any]:
        """Token ids as int32 [n], or embeddings as contiguous float32 [n, n_embd]."""
        if isinstance(segment, tuple):
            return np.array(segment, np.int32)
        if segment.ndim != 2 or segment.shape[1] != self.n_embd:
            raise DecoderError(f"the audio embeddings have shape {segment.shape}, expected [n, {self.n_embd}]")
        if not np.isfinite(segment).all():
            raise DecoderError("the audio embeddings hold NaN or infinity; run `dasheng-edge verify` on the bundle")
        return np.ascontiguousarray(segment, np.float32)

    def _rewind(self, rows: int) -> None:
        """Keep the first `rows` rows of the cache; `_kept` stays empty until a prefill has succeeded."""
        self._kept, self._has_logits = (), False
        memory = self._llama.llama_get_memory(self._context)
        self._llama.llama_memory_seq_rm(memory, 0, rows, -1)
        self._past = rows

    def _fit(self, rows: int) -> None:
        """Make sure that the context holds so many rows."""
        if rows > self.context_length:
            raise DecoderError(
                f"the request needs {rows} positions, the decoder has {self.context_length}; "
                "use shorter audio, a shorter prompt or fewer new tokens"
            )
        if rows <= self.n_ctx:
            return
        if not self._free_model.alive:
            raise DecoderError("the decoder is closed; open it again")
        doubled = max(rows, 2 * self.n_ctx, self._first_ctx)
        wanted = min(-(-doubled // CONTEXT_STEP) * CONTEXT_STEP, max(rows, self.context_length))
        self._drop_context()  # before the new one is made: the two may not fit into memory together
        self._context = self._new_context(wanted)
        self._free_context = weakref.finalize(self, self._llama.llama_free, self._context)
        self.n_ctx = self._llama.llama_n_ctx(self._context)

    def _new_context(self, n_ctx: int) -> Any:
        llama, log = self._llama, llama_log()
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, BATCH, BATCH
        params.n_outputs_max = self._outputs  # mostly one: at 152,064 tokens, logits of 512 rows would be 311 MB
        params.n_threads = params.n_threads_batch = self._n_threads
        params.offload_kqv = params.op_offload = self._device != "cpu"
        # An F32 file is there to be held against the reference, so nothing beside it may round either: with
        # llama.cpp's flash attention the logits differ by 7e-4 of their RMS on CPU, without it by 4e-7.
        if llama.llama_model_ftype(self._model) == _FTYPE_F32 and self._kv_type == "f16":
            params.type_k = params.type_v = _TYPE_F32
            params.flash_attn_type = _NO_FLASH_ATTENTION
        else:
            params.type_k = params.type_v = _KV_TYPES[self._kv_type]
        if self._kv_type != "f16":
            params.flash_attn_type = _FLASH_ATTENTION  # without, llama.cpp has no quantized values
        if self._watch is not None:
            params.cb_eval = self._watch.callback
        params.no_perf = True
        log.lines.clear()
        context = llama.llama_init_from_model(self._model, params)
        if not context:
            raise DecoderError(
                f"llama.cpp cannot make a context of {n_ctx} positions with keys and values in {self._kv_type}: "
                f"{log.last()}; free memory, or quantize with --kv f16"
            )
        return context

    def _decode(self, rows: NDArray[Any], *, outputs: int) -> None:
        """Decode int32 [n] tokens or float32 [n, n_embd] embeddings at the end of the sequence, n <= BATCH.

        The last `outputs` rows get logits.
        """
        count = len(rows)
        position = np.arange(self._past, self._past + count, dtype=np.int32)
        wanted = np.zeros(count, np.int8)
        wanted[count - outputs :] = 1
        batch = self._llama.llama_batch()
        batch.n_tokens = count
        if rows.ndim == 1:
            batch.token = pointer(rows, ctypes.c_int32)
        else:
            batch.embd = pointer(rows, ctypes.c_float)
        batch.pos = pointer(position, ctypes.c_int32)
        batch.n_seq_id = pointer(self._rows[0], ctypes.c_int32)
        batch.seq_id = pointer(self._rows[1], ctypes.POINTER(ctypes.c_int32))
        batch.logits = pointer(wanted, ctypes.c_int8)
        log = llama_log()
        log.lines.clear()
        if code := self._llama.llama_decode(self._context, batch):
            self._kept, self._has_logits = (), False
            raise DecoderError(f"llama.cpp failed to decode {count} rows at {self._past} (code {code}): {log.last()}")
        self._past += count
        self._has_logits = outputs > 0
        if self._watch is not None:
            self._watch.check()

    def logits(self, row: int = -1) -> NDArray[np.float32]:
        """Logits of the last row, or of another one of the last batch that has them, float32 [n_vocab].

        Raises:
            DecoderError: nothing was decoded, or they hold NaN.
        """
        if not self._has_logits:
            raise DecoderError("there are no logits yet; call prefill first")
        values = np.ctypeslib.as_array(self._llama.llama_get_logits_ith(self._context, row), (self.n_vocab,)).copy()
        if np.isnan(values.max()):
            raise DecoderError(
                "the decoder computed NaN; run `dasheng-edge verify` on the bundle, and try another device or precision"
            )
        return values

    def score(self, segments: Sequence[Tokens | Embeddings], answer: Tokens) -> NDArray[np.float32]:
        """Logits from which each token of an answer would be chosen, given the prompt and the tokens before it.

        float32 [len(answer), n_vocab]. The last token of the answer is not decoded, since nothing follows it.

        Raises what `prefill` and `logits` raise.
        """
        if self._outputs < SCORED_ROWS:  # the context that there is has room for the logits of one row
            self._outputs = SCORED_ROWS
            self._drop_context()
        self.prefill(segments, reserve=len(answer))
        rows = np.empty((len(answer), self.n_vocab), np.float32)
        rows[:1] = self.logits()
        for start in range(1, len(answer), SCORED_ROWS):
            block = np.array(answer[start - 1 : start - 1 + SCORED_ROWS], np.int32)[: len(answer) - start]
            self._decode(block, outputs=len(block))
            for i in range(len(block)):
                rows[start + i] = self.logits(i)
        return rows

    def watch(self, watch: Watch | None) -> None:
        """Show intermediate results of every following request; None ends that."""
        self._watch = watch
        self._drop_context()  # llama.cpp takes the callback when it makes one

    def generate(self, max_new_tokens: int, sampling: Sampling = _GREEDY) -> Iterator[int]:
        """Token ids after a prefill, until one of them ends generation or there are `max_new_tokens`.

        Raises:
            DecoderError: no prefill, the context is full, or what `logits` and llama.cpp raise.
        """
        sampler = self._new_sampler(sampling)
        try:
            for left in reversed(range(max_new_tokens)):
                self.logits()  # refuses NaN, from which a sampler would take any token
                token = int(self._llama.llama_sampler_sample(sampler, self._context, -1))
                yield token
                if self.is_end(token) or not left:
                    return
                self._extend(token)
        finally:
            self._llama.llama_sampler_free(sampler)

    def _extend(self, token: int) -> None:
        if self._past >= self.n_ctx:
            raise DecoderError(f"the context of {self.n_ctx} positions is full; reserve room for the new tokens")
        self._decode(np.array([token], np.int32), outputs=1)

    def _new_sampler(self, sampling: Sampling) -> Any:
        """In the order of transformers, whose settings these are: temperature first. At 0 it is greedy."""
        llama = self._llama
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if sampling.repetition_penalty != 1.0:
            penalty = (self.n_vocab, PENALTY_WINDOW, sampling.repetition_penalty, 0.0, 0.0)
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_penalties(*penalty))
        if not sampling.temperature:
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_greedy())
            return chain
        for sampler in (
            llama.llama_sampler_init_temp(sampling.temperature),
            llama.llama_sampler_init_top_k(min(sampling.top_k, self.n_vocab)),
            llama.llama_sampler_init_top_p(sampling.top_p, 1),
            llama.llama_sampler_init_min_p(sampling.min_p, 1),
            llama.llama_sampler_init_dist(sampling.seed % 0xFFFFFFFF),  # that very value asks for a random seed
        ):
            llama.llama_sampler_chain_add(chain, sampler)
        return chain
