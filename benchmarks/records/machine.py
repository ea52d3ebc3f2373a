"""The card of a machine: what a number was measured on. No host name, no path.

python -m benchmarks.records.machine
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.places import REPOSITORY
from dasheng_edge.runtime.machine.gpu import find_gpus
from dasheng_edge.runtime.machine.identity import identify, installed

RESULTS = (":(exclude)benchmarks/results", ":(exclude)benchmarks/RESULTS.md")
LIBRARIES = (
    "dasheng-edge", "numpy", "onnxruntime", "onnxruntime-gpu", "llama-cpp-python", "torch", "transformers", "onnx",
    "onnxscript", "gguf", "safetensors",
)  # fmt: skip


def card() -> dict[str, Any]:
    """CPU, cores, memory, GPUs if any, system, versions, commit; `dirty` where files differ from the commit."""
    facts, gpus = identify(), [str(card) for card in find_gpus().cards]
    commit, dirty = git_state(REPOSITORY)
    return {
        "cpu": facts.cpu,
        "cpu_flags": list(facts.cpu_flags),
        "usable_cores": facts.usable_cores,
        "memory_gib": round(facts.memory_gib, 1) if facts.memory_gib is not None else None,
        **({"gpus": gpus} if gpus else {}),
        "os": f"{platform.system()} {platform.machine()} {' '.join(platform.libc_ver())}".strip(),
        "python": facts.python,
        "versions": installed(LIBRARIES),
        "commit": commit,
        "dirty": dirty,
    }


def hardware(facts: Mapping[str, Any]) -> str:
    """The card in a few words."""
    memory = f"{facts['memory_gib']} GiB" if facts["memory_gib"] is not None else "unknown memory"
    gpus = "".join(f"{card}, " for card in facts.get("gpus", ()))  # of records from machines that have any
    return f"{gpus}{facts['cpu']}, {facts['usable_cores']} usable cores, {memory}"


def text(facts: Mapping[str, Any]) -> str:
    """The card in three lines."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    state = f"commit {facts['commit'][:12]}" if facts["commit"] else "no commit"
    return (
        f"{hardware(facts)}, {' '.join(facts['cpu_flags'])}\n"
        f"{facts['os']}, Python {facts['python']}, {state}{' with changes' if facts['dirty'] else ''}\n"
        f"{versions}"
    )


def git_state(folder: Path) -> tuple[str | None, bool]:
    """Commit of a working tree, and whether tracked files differ from it; (None, False) outside of one.

    Results do not count: the first record of several must not make the others look as if the code had changed.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".", *RESULTS)
    return commit or None, bool(changes)


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:  # no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def main() -> int:
    """Print the card, then the same as JSON."""
    facts = card()
    print(text(facts))
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
