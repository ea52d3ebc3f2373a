"""Runs the examples of Markdown files and compares, or replaces, the output that the files show.

    python -m benchmarks.docs README.md docs/*.md            # exit status 1 and a diff if a file has drifted
    python -m benchmarks.docs README.md docs/*.md --write

An example is a comment, the code that readers see, and the block with its standard output (text or json)::

    <!-- run -->
    ```sh
    dasheng-edge info build/micro
    ```

    ```text
    (the output)
    ```

The code is for a shell (sh) or for Python (python). `run: COMMAND` runs that command and shows none. `run if PATH`
leaves an example alone where PATH does not exist. The output of `run as Markdown` is a part of the page, up to
`<!-- end -->`, and compared as it is. Of other outputs, numbers that depend on the machine are not compared: those
with a decimal point, an exponent, a unit of time or more than four digits, and digests.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dasheng_edge.runtime.atomic_output import replace_text

EXAMPLE = re.compile(
    r"^<!-- run(?P<markdown> as Markdown)?(?: if (?P<needs>[^:\n]+))?(?:: (?P<command>[^\n]+))? -->\n\n?"
    r"(?:```(?P<language>sh|python)\n(?P<code>.*?)```\n\n?)?"
    r"(?(markdown)|```(?:text|json)\n)(?P<shown>.*?)(?(markdown)<!-- end -->|```)$",
    re.MULTILINE | re.DOTALL,
)
MACHINE_NUMBER = re.compile(
    r"\b[0-9a-f]{16,}\b"  # digests
    r"|\b\d+(?:\.\d+)+(?:e[+-]?\d+|\+\w+)?|\b\d+e[+-]?\d+"  # measurements, versions
    r"|\b\d{5,}\b|\b\d{1,3}(?:,\d{3})+\b"  # bytes
    r"|\b\d+(?= ?(?:ms|s)\b)"
)
LAYOUT = re.compile(r"[ ─━═-]+")  # tables grow with the numbers in them
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Drift:
    """One example whose output is not what the file shows, or that failed."""

    command: str
    difference: str
    failed: bool


class ExampleError(Exception):
    """An example did not exit with 0."""


def words_of(example: Mapping[str, str | None]) -> list[str]:
    """The words of the command line that runs an example; `example` holds the groups of EXAMPLE."""
    if example["code"] is not None:
        program = [sys.executable] if example["language"] == "python" else ["sh", "-e"]
        return [*program, "-c", example["code"]]
    words = shlex.split(example["command"] or "")
    if not words:
        raise ExampleError("there is nothing to run: expected code, or a command in the comment")
    return [sys.executable, *words[1:]] if words[0] == "python" else words


def run(words: list[str]) -> str:
    """Standard output of an example, as on a plain terminal of 80 columns."""
    tools = Path(sys.executable).parent
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    environment["PATH"] = f"{tools}{os.pathsep}{environment.get('PATH', '')}"
    done = subprocess.run(
        [str(tools / words[0]) if (tools / words[0]).exists() else words[0], *words[1:]],
        capture_output=True,
        check=False,
        encoding="utf-8",
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
    )
    if done.returncode != 0:
        raise ExampleError(f"exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.strip("\n").splitlines())


def comparable(output: str) -> list[str]:
    """Lines without what differs from machine to machine."""
    return [LAYOUT.sub(" ", MACHINE_NUMBER.sub("#", line)).strip() for line in output.splitlines()]


def refresh(text: str) -> tuple[str, list[Drift]]:
    """The file with each example's output as it is now, and which of them have drifted."""
    drifts: list[Drift] = []

    def replaced(match: re.Match[str]) -> str:
        needs, shown = match["needs"], match["shown"]
        name = match["command"] or (match["code"] or "").strip()
        if needs and not Path(needs).exists():
            return match[0]
        try:
            output = run(words_of(match.groupdict()))
        except ExampleError as error:
            drifts.append(Drift(name, str(error), failed=True))
            return match[0]
        exact = match["markdown"] is not None  # a page that is written by a program holds no measurements
        before, now = (text.splitlines() if exact else comparable(text) for text in (shown, output))
        if before == now:
            return match[0]
        lines = difflib.unified_diff(before, now, "shown", "now", lineterm="", n=1)
        drifts.append(Drift(name, "\n".join(lines), failed=False))
        start, end = (match.start("shown") - match.start(), match.end("shown") - match.start())
        return match[0][:start] + output + match[0][end:]

    return EXAMPLE.sub(replaced, text), drifts


def check(file: Path, *, write: bool) -> bool:
    """Print what drifted or failed in a file, replace that if `write`; whether the file is right now."""
    before = file.read_text("utf-8")
    after, drifts = refresh(before)
    for drift in drifts:
        print(f"{file}: {drift.command}\n{drift.difference}\n")
    if write and after != before:
        replace_text(file, after)
    failed = sum(drift.failed for drift in drifts)
    drifted = len(drifts) - failed
    verb = "replaced" if write else "drifted"
    print(f"{file}: {len(EXAMPLE.findall(before))} examples, {drifted} {verb}, {failed} failed")
    return not failed and (write or not drifted)


def main(arguments: list[str]) -> int:
    """Exit status 1 if an example failed or, without --write, has drifted."""
    parser = argparse.ArgumentParser(description="Run the examples of Markdown files.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--write", action="store_true", help="replace the outputs that have drifted")
    options = parser.parse_args(arguments)
    right = [check(file, write=options.write) for file in options.files]
    return int(not all(right))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
