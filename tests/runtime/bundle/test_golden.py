"""Golden vectors are written as they are read; files that are damaged are refused where bundles are verified."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.bundle.bundle import GOLDEN, Bundle, sha256_of
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK, read_golden, save_golden
from dasheng_edge.runtime.bundle.manifest import MANIFEST
from dasheng_edge.runtime.errors import BundleFileError
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


def npy(dtype: str, shape: tuple[int, ...], content: bytes = b"") -> bytes:
    """A NumPy file that states what it likes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy("<f4", (1 << 40,)), r"patches_0 is float32 of shape \(1099511627776,\) in \d+ bytes, expected"),
        (npy("<f4", (1 << 33, 1 << 33)), "expected these to agree"),
        (npy("<f4", (-1, 4), bytes(16)), "expected these to agree"),
        (npy("<f4", (2, 2), bytes(12)), "expected these to agree"),
        (npy("<f4", (2, 2), bytes(20)), "expected these to agree"),
        (npy("<f4", (1 << 12, 1 << 12), bytes(4 << 24)), "at most"),  # 64 MiB of zeros, 65 kB in the file
        (npy("|O", (1,), bytes(8)), "would be a pickle"),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16, "not a readable golden file"),
        (b"\x93NUMPY\x09\x00\x10\x00", "not a readable golden file"),
        (b"no array", "not a readable golden file"),
        (b"", "not a readable golden file"),
    ],
)  # fmt: skip
def test_arrays_are_allocated_as_large_as_the_file_has_them(
    tiny_bundle: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with np.load(folder / GOLDEN) as arrays, zipfile.ZipFile(folder / "new", "w", zipfile.ZIP_DEFLATED) as out:
        for name, value in arrays.items():
            file = io.BytesIO()
            np.lib.format.write_array(file, value)
            out.writestr(f"{name}.npy", content if name == "patches_0" else file.getvalue())
    (folder / "new").replace(folder / GOLDEN)
    with pytest.raises(BundleFileError, match=message):
        read_golden(reopened(folder))


def reopened(folder: Path) -> Bundle:
    """Its manifest states the golden file as it is now."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][GOLDEN] = {"bytes": (folder / GOLDEN).stat().st_size, "sha256": sha256_of(folder / GOLDEN)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Bundle.open(folder)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compressions_are_refused(tiny_bundle: Path, tmp_path: Path, method: int) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with zipfile.ZipFile(folder / GOLDEN, "w", method) as out:
        out.writestr("names.npy", npy("<U1", (1,), bytes(4)))
    with pytest.raises(BundleFileError, match="names is compressed by method"):
        read_golden(reopened(folder))


def test_large_golden_files_are_not_opened(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with (folder / GOLDEN).open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(BundleFileError, match=r"it has 68157440 bytes, expected at most"):
        read_golden(reopened(folder))
