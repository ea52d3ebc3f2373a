"""A GGUF text model in llama.cpp: its weights and its tokenizer, without a context."""

from __future__ import annotations

import codecs
import ctypes
import os
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.manifest import DecoderFacts
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import DecoderError, DeviceError, MemoryShortError, PromptError
from dasheng_edge.runtime.gguf.check import check_gguf
from dasheng_edge.runtime.gguf.header import Header
from dasheng_edge.runtime.machine.devices import Device
from dasheng_edge.runtime.machine.forks import only_here
from dasheng_edge.runtime.machine.governor import governor
from dasheng_edge.runtime.machine.huge_pages import HugePages
from dasheng_edge.runtime.machine.installation import LLAMA_CUDA
from dasheng_edge.runtime.machine.memory import require, says_memory

from .llama import HeldSignals, llama_cpp_library, llama_log, pointer

Tokens: TypeAlias = tuple[int, ...]
Part: TypeAlias = Literal["all", "vocabulary", "weights"]

TABLE = "token_embd.weight"  # of the embeddings of tokens

_SPECIAL_IDS = {"bos_token": "bos_token", "eos_token": "eos_token", "pad_token": "padding_token"}  # name -> GGUF's
_LESS = 'free memory, take `weights="mapped"`, or quantize to a smaller recipe'
_LOAD_READ, _LOAD_MAPPED = 0, 1  # enum llama_load_mode
_SPLIT_NONE = 0  # enum llama_split_mode
_OVERRIDES_NUMBER, _OVERRIDES_TEXT = 0, 3  # enum llama_model_kv_override_type
_ATTR_CONTROL, _ATTR_USER_DEFINED = 1 << 3, 1 << 4  # enum llama_token_attr


@contextmanager
def vocabulary(path: Path, facts: DecoderFacts) -> Generator[TextModel]:
    """The tokenizer and metadata of a GGUF file, without its weights.

    Raises what `load_model` raises.
    """
    model = TextModel(load_model(path, EngineSettings(), facts, part="vocabulary")[0])
    try:
        yield model
    finally:
        model.close()


def load_model(
    path: str | Path,
    settings: EngineSettings,
    facts: DecoderFacts | None = None,
    *,
    part: Part = "all",
    checked: Header | None = None,
) -> tuple[Any, Header]:
    """A `llama_model` of a GGUF file, and what the file's header says; `facts` are those of the bundle's manifest.

    `part` leaves out the vocabulary, which takes 42 MB where there are 151,936 tokens, or all else. `cuda` puts all
    layers on the GPU. llama.cpp is only given what `check_gguf` allows; `checked` is what it gave for this file.

    Repacked weights and huge pages exist on the CPU only. With either of them the file is read, since a map of it would
    stay in memory beside the copy.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        DeviceError: llama.cpp was built without GPU support and `cuda` was asked for.
        MemoryShortError: there is not enough memory for the weights.
        GgufError: the file is not a decoder that can be loaded.
        DecoderError: llama.cpp cannot load the file.
    """
    llama, log = llama_cpp_library(), llama_log()
    device, repacked = settings.text_device, settings.weights == "repacked"
    huge_pages = settings.huge_pages and device == "cpu"
    _check_device(device)
    header = checked or check_gguf(Path(path), facts)
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0 if device == "cpu" else -1
    if device != "cpu":  # on one card, the first, whose memory was asked; by itself llama.cpp spreads over all
        params.split_mode, params.main_gpu = _SPLIT_NONE, 0
    # llama.cpp's AMX kernels end the process on quantized weights (ggml-org/llama.cpp#20824). The switch
    # that keeps weights out of their layout turns off repacking too, so it is left on elsewhere.
    params.use_extra_bufts = repacked and b"AMX_INT8 = 1" not in llama.llama_print_system_info()
    params.vocab_only = part == "vocabulary"
    if part == "weights":
        overrides = _without_vocabulary(header)  # must outlive the call
        params.kv_overrides = overrides
    params.load_mode = _LOAD_READ if huge_pages or (repacked and device == "cpu") else _LOAD_MAPPED
    signals, pages = HeldSignals(), [HugePages()] if huge_pages else []

    def go_on(_: float, __: object) -> bool:
        while pages:  # at the first call, all buffers are allocated and none is filled
            pages.pop().ask()
        return not signals.caught

    callback = llama.llama_progress_callback(go_on)  # must outlive the call
    params.progress_callback = callback
    if part != "vocabulary":
        _require(Path(path), copied=params.load_mode == _LOAD_READ)
    log.lines.clear()
    with signals.held(), governor().opening():
        model = llama.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        if says_memory(log.last()):
            raise MemoryShortError(f"llama.cpp gets no memory for {path} ({log.last()}): {_LESS}")
        raise DecoderError(f"llama.cpp cannot load {path}: {log.last()}; export the bundle again")
    return model, header


def _check_device(device: Device) -> None:
    if device != "cpu" and not llama_cpp_library().llama_supports_gpu_offload():
        raise DeviceError(
            f"device {device!r} needs llama.cpp with GPU support, this one is built for CPU or finds no GPU; "
            f"run {LLAMA_CUDA}, or choose cpu"
        )


def _without_vocabulary(header: Header) -> Any:
    """What llama.cpp is to read in place of the file's own keys, so that it makes no tokenizer."""
    llama = llama_cpp_library()
    (_, tokens), arch = header.tensors[TABLE].shape, header.text("general.architecture")
    kind, count, end = overrides = (llama.llama_model_kv_override * 3)()
    kind.tag, kind.key, kind.value.val_str = _OVERRIDES_TEXT, b"tokenizer.ggml.model", b"none"
    count.tag, count.key, count.value.val_i64 = _OVERRIDES_NUMBER, f"{arch}.vocab_size".encode(), tokens
    end.key = b""
    return overrides


def _require(path: Path, *, copied: bool) -> None:
    """Refuse to load what does not fit; a file that is missing is llama.cpp's to tell."""
    size = path.stat().st_size if path.is_file() else 0
    require(f"the decoder {path}", _LESS, own=size if copied else 0, mapped=0 if copied else size)


class TextModel:
    """What a loaded model knows without computing anything: metadata, vocabulary, tokenizer."""

    def __init__(self, model: Any) -> None:
        llama = llama_cpp_library()
        self._llama = llama
        self._take(model)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        every = map(partial(llama.llama_vocab_get_attr, self._vocab), range(self.n_vocab))
        attributes = np.fromiter(every, np.int32, self.n_vocab)
        # Tokens by their text: those that plain text never contains, e.g. `<|im_end|>`, ...
        self.control_tokens: Mapping[str, int] = self._tokens_with(attributes, _ATTR_CONTROL)
        # ... and whole words that plain text may contain, e.g. `<tool_call>`.
        self.added_tokens: Mapping[str, int] = self._tokens_with(attributes, _ATTR_USER_DEFINED)
        self.n_embd: int = llama.llama_model_n_embd_inp(model)
        self.context_length: int = llama.llama_model_n_ctx_train(model)

    def _take(self, model: Any) -> None:
        self._model, self._vocab = model, self._llama.llama_model_get_vocab(model)
        self._free_model = weakref.finalize(self, only_here(self._llama.llama_model_free), model)

    def close(self) -> None:
        """Free the model; harmless when repeated."""
        self._free_model()

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
        """The chat template, Jinja; empty if the GGUF has none."""
        return self.metadata.get("tokenizer.chat_template", "")

    @property
    def special_texts(self) -> Mapping[str, str]:
        """Texts of `bos_token`, `eos_token` and `pad_token`, as far as the GGUF names them."""
        # Not from llama_vocab_bos and its kind, which answer for a GGUF that names none with a default.
        ids = {kind: self.metadata.get(f"tokenizer.ggml.{key}_id") for kind, key in _SPECIAL_IDS.items()}
        return {kind: self._text(int(token)) for kind, token in ids.items() if token is not None}

    def _text(self, token: int) -> str:
        return str(self._llama.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace"))

    def _tokens_with(self, attributes: NDArray[np.int32], wanted: int) -> dict[str, int]:
        return {self._text(token): token for token in np.flatnonzero(attributes & wanted).tolist()}

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

    def new_grammar(self, grammar: str) -> Any:
        """llama.cpp's sampler for a grammar, which the caller frees; its root is `root`.

        Raises:
            PromptError: llama.cpp does not take it.
        """
        llama_log().lines.clear()
        sampler = self._llama.llama_sampler_init_grammar(self._vocab, grammar.encode(), b"root")
        if not sampler:
            raise PromptError(f"llama.cpp does not take the form of the answer: {llama_log().last()}; simplify it")
        return sampler

    def is_end(self, token: int) -> bool:
        """Whether the vocabulary says that generation ends with this token."""
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))
