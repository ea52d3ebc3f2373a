"""Tokens that a grammar allows: llama.cpp's grammar sampler, given nothing that was not checked before.

Its parser and sampler end the process on what they do not expect, so grammars are only those that
`prompt.json_schema` writes, and no token is accepted that was not found to be allowed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.errors import DecoderError

from .llama import llama_cpp_library, pointer

if TYPE_CHECKING:
    from .model import TextModel

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class Candidates:
    """All tokens with their logits, as llama.cpp's samplers take them."""

    def __init__(self, logits: NDArray[np.float32], tokens: NDArray[np.int32] | None = None) -> None:
        self._llama = llama_cpp_library()
        self._rows = np.zeros(len(logits), _CANDIDATE)
        self._rows["id"] = np.arange(len(logits), dtype=np.int32) if tokens is None else tokens
        self._rows["logit"] = logits

    def apply(self, sampler: Any) -> int:
        """What a sampler selects; -1 if it does not select. It may reorder and cut the candidates."""
        array = self._llama.llama_token_data_array(
            data=pointer(self._rows, self._llama.llama_token_data), size=len(self._rows), selected=-1, sorted=False
        )
        self._llama.llama_sampler_apply(sampler, ctypes.byref(array))
        return int(self._rows["id"][array.selected]) if 0 <= array.selected < array.size else -1

    @property
    def possible(self) -> NDArray[np.bool_]:
        """Which of them are left, bool [n]."""
        left: NDArray[np.bool_] = np.isfinite(self._rows["logit"])
        return left


class Grammar:
    """What may come next of one answer.

    Raises:
        PromptError: llama.cpp does not take the grammar.
    """

    def __init__(self, model: TextModel, grammar: str) -> None:
        self._llama = llama_cpp_library()
        self._sampler = model.new_grammar(grammar)
        # Their texts, such as `<|im_start|>`, are none that an answer has.
        self._never = [token for token in model.control_tokens.values() if not model.is_end(token)]

    def next(self, logits: NDArray[np.float32], pick: Callable[[NDArray[np.float32]], int]) -> int:
        """The token that `pick` chooses if it is allowed, else the one that it chooses of those that are.

        llama.cpp's own programs do the same: most tokens are allowed, and to look at all of them takes longer than to
        compute a small model.

        Raises:
            DecoderError: no token is allowed.
        """
        token = pick(logits)
        if token in self._never or not self._allowed(logits[token : token + 1], np.array([token], np.int32))[0]:
            left = logits.copy()
            left[self._never] = -np.inf
            allowed = self._allowed(left)
            left[~allowed] = -np.inf
            token = pick(left) if allowed.any() else 0
            if not allowed[token]:
                token = int(left.argmax())
            if not allowed[token]:
                raise DecoderError("the vocabulary has no token with which the answer could go on in the asked form")
        self._llama.llama_sampler_accept(self._sampler, token)
        return token

    def _allowed(self, logits: NDArray[np.float32], tokens: NDArray[np.int32] | None = None) -> NDArray[np.bool_]:
        candidates = Candidates(logits, tokens)
        candidates.apply(self._sampler)
        return candidates.possible

    def close(self) -> None:
        """Free it; harmless when repeated."""
        if self._sampler is not None:
            self._llama.llama_sampler_free(self._sampler)
            self._sampler = None
