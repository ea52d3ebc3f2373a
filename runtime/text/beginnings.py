"""How the beginning of a prompt comes into the cache: computed, or copied from where it was computed before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .answer import Beginning, Block, Place
from .context import Context
from .decoder import Decoder
from .histories import Histories
from .model import Tokens
from .prefix_cache import PrefixCache


class Beginnings:
    """Of the prompts in the sequences of a context. Not for two threads at once."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._prefixes = decoder.prefixes or PrefixCache(None, "")  # in memory alone
        self._histories = Histories(low_memory=decoder.settings.memory == "low")
        self._leads: dict[int, Tokens] = {}  # with which sequences begin, those of answers that have ended, too

    def put(self, context: Context, place: Place) -> Block:
        """Have what is known of a prompt in the cache; returns its other rows.

        They are computed once, and copied from then on: as `Decoder.prefill` does, so that the numbers are the same.
        """
        answer = place.answer
        if answer.converses and (segments := self._begin_with_history(context, place)) is not None:
            blocks = [self._decoder.checked(segment) for segment in segments]
        else:
            blocks = [self._decoder.checked(segment) for segment in answer.prompt if len(segment)]
            shared, answer.beginning = answer.beginning, None
            if shared is not None:
                common = sum(1 for segment in shared.segments if len(segment))
                self._begin_as(context, place, shared, blocks[:common])
                del blocks[:common]
            else:
                blocks = [*self._without_lead(context, place, blocks)]
        *others, last = self._decoder.merged(blocks)
        self._extend(context, place, others)  # none, unless llama.cpp does not show the embeddings of tokens
        return last

    def put_lead(self, context: Context, place: Place, lead: Tokens) -> None:
        """Have these tokens in the cache and no others; they stay there from one answer to the next."""
        kept = self._leads.pop(place.sequence, ()) == lead
        context.forget(place.sequence, len(lead) if kept else 0)
        if not kept:
            store = not place.answer.converses
            place.answer.prefilled += self._prefixes.put(context, place.sequence, lead, store=store)
        place.past = len(lead)
        self._leads[place.sequence] = lead

    def keep(self, context: Context, place: Place) -> None:
        """Have what is in the cache of a conversation for its next turn, or for another answer to this one."""
        if place.answer.converses and place.past:
            context.forget(place.sequence, place.past)  # an interrupted step leaves a row more
            self._histories.keep(place.answer.prompt, place.answer.tokens, place.past, context, place.sequence)

    def move(self, sequence: int, to: int) -> None:
        """What was in one sequence is in another."""
        self._leads[to] = self._leads.pop(sequence, ())

    def lose(self) -> None:
        """Nobody knows what is in the sequences."""
        self._leads.clear()

    def close(self) -> None:
        """Keep nothing any more."""
        self._leads.clear()
        self._histories.clear()

    def _without_lead(self, context: Context, place: Place, blocks: Sequence[Block]) -> Sequence[Block]:
        """The other blocks, if the first has leading tokens, which are put into the cache."""
        lead = len(blocks) > 1 and blocks[0].ndim == 1
        self.put_lead(context, place, tuple(blocks[0].tolist()) if lead else ())
        return blocks[1:] if lead else blocks

    def _begin_as(self, context: Context, place: Place, beginning: Beginning, blocks: Sequence[Block]) -> None:
        """Have the rows of a beginning in the cache."""
        rows = sum(map(len, blocks))
        if beginning.state is not None:
            self._leads.pop(place.sequence, None)
            context.forget(place.sequence, 0)
            if context.restore(place.sequence, beginning.state, rows):
                place.past = rows
                return
        self._extend(context, place, self._without_lead(context, place, blocks))
        beginning.state = context.state(place.sequence)

    def _begin_with_history(self, context: Context, place: Place) -> Sequence[Tokens | np.ndarray] | None:
        """Have what a conversation begins with in the cache, if it is kept; returns the rest of the prompt."""
        if (history := self._histories.longest(place.answer.prompt)) is None:
            return None
        self._leads.pop(place.sequence, None)
        context.forget(place.sequence, 0)
        if not context.restore(place.sequence, history.state, history.rows):
            return None
        context.forget(place.sequence, history.common)
        place.past = history.common
        return history.rest

    def _extend(self, context: Context, place: Place, blocks: Sequence[Block]) -> None:
        for block in blocks:
            context.extend(block, sequence=place.sequence, past=place.past, outputs=0)
            place.past += len(block)
            place.answer.prefilled += len(block)
