"""The pieces of the test on an emulated board that need no emulator."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from boards.architectures import BoardError
from tests.boards import emulated
from tests.boards.__main__ import OFFLINE, judged, main
from tests.boards.emulated import FP32, INT8, NEWEST, PI4, PI5, RUNS, Outcome, Run, command, make_machine, read
from tests.boards.root import index, once, size_bytes


def test_both_programs_caption_and_verify_in_both_precisions() -> None:
    rows = {(one.program, one.does, one.precision) for one in RUNS}
    assert rows == {(p, d, k) for p in ("C++", "Python") for d in ("caption", "verify") for k in (FP32, INT8)}
    assert len({one.name for one in RUNS}) == len(RUNS)
    assert {one.processor for one in RUNS} == {PI4, PI5, NEWEST}


@pytest.mark.parametrize("processor", [PI4, PI5, NEWEST], ids=lambda one: one.qemu)
def test_the_processor_is_pinned_and_says_what_it_has(processor: emulated.Processor, tmp_path: Path) -> None:
    assert "max" not in processor.qemu or "sme=off" in processor.qemu
    make_machine(tmp_path / "root", processor)
    make_machine(tmp_path / "root", processor)
    view = emulated.machine(tmp_path / "root", processor)
    cpuinfo = (view / "proc" / "cpuinfo").read_text()
    assert cpuinfo.count("processor\t: ") == emulated.CORES
    assert ("asimddp" in cpuinfo) == (processor is not PI4)
    assert (view / "sys/devices/system/cpu/present").read_text() == "0-1\n"


@pytest.mark.parametrize("one", RUNS, ids=lambda one: one.name)
def test_nothing_of_the_caller_goes_into_a_run(one: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "emulator", lambda: "qemu")
    words = command(one, tmp_path / "root", Path("bundle"), [Path("a.wav"), Path("b.wav")])
    assert words[:5] == [
        "qemu",
        "-L",
        str(emulated.machine(tmp_path / "root", one.processor)),
        "-cpu",
        one.processor.qemu,
    ]
    assert words[-1] == "1" if one.program == "C++" else words[-1] == "--json"
    assert ("a.wav" in words and "b.wav" in words) == (one.does == "caption")
    assert ("verify" in " ".join(words)) == (one.does == "verify")


def test_a_program_that_ends_badly_is_no_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "command", lambda *_: ["/bin/sh", "-c", "echo no >&2; exit 1"])
    caption, verify = RUNS[0], RUNS[1]
    with pytest.raises(BoardError, match=f"{caption.name} ended with status 1: no"):
        emulated.run(caption, tmp_path, tmp_path, [])
    assert emulated.run(verify, tmp_path, tmp_path, []).seams == ()


def test_lines_of_both_programs_are_read() -> None:
    assert read('{"audio": "a", "text": "one"}\n\nqemu: x\n{"text": "two"}\n') == (("one", "two"), ())
    assert read('{"seam": "x", "good": true}\n{"seam": "y", "good": false}\n') == ((), (True, False))
    assert read(json.dumps({"ok": False, "seams": [{"ok": True}, {"ok": False}]})) == ((), (True, False))


@pytest.mark.parametrize(
    ("does", "texts", "seams", "good", "said"),
    [
        ("caption", ("a", "b"), (), True, "2 of 2 texts equal"),
        ("caption", ("a", "c"), (), False, "1 of 2 texts equal"),
        ("caption", ("a",), (), False, "0 of 2 texts equal"),
        ("verify", (), (True, True), True, "2 of 2 seams accepted"),
        ("verify", (), (True, False), False, "1 of 2 seams accepted"),
        ("verify", (), (), False, "0 of 0 seams accepted"),
    ],
)
def test_judgement(does: str, texts: tuple[str, ...], seams: tuple[bool, ...], good: bool, said: str) -> None:
    assert judged(Run("C++", does, FP32, PI5), Outcome(texts, seams, 1.0), {FP32: ["a", "b"]}) == (good, said)


def test_what_is_missing_is_a_sentence_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("board-test: skipped: an emulated board needs qemu-user-static mmdebstrap dpkg;")


@pytest.mark.parametrize(
    ("said", "offline"),
    [
        ("E: Could not connect to deb.example:80", True),
        ("ERROR: No matching distribution found for onnxruntime==1.32.0", True),
        ("The headers of ONNX Runtime 1.32.0 cannot be fetched: 6", True),
        ("error: no member named 'x'", False),
    ],
)
def test_no_network_is_told_from_a_failure(said: str, offline: bool) -> None:
    assert bool(OFFLINE.search(said)) == offline


def test_what_is_done_is_done_again_for_another_key_or_after_a_failure(tmp_path: Path) -> None:
    done = list[str]()
    for key in ("a", "a", "b"):
        once(tmp_path / "x" / "stamp", key, lambda key=key: done.append(key))  # type: ignore[misc]
    assert done == ["a", "b"]
    with pytest.raises(ZeroDivisionError):
        once(tmp_path / "x" / "stamp", "c", lambda: done.append(str(1 // 0)))
    once(tmp_path / "x" / "stamp", "b", lambda: done.append("b"))
    assert done == ["a", "b", "b"]


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="there is no dpkg-deb")
def test_index_names_the_package_with_its_sum(tmp_path: Path) -> None:
    from boards.archives import deb

    (tmp_path / "fields").mkdir()
    fields = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x.x>\nDescription: x\n"
    (tmp_path / "fields" / "control").write_text(fields)
    (tmp_path / "tree").mkdir()
    (tmp_path / "x.deb").write_bytes(deb(tmp_path / "tree", tmp_path / "fields"))
    index(tmp_path / "x.deb", tmp_path / "index")
    text = (tmp_path / "index" / "Packages").read_text()
    digest = subprocess.run(
        ["sha256sum", tmp_path / "x.deb"], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert text.splitlines()[-3:] == [
        "Filename: ./x.deb",
        f"Size: {(tmp_path / 'x.deb').stat().st_size}",
        f"SHA256: {digest}",
    ]
    assert size_bytes(tmp_path / "index") == len(text) + (tmp_path / "x.deb").stat().st_size
