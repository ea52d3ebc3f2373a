"""Runs the examples of a Markdown file and compares, or replaces, the output that the file shows.

    python -m benchmarks.docs README.md            # exit status 1 and a diff if the file has drifted
    python -m benchmarks.docs README.md --write

An example is a comment and the fenced block behind it::

    <!-- run: dasheng-edge info build/micro -->
    ```text
    (the command's standard output)
    ```

`run: python` runs the fenced Python block that follows the comment; its output is in the text block after it.
`run if PATH:` leaves an example alone where PATH does not exist. Numbers that depend on the machine are not
compared: those with a decimal point, an exponent, a unit of time or more than four digits, and digests.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dasheng_edge.runtime.atomic_output import replace_text

EXAMPLE = re.compile(
    r"^<!-- run(?: if (?P<needs>[^:\n]+))?: (?P<command>[^\n]+) -->\n\n?"
    r"(?:```python\n(?P<python>.*?)```\n\n?)?"
    r"```text\n(?P<shown>.*?)```$",
    re.MULTILINE | re.DOTALL,
)
MACHINE_NUMBER = re.compile(
    r"\b[0-9a-f]{16,}\b"  # digests
    r"|\b\d+(?:\.\d+)+(?:e[+-]?\d+)?|\b\d+e[+-]?\d+"  # measurements, versions
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


def run(command: str, python: str | None) -> str:
    """Standard output of an example, as on a plain terminal of 80 columns."""
    words = shlex.split(command)
    tools = Path(sys.executable).parent
    if words[0] == "python":
        words = [sys.executable, *(words[1:] if python is None else ["-c", python])]
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
        needs, command, python, shown = match.group("needs", "command", "python", "shown")
        if needs and not Path(needs).exists():
            return match[0]
        try:
            output = run(command, python)
        except ExampleError as error:
            drifts.append(Drift(command, str(error), failed=True))
            return match[0]
        if comparable(output) == comparable(shown):
            return match[0]
        lines = difflib.unified_diff(comparable(shown), comparable(output), "shown", "now", lineterm="", n=1)
        drifts.append(Drift(command, "\n".join(lines), failed=False))
        start, end = (match.start("shown") - match.start(), match.end("shown") - match.start())
        return match[0][:start] + output + match[0][end:]

    return EXAMPLE.sub(replaced, text), drifts


def main(arguments: list[str]) -> int:
    """Exit status 1 if an example failed or, without --write, has drifted."""
    parser = argparse.ArgumentParser(description="Run the examples of a Markdown file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--write", action="store_true", help="replace the outputs that have drifted")
    options = parser.parse_args(arguments)
    before = options.file.read_text("utf-8")
    after, drifts = refresh(before)
    for drift in drifts:
        print(f"{options.file}: {drift.command}\n{drift.difference}\n")
    if options.write and after != before:
        replace_text(options.file, after)
    failed = sum(drift.failed for drift in drifts)
    drifted = len(drifts) - failed
    verb = "replaced" if options.write else "drifted"
    print(f"{options.file}: {len(EXAMPLE.findall(before))} examples, {drifted} {verb}, {failed} failed")
    return int(failed > 0 or (drifted > 0 and not options.write))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
