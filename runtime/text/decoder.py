"""The decoder: llama.cpp fed with tokens and audio embeddings.

It drives `llama_decode` itself: `llama_cpp.Llama` cannot take embeddings, and erases rows that it did not
decode. llama.cpp checks sizes with assertions that end the process, so all are checked here first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.manifest import DecoderFacts, Sampling
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import DecoderError
from dasheng_edge.runtime.gguf.header import Header

from .context import Context
from .llama import Watch
from .model import TextModel, Tokens, load_model
from .prefix_cache import PrefixCache
from .sampler import Sampler, phrase_of_loop
from .token_rows import TokenRows

Embeddings: TypeAlias = NDArray[np.float32]

SCORED_ROWS = 64  # rows with logits per llama_decode call in `score`; at 152,064 tokens, 39 MB
FIRST_CONTEXT = 512  # positions: half a minute of audio and an answer; keys and values of all are allocated at once
CONTEXT_STEP = 256  # llama.cpp rounds the context up to a multiple of this
_GREEDY = Sampling()


class User(Protocol):
    """Who has a context on a decoder's weights."""

    def __len__(self) -> int:
        """How many answers are made there at present."""
        ...

    def leave(self) -> None:
        """Close the context; another one is made where it is needed."""
        ...


class Decoder(TextModel):
    """A GGUF text decoder (Qwen2 or Qwen3) with its tokenizer, and one sequence in its KV cache.

    Not for two threads at once. The context starts with `n_ctx` positions, because its KV cache is allocated
    in full, and is made anew with more when a request needs more, up to `context_length`.
    """

    def __init__(self, model: Any, header: Header, settings: EngineSettings, *, n_ctx: int = FIRST_CONTEXT) -> None:
        super().__init__(model)
        self.settings = settings
        self._watch: Watch | None = None
        self._context: Context | None = None
        self._first_ctx = n_ctx
        self._kept: Tokens = ()  # leading tokens whose keys and values are in the cache
        self._past = 0  # rows in the cache
        self.prefilled = 0  # rows that the last prefill had to decode
        self.prefixes: PrefixCache | None = None  # of prompts; None if a `watch` must see every row
        self._has_logits = False
        self._outputs = 1  # rows of a batch that may have logits
        self._token_rows = TokenRows(header)
        self.users: WeakSet[User] = WeakSet()

    @classmethod
    def open(
        cls,
        path: str | Path,
        settings: EngineSettings,
        *,
        n_ctx: int = FIRST_CONTEXT,
        facts: DecoderFacts | None = None,
    ) -> Decoder:
        """Load a GGUF file; `facts` are what the manifest of its bundle says of it, which it must agree with.

        Raises:
            MissingExtraError: llama-cpp-python is not installed.
            DeviceError: llama.cpp was built without GPU support and `cuda` was asked for.
            GgufError: the file is damaged, or not a Qwen2 or Qwen3 decoder as `gguf_check` describes it.
            DecoderError: llama.cpp cannot load the file.
        """
        return cls(*load_model(path, settings, facts), settings, n_ctx=n_ctx)

    def close(self) -> None:
        """Free the model and the context; harmless when repeated."""
        self._drop_context()
        self._free_model()

    def _drop_context(self) -> None:
        if self._context is not None:
            self._context.close()
        self._context, self._kept = None, ()
        self._past, self._has_logits = 0, False

    @property
    def n_ctx(self) -> int:
        """Positions of the present context; 0 without a context."""
        return self._context.n_ctx if self._context else 0

    def prefill(self, segments: Sequence[Tokens | Embeddings], *, reserve: int = 0) -> None:
        """Decode a prompt of token ids and embeddings float32 [n, n_embd]; keep room for `reserve` more rows.

        Leading tokens that equal those of the previous request stay in the cache; those of an earlier request are taken
        from `prefixes`.

        Raises:
            DecoderError: no rows, rows of another width or with NaN, more than `context_length`, or llama.cpp
                failed.
        """
        blocks = [self.checked(segment) for segment in segments if len(segment)]
        total = sum(map(len, blocks))
        if not total:
            raise DecoderError("the prompt is empty; expected at least one token")
        self._fit(total + reserve)
        lead: Tokens = tuple(blocks[0].tolist()) if blocks[0].ndim == 1 else ()
        if len(lead) < total:
            kept = self._lead(lead)
            blocks = blocks[1:] if lead else blocks
        else:
            kept = min(self._same(lead), total - 1)  # the last row is decoded in any case: its logits are needed
            self._rewind(kept)
            blocks = [blocks[0][kept:]]
        for block in self.merged(blocks):
            self._decode(block, outputs=int(self._past + len(block) == total))
        self._synchronize()
        self._kept, self.prefilled = lead, total - kept

    def merged(self, blocks: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Blocks of embeddings and blocks of tokens as one block of embeddings; blocks of one kind stay as they are."""
        if len({block.ndim for block in blocks}) < 2:
            return list(blocks)
        rows = [block if block.ndim == 2 else self._token_rows.of(tuple(block.tolist())) for block in blocks]
        known = [row for row in rows if row is not None]
        return [np.concatenate(known)] if len(known) == len(rows) else list(blocks)

    def _synchronize(self) -> None:
        """The time of a prefill is taken when it is done, not when a GPU has been told of it."""
        assert self._context is not None
        self._context.synchronize()

    def _lead(self, lead: Tokens) -> int:
        """Have exactly these rows in the cache; returns how many of them were not decoded now."""
        same, prefixes = self._same(lead), self.prefixes
        if prefixes is None or same == len(lead):
            self._rewind(same)
            self._decode(np.array(lead[same:], np.int32), outputs=0)
            return same
        self._rewind(0)
        assert self._context is not None
        computed = prefixes.put(self._context, 0, lead)
        self._past = len(lead)
        return len(lead) - computed

    def _same(self, lead: Tokens) -> int:
        """How many leading tokens are those of the previous request."""
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(lead, self._kept, strict=False)))

    def checked(self, segment: Tokens | Embeddings) -> NDArray[Any]:
        """Token ids as int32 [n], or embeddings as contiguous float32 [n, n_embd].

        Raises:
            DecoderError: rows of another width, or with NaN.
        """
        if isinstance(segment, tuple):
            return np.array(segment, np.int32)
        if segment.ndim != 2 or segment.shape[1] != self.n_embd:
            raise DecoderError(f"the audio embeddings have shape {segment.shape}, expected [n, {self.n_embd}]")
        if not np.isfinite(segment).all():
            raise DecoderError("the audio embeddings hold NaN or infinity; run `dasheng-edge verify` on the bundle")
        return np.ascontiguousarray(segment, np.float32)

    def _rewind(self, rows: int) -> None:
        """Keep the first `rows` rows of the cache; `_kept` stays empty until a prefill has succeeded."""
        assert self._context is not None
        self._kept, self._has_logits = (), False
        self._context.forget(0, rows)
        self._past = rows

    def _fit(self, rows: int) -> None:
        """Make sure that the context holds so many rows; a larger one is empty."""
        if rows > self.context_length:
            raise DecoderError(
                f"the request needs {rows} positions, the decoder has {self.context_length}; "
                "use shorter audio, a shorter prompt or fewer new tokens"
            )
        if rows <= self.n_ctx:
            return
        doubled = max(rows, 2 * self.n_ctx, self._first_ctx)
        wanted = min(-(-doubled // CONTEXT_STEP) * CONTEXT_STEP, max(rows, self.context_length))
        self._drop_context()  # first, since two contexts may not fit into memory together
        self._context = self.new_context(wanted, outputs=self._outputs)

    def new_context(self, n_ctx: int, *, sequences: int = 1, outputs: int = 1, watch: Watch | None = None) -> Context:
        """A context on these weights; `watch` sees what is computed, instead of the decoder's own.

        Raises:
            DecoderError: the decoder is closed, or llama.cpp cannot make it.
        """
        watch = watch or self._watch
        return Context(self._weights(), n_ctx, self.settings, sequences=sequences, outputs=outputs, watch=watch)

    def _weights(self) -> Any:
        """A `llama_model` that can compute."""
        if not self._free_model.alive:
            raise DecoderError("the decoder is closed; open it again")
        return self._model

    def _decode(self, rows: NDArray[Any], *, outputs: int) -> None:
        """Decode int32 [n] tokens or float32 [n, n_embd] embeddings at the end of the sequence.

        The last `outputs` rows get logits; no more than BATCH.
        """
        assert self._context is not None
        self._has_logits = False
        try:
            self._context.extend(rows, sequence=0, past=self._past, outputs=outputs)
        except DecoderError:
            self._kept = ()
            raise
        self._past += len(rows)
        self._has_logits = outputs > 0

    def logits(self, row: int = -1) -> NDArray[np.float32]:
        """Logits of the last row, or of another one of the last batch that has them, float32 [n_vocab].

        Raises:
            DecoderError: nothing was decoded, or they hold NaN.
        """
        return self._logits(row).copy()

    def _logits(self, row: int = -1) -> NDArray[np.float32]:
        if not self._has_logits or self._context is None:
            raise DecoderError("there are no logits yet; call prefill first")
        return self._context.logits(row)

    def score(self, segments: Sequence[Tokens | Embeddings], answer: Tokens) -> NDArray[np.float32]:
        """Logits from which each token of an answer would be chosen, given the prompt and the tokens before it.

        float32 [len(answer), n_vocab]. The last token of the answer is not decoded, since nothing follows it.

        Raises what `prefill` and `logits` raise.
        """
        if self._outputs < SCORED_ROWS:
            self._outputs = SCORED_ROWS
            self._drop_context()  # it has room for the logits of one row
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
        """Show intermediate results of every following request; None stops that."""
        self._watch = watch
        self._drop_context()  # llama.cpp takes the callback with a new context

    def attend(self, *, exact: bool | None) -> None:
        """How the following requests attend: see `EngineOptions.exact`."""
        self.settings = replace(self.settings, exact=exact)
        self._drop_context()

    def generate(self, max_new_tokens: int, sampling: Sampling = _GREEDY) -> Iterator[int]:
        """Token ids after a prefill, up to an end token, `max_new_tokens`, or where they go round in a loop.

        Raises:
            DecoderError: no prefill, the context is full, or what `logits` and llama.cpp raise.
        """
        sampler, answer = Sampler(self, sampling), list[int]()
        try:
            for left in reversed(range(max_new_tokens)):
                logits = self._logits()  # refuses NaN, from which a sampler would take any token
                assert self._context is not None
                token = sampler.next(self._context, logits)
                answer.append(token)
                yield token
                if self.is_end(token) or not left or phrase_of_loop(answer):
                    return
                if self._past >= self.n_ctx:
                    raise DecoderError(f"the context of {self.n_ctx} positions is full; reserve room for more tokens")
                self._decode(np.array([token], np.int32), outputs=1)
        finally:
            sampler.close()
