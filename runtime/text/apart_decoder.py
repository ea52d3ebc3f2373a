"""A decoder that takes turns with what hears: its weights are in memory only while answers are made."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dasheng_edge.runtime.bundle.manifest import DecoderFacts
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import CaptionerBusyError, DecoderError, PromptError
from dasheng_edge.runtime.machine.forks import only_here
from dasheng_edge.runtime.machine.memory import release_freed_memory, release_read_pages
from dasheng_edge.runtime.machine.turns import Lent, Turns

from .decoder import Decoder
from .llama import llama_cpp_library
from .model import Part, Tokens, load_model

MAX_TEXTS = 64  # whose tokens are kept
_BLOCK = 32  # values of Q8_0 that share a scale


class ApartDecoder(Decoder):
    """As `Decoder`, but neither its weights nor its tokenizer stay in memory.

    The weights are loaded, without a vocabulary, when a context is made, and go when the audio has its turn. The
    tokenizer is opened where a text is new, and closed with the next turn of the weights; in between, a table of what
    each token reads as is enough: 2 instead of 42 MB of Qwen's. `tokenize` may be called by any thread.

    Raises what `Decoder.open` raises.
    """

    def __init__(self, path: Path, settings: EngineSettings, facts: DecoderFacts | None, turns: Turns) -> None:
        self._path, self._facts, self._stamp = path, facts, _stamp(path)
        model, header = load_model(path, settings, facts, part="vocabulary")
        arch = header.text("general.architecture")
        width = header.number(f"{arch}.embedding_length")
        head = header.number(f"{arch}.attention.key_length", width // header.number(f"{arch}.attention.head_count", 1))
        if settings.kv_type == "q8_0" and head % _BLOCK:
            settings = replace(settings, kv_type="f16")  # llama.cpp has no other for such heads
        super().__init__(model, header, settings)
        self.n_embd, self.context_length = width, header.number(f"{arch}.context_length")
        self._header, self._closed = header, False
        _ = self.metadata  # is stored
        self._special_texts = super().special_texts
        self._pieces, self._begins = bytearray(), np.zeros(self.n_vocab + 1, np.int32)
        for token in range(self.n_vocab):
            self._pieces += super().piece(token)
            self._begins[token + 1] = len(self._pieces)
        self._ends = frozenset(filter(super().is_end, range(self.n_vocab)))
        self._tokens = lru_cache(MAX_TEXTS)(self._tokenized)
        self._tokenizer = threading.RLock()
        turns.close_with("text", self._leave)
        self._lent = Lent(self._loaded, turns, "text")

    def close(self) -> None:
        """Free all; harmless when repeated."""
        self._closed = True
        super().close()
        self._lent.close()

    @property
    def special_texts(self) -> Mapping[str, str]:
        """As `TextModel.special_texts`."""
        return self._special_texts

    def piece(self, token: int) -> bytes:
        """As `TextModel.piece`."""
        return bytes(self._pieces[self._begins[token] : self._begins[token + 1]])

    def is_end(self, token: int) -> bool:
        """As `TextModel.is_end`."""
        return token in self._ends

    def new_grammar(self, grammar: str) -> Any:  # noqa: ARG002  # as of any decoder
        """There are none: llama.cpp asks its vocabulary at every token.

        Raises:
            PromptError: always.
        """
        raise PromptError('with memory="low" answers have no prescribed form; leave the form or the low memory out')

    def tokenize(self, text: str, parse_special: bool = False) -> Tokens:
        """As `TextModel.tokenize`.

        Raises what `load_model` raises.
        """
        return self._tokens(text, parse_special)

    def _tokenized(self, text: str, parse_special: bool) -> Tokens:
        with self._tokenizer:
            if not self._free_model.alive:
                self._take(self._load("vocabulary"))
            return super().tokenize(text, parse_special)

    def _weights(self) -> Any:
        if self._closed:
            raise DecoderError("the decoder is closed; open it again")
        with self._tokenizer:
            self._free_model()  # the tokenizer's
        return self._lent().model

    def _loaded(self) -> _Weights:
        weights = _Weights(self._load("weights"))
        release_freed_memory()  # of the header, which has all tokens
        release_read_pages()
        return weights

    def _load(self, part: Part) -> Any:
        checked = self._header if self._stamp is not None and _stamp(self._path) == self._stamp else None
        return load_model(self._path, self.settings, self._facts, part=part, checked=checked)[0]

    def _leave(self) -> None:
        """The turn ends: close all contexts, in which there must be no answers."""
        if any(map(len, self.users)):
            raise CaptionerBusyError(
                'other captions are being made, and with memory="low" no audio is heard meanwhile; take those to their '
                "end first, or close them"
            )
        for user in list(self.users):
            user.leave()
        self._drop_context()


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What is another if a file was changed, or another has its place; None if it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


class _Weights:
    """Of a loaded model, until nobody has this any more."""

    def __init__(self, model: Any) -> None:
        self.model = model
        weakref.finalize(self, only_here(llama_cpp_library().llama_model_free), model)
