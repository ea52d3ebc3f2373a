"""Several answers in the making: a llama.cpp sequence for each, and a token of each in every step.

An answer that ends leaves its place to the next at once, so that steps stay as wide as they can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.errors import DashengEdgeError, DecoderError, MemoryShortError

from .context import BATCH, Context
from .decoder import CONTEXT_STEP, Decoder, Embeddings
from .model import Tokens
from .prefix_cache import PrefixCache
from .sampler import Sampler, phrase_of_loop

Block: TypeAlias = NDArray[Any]  # tokens int32 [n] or embeddings float32 [n, n_embd]

MAX_SEQUENCES = 256  # llama.cpp's own limit; each takes keys and values of its own


@dataclass
class Beginning:
    """What several prompts begin with: computed for the first of them, and copied for the others."""

    segments: Sequence[Tokens | Embeddings]
    state: bytes | None = None  # its keys and values, once they are computed


@dataclass
class Answer:
    """One answer in the making. The time of a step is shared equally by the answers in it."""

    prompt: Sequence[Tokens | Embeddings]
    max_new_tokens: int
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)  # the last may be an end token
    prefill_ms: float = 0.0
    spent_ms: list[float] = field(default_factory=list)  # for each token
    confidence: float | None = None  # see `Sampler.confidence`; None where llama.cpp chooses: it keeps the logits
    error: DashengEdgeError | None = None
    ended: bool = False
    beginning: Beginning | None = None  # of the prompt, if others begin with it, too; until the answer has begun

    @property
    def positions(self) -> int:
        """How many keys and values it may need: those of its prompt and of all its tokens."""
        return sum(map(len, self.prompt)) + self.max_new_tokens


def share_beginning(answers: Sequence[Answer]) -> None:
    """Have what all these prompts begin with computed once, if the embeddings of a clip are a part of it."""
    common = list(takewhile(_is_one, zip(*(answer.prompt for answer in answers), strict=False)))
    segments = [segment for segment, *_ in common]
    if len(answers) > 1 and not all(isinstance(segment, tuple) for segment in segments):
        beginning = Beginning(segments)
        for answer in answers:
            answer.beginning = beginning


def _is_one(segments: Sequence[Tokens | Embeddings]) -> bool:
    first, *others = segments
    return all(other is first or (isinstance(first, tuple) and other == first) for other in others)


@dataclass
class _Place:
    """A sequence of the context that an answer has taken."""

    sequence: int
    answer: Answer
    sampler: Sampler
    past: int = 0  # rows in the cache


class Sequences:
    """Up to `most` answers at a time, on a decoder's weights, in a context of their own.

    A token is computed with the same operations as alone, but sums over several rows are rounded in another order. So
    greedy answers are those of a single sequence unless two tokens are almost equally likely.

    The context is made when the first answer begins, and anew when more or longer ones need a larger one; what is in it
    is carried over. Not for two threads at once.
    """

    def __init__(self, decoder: Decoder, most: int, *, choose: bool | None = None) -> None:
        # Whether llama.cpp chooses the tokens of greedy answers, by default on a GPU.
        self._choose_there = decoder.settings.text_device != "cpu" if choose is None else choose
        self._decoder, self._most, self._limit = decoder, most, most  # the limit is lower where memory is short
        self._prefixes = decoder.prefixes or PrefixCache(None, "")  # in memory alone
        self._context: Context | None = None
        self._each = 0  # positions of a sequence
        self._places: dict[int, _Place] = {}  # by sequence
        self._sequences = 0  # of the context

    def __len__(self) -> int:
        """How many answers are in the making."""
        return len(self._places)

    def close(self) -> None:
        """Stop all answers and free the context; harmless when repeated."""
        for place in self._places.values():
            place.sampler.close()
        self._places.clear()
        self._drop_context()

    def begin(self, answers: Sequence[Answer]) -> int:
        """Take as many of these answers as there is room for, in order; returns how many.

        Their prompts are decoded, and the first token of each is chosen. One that cannot be begun has `ended` with an
        `error`. 0 means that there is room only when one that is in the making has ended.
        """
        placed: list[tuple[_Place, Block]] = []
        taken = 0
        for answer in answers:
            try:
                place = self._placed(answer, len(answers) - taken)
                if place is None:
                    break
                placed.append((place, self._lead(place)))
            except DashengEdgeError as error:
                self._end(answer, error)
            taken += 1
        for group in _groups([pair for pair in placed if not pair[0].answer.ended]):
            self._prefill(group)
        return taken

    def step(self) -> None:
        """Choose the next token of each answer. One that has `ended` has left its place."""
        self._close_gaps()
        if self._places:
            self._decode([place for _, place in sorted(self._places.items())])

    def stop(self, answer: Answer) -> None:
        """Let go of an answer, whose place is free at once; harmless if it is not in the making."""
        for place in [place for place in self._places.values() if place.answer is answer]:
            place.sampler.close()
            del self._places[place.sequence]
            if self._context is not None:
                self._context.forget(place.sequence, 0)

    def _end(self, answer: Answer, error: DashengEdgeError | None = None) -> None:
        answer.ended, answer.error = True, error
        self.stop(answer)

    def _placed(self, answer: Answer, wanted: int) -> _Place | None:
        """An empty sequence for an answer, the first of so many that want one; None if there is none at present."""
        if not sum(map(len, answer.prompt)):
            raise DecoderError("the prompt is empty; expected at least one token")
        if answer.positions > self._decoder.context_length:
            raise DecoderError(
                f"the request needs {answer.positions} positions, the decoder has {self._decoder.context_length}; use "
                "shorter audio, a shorter prompt or fewer new tokens"
            )
        if not self._fit(-(-answer.positions // CONTEXT_STEP) * CONTEXT_STEP, wanted):
            return None
        sequence = next(index for index in range(self._sequences) if index not in self._places)
        place = _Place(sequence, answer, Sampler(self._decoder, answer.sampling))
        self._places[sequence] = place
        self._say_who_chooses(place)
        return place

    def _say_who_chooses(self, place: _Place) -> None:
        assert self._context is not None
        self._context.choose(place.sequence, greedily=self._choose_there and place.sampler.greedy)

    def _fit(self, each: int, wanted: int) -> bool:
        """Have an empty sequence of so many positions; whether that is possible now. A larger context has `wanted`.

        Raises:
            MemoryShortError: there is not enough memory, although no answer is in the making.
        """
        if not self._places and not each <= self._each <= 2 * each:  # as if nothing had been asked before
            self._drop_context()
            self._each, self._limit = 0, self._most
        full = len(self._places) == self._sequences
        if each <= self._each and not full:
            return True
        if full and self._sequences == self._limit:
            return False
        more = max(4 * self._sequences, len(self._places) + wanted)
        return self._resize(min(more, self._limit) if full else self._sequences, each)

    def _resize(self, sequences: int, each: int) -> bool:
        """Make the context anew and carry over what is in it; False if there is no memory, and all is as before."""
        each = max(each, self._each)
        before, states = (self._sequences, self._each), {}
        if self._context is not None:
            states = {place.sequence: self._context.state(place.sequence) for place in self._places.values()}
        self._drop_context()  # first, since two contexts may not fit into memory together
        try:
            self._open(sequences, each)
        except MemoryShortError:
            if not self._places:
                if sequences == 1:
                    raise
                self._limit = 1
                return self._resize(1, each)
            try:
                self._open(*before)
            except MemoryShortError as error:  # not even that any more: what was in the making is lost
                for place in list(self._places.values()):
                    self._end(place.answer, error)
                raise
            self._limit = before[0]
        for sequence, state in states.items():
            place = self._places[sequence]
            self._say_who_chooses(place)
            if self._context is None or not self._context.restore(sequence, state, place.past):
                self._end(place.answer, DecoderError("llama.cpp cannot carry an answer over to a larger context"))
        return (self._sequences, self._each) == (sequences, each)

    def _open(self, sequences: int, each: int) -> None:
        self._context = self._decoder.new_context(each * sequences, sequences=sequences, outputs=sequences)
        self._sequences, self._each = sequences, each

    def _drop_context(self) -> None:
        if self._context is not None:
            self._context.close()
        self._context, self._sequences = None, 0

    def _close_gaps(self) -> None:
        """Have the answers in the first sequences: llama.cpp computes those on either side of a gap one by one."""
        while self._places and (last := max(self._places)) >= len(self._places):
            assert self._context is not None
            place = self._places.pop(last)
            place.sequence = next(index for index in range(last) if index not in self._places)
            self._context.move(last, place.sequence)
            self._say_who_chooses(place)
            self._places[place.sequence] = place

    def _lead(self, place: _Place) -> Block:
        """Have the leading tokens of a prompt in the cache; returns its other rows.

        They are computed once, and copied from then on: as `Decoder.prefill` does, so that the numbers are the same.
        """
        blocks = [self._decoder.checked(segment) for segment in place.answer.prompt if len(segment)]
        start = perf_counter()
        shared, place.answer.beginning = place.answer.beginning, None
        if shared is not None:
            common = sum(1 for segment in shared.segments if len(segment))
            self._begin_as(place, shared, blocks[:common])
            blocks = blocks[common:]
        elif len(blocks) > 1:
            blocks = self._without_lead(place, blocks)
        *others, last = self._decoder.merged(blocks)
        self._extend(place, others)  # none, unless llama.cpp does not show the embeddings of tokens
        place.answer.prefill_ms += 1000 * (perf_counter() - start)
        return last

    def _without_lead(self, place: _Place, blocks: Sequence[Block]) -> list[Block]:
        assert self._context is not None
        if blocks[0].ndim > 1:
            return list(blocks)
        place.past = self._prefixes.put(self._context, place.sequence, tuple(blocks[0].tolist()))
        return list(blocks[1:])

    def _begin_as(self, place: _Place, beginning: Beginning, blocks: Sequence[Block]) -> None:
        """Have the rows of a beginning in the cache."""
        context, rows = self._context, sum(map(len, blocks))
        assert context is not None
        if beginning.state is not None and context.restore(place.sequence, beginning.state, rows):
            place.past = rows
            return
        self._extend(place, self._without_lead(place, blocks))
        beginning.state = context.state(place.sequence)

    def _extend(self, place: _Place, blocks: Sequence[Block]) -> None:
        assert self._context is not None
        for block in blocks:
            self._context.extend(block, sequence=place.sequence, past=place.past, outputs=0)
            place.past += len(block)

    def _prefill(self, group: Sequence[tuple[_Place, Block]]) -> None:
        """Decode the prompts of a group, which is one or fits into one batch; the first token of each is chosen."""
        context = self._context
        assert context is not None
        start = perf_counter()
        lasts = np.cumsum([len(rows) for _, rows in group]) - 1
        try:
            if len(group) == 1:
                ((place, rows),) = group
                context.extend(rows, sequence=place.sequence, past=place.past, outputs=1)
                lasts = np.array([-1])
            else:
                wanted = np.zeros(lasts[-1] + 1, np.int8)
                wanted[lasts] = 1
                positions = [np.arange(place.past, place.past + len(rows), dtype=np.int32) for place, rows in group]
                owners = [np.full(len(rows), place.sequence, np.int32) for place, rows in group]
                context.decode(
                    np.concatenate([rows for _, rows in group]),
                    np.concatenate(positions),
                    np.concatenate(owners),
                    wanted,
                )
        except DecoderError as error:
            for place, rows in group:
                context.forget(place.sequence, place.past)
                if len(group) > 1:
                    self._prefill([(place, rows)])  # what is wrong with one is its own
                else:
                    self._end(place.answer, error)
            return
        context.synchronize()
        spent = 1000 * (perf_counter() - start) / len(group)
        for (place, rows), last in zip(group, lasts.tolist(), strict=True):
            place.past += len(rows)
            place.answer.prefill_ms += spent
            self._choose(place, last, 0.0)

    def _decode(self, going: Sequence[_Place]) -> None:
        """The last token of each goes into the cache, and the next one is chosen."""
        context = self._context
        assert context is not None
        start = perf_counter()
        try:
            context.decode(
                np.array([place.answer.tokens[-1] for place in going], np.int32),
                np.array([place.past for place in going], np.int32),
                np.array([place.sequence for place in going], np.int32),
                np.ones(len(going), np.int8),
            )
        except DecoderError as error:
            for place in going:
                context.forget(place.sequence, place.past)
                if len(going) > 1:
                    self._decode([place])
                else:
                    self._end(place.answer, error)
            return
        context.synchronize()
        spent = 1000 * (perf_counter() - start) / len(going)
        for row, place in enumerate(going):
            place.past += 1
            self._choose(place, row, spent)

    def _choose(self, place: _Place, row: int, spent_ms: float) -> None:
        """Choose the token after a row of the last batch."""
        context, answer = self._context, place.answer
        assert context is not None
        start = perf_counter()
        try:
            if context.chooses(place.sequence):
                token = context.chosen(row)
            else:
                token = place.sampler.next(context, context.logits(row), row)
                answer.confidence = place.sampler.confidence
        except DashengEdgeError as error:  # NaN: of this row alone
            self._end(answer, error)
            return
        answer.tokens.append(token)
        answer.spent_ms.append(spent_ms + 1000 * (perf_counter() - start))
        full = len(answer.tokens) == answer.max_new_tokens
        if full or self._decoder.is_end(token) or phrase_of_loop(answer.tokens):
            self._end(answer)


def _groups(placed: Sequence[tuple[_Place, Block]]) -> list[list[tuple[_Place, Block]]]:
    """Prompts that go into one batch: rows of one kind, so many that they fit, and by their sequences."""
    groups: list[list[tuple[_Place, Block]]] = []
    for place, rows in sorted(placed, key=lambda item: item[0].sequence):
        last = groups[-1] if groups else []
        size = sum(len(other) for _, other in last) + len(rows)
        if last and size <= BATCH and last[0][1].ndim == rows.ndim:
            last.append((place, rows))
        else:
            groups.append([(place, rows)])
    return groups
