"""Parts of a file, which is decoded once for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.audio import read as read_module
from dasheng_edge.runtime.audio.read import KEPT_S, PartReader, read_audio
from dasheng_edge.runtime.errors import AudioDecodeError, AudioNotFoundError
from tests.fixtures.audio_files import FORMATS, Format, sine, write_audio

RATE = 16_000
WAV = Format("wav", "wav", "pcm_s16le", RATE, lossless=True)
PARTS: list[tuple[float, float | None]] = [
    (0.0, 0.5), (0.5, 1.01), (1.2, 0.7), (1.3, 2.0), (3.9, 0.001), (4.0, 1.5), (2.0, 0.3), (4.5, None),
]  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.suffix)
def test_parts_of_a_file_are_those_of_a_decoding_from_its_start(
    tmp_path: Path, kind: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).normal(size=6 * kind.rate).astype(np.float32) * np.float32(0.1)
    path = write_audio(tmp_path / f"a.{kind.suffix}", noise, kind)
    whole = np.concatenate(list(read_audio(path)))
    opened = list[Path]()

    def noted(path: Path) -> BinaryIO:
        opened.append(path)
        return path.open("rb")

    monkeypatch.setattr(read_module, "open_path", noted)
    parts = PartReader(sample_rate_hz=RATE)
    for offset_s, duration_s in PARTS:
        got = np.concatenate(list(parts.part(path, offset_s, duration_s)))
        begin, count = round(offset_s * RATE), None if duration_s is None else round(duration_s * RATE)
        assert np.array_equal(got, whole[begin:][:count])
    assert len(opened) == 2  # one of them begins before the one before it
    parts.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 90), st.none() | st.floats(0.01, 60)), min_size=1, max_size=8), st.booleans())
def test_parts_in_any_order_are_what_they_are_alone(parts: list[tuple[float, float | None]], in_order: bool) -> None:
    reader, rate = PartReader(sample_rate_hz=1000), 1000
    samples = np.arange(100 * rate, dtype=np.float32) / (100 * rate)
    reader._read = lambda _: read_audio((samples, rate), sample_rate_hz=rate)  # type: ignore[assignment]
    for offset_s, duration_s in sorted(parts, key=lambda part: part[0]) if in_order else parts:
        begin, count = round(offset_s * rate), None if duration_s is None else round(duration_s * rate)
        got = np.concatenate(list(reader.part(__file__, offset_s, duration_s)))
        assert np.array_equal(got, samples[begin:][:count])
        assert reader._stream is not None
        assert sum(map(len, reader._stream._kept)) <= (KEPT_S + 1) * rate


def test_a_file_that_was_changed_or_broke_off_is_read_anew(tmp_path: Path) -> None:
    parts, path = PartReader(sample_rate_hz=RATE, strict=True), tmp_path / "a.wav"
    for content in (sine(440, 3, RATE), sine(440, 4, RATE, amplitude=0.1)):
        write_audio(path, content, WAV)
        level = np.abs(np.concatenate(list(parts.part(path, 1.0, 1.0)))).max()
        assert level == pytest.approx(np.abs(content).max(), abs=0.01)
    path.write_bytes(path.read_bytes()[: 3 * 2 * RATE])
    for _ in range(2):
        assert len(np.concatenate(list(parts.part(path, 1.0, 1.0)))) == RATE
        with pytest.raises(AudioDecodeError, match="is damaged"):
            list(parts.part(path, 2.0, 1.5))
    with pytest.raises(AudioNotFoundError):
        list(parts.part(tmp_path / "none.wav", 2.0, 1.5))
