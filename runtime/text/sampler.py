"""Chooses tokens: greedily from the logits, or by llama.cpp's samplers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.bundle.program import PENALTY_WINDOW

from .grammar import Candidates, Grammar
from .llama import llama_cpp_library

if TYPE_CHECKING:
    from .context import Context
    from .model import TextModel

# An answer that says the same over and over for so many tokens is ended: greedily it never leaves the loop, and what
# describes a sound, or transcribes speech, does not hold a minute of one phrase.
LOOP_TOKENS = 128
MAX_PHRASE = 64  # tokens that are looked for as one phrase
MIN_TIMES = 4  # that a phrase comes in a loop


@dataclass(frozen=True)
class Chosen:
    """A token that was chosen, with natural log-probabilities by the model alone; `top` are the likeliest, in order."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """One for each answer, since what it chose before counts.

    It keeps the log-probability of each token that it chose, by the model alone: at temperature 1, whatever penalties
    and limits it was chosen under, so that the confidence of answers can be compared. With `top`, it keeps what else
    was as likely, too. With a grammar, the likeliest token that the grammar allows is the likeliest.

    Raises:
        PromptError: llama.cpp does not take the grammar.
    """

    def __init__(
        self, model: TextModel, sampling: Sampling, top: int | None = None, grammar: str | None = None
    ) -> None:
        self._llama = llama_cpp_library()
        likeliest = not sampling.temperature and sampling.repetition_penalty == 1.0
        self._chain = None if likeliest else self._new_chain(model.n_vocab, sampling)
        self._grammar = None if grammar is None else Grammar(model, grammar)
        # Whether it is always the likeliest token, and nothing else is asked.
        self.greedy = likeliest and not sampling.no_repeat_ngram_size and top is None and grammar is None
        self._top = top
        self.chosen: list[Chosen] = []  # with `top`
        self._ngrams = Ngrams(sampling.no_repeat_ngram_size) if sampling.no_repeat_ngram_size else None
        self._log_probabilities: list[float] = []

    @property
    def confidence(self) -> float | None:
        """Mean natural log-probability of the tokens that it chose; None if it chose none.

        An end token counts, as in Whisper's `avg_logprob`: it says how sure the model was that no more is to be said.
        """
        chosen = self._log_probabilities
        return math.fsum(chosen) / len(chosen) if chosen else None

    def next(self, context: Context, logits: NDArray[np.float32], row: int = -1) -> int:
        """The token after a row of the last batch; `logits` are that row's, as llama.cpp's own samplers see them."""
        banned = self._ngrams.banned() if self._ngrams is not None else []
        before, logits[banned] = logits[banned], -np.inf
        if self._grammar is not None:
            token = self._grammar.next(logits, self._picked)
            if self._chain is not None:
                self._llama.llama_sampler_accept(self._chain, token)
        elif self._chain is None:
            token = int(logits.argmax())  # llama.cpp's own greedy sampler copies and sorts what it looks at
        else:
            token = int(self._llama.llama_sampler_sample(self._chain, context.pointer, row))
        logits[banned] = before
        if self._ngrams is not None:
            self._ngrams.add(token)
        own = log_probability(logits, token)
        self._log_probabilities.append(own)
        if self._top is not None:
            self.chosen.append(Chosen(token, own, self._likeliest(logits, own - float(logits[token]))))
        return token

    def _picked(self, logits: NDArray[np.float32]) -> int:
        """As `next`, but nothing is remembered."""
        return int(logits.argmax()) if self._chain is None else Candidates(logits).apply(self._chain)

    def _likeliest(self, logits: NDArray[np.float32], shift: float) -> tuple[tuple[int, float], ...]:
        """So many tokens as were asked for, with logits and what makes log-probabilities of them."""
        most = min(self._top or 0, len(logits))
        first = np.argpartition(logits, -most)[-most:] if most else np.zeros(0, np.int64)
        first = first[np.argsort(-logits[first], kind="stable")]
        return tuple((int(token), float(logits[token]) + shift) for token in first)

    def close(self) -> None:
        """Free it; harmless when repeated."""
        if self._chain is not None:
            self._llama.llama_sampler_free(self._chain)
            self._chain = None
        if self._grammar is not None:
            self._grammar.close()

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


def log_probability(logits: NDArray[np.float32], token: int) -> float:
    """Natural logarithm of the probability of a token, by its logits float32 [n_vocab]; 0.1 ms at 152,064 tokens."""
    below = logits - logits.max()
    own = float(below[token])
    return own - math.log(np.exp(below, out=below).sum())


class Ngrams:
    """Runs of `size` tokens of an answer: which tokens would end one that was there before.

    As transformers' NoRepeatNGramLogitsProcessor does where the model is given embeddings: only the answer counts.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}  # what followed each run of size - 1 tokens

    def banned(self) -> list[int]:
        """Token ids that must not come next."""
        return self._ends.get(self._lead(), [])

    def add(self, token: int) -> None:
        """This token was chosen."""
        if len(self._tokens) >= self._size - 1:
            self._ends.setdefault(self._lead(), []).append(token)
        self._tokens.append(token)

    def _lead(self) -> tuple[int, ...]:
        return tuple(self._tokens[len(self._tokens) - self._size + 1 :])


def phrase_of_loop(tokens: Sequence[int], stretch: int = LOOP_TOKENS) -> int:
    """How many tokens the phrase has that an answer ends with over and over; 0 if it does not.

    The phrase has at most `MAX_PHRASE` tokens, comes at least `MIN_TIMES`, and fills the last `stretch` tokens.
    """
    for size in range(1, MAX_PHRASE + 1):
        length = max(stretch, MIN_TIMES * size)
        if length > len(tokens):
            break
        if tokens[-1] == tokens[-1 - size] and tokens[-length + size :] == tokens[-length:-size]:
            return size
    return 0
