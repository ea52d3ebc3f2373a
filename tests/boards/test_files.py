"""The files that packages carry as they are: the service, its script, the manual, the container file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.places import REPOSITORY
from boards.control import PACKAGES
from boards.staged import CONFFILES, FILES, PLACES

UNIT = FILES / "dasheng-caption@.service"
SCRIPT = FILES / "caption-folder"
SHELL = ("caption-folder", "postinst", "prerm")


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([A-Z]\w+)=(.*)$", unit.read_text("utf-8"), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def test_every_file_has_a_place() -> None:
    assert {path.name for path in FILES.iterdir()} == {*PLACES, "postinst", "prerm"}
    assert CONFFILES.split() == [f"/{PLACES['dasheng-caption.default']}"]


# ---- the service -----------------------------------------------------------------------------------------------------


def test_unit_names_what_is_installed() -> None:
    unit, installed = settings(UNIT), {f"/{place}" for place in PLACES.values()}
    assert unit["ExecStart"][0].split()[0] in installed
    assert unit["EnvironmentFile"][0].lstrip("-") in installed
    (user,) = re.findall(r"^u (\S+)", (FILES / "dasheng-edge.sysusers").read_text("utf-8"), re.MULTILINE)
    assert unit["User"] == [user]


def test_unit_can_write_into_its_folder_alone() -> None:
    unit = settings(UNIT)
    assert unit["ReadWritePaths"] == unit["BindPaths"] == ["%f"]
    assert (unit["ProtectSystem"], unit["PrivateNetwork"], unit["NoNewPrivileges"]) == (["strict"], ["yes"], ["yes"])
    # Both engines read /proc/cpuinfo, which this would hide.
    assert "ProcSubset" not in unit


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
def test_systemd_finds_nothing_wrong_and_little_exposed(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name.replace("@", "@srv-sounds")
    unit.write_text(UNIT.read_text("utf-8").replace("/usr/libexec/dasheng-edge/caption-folder", "/bin/sh"), "utf-8")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert unit.name not in verified.stderr, verified.stderr
    security = ["systemd-analyze", "security", "--offline=yes", "--threshold=15", "--no-pager", str(unit)]  # of 100
    judged = subprocess.run(security, capture_output=True, text=True, check=False)
    if "unrecognized option" in judged.stderr:
        pytest.skip("this systemd-analyze judges running services alone")
    assert judged.returncode == 0, judged.stdout + judged.stderr


# ---- its script ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHELL)
def test_scripts_are_posix_shell(name: str) -> None:
    assert (FILES / name).stat().st_mode & 0o111
    shell = shutil.which("dash") or "/bin/sh"
    subprocess.run([shell, "-n", FILES / name], check=True)


PROGRAM = """#!/bin/sh
# A dasheng-caption whose answers are known: BUNDLE FILE --json OPTIONS
case ${2##*/} in
*wrong*) echo "dasheng-caption: $2: is no wav file" >&2; exit 1 ;;
*halt*) echo half; kill -9 $$ ;;
*) [ "$*" = "$1 $2 --json --threads 1" ] || exit 2; echo "{\\"audio\\": \\"$2\\"}" ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    program = tmp_path / "program"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    sounds = tmp_path / "s o u n d s"
    sounds.mkdir()
    return sounds


def settled(folder: Path, **changed: str) -> dict[str, str]:
    own = {"DASHENG_CAPTION": str(folder.parent / "program"), "DASHENG_BUNDLE": str(folder.parent / "bundle")}
    return os.environ | own | {"DASHENG_OPTIONS": "--threads 1"} | changed


def caption(folder: Path, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    command, environment = ["/bin/sh", str(SCRIPT), str(folder), *arguments], settled(folder, **changed)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=20)


def test_each_file_gets_an_answer_or_a_reason(folder: Path) -> None:
    names = ["a.wav", "-b c.wav", "$(x).WAV", "wrong.wav", "halt.wav", "notes.txt"]
    for name in names:
        (folder / name).write_text("")
    done = caption(folder, "--once")
    assert done.returncode == 0, done.stderr
    written = {path.name for path in folder.iterdir()} - set(names)
    assert written == {"a.wav.json", "-b c.wav.json", "$(x).WAV.json", "wrong.wav.error", "halt.wav.error"}
    assert json.loads((folder / "a.wav.json").read_text()) == {"audio": str(folder / "a.wav")}
    assert "is no wav file" in (folder / "wrong.wav.error").read_text()
    assert "is no wav file" in done.stderr  # for the journal


def test_what_has_an_answer_is_left_alone(folder: Path) -> None:
    for name in ("a.wav", "wrong.wav"):
        (folder / name).write_text("")
    (folder / "a.wav.json").write_text("kept")
    (folder / "wrong.wav.error").write_text("kept")
    assert caption(folder, "--once").returncode == 0
    assert {path.read_text() for path in folder.iterdir() if path.suffix != ".wav"} == {"kept"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"DASHENG_BUNDLE": "/nowhere"}, "there is no bundle /nowhere"),
        ({"DASHENG_OPTIONS": "--thread 1"}, "does not take DASHENG_OPTIONS: --thread 1"),
    ],
)
def test_settings_that_are_wrong_mark_no_file(folder: Path, changed: dict[str, str], said: str) -> None:
    (folder / "a.wav").write_text("")
    done = caption(folder, "--once", **changed)
    assert done.returncode == 1
    assert said in done.stderr
    assert [path.name for path in folder.iterdir()] == ["a.wav"]


def test_a_folder_must_be_there(folder: Path) -> None:
    assert "there is no folder" in caption(folder / "x", "--once").stderr
    assert caption(folder, "--twice").returncode == 2


def test_files_that_are_being_written_are_waited_for(folder: Path) -> None:
    """The old file is answered, the new one not yet; the service looks again for ever."""
    for name, age_s in (("old.wav", 60), ("new.wav", -60)):
        (folder / name).write_text("")
        changed = (folder / name).stat().st_mtime - age_s
        os.utime(folder / name, (changed, changed))
    command = [shutil.which("timeout") or "timeout", "0.4", "/bin/sh", str(SCRIPT), str(folder)]
    assert subprocess.run(command, env=settled(folder, DASHENG_SECONDS="0.1"), check=False).returncode == 124
    assert sorted(path.name for path in folder.iterdir()) == ["new.wav", "old.wav", "old.wav.json"]


# ---- the manual ------------------------------------------------------------------------------------------------------


def test_manual_has_the_options_of_the_program() -> None:
    source = (REPOSITORY / "examples" / "cpp" / "src" / "dasheng_caption.cpp").read_text("utf-8")
    manual = (FILES / "dasheng-caption.1").read_text("utf-8").replace("\\-", "-")
    options = set(re.findall(r'"(--[a-z0-9-]+)"', source))
    assert len(options) > 5
    assert set(re.findall(r"^\.BI? (--[a-z0-9-]+)", manual, re.MULTILINE)) == options


# ---- the container file ----------------------------------------------------------------------------------------------


def instructions(text: str) -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", text)).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def test_container_is_small_and_not_roots() -> None:
    every = instructions((FILES / "Containerfile").read_text("utf-8"))
    assert {word for word, _ in every} <= {"FROM", "ARG", "COPY", "RUN", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    bases = [rest.split()[0] for word, rest in every if word == "FROM"]
    assert len(bases) == 2
    assert all(":" in base and not base.endswith(":latest") for base in bases)
    final = every[max(i for i, (word, _) in enumerate(every) if word == "FROM") :]
    last = dict(final)
    user, _, group = last["USER"].partition(":")
    assert min(int(user), int(group)) > 0
    assert json.loads(last["ENTRYPOINT"]) == ["/usr/bin/dasheng-caption"]
    assert isinstance(json.loads(last["CMD"]), list)
    # Of the package, only what is installed; nothing that a build leaves behind.
    assert all("--from=unpacked" in rest for word, rest in final if word == "COPY")
    assert "rm -r /var/lib/apt/lists" in last["RUN"]


def test_container_has_what_the_package_depends_on() -> None:
    """libc6 and libgcc-s1 are in the image already: its apt needs them."""
    (run,) = [
        rest for _, rest in instructions((FILES / "Containerfile").read_text("utf-8")) if "apt-get install" in rest
    ]
    assert set(PACKAGES.values()) - {"libc6", "libgcc-s1"} <= set(run.split())
