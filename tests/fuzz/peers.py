"""Who reads the same 200 audio files: whole, cut and mutated ones of all containers, by several libraries.

    python -m tests.fuzz.peers --python PYTHON --readers faster_whisper,librosa,soundfile

`PYTHON` is an environment with those libraries; ours is read by this one. Prints a table and a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.fixtures.places import REPOSITORY

from .audio_cases import CONTAINERS, container
from .mutate import mutated

SECONDS, CUT, FILES = 0.7, 0.6, 200
SLACK_S = 0.1  # codecs pad and prime
HANG_S = 20.0
OUTCOMES = ("whole", "part, told", "part, silent", "more", "refused", "crash", "hang")


def write_files(folder: Path, seed: int) -> list[Path]:
    """Each container whole and cut, and mutated ones to make 200 of them."""
    rng = np.random.default_rng(seed)
    rows = [number for number in range(len(CONTAINERS)) if container(number)]
    paths: list[Path] = []

    def write(kind: str, number: int, data: bytes) -> None:
        form, codec, _, layout = CONTAINERS[number]
        paths.append(folder / f"{kind}-{len(paths):03}-{codec}-{layout}.{form}")
        paths[-1].write_bytes(data)

    for number in rows:
        write("whole", number, container(number))
        write("cut", number, container(number)[: int(len(container(number)) * CUT)])
    while len(paths) < FILES:
        number = rows[int(rng.integers(len(rows)))]
        write("mutated", number, mutated(container(number), rng, header_bytes=512))
    return paths


def outcomes(python: str, reader: str, paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """What became of each file; a library that takes its process with it goes on with the next file."""
    left = list(map(str, paths))
    while left:
        command = [python, str(Path(__file__).with_name("peer_reader.py")), reader, *left]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=HANG_S + len(left)
            )
            lines, end, words = done.stdout.splitlines(), "crash", done.stderr[-500:]
        except subprocess.TimeoutExpired as error:
            lines, end, words = (error.stdout or b"").decode().splitlines(), "hang", ""
        told = [json.loads(line) for line in lines]
        ends = [_outcome(line) for line in told if "file" not in line]
        begun = [Path(line["file"]) for line in told if "file" in line]
        yield from zip(begun, ends, strict=False)
        if len(begun) > len(ends):
            yield begun[-1], end
        if not begun:
            raise RuntimeError(f"{reader} does not start: {words}")
        left = left[len(begun) :]


def _outcome(told: dict[str, object]) -> str:
    if "error" in told:
        return "refused"
    difference = float(str(told["seconds"])) - SECONDS
    if abs(difference) <= SLACK_S:
        return "whole"
    if difference > 0:
        return "more"
    return "part, told" if told["warned"] else "part, silent"


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--readers", default="", help="names in peer_reader.py, with commas")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    readers = {"ours": sys.executable, **dict.fromkeys(filter(None, given.readers.split(",")), given.python)}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder), given.seed)
        counts: dict[str, dict[str, Counter[str]]] = {}
        for reader, python in readers.items():
            counts[reader] = defaultdict(Counter)
            for path, outcome in outcomes(python, reader, paths):
                counts[reader][path.name.partition("-")[0]][outcome] += 1
    print(f"{'reader':16}{'files':10}" + "".join(f"{outcome:>14}" for outcome in OUTCOMES))
    for reader, kinds in counts.items():
        for kind, counter in kinds.items():
            print(f"{reader:16}{kind:10}" + "".join(f"{counter[outcome]:14}" for outcome in OUTCOMES))
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
