"""Dependencies are read off the libraries; dpkg's own tool is the oracle."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from email import message_from_string
from pathlib import Path

import pytest

from boards.architectures import ARCHITECTURES, BoardError
from boards.control import control, dependencies, depends, maintainer, readelf

PACKAGES = Path(sysconfig.get_path("platlib"))


@pytest.mark.parametrize(
    ("needed", "symbols", "wanted"),
    [
        ({"libc.so.6"}, {"GLIBC_2.4", "GLIBC_2.34", "GLIBC_2.17"}, ["libc6 (>= 2.34)"]),
        ({"libm.so.6", "libc.so.6"}, {"GLIBC_2.28"}, ["libc6 (>= 2.28)"]),
        ({"libstdc++.so.6"}, {"GLIBCXX_3.4.29", "GLIBCXX_3.4.9", "CXXABI_1.3.9"}, ["libstdc++6 (>= 11)"]),
        ({"libstdc++.so.6"}, {"GLIBCXX_3.4.29", "CXXABI_1.3.14"}, ["libstdc++6 (>= 13)"]),
        ({"libstdc++.so.6"}, {"GLIBCXX_3.4", "GLIBCXX_3.4.9"}, ["libstdc++6"]),
        ({"libgomp.so.1", "libgcc_s.so.1"}, {"GOMP_4.5", "GCC_3.0"}, ["libgcc-s1", "libgomp1"]),
        (set(), set(), []),
    ],
)
def test_oldest_version_that_has_all_symbols(needed: set[str], symbols: set[str], wanted: list[str]) -> None:
    assert dependencies(needed, symbols) == wanted


@pytest.mark.parametrize(
    ("needed", "symbols", "said"),
    [
        ({"libcurl.so.4"}, set(), "no package is known for libcurl.so.4"),
        ({"libstdc++.so.6"}, {"GLIBCXX_3.4.99"}, "no release of GCC has GLIBCXX_3.4.99"),
        ({"libstdc++.so.6"}, {"CXXABI_1.3.77"}, "no release of GCC has CXXABI_1.3.77"),
    ],
)
def test_what_is_not_known_is_not_guessed(needed: set[str], symbols: set[str], said: str) -> None:
    with pytest.raises(BoardError, match=re.escape(said)):
        dependencies(needed, symbols)


@pytest.mark.skipif(not shutil.which("readelf"), reason="there is no readelf")
def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_text("x")
    with pytest.raises(BoardError, match=r"readelf cannot read x\.so"):
        readelf(tmp_path / "x.so")


def libraries() -> list[Path]:
    found = list((PACKAGES / "onnxruntime" / "capi").glob("libonnxruntime.so.*"))
    return found + [path for path in PACKAGES.glob("llama_cpp/lib/lib*.so.0") if "mtmd" not in path.name]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("dpkg-shlibdeps"), reason="there is no dpkg-shlibdeps")
def test_names_are_those_of_dpkg_and_versions_no_older(tmp_path: Path) -> None:
    """dpkg knows which symbols are used, and so asks for an older version now and then, never for a newer one."""
    (tmp_path / "debian").mkdir()
    (tmp_path / "debian" / "control").write_text("Source: x\n\nPackage: x\nArchitecture: any\n")
    carried = [shutil.copy(path, tmp_path) for path in libraries()]
    options = ["--ignore-missing-info", "-O", f"-l{tmp_path}", *(f"-e{path}" for path in carried)]
    said = subprocess.run(["dpkg-shlibdeps", *options], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    theirs = dict(re.findall(r"([a-z0-9+-]+)(?: \(>= ([^)]+)\))?", said.split("shlibs:Depends=")[1]))
    ours = dict(re.findall(r"([a-z0-9+-]+)(?: \(>= ([^)]+)\))?", ", ".join(depends(libraries()))))
    assert set(theirs) == set(ours)
    for name in ("libc6", "libstdc++6"):
        newer = subprocess.run(["dpkg", "--compare-versions", ours[name], "ge", theirs[name]], check=False)
        assert newer.returncode == 0, (ours, theirs)


def test_fields_are_those_that_dpkg_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEBEMAIL", raising=False)
    text = control(ARCHITECTURES["aarch64"], "0.1.0", ["libc6 (>= 2.34)", "libgomp1"], 1025)
    fields = message_from_string(text)
    assert (fields["Package"], fields["Architecture"], fields["Version"]) == ("dasheng-edge", "arm64", "0.1.0")
    assert (fields["Depends"], fields["Installed-Size"]) == ("libc6 (>= 2.34), libgomp1", "2")
    assert re.fullmatch(r"[^<>]+ <[^@ ]+@[^@ ]+>", fields["Maintainer"])
    summary, *body = fields["Description"].splitlines()
    assert len(summary) < 80
    assert all(line.startswith(" ") and len(line) <= 80 for line in body)
    assert text.endswith("\n")


def test_maintainer_is_who_builds() -> None:
    assert maintainer({"DEBFULLNAME": "A B", "DEBEMAIL": "a@example.org"}) == "A B <a@example.org>"
    assert maintainer({"DEBEMAIL": "a@example.org"}).startswith("dasheng-edge")
