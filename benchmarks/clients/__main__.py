"""What clients that nobody here wrote make of the server: a table of clients and features, in which each cell is run.

    python -m benchmarks.clients [--save]

Their packages are installed into `build/clients`, by pip and npm; the server has `build/micro`. `--save` keeps the
table in `benchmarks/results/clients.md`. The exit status is 1 if a cell is not ok.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.places import REPOSITORY, RESULTS
from dasheng_edge.runtime.atomic_output import replace_text

HERE, BUILT = Path(__file__).parent, REPOSITORY / "build" / "clients"
CLIENTS = {
    "openai (Python)": "openai_python.py", "openai (npm)": "openai_npm.mjs", "litellm": "litellm_python.py",
    "langchain-openai": "langchain_python.py", "llm": "llm_program.py", "@ai-sdk/openai-compatible": "ai_sdk_npm.mjs",
}  # fmt: skip
TIMEOUT_S = 300


def install() -> None:
    """Install what the clients need, unless that was done for these versions."""
    wanted = (HERE / "requirements.txt").read_text("utf-8") + (HERE / "package.json").read_text("utf-8")
    stamp = BUILT / "stamp"
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return
    BUILT.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "package.json", BUILT)
    pip = [str(BUILT / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    for words in (
        [sys.executable, "-m", "venv", str(BUILT)],
        [*pip, "-r", str(HERE / "requirements.txt")],
        ["npm", "install", "--prefix", str(BUILT), "--silent", "--no-fund", "--no-audit"],
    ):
        subprocess.run(words, check=True)
    stamp.write_text(wanted, "utf-8")


@contextmanager
def served() -> Generator[str]:
    """The address of a server on the small model."""
    words = [sys.executable, "-m", "dasheng_edge", "serve", "build/micro", "--port", "0"]
    log = BUILT / "server.log"
    with log.open("w", encoding="utf-8") as lines, subprocess.Popen(words, cwd=REPOSITORY, stderr=lines) as server:
        try:
            while not (found := re.search(r"serving .* at (http://\S+)/v1", log.read_text("utf-8"))):
                if server.poll() is not None:
                    raise SystemExit(log.read_text("utf-8"))
            yield found[1]
        finally:
            server.terminate()


def cells(script: str, address: str) -> dict[str, str]:
    """What came of each cell of a client."""
    if script.endswith(".mjs"):
        for module in HERE.glob("*.mjs"):  # Node looks for packages beside the script
            shutil.copy(module, BUILT)
        words = ["node", str(BUILT / script)]
    else:
        words = [str(BUILT / "bin" / "python"), "-W", "ignore", "-m", f"benchmarks.clients.{Path(script).stem}"]
    environ = os.environ | {
        "SERVER": address, "PATH": f"{BUILT / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would fetch prices
    }  # fmt: skip
    done = subprocess.run(
        words,
        cwd=REPOSITORY,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"cell"')]
    return {row["cell"]: row["result"] for row in rows}


def table(results: Mapping[str, Mapping[str, str]]) -> str:
    """Markdown: features down, clients across; a dash is what a client cannot do, or is not asked."""
    features = list(dict.fromkeys(feature for cells in results.values() for feature in cells))
    lines = [f"| | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for feature in features:
        marks = ["ok" if (cell := cells.get(feature)) == "ok" else "-" if cell is None else "FAILS"
                 for cells in results.values()]  # fmt: skip
        lines.append(f"| {feature} | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--save", action="store_true")
    save = parser.parse_args().save
    install()
    with served() as address:
        results = {name: cells(script, address) for name, script in CLIENTS.items()}
    shown = table(results)
    print(shown)
    failed = {(name, cell): said for name, ran in results.items() for cell, said in ran.items() if said != "ok"}
    for (name, cell), said in failed.items():
        print(f"{name}, {cell}: {said}", file=sys.stderr)
    if save:
        versions = (HERE / "requirements.txt").read_text("utf-8").split()
        npm = json.loads((HERE / "package.json").read_text("utf-8"))["dependencies"]
        head = f"# Clients of the server\n\n{', '.join([*versions, *(f'{k} {v}' for k, v in npm.items())])}\n\n"
        replace_text(RESULTS / "clients.md", head + shown)
    count = sum(map(len, results.values()))
    print(json.dumps({"cells": count, "ok": count - len(failed)}))
    return 1 if failed or not all(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
