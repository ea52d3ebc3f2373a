"""Decodes several answers at once: a llama.cpp sequence for each, and a token of each in every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.errors import DecoderError

from .context import Context
from .decoder import CONTEXT_STEP, Decoder, Embeddings
from .model import Tokens
from .sampler import Sampler, phrase_of_loop

Block: TypeAlias = NDArray[Any]  # tokens int32 [n] or embeddings float32 [n, n_embd]

MAX_SEQUENCES = 64  # llama.cpp's own limit is 256; each takes keys and values of its own


@dataclass(frozen=True)
class Answer:
    """One of several answers. The time of a batch is shared equally by the answers in it."""

    tokens: Tokens  # including an end token
    prefill_ms: float
    spent_ms: tuple[float, ...]  # for each token


def batch_answers(
    decoder: Decoder, prompts: Sequence[Sequence[Tokens | Embeddings]], max_new_tokens: int, sampling: Sampling
) -> list[Answer]:
    """The answers to up to `MAX_SEQUENCES` prompts, decoded together on a decoder's weights, in a context of their own.

    A token is computed with the same operations as alone, but sums over several rows are rounded in another order.
    So greedy answers are those of a single sequence unless two tokens are almost equally likely.

    Raises:
        DecoderError: there are too many prompts, a prompt is empty or too long, rows have another width or hold
            NaN, or llama.cpp failed.
    """
    if not 1 <= len(prompts) <= MAX_SEQUENCES:
        raise DecoderError(f"{len(prompts)} prompts were given together; expected 1 to {MAX_SEQUENCES}")
    checked = [decoder.merged([decoder.checked(segment) for segment in prompt if len(segment)]) for prompt in prompts]
    rows = max(sum(map(len, prompt)) for prompt in checked) + max_new_tokens
    if rows > decoder.context_length:
        raise DecoderError(
            f"the longest request needs {rows} positions, the decoder has {decoder.context_length}; use "
            "shorter audio, a shorter prompt or fewer new tokens"
        )
    each = -(-rows // CONTEXT_STEP) * CONTEXT_STEP
    context = decoder.new_context(each * len(prompts), sequences=len(prompts), outputs=len(prompts))
    samplers = [Sampler(decoder, sampling) for _ in prompts]
    try:
        return _answers(decoder, context, checked, samplers, max_new_tokens)
    finally:
        for sampler in samplers:
            sampler.close()
        context.close()


def _answers(
    decoder: Decoder,
    context: Context,
    prompts: Sequence[Sequence[Block]],
    samplers: Sequence[Sampler],
    max_new_tokens: int,
) -> list[Answer]:
    answers: list[list[int]] = [[] for _ in prompts]
    spent_ms: list[list[float]] = [[] for _ in prompts]
    prefill_ms, lengths = [], []
    for sequence, prompt in enumerate(prompts):
        start = perf_counter()
        lengths.append(_prefill(context, sequence, prompt))
        prefill_ms.append(1000 * (perf_counter() - start))
        answers[sequence].append(samplers[sequence].next(context, context.logits(-1)))
        spent_ms[sequence].append(1000 * (perf_counter() - start) - prefill_ms[-1])
    while active := [
        sequence for sequence, answer in enumerate(answers)
        if len(answer) < max_new_tokens and not decoder.is_end(answer[-1]) and not phrase_of_loop(answer)
    ]:  # fmt: skip
        start = perf_counter()
        context.decode(
            np.array([answers[sequence][-1] for sequence in active], np.int32),
            np.array([lengths[sequence] for sequence in active], np.int32),
            np.array(active, np.int32),
            np.ones(len(active), np.int8),
        )
        for row, sequence in enumerate(active):
            lengths[sequence] += 1
            answers[sequence].append(samplers[sequence].next(context, context.logits(row), row))
        for sequence in active:
            spent_ms[sequence].append(1000 * (perf_counter() - start) / len(active))
    return [
        Answer(tuple(tokens), before, tuple(spent))
        for tokens, before, spent in zip(answers, prefill_ms, spent_ms, strict=True)
    ]


def _prefill(context: Context, sequence: int, prompt: Sequence[Block]) -> int:
    """Decode a prompt, whose last row gets logits; returns how many rows it has."""
    total = sum(map(len, prompt))
    if not total:
        raise DecoderError("the prompt is empty; expected at least one token")
    past = 0
    for block in prompt:
        context.extend(block, sequence=sequence, past=past, outputs=int(past + len(block) == total))
        past += len(block)
    return total
