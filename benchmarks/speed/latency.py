"""How long each stage of a caption takes, and how long a process takes until its first token.

    python -m benchmarks.speed.latency BUNDLE

Clips of noise of 2, 5, 10 and 30 s. The first clip of a captioner computes the whole prompt, the second finds its
beginning in the cache. A start is timed from outside, to the first byte that a process prints, against a bare
process that does the same work with the engines alone (`benchmarks.peers.bare`). All take turns. The last line is JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.places import REPOSITORY
from benchmarks.records.benchmark import SMALL, Benchmark, Target, parser, run
from benchmarks.records.plots import stacks
from benchmarks.records.record import BenchmarkError, Record
from benchmarks.records.section import Section, table
from benchmarks.records.turns import field, summed_up, take_turns, timed, times
from benchmarks.synthetic.noise import GREEDY, noise, talkative_noise, write_wav
from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END, PROJECTOR, Bundle
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.machine.user_folders import FOLDER_VARIABLE
from dasheng_edge.runtime.text.answer import Answer
from dasheng_edge.runtime.text.sequences import Sequences

CLIPS_S = (2, 5, 10, 30)
START_CLIP_S = 10  # of a process's start; within one chunk
TOKENS = 40
IMPORT_ROUNDS = 7
FIRST, SECOND = "first clip", "second clip"
OFF = {FOLDER_VARIABLE: "off"}
BARE, RUNTIME, RUNTIME_KEPT, COMMAND = (
    "bare engines", "runtime", "runtime, prompt kept on disk", "command, files checked"
)  # fmt: skip
IMPORTS = {
    "numpy": "import numpy",
    "runtime": "import dasheng_edge.runtime",
    "captioner": "from dasheng_edge.runtime import Captioner",
}
BEFORE = ("audio_decode_ms", "front_end_ms", "encoder_ms", "projector_ms", "prefill_ms")  # the first token
# The first token is there when it is chosen, after these; `choice_ms` is what is left, with the rendered prompt.
STAGE_NAMES = {
    "audio_decode_ms": "audio file", "front_end_ms": "front end", "encoder_ms": "encoder", "projector_ms": "projector",
    "prefill_ms": "prefill", "choice_ms": "first token", "decode_ms": "other tokens",
}  # fmt: skip
STAGES = (*BEFORE, "choice_ms", "first_token_ms", "decode_ms")


Turn = dict[str, float]


def measure_clips(captioner: Captioner, tokens: int, rounds: int) -> dict[str, Any]:
    """Milliseconds by stage of each clip, as the first of a captioner and as the second."""
    captioner.parts.decoder.prefixes = None  # a captioner that was never asked before
    with tempfile.TemporaryDirectory() as folder:
        clips = {seconds: write_wav(Path(folder) / f"{seconds}.wav", noise(seconds)) for seconds in CLIPS_S}
        turns = {seconds: _pair(captioner, clip, tokens) for seconds, clip in clips.items()}
        taken = take_turns(turns, rounds)
    return {
        which: {
            str(seconds): {name: field([pair[index] for pair in pairs], name) for name in pairs[0][index]}
            for seconds, pairs in taken.items()
        }
        for index, which in enumerate((FIRST, SECOND))
    }


def _pair(captioner: Captioner, clip: Path, tokens: int) -> Callable[[], tuple[Turn, Turn]]:
    """A first clip and a second one, with the same prompt."""
    decoder, parts = captioner.parts.decoder, captioner.parts.prompts.build(None)
    prefix, _ = parts.around_audio()
    other = (prefix[0] + 1) % decoder.n_vocab if prefix else 0

    def run() -> tuple[Turn, Turn]:
        captioner.sequences.close()
        captioner.sequences = Sequences(decoder, 1, keep=True)  # nothing that is in the cache is of use
        answer = Answer([(other,)], 1, GREEDY)
        captioner.sequences.begin([answer])
        captioner.sequences.stop(answer)
        turns = []
        for _ in (FIRST, SECOND):
            said = captioner.caption(clip, max_new_tokens=tokens, sampling=GREEDY)
            turns.append(_turn(said, len(prefix)))
        return turns[0], turns[1]

    return run


def _turn(said: Caption, prefix: int) -> Turn:
    """Stages in milliseconds, tokens, and how many of the prompt's first, static tokens were decoded."""
    spent = dataclasses.asdict(said.timings)
    spent["choice_ms"] = spent["first_token_ms"] - sum(spent[name] for name in BEFORE)
    rows, prefilled = said.prompt_tokens + said.audio_tokens, said.timings.prefill_rows
    return {
        **{name: spent[name] for name in (*STAGES, "total_ms")},
        "tokens": len(said.tokens),
        "prompt_rows": rows,
        "prefilled_rows": prefilled,
        "prefix_tokens_prefilled": max(0, prefilled - (rows - prefix)),
    }


def measure_start(bundle: Bundle, captioner: Captioner, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds from the start of a process to its first byte, which is the first token, on a clip of 10 s."""
    with tempfile.TemporaryDirectory() as folder:
        clip = write_wav(Path(folder) / "clip.wav", talkative_noise(captioner, START_CLIP_S, 1))
        task = write_task(Path(folder) / "task.json", bundle, captioner, clip, threads)
        wanted = captioner.caption(clip, max_new_tokens=1, sampling=GREEDY).tokens[0]
        bare = [sys.executable, "-m", "benchmarks.peers.bare", str(task)]
        given = [str(bundle.folder.resolve()), str(clip)]
        ours = [sys.executable, "-m", "benchmarks.peers.bundle_process", "caption", *given, str(threads), "1"]
        if (got := {_output(bare), _output(ours)}) != {str(wanted)}:
            raise BenchmarkError(f"the processes say tokens {sorted(got)}, not {wanted}: they do not do the same work")
        command = [
            sys.executable, "-c", "from dasheng_edge.runtime.cli.app import main; main()", "caption",
            *given, "--json", "--max-new-tokens", "1", "--temperature", "0", "--threads", str(threads),
        ]  # fmt: skip
        kept = {FOLDER_VARIABLE: str(Path(folder) / "cache")}
        _start(ours, kept)()  # leaves the prompt there
        commands = {BARE: (bare, OFF), RUNTIME: (ours, OFF), RUNTIME_KEPT: (ours, kept), COMMAND: (command, OFF)}
        taken = take_turns({name: _start(*one) for name, one in commands.items()}, rounds, warm_up=0)
    return {name: summed_up(values) for name, values in taken.items()}


def write_task(path: Path, bundle: Bundle, captioner: Captioner, clip: Path, threads: int) -> Path:
    """What `benchmarks.peers.bare` is to do."""
    task = {
        "graphs": [str(bundle.path(name).resolve()) for name in (FRONT_END, ENCODER, PROJECTOR)],
        "decoder": str(bundle.path(DECODER).resolve()),
        "clip": str(clip),
        "threads": threads,
        "prompt": captioner.parts.prompts.build(None).rows(None),
    }
    path.write_text(json.dumps(task), "utf-8")
    return path


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    if done.returncode:
        raise BenchmarkError(f"{command[2]} ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def _start(command: Sequence[str], environment: Mapping[str, str]) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        with subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            env={**os.environ, **environment},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            first = process.stdout.read(1)
            seconds = time.perf_counter() - start
            process.stdout.read()
        if not first or process.returncode:
            raise BenchmarkError(f"{' '.join(command[:4])} ended with status {process.returncode} and no token")
        return seconds

    return run


def measure_imports() -> dict[str, Any]:
    """Seconds of a Python process that imports something, by turns."""
    turns = {
        name: timed(partial(_output, [sys.executable, "-c", statement])) for name, statement in IMPORTS.items()
    }  # fmt: skip
    return {name: summed_up(values) for name, values in take_turns(turns, IMPORT_ROUNDS).items()}


def headline(record: Record) -> dict[str, float]:
    """The main numbers of a record."""
    first, second = (record["clips"][which]["10"] for which in (FIRST, SECOND))
    starts, imports = record["start_s"], record["import_s"]
    return {
        "first_clip_first_token_ms": first["first_token_ms"]["p50"],
        "second_clip_first_token_ms": second["first_token_ms"]["p50"],
        "second_clip_total_ms": second["total_ms"]["p50"],
        "second_clip_prefix_tokens_prefilled": second["prefix_tokens_prefilled"]["p50"],
        "start_to_first_token_s": starts[RUNTIME]["p50"],
        "start_times_bare": times(starts[RUNTIME], starts[BARE]),
        "import_over_numpy_s": imports["runtime"]["p50"] - imports["numpy"]["p50"],
    }


def section(record: Record) -> Section:
    """Stages of first and second clips; starts; imports."""
    rows, stages = [], {}
    for which in (FIRST, SECOND):
        for clip, figures in record["clips"][which].items():
            spent = _stages(figures)
            if which == SECOND:
                stages[f"{clip} s"] = spent
            rows.append([
                f"{which}, {clip} s", *(f"{spent[name]:.1f}" for name in STAGE_NAMES.values()),
                f"{figures['first_token_ms']['p50']:.1f}", f"{figures['total_ms']['p50']:.1f}",
                f"{figures['total_ms']['p90']:.1f}", f"{figures['tokens']['p50']:g}",
                f"{figures['prefilled_rows']['p50']:g} of {figures['prompt_rows']['p50']:g}",
            ])  # fmt: skip
    starts = [
        [name, f"{figures['p50']:.3f}", f"{figures['p90']:.3f}", f"{times(figures, record['start_s'][BARE]):.2f}"]
        for name, figures in record["start_s"].items()
    ]
    imports = [[IMPORTS[name], f"{figures['p50']:.3f}", f"{figures['p90']:.3f}"]
               for name, figures in record["import_s"].items()]  # fmt: skip
    head = ("", *STAGE_NAMES.values(), "to the first token", "whole, p50", "whole, p90", "tokens", "rows prefilled")
    text = "\n\n".join([
        "Stages of a caption in milliseconds, p50. The second clip finds the beginning of the prompt in the cache.",
        table(head, rows),
        "From the start of a process to its first token, a clip of 10 s, seconds:",
        table(("", "p50", "p90", "times the bare engines"), starts),
        "Imports in a process of their own, seconds:",
        table(("", "p50", "p90"), imports),
    ])  # fmt: skip
    plot = stacks(stages, "milliseconds, second clip with the same prompt", f"Caption with {record['model']}")
    return Section(f"Latency, {record['model']}", text, plot)


def _stages(figures: Record) -> dict[str, float]:
    """Medians by stage in milliseconds, by their names."""
    return {label: float(figures[name]["p50"]) for name, label in STAGE_NAMES.items()}


def summary(record: Record) -> dict[str, str]:
    """The start of a process."""
    return {f"from the start of a process to its first token, {START_CLIP_S} s of audio":
            f"{record['start_s'][RUNTIME]['p50']:.2f} s"}  # fmt: skip


def _prefix_tokens(record: Record) -> float:
    clips = record["clips"][SECOND].values()
    return max(float(value) for clip in clips for value in clip["prefix_tokens_prefilled"]["values"])


TARGETS = (
    Target(
        "static tokens of the prompt that a second clip prefills again", "the first clip", 0.0, "tokens", SMALL,
        _prefix_tokens, at_most=True,
    ),
    Target(
        "import dasheng_edge.runtime, beyond import numpy", "a process that imports numpy", 0.25, "seconds", SMALL,
        lambda record: headline(record)["import_over_numpy_s"], at_most=True,
    ),
    Target(
        "process start to first token, files unchecked, nothing kept on disk", "the engines alone, same work", 1.15,
        "times", SMALL, lambda record: headline(record)["start_times_bare"], at_most=True,
    ),
)  # fmt: skip
BENCHMARK = Benchmark("latency", headline, section, summary, TARGETS, rank=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    options = parser(__doc__, "bundle")
    options.add_argument("--tokens", type=int, default=TOKENS, help="longest caption")
    given = options.parse_args(arguments)

    def measured(bundle: Bundle) -> dict[str, Any]:
        options = EngineOptions().changed(threads=given.threads)
        opened = partial(Captioner.open, given.bundle, check_sha256=False)
        with opened(options=options) as captioner:
            clips = measure_clips(captioner, given.tokens, given.rounds)
        with opened(options=options.changed(weights="mapped")) as captioner:  # as the processes do it
            start_s = measure_start(bundle, captioner, given.threads, given.rounds)
        return {
            "bytes": bundle.manifest.total_bytes,
            "tokens": given.tokens,
            "clips": clips,
            "start_s": start_s,
            "import_s": measure_imports(),
        }

    return run(BENCHMARK, given, measured)


if __name__ == "__main__":
    sys.exit(main())
