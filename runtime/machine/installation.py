"""How this package was installed here, and so how more of it is."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dasheng_edge.runtime.progress import typed_path

DISTRIBUTION = "dasheng-edge"
# Compiles llama.cpp of the version that this package is tested with, for the GPU of the machine that it runs on.
LLAMA_CUDA = (
    'CMAKE_ARGS="-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=native" pip install --force-reinstall --no-deps '
    "--no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36"
)
CPU_TORCH = (
    "; on Linux PyPI's torch is the build for CUDA, 3 GB: to have the one for CPU, 0.2 GB, install torch first, by the "
    "command that pytorch.org/get-started gives for CPU"
)


def install_line(*extras: str) -> str:
    """The command that adds extras to this installation, from where it came: a checkout, a wheel, or an index."""
    wanted = DISTRIBUTION + (f"[{','.join(extras)}]" if extras else "")
    origin = _origin()
    if origin is None:
        line = f"pip install {typed_path(wanted)}"
    elif (folder := _checkout(origin)) is not None:
        constraints = folder / "constraints.txt"
        pins = f"-c {typed_path(constraints)} " if constraints.is_file() else ""
        line = f"pip install {pins}-e {typed_path(wanted.replace(DISTRIBUTION, str(folder)))}"
    else:
        system = origin.get("vcs_info", {}).get("vcs")
        address = f"{system}+{origin['url']}" if system else origin["url"]  # that pip takes
        line = f"pip install {typed_path(f'{wanted} @ {address}')}"
    return line + (CPU_TORCH if "export" in extras and sys.platform == "linux" else "")


def _origin() -> dict[str, Any] | None:
    """What pip noted about where the package came from (PEP 610); None where that was an index."""
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    return json.loads(text) if text else None


def _checkout(origin: dict[str, Any]) -> Path | None:
    """The folder that an editable installation runs from."""
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(origin["url"]).path))
