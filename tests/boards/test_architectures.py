"""Names of processors, and what must be installed to compile for them."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from boards.architectures import ARCHITECTURES, BoardError, architecture
from boards.compiled import platforms, run
from boards.package import main


@pytest.mark.parametrize(("name", "debian"), [("aarch64", "arm64"), ("x86_64", "amd64")])
def test_both_names_are_taken(name: str, debian: str) -> None:
    assert architecture(name) is architecture(debian) is ARCHITECTURES[name]


def test_other_processors_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["riscv64"]) == 1
    assert capsys.readouterr().err == (
        "board-package: the architecture is 'riscv64', expected aarch64 or x86_64, as in ARCH=aarch64\n"
    )


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_missing_compiler_is_said_with_its_package(
    arch: str, machine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = ARCHITECTURES[arch]
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setenv("PATH", str(tmp_path))
    cross = {"aarch64": "g++-aarch64-linux-gnu", "x86_64": "g++-x86-64-linux-gnu"}
    package = "g++" if arch == machine else cross[arch]
    with pytest.raises(BoardError) as error:
        one.check_tools()
    assert str(error.value).startswith(f"a package for {one.name} needs cmake, ninja, readelf, {one.tool('gcc')}, ")
    assert str(error.value).endswith(f"apt install {' '.join(sorted(['binutils', 'cmake', 'ninja-build', package]))}")
    assert any("SYSTEM_PROCESSOR" in option for option in one.cmake_options()) == (one.name != machine)


def test_a_missing_tool_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for tool in ("cmake", "ninja", "readelf", "gcc", "strip"):
        (tmp_path / tool).write_text("")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BoardError, match=r"needs g\+\+, not found on PATH; .*apt install g\+\+$"):
        ARCHITECTURES["aarch64"].check_tools()


def test_wheels_are_asked_for_by_every_tag() -> None:
    tags = platforms(ARCHITECTURES["aarch64"])
    assert tags[::2] == ["--platform"] * (len(tags) // 2)
    assert {"manylinux_2_28_aarch64", "manylinux2014_aarch64"} <= set(tags[1::2])


def test_a_step_that_fails_ends_with_the_end_of_its_output(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match=r"(?s)sh -c .* ended with status 3; .*log ends with:\n.*last words"):
        run("sh", "-c", "echo first; echo last words >&2; exit 3", log=tmp_path / "log")
