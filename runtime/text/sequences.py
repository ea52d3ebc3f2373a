"""Several answers in the making: a llama.cpp sequence for each, and a token of each in every step.

An answer that ends leaves its place to the next at once, so that steps stay as wide as they can be.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from time import perf_counter

import numpy as np

from dasheng_edge.runtime.errors import DashengEdgeError, DecoderError, MemoryShortError

from .answer import Answer, Block, Place, groups
from .beginnings import Beginnings
from .context import Context
from .decoder import CONTEXT_STEP, FIRST_CONTEXT, Decoder, Embeddings
from .model import Tokens
from .sampler import Sampler, phrase_of_loop

MAX_SEQUENCES = 256  # llama.cpp's own limit; each takes keys and values of its own


class Sequences:
    """Up to `most` answers at a time, on a decoder's weights, in a context of their own.

    A token is computed with the same operations as alone, but sums over several rows are rounded in another order. So
    greedy answers are those of a single sequence unless two tokens are almost equally likely.

    The context is made when the first answer begins, and anew when more or longer ones need a larger one; what is in it
    is carried over. With `keep` it stays as large as it ever was, for later requests. Not for two threads at once.
    """

    def __init__(self, decoder: Decoder, most: int, *, choose: bool | None = None, keep: bool = False) -> None:
        # Whether llama.cpp chooses the tokens of greedy answers, by default on a GPU.
        self._choose_there = decoder.settings.text_device != "cpu" if choose is None else choose
        self._keep = keep
        self._decoder, self._most, self._limit = decoder, most, most  # the limit is lower where memory is short
        self._beginnings = Beginnings(decoder)
        self._context: Context | None = None
        self._places: dict[int, Place] = {}  # by sequence
        self._sequences = self._each = 0  # of the context, and positions of each
        decoder.users.add(self)

    def __len__(self) -> int:
        """How many answers are in the making."""
        return len(self._places)

    @property
    def positions(self) -> int:
        """Of each sequence of the present context; 0 without one."""
        return self._each if self._context is not None else 0

    def close(self) -> None:
        """Stop all answers and free the context; harmless when repeated."""
        for place in self._places.values():
            place.sampler.close()
        self._places.clear()
        self._drop_context()
        self._beginnings.close()

    def leave(self) -> None:
        """Close the context, in which no answer is, as if nothing had been asked."""
        self._drop_context()

    def begin(self, answers: Sequence[Answer]) -> int:
        """Take as many of these answers as there is room for, in order; returns how many.

        Their prompts are decoded, and the first token of each is chosen. One that cannot be begun has `ended` with an
        `error`. 0 means that there is room only when one that is in the making has ended.
        """
        try:
            return self._begin(answers)
        except BaseException:
            self.close()  # nobody knows what is in the context
            raise

    def _begin(self, answers: Sequence[Answer]) -> int:
        placed: list[tuple[Place, Block]] = []
        taken = 0
        for answer in answers:
            try:
                place = self._placed(answer, len(answers) - taken)
                if place is None:
                    break
                placed.append((place, self._begun(place)))
            except DashengEdgeError as error:
                self._end(answer, error)
            taken += 1
        for group in groups([pair for pair in placed if not pair[0].answer.ended]):
            self._prefill(group)
        return taken

    def listen(self, answer: Answer, segments: Iterable[Tokens | Embeddings]) -> None:
        """Begin an answer whose prompt goes on with what comes bit by bit; there must be some, and no other answer.

        Raises:
            DecoderError: as an `Answer.error`, but raised; so is what the segments raise.
        """
        try:
            place = self._placed(answer, 1)
            assert place is not None, "another answer is in the making"
            start = perf_counter()
            assert self._context is not None
            self._beginnings.put_lead(
                self._context, place, tuple(token for tokens in answer.prompt for token in tokens)
            )
            answer.prefill_ms += 1000 * (perf_counter() - start)
            for segment in filter(len, segments):
                self._append(place, self._decoder.checked(segment))
        except BaseException:
            self._beginnings.lose()
            self.stop(answer)
            raise
        self._choose(place, -1, 0.0)

    def tokens(self, answer: Answer) -> Generator[int]:
        """Those of an answer that has begun, as they come, with a step of all for each; it is stopped with them.

        Raises:
            DashengEdgeError: the answer's `error`.
        """
        try:
            for index in range(answer.max_new_tokens):
                while index == len(answer.tokens) and not answer.ended:
                    self.step()
                if index == len(answer.tokens):
                    break
                yield answer.tokens[index]
        finally:
            self.stop(answer)
        if answer.error is not None:
            raise answer.error

    def step(self) -> None:
        """Choose the next token of each answer. One that has `ended` has left its place."""
        self._close_gaps()
        if self._places:
            self._decode([place for _, place in sorted(self._places.items())])

    def stop(self, answer: Answer) -> None:
        """Let go of an answer, whose place is free at once; harmless if it is not in the making."""
        for place in [place for place in self._places.values() if place.answer is answer]:
            if self._context is not None and answer.error is None:
                self._beginnings.keep(self._context, place)
            place.sampler.close()
            del self._places[place.sequence]

    def _end(self, answer: Answer, error: DashengEdgeError | None = None) -> None:
        answer.ended, answer.error = True, error
        if error is not None:
            self._beginnings.lose()
        self.stop(answer)

    def _placed(self, answer: Answer, wanted: int) -> Place | None:
        """An empty sequence for an answer, the first of so many that want one; None if there is none at present."""
        if not sum(map(len, answer.prompt)):
            raise DecoderError("the prompt is empty; expected at least one token")
        if not self._fit(self._each_for(answer.positions), wanted):
            return None
        sequence = next(index for index in range(self._sequences) if index not in self._places)
        place = Place(sequence, answer, Sampler(self._decoder, answer.sampling, answer.top, answer.grammar))
        self._places[sequence] = place
        self._say_who_chooses(place)
        return place

    def _say_who_chooses(self, place: Place) -> None:
        assert self._context is not None
        self._context.choose(place.sequence, greedily=self._choose_there and place.sampler.greedy)

    def _each_for(self, positions: int) -> int:
        """How many positions a sequence should have that needs so many.

        Raises:
            DecoderError: the model has no more.
        """
        most = self._decoder.context_length
        if positions > most:
            raise DecoderError(
                f"the request needs {positions} positions, the decoder has {most}; use shorter audio, a shorter prompt "
                "or fewer new tokens"
            )
        if self._keep and positions > self._each:
            first = 0 if self._decoder.settings.text_device == "cpu" else FIRST_CONTEXT  # that memory is taken once
            positions = max(positions, min(max(first, 2 * self._each), most))
        return -(-positions // CONTEXT_STEP) * CONTEXT_STEP

    def _fit(self, each: int, wanted: int) -> bool:
        """Have an empty sequence of so many positions; whether that is possible now. A larger context has `wanted`.

        Raises:
            MemoryShortError: there is not enough memory, although no answer is in the making.
        """
        if not self._places and (self._keep or not each <= self._each <= 2 * each):  # as if nothing was asked before
            self._limit = self._most
            if not self._keep:
                self._drop_context()
        room = self._sequences - len(self._places)
        short = not room or (not self._places and room < min(wanted, self._limit))
        if each <= self._each and not short:
            return True
        if not room and self._sequences == self._limit:
            return False
        more = max(4 * len(self._places), len(self._places) + wanted)
        return self._resize(min(more, self._limit) if short else self._sequences, each)

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
        self._context, self._sequences, self._each = None, 0, 0
        self._beginnings.lose()

    def _close_gaps(self) -> None:
        """Have the answers in the first sequences: llama.cpp computes those on either side of a gap one by one."""
        while self._places and (last := max(self._places)) >= len(self._places):
            assert self._context is not None
            place = self._places.pop(last)
            place.sequence = next(index for index in range(last) if index not in self._places)
            self._context.forget(place.sequence, 0)
            self._context.move(last, place.sequence)
            self._beginnings.move(last, place.sequence)
            self._say_who_chooses(place)
            self._places[place.sequence] = place

    def _begun(self, place: Place) -> Block:
        """As `Beginnings.put`."""
        start = perf_counter()
        assert self._context is not None
        rest = self._beginnings.put(self._context, place)
        place.answer.prefill_ms += 1000 * (perf_counter() - start)
        return rest

    def _append(self, place: Place, block: Block) -> None:
        """Decode more of a prompt that is alone, in a larger context if need be; its last row has logits."""
        answer, start = place.answer, perf_counter()
        each = self._each_for(place.past + len(block) + answer.max_new_tokens)
        if each > self._each and not self._resize(self._sequences, each):
            raise MemoryShortError(f"there is not enough memory for {each} positions; free some, or use shorter audio")
        assert self._context is not None
        self._context.extend(block, sequence=place.sequence, past=place.past, outputs=1)
        self._context.synchronize()
        place.past += len(block)
        answer.prefilled += len(block)
        answer.prefill_ms += 1000 * (perf_counter() - start)

    def _prefill(self, group: Sequence[tuple[Place, Block]]) -> None:
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
                together = np.concatenate([rows for _, rows in group])
                context.decode(together, np.concatenate(positions), np.concatenate(owners), wanted)
        except (DecoderError, MemoryShortError) as error:
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
            place.answer.prefilled += len(rows)
            place.answer.prefill_ms += spent
            self._choose(place, last, 0.0)

    def _decode(self, going: Sequence[Place]) -> None:
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
        except (DecoderError, MemoryShortError) as error:
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

    def _choose(self, place: Place, row: int, spent_ms: float) -> None:
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
                answer.chosen = place.sampler.chosen
        except DashengEdgeError as error:  # NaN: of this row alone
            self._end(answer, error)
            return
        answer.tokens.append(token)
        answer.spent_ms.append(spent_ms + 1000 * (perf_counter() - start))
        full = len(answer.tokens) == answer.max_new_tokens
        enough = answer.told is not None and answer.told()
        if full or enough or self._decoder.is_end(token) or phrase_of_loop(answer.tokens):
            self._end(answer)
