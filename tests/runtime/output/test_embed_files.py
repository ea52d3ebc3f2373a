"""Files are embedded one after the other, and what became of each is told, not printed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.embedder import Embedder
from dasheng_edge.runtime.errors import AudioNotFoundError
from dasheng_edge.runtime.output.embed_files import EmbeddedFile, embed_files
from dasheng_edge.runtime.output.embeddings_file import EmbeddingsWriter
from tests.fixtures.audio_files import Format, sine, write_audio


def test_each_file_has_a_result_and_nothing_is_printed(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = str(write_audio(tmp_path / "x.wav", sine(440, 1.0, 16_000), Format("wav", "wav", "pcm_s16le", 16_000)))
    out, missing = tmp_path / "out.npz", str(tmp_path / "none.wav")
    with Embedder.open(tiny_bundle, threads=1) as embedder, EmbeddingsWriter(out) as writer:
        results = embed_files(embedder, writer, [clip, missing, clip])
        assert next(results) == EmbeddedFile(clip, index=0, frames=25, audio_s=1.0)
        assert len(writer) == 1
        failed = next(results)
        assert (failed.name, type(failed.error)) == (missing, AudioNotFoundError)
        assert [*results] == [EmbeddedFile(clip, index=1, frames=25, audio_s=1.0)]
    with np.load(out) as file:
        assert file["names"].tolist() == [clip, clip]
    assert capsys.readouterr() == ("", "")


def test_where_nothing_can_be_embedded_nothing_is_written(tiny_bundle: Path, tmp_path: Path) -> None:
    with Embedder.open(tiny_bundle, threads=1) as embedder, EmbeddingsWriter(tmp_path / "x.npz") as writer:
        (result,) = embed_files(embedder, writer, [str(tmp_path / "none.wav")])
    assert result.error is not None
    assert not list(tmp_path.iterdir())
