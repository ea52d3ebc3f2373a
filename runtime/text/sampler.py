"""Chooses tokens: greedily from the logits, or by llama.cpp's samplers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.manifest import Sampling

from .llama import llama_cpp_library

if TYPE_CHECKING:
    from .context import Context
    from .model import TextModel

PENALTY_WINDOW = 64  # generated tokens that the repetition penalty looks back on, llama.cpp's own default


class Sampler:
    """One for each answer, since the repetition penalty remembers what it chose."""

    def __init__(self, model: TextModel, sampling: Sampling) -> None:
        self._llama = llama_cpp_library()
        greedy = not sampling.temperature and sampling.repetition_penalty == 1.0
        self._chain = None if greedy else self._new_chain(model.n_vocab, sampling)

    def next(self, context: Context, logits: NDArray[np.float32], row: int = -1) -> int:
        """The token after a row of the last batch; `logits` are that row's."""
        if self._chain is None:
            return int(logits.argmax())  # llama.cpp's own greedy sampler copies and sorts what it looks at
        return int(self._llama.llama_sampler_sample(self._chain, context.pointer, row))

    def close(self) -> None:
        """Free it; harmless when repeated."""
        if self._chain is not None:
            self._llama.llama_sampler_free(self._chain)
            self._chain = None

    def _new_chain(self, n_vocab: int, sampling: Sampling) -> Any:
        """In the order of transformers, whose settings these are: temperature first. At 0 it is greedy."""
        llama = self._llama
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if sampling.repetition_penalty != 1.0:
            penalty = (n_vocab, PENALTY_WINDOW, sampling.repetition_penalty, 0.0, 0.0)
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_penalties(*penalty))
        if not sampling.temperature:
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_greedy())
            return chain
        for sampler in (
            llama.llama_sampler_init_temp(sampling.temperature),
            llama.llama_sampler_init_top_k(min(sampling.top_k, n_vocab)),
            llama.llama_sampler_init_top_p(sampling.top_p, 1),
            llama.llama_sampler_init_min_p(sampling.min_p, 1),
            llama.llama_sampler_init_dist(sampling.seed % 0xFFFFFFFF),  # that very value asks for a random seed
        ):
            llama.llama_sampler_chain_add(chain, sampler)
        return chain
