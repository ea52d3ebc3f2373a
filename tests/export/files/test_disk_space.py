"""Space on a disk, in words that have digits in front of the point."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dasheng_edge.export.files.disk_space import check_space, size_in_words
from dasheng_edge.runtime.errors import OutputWriteError


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0.0 kB"), (2_500, "2.5 kB"), (98_000_000, "98.0 MB"), (31_000_000_000, "31.0 GB")]
)
def test_sizes_below_a_gigabyte_are_no_zero(size: int, words: str) -> None:
    assert size_in_words(size) == words


def test_what_does_not_fit_is_refused_with_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=48_000_000))
    check_space(tmp_path, 48_000_000, "it needs")
    with pytest.raises(OutputWriteError, match=r"^it needs 110\.0 MB, and 48\.0 MB are free on the disk of .*--out$"):
        check_space(tmp_path, 110_000_000, "it needs")
