"""dasheng-caption, the program in C++, against the Python package: texts, memory, CPU and time of whole processes.

    python -m benchmarks.speed.native BUNDLE PROGRAM [--clips FOLDER]

PROGRAM is build/example-cpp/dasheng-caption, or that of a package. Texts are of all clips in the folder, or of 12 clips
of noise; what is measured is one caption of a clip of noise, each in a process from its start to its end. The last line
is JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks.places import REPOSITORY
from benchmarks.records.benchmark import Benchmark, parser, run
from benchmarks.records.plots import Panel, bars, bars_of
from benchmarks.records.record import BenchmarkError, Record
from benchmarks.records.section import Section, megabytes, table
from benchmarks.records.turns import field, take_turns, times
from benchmarks.synthetic.noise import RATE_HZ, noise, write_wav
from dasheng_edge.runtime import Bundle
from dasheng_edge.runtime.machine.user_folders import FOLDER_VARIABLE

CLIP_S, TOKENS, NOISES = 10, 12, 12
NATIVE, LOW, PYTHON = "dasheng-caption", "dasheng-caption --low-memory", "dasheng-edge caption"
FIRST = ", one token"  # from the start of the process to the first token, and its end


def commands(bundle: Path, program: Path, threads: int) -> dict[str, list[str]]:
    """The three programs, to which clips and options are appended."""
    folder = str(bundle.resolve())
    ours = [sys.executable, "-m", "dasheng_edge", "caption", folder]
    native = [str(program.resolve()), folder]
    each = {NATIVE: native, LOW: [*native, "--low-memory"], PYTHON: ours}
    return {name: [*command, "--json", "--threads", str(threads)] for name, command in each.items()}


# Linux begins to count a process's peak with that of the one that started it, so a small one does.
LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
taken = {"seconds": time.perf_counter() - start, "cpu_s": usage.ru_utime + usage.ru_stime}
print(json.dumps(taken | {"peak_rss_bytes": usage.ru_maxrss * 1024}))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def done(command: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of JSON that a process wrote, and what it took as the last."""
    launcher = [sys.executable, "-S", "-E", "-c", LAUNCHER, *command]
    ended = subprocess.run(launcher, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    if ended.returncode:
        name = Path(command[0]).name
        raise BenchmarkError(f"{name} ended with status {ended.returncode}: {ended.stderr.strip()[-300:]}")
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


def texts(command: Sequence[str], clips: Sequence[Path]) -> list[str]:
    """Of each clip, in the order of the clips."""
    return [line["text"] for line in done([*command, *map(str, clips)])[:-1]]


def as_wav(clip: Path, folder: Path) -> Path:
    """A clip at 16 kHz, as the one format that the program reads without libav."""
    with av.open(str(clip)) as container:
        if container.streams.audio[0].rate != RATE_HZ:
            raise BenchmarkError(
                f"{clip.name} has {container.streams.audio[0].rate} Hz, expected {RATE_HZ}: resample it"
            )
        blocks = [frame.to_ndarray() for frame in container.decode(audio=0)]
    waveform = np.concatenate(blocks, axis=1)[0]
    scale = 1.0 if waveform.dtype.kind == "f" else float(2 ** (8 * waveform.dtype.itemsize - 1))
    return write_wav(folder / f"{clip.stem}.wav", (waveform / scale).astype(np.float32))


def measure(bundle: Bundle, program: Path, folder: Path | None, threads: int, rounds: int) -> dict[str, Any]:
    """How many texts are equal, and what a caption takes of each program."""
    os.environ[FOLDER_VARIABLE] = "off"  # of the processes, too: each computes its prompt
    programs = commands(bundle.folder, program, threads)
    with tempfile.TemporaryDirectory() as work:
        if folder:
            clips = [as_wav(clip, Path(work)) for clip in sorted(folder.glob("*.flac")) + sorted(folder.glob("*.wav"))]
        else:
            clips = [write_wav(Path(work) / f"{i}.wav", noise(i, seed=i)) for i in range(1, NOISES + 1)]
        said = {name: texts([*command, "--max-new-tokens", str(TOKENS)], clips) for name, command in programs.items()}
        clip = str(write_wav(Path(work) / "clip.wav", noise(CLIP_S)))
        turns = {
            name + suffix: partial(_taken, [*command, clip, "--max-new-tokens", str(tokens)])
            for name, command in programs.items()
            for suffix, tokens in (("", TOKENS), (FIRST, 1))
        }
        taken = take_turns(turns, rounds)
    equal = {name: sum(a == b for a, b in zip(said[name], said[PYTHON], strict=True)) for name in (NATIVE, LOW)}
    processes = {name: {key: field(rows, key) for key in rows[0]} for name, rows in taken.items()}
    return {"clips": len(clips), "clip_s": CLIP_S, "tokens": TOKENS, "equal": equal, "processes": processes}


def _taken(command: list[str]) -> dict[str, float]:
    return done(command)[-1]


def headline(record: Record) -> dict[str, float]:
    """Equal texts, and how many times as much Python takes."""
    ours, native = record["processes"][PYTHON], record["processes"][NATIVE]
    return {
        "equal": record["equal"][NATIVE],
        "clips": record["clips"],
        **{f"python_times_{key}": times(ours[key], native[key]) for key in ("peak_rss_bytes", "cpu_s", "seconds")},
    }


def section(record: Record) -> Section:
    """The three programs."""
    processes: Mapping[str, Any] = record["processes"]
    rows = [
        [
            f"`{name}`",
            f"{record['equal'].get(name, record['clips'])} of {record['clips']}",
            megabytes(processes[name]["peak_rss_bytes"]["p50"]),
            *(f"{processes[name][key]['p50']:.2f}" for key in ("cpu_s", "seconds")),
            f"{processes[name + FIRST]['seconds']['p50']:.2f}",
        ]
        for name in (NATIVE, LOW, PYTHON)
    ]
    about = (
        f"A caption of {record['clip_s']} s and at most {record['tokens']} tokens, in a process of its own from its "
        f"start to its end; texts of {record['clips']} clips, as the Python package says them."
    )
    head = ("program", "texts equal", "peak, MB", "CPU, s", "process, s", "with one token, s")
    peaks = {name: processes[name]["peak_rss_bytes"] for name in (NATIVE, LOW, PYTHON)}
    title = f"C++ and Python, {record['model']}"
    plot = bars([Panel(bars_of(peaks, 1e-6, (NATIVE, LOW)), "peak resident MB")], title)
    return Section(title, f"{about}\n\n{table(head, rows)}", plot)


BENCHMARK = Benchmark("native", headline, section, rank=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    options = parser(__doc__, "bundle", "program")
    options.add_argument("--clips", type=Path, help="folder of flac or wav files at 16 kHz; default: noise")
    given = options.parse_args(arguments)

    def measured(bundle: Bundle) -> dict[str, Any]:
        _ = bundle.decoder_facts  # refuses a bundle without a decoder
        if not os.access(given.program, os.X_OK):
            raise BenchmarkError(
                f"{given.program} is no program: make example-cpp builds build/example-cpp/dasheng-caption"
            )
        return measure(bundle, given.program, given.clips, given.threads, given.rounds)

    return run(BENCHMARK, given, measured)


if __name__ == "__main__":
    sys.exit(main())
