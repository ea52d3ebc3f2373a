"""Where things stand in the repository, and beside it."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
MICRO = REPOSITORY / "benchmarks" / "micro"  # the trained test vehicle: checkpoint, adapter, clips
SMALL = REPOSITORY / "benchmarks" / "small"  # the one whose language is real: what it is made from, and how
RESULTS = REPOSITORY / "benchmarks" / "results"
DATA = REPOSITORY.parent / "shared" / "data"  # recordings and tokenizers that are no part of the repository
