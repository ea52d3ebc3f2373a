"""How llama.cpp's programs are fetched and built; what the build itself does is seen in test_stock_llama_cpp.py."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks.peers import llama_cpp_tools
from benchmarks.peers.llama_cpp_tools import TOOLS, VERSION, ToolsError, build_tools, main, pinned_version, unpack


def write_sdist(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """pip, cmake and ninja as stand-ins; what they were asked for."""
    asked: list[str] = []

    def run(*command: str) -> None:
        asked.append(" ".join(command[:4]))
        if "download" in command:
            folder = Path(command[command.index("--dest") + 1])
            write_sdist(folder / "llama_cpp_python-1.2.tar.gz", "llama_cpp_python-1.2/vendor/llama.cpp/CMakeLists.txt")
        elif "--build" in command:
            built = Path(command[2]) / "bin"
            built.mkdir(parents=True)
            for tool in TOOLS:
                (built / tool).write_text(tool)

    monkeypatch.setattr(llama_cpp_tools, "_run", run)
    monkeypatch.setattr(llama_cpp_tools, "check_needed", lambda: None)
    return asked


def test_the_version_is_that_of_the_constraints() -> None:
    assert pinned_version().count(".") == 2


def test_constraints_without_a_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("numpy==2.0\n")
    with pytest.raises(ToolsError, match="has no line llama-cpp-python==VERSION"):
        pinned_version(tmp_path / "constraints.txt")


def test_the_programs_are_built_once(commands: list[str], tmp_path: Path) -> None:
    tools = build_tools(tmp_path / "out", "1.2")

    assert [tool.read_text() for tool in tools] == list(TOOLS)
    assert (tmp_path / "out" / "bin" / VERSION).read_text() == "1.2\n"
    assert len(commands) == 3
    assert build_tools(tmp_path / "out", "1.2") == tools
    assert len(commands) == 3
    assert not list((tmp_path / "out").glob(".*"))


def test_another_version_takes_their_place(commands: list[str], tmp_path: Path) -> None:
    programs = tmp_path / "out" / "bin"
    programs.mkdir(parents=True)
    (programs / VERSION).write_text("1.1\n")
    (programs / "llama-old").write_text("old")
    build_tools(tmp_path / "out", "1.2")

    assert sorted(path.name for path in programs.iterdir()) == sorted((*TOOLS, VERSION))


def test_an_interrupted_build_leaves_no_programs_and_goes_on(
    commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(llama_cpp_tools, "_install", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_tools(tmp_path / "out", "1.2")
    assert not (tmp_path / "out" / "bin").exists()
    assert (tmp_path / "out" / "source-1.2" / "CMakeLists.txt").is_file()
    assert not any("download" in command for command in commands[1:])


def test_what_is_lacking_is_said_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert main(["--out", str(tmp_path / "out")]) == 1
    assert "not found on PATH: cmake (pip install cmake" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_command_that_fails_is_named() -> None:
    with pytest.raises(ToolsError, match=r"-c import sys; sys\.exit\(3\) \.\.\. ended with status 3"):
        llama_cpp_tools._run(sys.executable, "-c", "import sys; sys.exit(3)")


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "pip left no"), (("llama_cpp_python-1.2/README.md",), "holds no llama_cpp_python")],
)
def test_an_sdist_without_llama_cpp_is_refused(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    archive = tmp_path / "llama_cpp_python-1.2.tar.gz"
    if names:
        write_sdist(archive, *names)
    with pytest.raises(ToolsError, match=message):
        unpack(archive, tmp_path / "source", "1.2")


def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    archive = write_sdist(tmp_path / "llama_cpp_python-1.2.tar.gz", "../escaped")
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(archive, tmp_path / "source", "1.2")
    assert not (tmp_path / "escaped").exists()


def test_the_paths_are_printed(
    commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llama_cpp_tools, "pinned_version", lambda: "1.2")

    assert main(["--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "bin" / TOOLS[-1])
