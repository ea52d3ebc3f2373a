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

from dasheng_edge.runtime import cli
from dasheng_edge.runtime.embedder import Embedder, Embedding
from dasheng_edge.runtime.embeddings_file import EmbeddingsWriter
from dasheng_edge.runtime.encoder import Encoder
from dasheng_edge.runtime.errors import DeviceError, OutputExistsError, OutputWriteError
from tests.audio_files import Format, sine, write_audio
from tests.bundle_kinds import write_encoder_bundle
from tests.full_disk import largest_file

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


def made(frames: int, value: float = 1.0) -> Embedding:
    rows = np.full((frames, 4), value, np.float32)
    return Embedding(rows, rows.mean(axis=0), frames / 25)


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
    assert list(out.parent.iterdir()) == []


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

    monkeypatch.setattr(Embedder, "embed", fail)
    result = embed(encoder_bundle, *clips, "--out", out)
    assert (result.exit_code, result.stderr) == (1, 3 * "error: out of memory\n")


def test_nothing_is_overwritten_unless_asked(encoder_bundle: Path, clips: list[Path], out: Path) -> None:
    out.parent.mkdir()
    out.write_text("precious")
    result = embed(encoder_bundle, clips[0], "--out", out)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "already exists; pass --overwrite" in result.stderr
    assert out.read_text() == "precious"
    assert embed(encoder_bundle, clips[0], "--out", out, "--overwrite").exit_code == 0
    assert load(out)["names"].tolist() == [str(clips[0])]
    folder = embed(encoder_bundle, clips[0], "--out", out.parent, "--overwrite")
    assert folder.exit_code == 1
    assert "is a folder" in folder.stderr


def test_a_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real.npz").touch()
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    with EmbeddingsWriter(tmp_path / "link.npz", overwrite=True) as writer:
        writer.add("a", made(1))
        writer.finish(rate_hz=25.0, model="m")
    assert (tmp_path / "link.npz").is_symlink()
    assert load(tmp_path / "real.npz")["names"].tolist() == ["a"]


def test_wrong_usage(encoder_bundle: Path, clips: list[Path], tmp_path: Path) -> None:
    for args, message in (
        ([], "--out"),
        (["--out", "-"], "cannot be written to stdout"),
        (["--out", "x.npz", "--device", "tpu"], "device"),
    ):
        result = embed(encoder_bundle, clips[0], *args)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
    assert run("embed", tmp_path, clips[0], "--out", tmp_path / "x.npz").stderr.startswith("error: cannot open bundle")
    assert not (tmp_path / "x.npz").exists()


def test_an_interrupted_run_leaves_nothing(
    encoder_bundle: Path, clips: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "chunks", interrupted)
    result = embed(encoder_bundle, *clips, "--out", out)
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert list(out.parent.iterdir()) == []


def test_a_full_disk_leaves_nothing(encoder_bundle: Path, clips: list[Path], out: Path) -> None:
    with largest_file(20_000):
        result = embed(encoder_bundle, *clips, "--out", out)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: cannot write {out}: ")
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("size", [0, 100, 700, 1_200])
def test_a_disk_that_fills_up_at_any_place(tmp_path: Path, size: int) -> None:
    def write() -> None:
        with EmbeddingsWriter(tmp_path / "x.npz") as writer:
            writer.add("a", made(10))
            writer.finish(rate_hz=25.0, model="m")

    with largest_file(size), pytest.raises(OutputWriteError, match="nothing was left behind"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputWriteError, match="cannot write"), EmbeddingsWriter(tmp_path / "file" / "x.npz"):
        pass


def test_a_file_that_appeared_meanwhile_stays(tmp_path: Path) -> None:
    def write() -> None:
        with EmbeddingsWriter(tmp_path / "x.npz") as writer:
            writer.add("a", made(1))
            (tmp_path / "x.npz").write_text("precious")
            writer.finish(rate_hz=25.0, model="m")

    with pytest.raises(OutputExistsError, match="pass --overwrite"):
        write()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_a_writer_is_used_in_its_block(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="outside its `with` block"):
        EmbeddingsWriter(tmp_path / "x.npz").add("a", made(1))


def test_the_same_clips_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        with EmbeddingsWriter(tmp_path / name) as writer:
            writer.add("café \udce9.wav", made(3))
            writer.finish(rate_hz=25.0, model="m")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert load(tmp_path / "a.npz")["names"].tolist() == ["café \udce9.wav"]


def test_frames_are_on_the_disk_before_the_next_clip(tmp_path: Path) -> None:
    with EmbeddingsWriter(tmp_path / "x.npz") as writer:
        sizes = []
        for index in range(4):
            writer.add(str(index), made(100_000))
            (partial,) = tmp_path.iterdir()
            sizes.append(partial.stat().st_size)
        assert np.diff(sizes) == pytest.approx(100_000 * 4 * 4, rel=0.01)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_for_terminals(encoder_bundle: Path, clips: list[Path], tmp_path: Path) -> None:
    main, worker = os.openpty()
    command = [sys.executable, "-c", "from dasheng_edge.runtime.cli import main; main()", "embed"]
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
