"""The tree of a package: what is installed, and where."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from pathlib import Path

from benchmarks.places import REPOSITORY
from boards.architectures import Architecture
from boards.compiled import Compiled

FILES = Path(__file__).with_name("files")
PRIVATE = "lib/dasheng-edge"  # the program and its libraries, which find each other by $ORIGIN
DOCUMENTS = "share/doc/dasheng-edge"
PLACES = {  # of boards/files
    "README.md": f"usr/{DOCUMENTS}/README.md",
    "Containerfile": f"usr/{DOCUMENTS}/Containerfile",
    "caption-folder": "usr/libexec/dasheng-edge/caption-folder",
    "dasheng-caption@.service": "usr/lib/systemd/system/dasheng-caption@.service",
    "dasheng-edge.sysusers": "usr/lib/sysusers.d/dasheng-edge.conf",
    "dasheng-caption.default": "etc/default/dasheng-caption",
    "dasheng-caption.1": "usr/share/man/man1/dasheng-caption.1",
}
CONFFILES = "/etc/default/dasheng-caption\n"


def stage(arch: Architecture, compiled: Compiled, tree: Path) -> list[Path]:
    """Fills an empty folder with usr/ and etc/; returns the files that a processor runs."""
    usr, private = tree / "usr", tree / "usr" / PRIVATE
    private.mkdir(parents=True)
    program = shutil.copy(compiled.example / "bin" / "dasheng-caption", private)
    libraries = [
        *compiled.onnxruntime.glob("lib/libonnxruntime.so.*"),
        *(path for path in compiled.llama.glob("lib/*.so*") if not path.is_symlink()),
        (compiled.example / "lib" / "libdasheng_edge.so.0"),
    ]
    carried = [Path(program), *(private / path.name for path in libraries)]
    for path in libraries:
        shutil.copyfile(path, private / path.name)
    for path in carried:
        subprocess.run([arch.tool("strip"), "--strip-unneeded", path], check=True)
        path.chmod(0o755 if path.name == "dasheng-caption" else 0o644)
    (private / "libdasheng_edge.so").symlink_to("libdasheng_edge.so.0")
    (usr / "bin").mkdir()
    (usr / "bin" / "dasheng-caption").symlink_to(f"../{PRIVATE}/dasheng-caption")
    (usr / "include").mkdir()
    shutil.copyfile(compiled.example / "include" / "dasheng_edge.h", usr / "include" / "dasheng_edge.h")
    place_files(tree)
    place_licences(compiled, usr / DOCUMENTS)
    return carried


def place_files(tree: Path) -> None:
    """Those of boards/files."""
    for name, where in PLACES.items():
        (tree / where).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FILES / name, tree / where)
    compress(tree / PLACES["dasheng-caption.1"])


def place_licences(compiled: Compiled, documents: Path) -> None:
    """Ours, and those of what is carried along, which they ask for."""
    shutil.copyfile(compiled.onnxruntime / "ThirdPartyNotices.txt", documents / "onnxruntime-ThirdPartyNotices.txt")
    shutil.copyfile(REPOSITORY / "CHANGELOG.md", documents / "CHANGELOG.md")
    (documents / "copyright").write_text(notices(compiled.onnxruntime, compiled.llama_source), encoding="utf-8")


def notices(onnxruntime: Path, llama_source: Path) -> str:
    """A file in the form of https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/."""
    sgemm = (llama_source / "ggml" / "src" / "ggml-cpu" / "llamafile" / "sgemm.cpp").read_text("utf-8").split("\n\n")[0]
    carried = (  # under MIT's licence, in the words that its authors call Expat
        (f"usr/{PRIVATE}/libonnxruntime.so.*", "ONNX Runtime", (onnxruntime / "LICENSE").read_text()),
        (
            f"usr/{PRIVATE}/libllama.so.* usr/{PRIVATE}/libggml*",
            "llama.cpp",
            (llama_source / "LICENSE").read_text(),
        ),
        (f"usr/{PRIVATE}/libggml-cpu-*", "llamafile, in llama.cpp", re.sub("(?m)^// ?", "", sgemm)),
    )
    text = (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: dasheng-edge\n\n"
        "Files: *\nCopyright: the authors of dasheng-edge\nLicense: Apache-2.0\n"
        " On Debian and its kin, the licence is in /usr/share/common-licenses/Apache-2.0; in the tarball, in LICENSE.\n"
    )
    for files, of, words in carried:
        owners = re.findall(r"Copyright (?:\([cC]\) )?(.+)", words)
        body = "\n".join(f" {line.rstrip()}" if line.strip() else " ." for line in words.strip().splitlines())
        text += f"\nFiles: {files}\nCopyright: {'; '.join(owners)}\nComment: {of}\nLicense: Expat\n{body}\n"
    return text


def compress(path: Path) -> None:
    """As Debian asks for manuals; without a time, so that the bytes follow from the content."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
