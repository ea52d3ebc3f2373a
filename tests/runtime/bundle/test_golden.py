"""Golden vectors are written as they are read; files that are damaged are refused where bundles are verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.bundle.bundle import GOLDEN, Bundle
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK, read_golden, save_golden
from tests.fixtures.bundle_kinds import write_encoder_bundle, write_two_branch_bundle


def test_what_was_read_is_written_again(tiny_bundle: Path, tmp_path: Path) -> None:
    save_golden(tmp_path / GOLDEN, read_golden(Bundle.open(tiny_bundle)))
    with np.load(tmp_path / GOLDEN) as ours, np.load(tiny_bundle / GOLDEN) as wanted:
        assert ours.files == wanted.files  # in this order, too
        for name in wanted.files:
            np.testing.assert_array_equal(ours[name], wanted[name], strict=True)


@pytest.mark.parametrize("write", [write_encoder_bundle, write_two_branch_bundle])
def test_each_kind_of_bundle_has_its_fields(
    tiny_bundle: Path, tmp_path: Path, write: Callable[[Path, Path], Path]
) -> None:
    write(tiny_bundle, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    for clip in read_golden(bundle):
        assert clip.log_mel.shape[1] == bundle.manifest.front_end.frames_of(max(len(clip.waveform), 3200))
        assert (clip.acoustic_mel is None) == (bundle.manifest.front_end.acoustic is None)
        assert (clip.text is None) == (bundle.manifest.decoder is None)
        assert clip.text is None or clip.text.prompt.tolist().count(AUDIO_MARK) == 1
