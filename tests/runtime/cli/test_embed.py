"""`dasheng-edge embed`: what the npz file holds, what is printed, and that nothing half-written stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.audio.encoder import Encoder
from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.embedder import Embedder
from dasheng_edge.runtime.errors import DeviceError
from tests.fixtures.audio_files import Format, sine, write_audio
from tests.fixtures.bundle_kinds import write_encoder_bundle
from tests.fixtures.full_disk import largest_file

WAV = Format("wav", "wav", "pcm_s16le", 16_000)


def run(*args: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.build_app(), [str(arg) for arg in args], input=stdin, prog_name="dasheng-edge")


def embed(*args: str | Path, stdin: bytes | None = None) -> Result:
    return run("embed", *args, "--threads", "1", stdin=stdin)


@pytest.fixture(scope="module")
def encoder_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder_bundle(tiny_bundle, tmp_path_factory.mktemp("encoder") / "bundle")


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    tones = [(440, 1.0), (880, 12.0), (220, 0.5)]
    return [write_audio(tmp_path / f"{hz}.wav", sine(hz, seconds, 16_000), WAV) for hz, seconds in tones]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "embeddings.npz"


def load(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_the_file(encoder_bundle: Path, clips: list[Path], out: Path) -> None:
    result = embed(encoder_bundle, *clips, "--out", out)
    assert (result.exit_code, result.stderr) == (0, "")
    file = load(out)
    with Embedder.open(encoder_bundle, threads=1) as embedder:
        dim = embedder.dim
        assert file["names"].tolist() == [str(clip) for clip in clips]
        assert file["mean"].shape == (3, dim)
        assert file["mean"].dtype == np.float32
        assert file["seconds"].tolist() == [1.0, 12.0, 0.5]
        assert (float(file["rate_hz"]), str(file["model"])) == (25.0, "tiny-dasheng")
        for index, clip in enumerate(clips):
            want = embedder.embed(clip)
            assert np.array_equal(file[f"frames_{index}"], want.frames)
            assert np.array_equal(file["mean"][index], want.mean)
        assert set(file) == {"names", "mean", "seconds", "rate_hz", "model", "frames_0", "frames_1", "frames_2"}
    assert result.stdout == f"{out}: 3 of 3 files, 337 frames of {dim} numbers from 13.5 s of audio\n"
    assert list(out.parent.iterdir()) == [out]


def test_a_whole_bundle_will_do(tiny_bundle: Path, encoder_bundle: Path, clips: list[Path], tmp_path: Path) -> None:
    for bundle in (tiny_bundle, encoder_bundle):
        assert embed(bundle, clips[0], "--out", tmp_path / f"{bundle.parent.name}.npz").exit_code == 0
    one, other = (load(tmp_path / f"{bundle.parent.name}.npz") for bundle in (tiny_bundle, encoder_bundle))
    assert np.array_equal(one["frames_0"], other["frames_0"])


def test_good_files_are_embedded_beside_bad_ones(encoder_bundle: Path, clips: list[Path], out: Path) -> None:
    text = clips[0].with_name("text.wav")
    text.write_text("hello world\n" * 99)
    names = [clips[0].with_name("none.wav"), clips[2], text, clips[0]]
    result = embed(encoder_bundle, *names, "--out", out)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{out}: 2 of 4 files, ")
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {names[0]}")
    assert second.startswith(f"error: {text}")
    file = load(out)
    assert file["names"].tolist() == [str(clips[2]), str(clips[0])]
    assert [len(file["frames_0"]), len(file["frames_1"]), len(file["mean"])] == [12, 25, 2]


def test_other_commands_on_an_encoder_alone(encoder_bundle: Path, clips: list[Path]) -> None:
    caption = run("caption", encoder_bundle, clips[0])
    assert (caption.exit_code, caption.stdout) == (1, "")
    assert caption.stderr.startswith("error: ")
    assert "this bundle holds a Dasheng encoder only; use `dasheng-edge embed`" in caption.stderr
    info = run("info", encoder_bundle)
    assert info.exit_code == 0
    for text in ("tiny-dasheng (dasheng)", "embeds audio and does not caption it", "patches_relative", "encoder.onnx"):
        assert text in info.stdout
    assert json.loads(run("info", encoder_bundle, "--json").stdout)["decoder"] is None
    verify = run("verify", encoder_bundle, "--threads", "1")
    assert verify.exit_code == 0
    assert "patches" in verify.stdout
    assert "logits" not in verify.stdout


def test_where_nothing_can_be_read_nothing_is_written(encoder_bundle: Path, out: Path, tmp_path: Path) -> None:
    result = embed(encoder_bundle, tmp_path / "none.wav", "--out", out)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert not out.parent.exists()


def test_stdin(encoder_bundle: Path, clips: list[Path], out: Path) -> None:
    assert embed(encoder_bundle, "-", "--out", out, stdin=clips[0].read_bytes()).exit_code == 0
    file = load(out)
    assert (file["names"].tolist(), len(file["frames_0"])) == (["-"], 25)
    twice = embed(encoder_bundle, "-", "-", "--out", out, stdin=b"")
    assert twice.exit_code == 2
    assert "only once" in twice.stderr


def test_json_lines(encoder_bundle: Path, clips: list[Path], out: Path) -> None:
    none = clips[0].with_name("none.wav")
    result = embed(encoder_bundle, none, *clips[:2], "--out", out, "--json")
    assert result.exit_code == 1
    bad, *good = map(json.loads, result.stdout.splitlines())
    assert (bad["audio"], bad["error_type"]) == (str(none), "AudioNotFoundError")
    dim = len(load(out)["mean"][0])
    assert good == [
        {"audio": str(clips[0]), "index": 0, "audio_s": 1.0, "frames": 25, "dim": dim},
        {"audio": str(clips[1]), "index": 1, "audio_s": 12.0, "frames": 300, "dim": dim},
    ]


def test_an_encoder_that_fails_costs_one_file(
    encoder_bundle: Path, clips: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DeviceError("out of memory")

    monkeypatch.setattr(Embedder, "embed_to", fail)
    result = embed(encoder_bundle, *clips, "--out", out)
    assert (result.exit_code, result.stderr) == (1, 3 * "error: out of memory\n")


def test_nothing_is_overwritten_unless_asked(encoder_bundle: Path, clips: list[Path], out: Path) -> None:
    assert embed(encoder_bundle, clips[0], "--out", out).exit_code == 0
    before = out.read_bytes()
    result = embed(encoder_bundle, clips[1], "--out", out)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "already exists; pass --overwrite" in result.stderr
    assert out.read_bytes() == before
    assert embed(encoder_bundle, clips[1], "--out", out, "--overwrite").exit_code == 0
    assert load(out)["names"].tolist() == [str(clips[1])]
    for name in ("x.csv", "x"):
        other = embed(encoder_bundle, clips[0], "--out", out.parent / name)
        assert other.exit_code == 2
        assert f"{name} will be an npz file; name it" in other.stderr
    folder = embed(encoder_bundle, clips[0], "--out", out.parent, "--overwrite")
    assert folder.exit_code == 1
    assert "is a folder" in folder.stderr


def test_recordings_are_not_replaced(encoder_bundle: Path, clips: list[Path]) -> None:
    before = [clip.read_bytes() for clip in clips]
    for inputs in (clips[1:], clips):  # as of `--out *.wav`, and one that is an input too
        result = embed(encoder_bundle, *inputs, "--out", clips[0], "--overwrite")
        assert result.exit_code in (1, 2)
        assert f"name it {clips[0]}.npz" in result.stderr or "one of the audio files" in result.stderr
    assert [clip.read_bytes() for clip in clips] == before
    clips[0].write_bytes(b"")  # an empty file may be replaced, but not by what is made of itself
    again = embed(encoder_bundle, *clips, "--out", clips[0], "--overwrite")
    assert (again.exit_code, clips[0].read_bytes()) == (2, b"")


def test_wrong_usage(encoder_bundle: Path, clips: list[Path], tmp_path: Path) -> None:
    for args, message in (
        ([], "--out"),
        (["--out", "-"], "cannot be written to stdout"),
        (["--out", "x.npz", "--device", "tpu"], "device"),
    ):
        result = embed(encoder_bundle, clips[0], *args)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
    result = run("embed", tmp_path, clips[0], "--out", tmp_path / "new" / "x.npz")
    assert result.stderr.startswith("error: cannot open bundle")
    assert not (tmp_path / "new").exists()


def test_an_interrupted_run_leaves_nothing(
    encoder_bundle: Path, clips: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "chunks", interrupted)
    result = embed(encoder_bundle, *clips, "--out", out)
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert not out.parent.exists()


def test_a_full_disk_leaves_nothing(encoder_bundle: Path, clips: list[Path], out: Path) -> None:
    with largest_file(20_000):
        result = embed(encoder_bundle, *clips, "--out", out)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: cannot write {out}: ")
    assert not out.parent.exists()


def test_progress_is_for_terminals(encoder_bundle: Path, clips: list[Path], tmp_path: Path) -> None:
    main, worker = os.openpty()
    command = [sys.executable, "-c", "from dasheng_edge.runtime.cli.app import main; main()", "embed"]
    files = [encoder_bundle, *clips, tmp_path / "none.wav"]
    args = [*map(str, files), "--out", str(tmp_path / "out.npz"), "--threads", "1"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    done = subprocess.run([*command, *args], stdout=subprocess.PIPE, stderr=worker, check=False, env=environment)
    os.close(worker)
    shown = os.read(main, 1 << 16).decode()
    os.close(main)
    assert done.returncode == 1
    assert done.stdout.decode().startswith(f"{tmp_path / 'out.npz'}: 3 of 4 files")
    assert "embed" in shown
    assert "error: " in shown


@pytest.mark.parametrize("as_json", [False, True])
def test_a_reader_that_goes_away_costs_nothing(
    encoder_bundle: Path, clips: list[Path], out: Path, *, as_json: bool
) -> None:
    command = [sys.executable, "-c", "from dasheng_edge.runtime.cli.app import main; main()", "embed"]
    args = [
        str(encoder_bundle),
        *map(str, clips),
        "--out",
        str(out),
        "--threads",
        "1",
        *(["--json"] if as_json else []),
    ]
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does when it has seen enough
    done = subprocess.run([*command, *args], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(load(out)["names"]) == 3
    reader, writer = os.pipe()
    os.close(reader)
    bad = [*args, str(clips[0].with_name("none.wav")), "--overwrite"]
    done = subprocess.run([*command, *bad], stdout=subprocess.DEVNULL, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == 1
    assert len(load(out)["names"]) == 3
