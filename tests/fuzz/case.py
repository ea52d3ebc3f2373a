"""What a mutated input is to the harness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from .mutate import Rng


class WrongAnswerError(Exception):
    """The input was taken, and what came of it is wrong."""


@dataclass(frozen=True)
class Case:
    """A mutated input in its folder, and what is done with it."""

    what: str  # which input and which mutation
    use: Callable[[], object]
    limit_s: float = 20.0  # longer is a hang


Maker: TypeAlias = Callable[[Rng, Path], Case]  # writes the input into the folder, and nothing else anywhere
