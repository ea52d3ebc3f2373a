"""The packages as they are on a board, on an emulated ARM64, from packages alone: texts as on this machine?

    python -m tests.boards [--clips 6]

Takes at most a quarter of an hour on two cores, and goes on where it stopped: everything is in build/board/test. Where
an emulator, a cross compiler or a network is missing, a sentence says so, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.peers.llama_cpp_tools import ToolsError
from boards import package, wheel
from boards.architectures import ARCHITECTURES, BoardError
from boards.package import OUT
from tests.examples.program import CLIPS, decoded, write_wav
from tests.fixtures.places import MICRO, REPOSITORY

from . import root as roots
from .emulated import FP32, INT8, RUNS, Outcome, Run, emulator, make_machine, run
from .root import PACKAGES, digest, once

TEST = OUT.resolve() / "test"
AARCH64 = ARCHITECTURES["aarch64"]
# What pip, apt and CMake say where no index answers.
OFFLINE = re.compile(
    r"Temporary failure|Could not resolve|NewConnectionError|Could not connect|Connection (?:refused|timed out)|"
    r"No matching distribution found|Failed to establish|Name or service not known|cannot be fetched"
)


class Skipped(Exception):  # noqa: N818  # no error: the sentence with which the test ends
    """This machine cannot do it."""


@dataclasses.dataclass(frozen=True)
class Made:
    """What the runs need, and what it weighs."""

    root: Path
    bundles: dict[str, Path]
    clips: list[Path]
    packages: package.Packages
    key: str


def check_tools() -> None:
    """Raises Skipped."""
    lacking = [] if emulator() else ["qemu-user-static"]
    lacking += [tool for tool in ("mmdebstrap", "dpkg-deb") if not shutil.which(tool)]
    if lacking:
        advice = " ".join(lacking).replace("dpkg-deb", "dpkg")
        raise Skipped(f"an emulated board needs {advice}; on Debian and Ubuntu: apt install {advice}")
    try:
        AARCH64.check_tools()
    except BoardError as error:
        raise Skipped(str(error)) from error


def say(text: str) -> None:
    print(f"board-test: {text}", flush=True)


def prepare(count: int) -> Made:
    """Packages, the root that they are installed in, bundles and clips; what is there already stays."""
    packages = package.make(AARCH64)
    llama = wheel.make(AARCH64)
    root = TEST / "root"
    say("a Debian for ARM64 with the package")
    key = digest(packages.deb)
    once(TEST / "root.stamp", key, lambda: roots.unpack(packages.deb, root, TEST / "mmdebstrap.log"))
    for processor in {one.processor for one in RUNS}:
        make_machine(root, processor)
    say("Python's wheels for ARM64")
    own = roots.own_wheel(TEST / "wheel", TEST / "wheel.log")
    key += code_digest()
    once(TEST / "wheels.stamp", key, lambda: roots.install([own, llama], root, TEST / "pip.log"))
    bundles = {FP32: MICRO, INT8: TEST / "small"}
    say("bundles and clips")
    key += digest(MICRO / "manifest.json")
    once(TEST / "small.stamp", digest(MICRO / "manifest.json"), lambda: quantize(bundles[INT8]))
    (TEST / "clips").mkdir(exist_ok=True)
    chosen = CLIPS[:: max(1, len(CLIPS) // count)][:count]
    clips = [write_wav(TEST / "clips" / f"{clip.stem}.wav", decoded(clip)) for clip in chosen]
    return Made(root, bundles, clips, packages, key)


def code_digest() -> str:
    """Of what is in our wheel, whose own bytes have the time in them."""
    folders = [REPOSITORY / name for name in ("export", "quant", "runtime")]
    return digest(REPOSITORY / "constraints.txt", *sorted(path for one in folders for path in one.rglob("*.py")))


def quantize(out: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "dasheng_edge",
        "quantize",
        str(MICRO),
        "--recipe",
        "small",
        "--out",
        str(out),
        "--overwrite",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BoardError(f"build/micro cannot be quantized: {done.stderr.strip()}")


def wanted(made: Made) -> dict[str, list[str]]:
    """The texts of this machine, by precision."""
    from dasheng_edge.runtime import Captioner

    texts: dict[str, list[str]] = {}
    for precision, bundle in made.bundles.items():
        with Captioner.open(bundle) as captioner:
            texts[precision] = [captioner.caption(clip).text for clip in made.clips]
    return texts


def outcome(one: Run, made: Made) -> Outcome:
    """Of a run that is made once for each content of packages, bundles and clips."""
    kept, key = TEST / "runs" / f"{one.name}.json", f"{made.key} {len(made.clips)}"
    kept.parent.mkdir(exist_ok=True)
    if kept.is_file() and (known := json.loads(kept.read_text("utf-8"))).pop("key") == key:
        return Outcome(tuple(known["texts"]), tuple(known["seams"]), known["cpu_s"])
    got = run(one, made.root, made.bundles[one.precision], made.clips)
    kept.write_text(json.dumps(dataclasses.asdict(got) | {"key": key}), encoding="utf-8")
    say(f"{one.program} {one.does}, {one.precision}, {one.processor.board}: {got.cpu_s:.0f} s of CPU")
    return got


def judged(one: Run, got: Outcome, texts: dict[str, list[str]]) -> tuple[bool, str]:
    """Whether a run is as it should be, and how much of it is."""
    if one.does == "verify":
        return bool(got.seams) and all(got.seams), f"{sum(got.seams)} of {len(got.seams)} seams accepted"
    ours = texts[one.precision]
    equal = sum(a == b for a, b in zip(got.texts, ours, strict=False)) if len(got.texts) == len(ours) else 0
    return equal == len(ours), f"{equal} of {len(ours)} texts equal"


def show(results: Sequence[tuple[Run, Outcome, bool, str]], made: Made, seconds: float) -> None:
    """The table, and sizes."""
    head = ("program", "command", "precision", "processor", "against x86-64", "CPU, s", "")
    rows = [
        (
            one.program,
            one.does,
            one.precision,
            one.processor.board,
            said,
            f"{got.cpu_s:.1f}",
            "" if good else "FAILED",
        )
        for one, got, good, said in results
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    print()
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    packed = {"tarball": made.packages.tarball.stat().st_size, ".deb": made.packages.deb.stat().st_size}
    sizes = packed | {
        "installed": made.packages.installed_bytes,
        "Python's packages, installed": roots.size_bytes(made.root / PACKAGES),
        "root": roots.size_bytes(made.root),
    }
    print(
        "\n"
        + "; ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())
        + f". {seconds / 60:.1f} minutes."
    )


def test(count: int) -> bool:
    """Whether all is as on this machine."""
    started = time.monotonic()
    check_tools()
    if not (MICRO / "manifest.json").is_file():
        raise BoardError("there is no build/micro; make build/micro")
    TEST.mkdir(parents=True, exist_ok=True)
    try:
        made = prepare(count)
    except BoardError as error:
        if OFFLINE.search(str(error)):
            raise Skipped(f"a network is missing: {error}") from error
        raise
    texts = wanted(made)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda one: outcome(one, made), RUNS))
    results = [(one, got, *judged(one, got, texts)) for one, got in zip(RUNS, outcomes, strict=True)]
    show(results, made, time.monotonic() - started)
    return all(good for *_, good, _ in results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if something differs, or cannot be made though its tools are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=6, help="how many of micro's 47 clips are captioned")
    given = parser.parse_args(arguments)
    try:
        return 0 if test(given.clips) else 1
    except Skipped as reason:
        print(f"board-test: skipped: {reason}")
        return 0
    except (BoardError, ToolsError, OSError, subprocess.SubprocessError) as error:
        print(f"board-test: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
