"""An answer in the making: what it is to, what was written of it, how long that took, and its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, TypeAlias

from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.errors import DashengEdgeError

from .context import BATCH
from .decoder import Embeddings
from .model import Tokens
from .sampler import Chosen, Sampler

Block: TypeAlias = NDArray[Any]  # tokens int32 [n] or embeddings float32 [n, n_embd]


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
    prefilled: int = 0  # rows of the prompt that were decoded for it: not those that were there
    spent_ms: list[float] = field(default_factory=list)  # for each token
    confidence: float | None = None  # see `Sampler.confidence`; None where llama.cpp chooses: it keeps the logits
    error: DashengEdgeError | None = None
    ended: bool = False
    beginning: Beginning | None = None  # of the prompt, if others begin with it, too; until the answer has begun
    converses: bool = False  # whether it is kept for a next turn, and begins with what was kept of the last one
    grammar: str | None = None  # of llama.cpp's kind, which the text must follow
    top: int | None = None  # how many alternatives of each token are to be `chosen` with it; None: nothing is
    chosen: Sequence[Chosen] = ()
    told: Callable[[], bool] | None = None  # of each token, the end token, too; whether the answer ends with it

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
class Place:
    """A sequence of the context that an answer has taken."""

    sequence: int
    answer: Answer
    sampler: Sampler
    past: int = 0  # rows in the cache


def groups(placed: Sequence[tuple[Place, Block]]) -> list[list[tuple[Place, Block]]]:
    """Prompts that go into one batch: rows of one kind, so many that they fit, and by their sequences."""
    groups: list[list[tuple[Place, Block]]] = []
    for place, rows in sorted(placed, key=lambda item: item[0].sequence):
        last = groups[-1] if groups else []
        size = sum(len(other) for _, other in last) + len(rows)
        if last and size <= BATCH and last[0][1].ndim == rows.ndim:
            last.append((place, rows))
        else:
            groups.append([(place, rows)])
    return groups
