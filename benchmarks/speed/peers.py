"""How long a caption takes with the bundle, and with PyTorch and transformers on the same weights.

    python -m benchmarks.speed.peers CHECKPOINT BUNDLE

A clip of noise of 10 s and the bundle's prompt; greedy, exactly 40 tokens, however the text would end. Each runs in a
process of its own, loaded and warmed up before, and they take turns; with --apart a process ends with its turn and is
loaded anew for the next, where memory does not hold all of them. transformers keeps nothing from one clip to the next;
the bundle has the beginning of the prompt in its cache from the clip before. The last line is JSON.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.workers import PASSIVE, Message, Worker, torch_arguments
from benchmarks.records.benchmark import LARGE, SMALL, Benchmark, Target, parser, run
from benchmarks.records.plots import Panel, bars, bars_of
from benchmarks.records.record import BenchmarkError, Record
from benchmarks.records.section import Section, megabytes, ms, table
from benchmarks.records.turns import field, take_turns, times
from benchmarks.synthetic.noise import RATE_HZ
from dasheng_edge.runtime import Bundle
from dasheng_edge.runtime.machine.user_folders import FOLDER_VARIABLE

CLIP_S, TOKENS = 10, 40
OURS = "dasheng-edge"
OFF = {FOLDER_VARIABLE: "off"}  # nothing is kept on disk
DTYPES = ("fp32", "bf16")
MEASURES = ("audio_s", "first_token_s", "total_s", "peak_rss_bytes")


@dataclass(frozen=True)
class Task:
    """What to measure."""

    checkpoint: Path
    bundle: Bundle
    dtypes: Sequence[str]  # of PyTorch
    clip: Path  # npy, float32 [samples]
    tokens: int
    threads: int

    def start(self, name: str) -> Worker:
        """A variant in a process of its own, loaded."""
        if name == OURS:
            return Worker(
                "bundle_worker", self.bundle.folder.resolve(), "--threads", str(self.threads), environment=OFF
            )
        dtype = name.rpartition(" ")[2]
        return Worker("torch_worker", *torch_arguments(self.checkpoint, dtype, self.threads), environment=PASSIVE)

    def request(self, prompt: Sequence[Any]) -> Message:
        """One caption."""
        return {"caption": str(self.clip), "prompt": prompt, "tokens": self.tokens}

    @property
    def names(self) -> tuple[str, ...]:
        """Of all variants."""
        return OURS, *(f"transformers {dtype}" for dtype in self.dtypes)


def measure(task: Task, rounds: int, *, apart: bool) -> dict[str, Any]:
    """Seconds of each turn."""
    with ExitStack() as stack:
        ours = stack.enter_context(task.start(OURS))
        ours.ask(talkative=CLIP_S, tokens=task.tokens, save=str(task.clip))
        request = task.request(ours.ask(segments=True)["segments"])
        if apart:
            ours.close()
            turns = {name: _alone(task, name, request) for name in task.names}
        else:
            others = {name: stack.enter_context(task.start(name)) for name in task.names if name != OURS}
            turns = {name: _one_of(worker, request) for name, worker in {OURS: ours, **others}.items()}
        taken = take_turns(turns, rounds, warm_up=0 if apart else 1)
    for name, rows in taken.items():
        if any(len(row["tokens"]) != task.tokens for row in rows):
            raise BenchmarkError(f"{name} did not say {task.tokens} tokens; ask for fewer with --tokens")
    return {name: {what: field(rows, what) for what in MEASURES if what in rows[0]} for name, rows in taken.items()}


def _one_of(worker: Worker, request: Message) -> Callable[[], Message]:
    def turn() -> Message:
        answer = worker.ask(**request)
        return {**answer, **_peak(worker)}

    return turn


def _alone(task: Task, name: str, request: Message) -> Callable[[], Message]:
    def turn() -> Message:
        with task.start(name) as worker:
            worker.ask(**{**request, "tokens": min(2, task.tokens)})  # touches all weights
            return {**worker.ask(**request), **_peak(worker)}

    return turn


def _peak(worker: Worker) -> dict[str, int]:
    memory = worker.memory()
    return {"peak_rss_bytes": memory["VmHWM"]} if "VmHWM" in memory else {}


def headline(record: Record) -> dict[str, float]:
    """The main numbers of a record."""
    variants = record["variants"]
    figures = {"first_token_s": variants[OURS]["first_token_s"]["p50"], "total_s": variants[OURS]["total_s"]["p50"]}
    for name, theirs in variants.items():
        if name != OURS:
            for what in ("first_token_s", "total_s"):
                label = f"{name}_{what.removesuffix('_s')}_times_as_long".replace(" ", "_")
                figures[label] = times(theirs[what], variants[OURS][what])
    return figures


def section(record: Record) -> Section:
    """Against transformers."""
    variants = record["variants"]
    ours = variants[OURS]
    rows = [
        [
            name, ms(timed["audio_s"]["p50"]), ms(timed["first_token_s"]["p50"]), f"{timed['total_s']['p50']:.2f}",
            f"{timed['total_s']['p90']:.2f}", f"{times(timed['first_token_s'], ours['first_token_s']):.2f}",
            f"{times(timed['total_s'], ours['total_s']):.2f}",
            megabytes(timed.get("peak_rss_bytes", {}).get("p50")),
        ]
        for name, timed in variants.items()
    ]  # fmt: skip
    head = ("", "to the audio's embeddings, ms", "to the first token, ms", "whole, p50, s", "whole, p90, s",
            "first token, times ours", "whole, times ours", "peak, MB")  # fmt: skip
    how = "one process at a time" if record["apart"] else "in processes of their own, all loaded before"
    about = (
        f"{record['clip_s']} s of noise, exactly {record['tokens']} tokens. Ours is {record['encoder']} and "
        f"{record['decoder']}, with the beginning of the prompt in the cache; transformers has the same weights. "
        f"They ran {how}."
    )
    totals = {name: timed["total_s"] for name, timed in variants.items()}
    title = f"Caption of {record['tokens']} tokens with {record['model']}"
    plot = bars([Panel(bars_of(totals, 1, (OURS,)), "seconds")], title)
    return Section(f"Captions beside transformers, {record['model']}", f"{about}\n\n{table(head, rows)}", plot)


def summary(record: Record) -> dict[str, str]:
    """Seconds and memory, ours and theirs."""
    ours = record["variants"][OURS]
    what = f"caption of {record['tokens']} tokens about {record['clip_s']} s of audio"
    lines = {
        "encoder and decoder": f"{record['encoder']} and {record['decoder']}",
        what: f"{ours['total_s']['p50']:.2f} s",
        "its first token": f"{ours['first_token_s']['p50']:.2f} s",
        "its peak memory": f"{megabytes(ours.get('peak_rss_bytes', {}).get('p50'))} MB",
    }
    for name, timed in record["variants"].items():
        if name != OURS:
            lines |= {
                f"the same with {name}":
                    f"{timed['total_s']['p50']:.2f} s, {times(timed['total_s'], ours['total_s']):.1f} times ours",
                f"its peak memory, {name}": f"{megabytes(timed.get('peak_rss_bytes', {}).get('p50'))} MB",
            }  # fmt: skip
    return lines


def _ratio(dtype: str, what: str) -> Callable[[Record], float]:
    return lambda record: times(record["variants"][f"transformers {dtype}"][what], record["variants"][OURS][what])


_WARM = "time to first token, 10 s of audio, 0.6B int8 + Q4_K_M, prompt in the cache"
_WHOLE = "caption of 40 tokens, 10 s of audio,"
TARGETS = (
    Target(_WARM, "transformers fp32", 3.5, "times", SMALL, _ratio("fp32", "first_token_s")),
    Target(_WARM, "transformers bf16", 1.4, "times", SMALL, _ratio("bf16", "first_token_s")),
    Target(f"{_WHOLE} 0.6B", "transformers fp32", 7.0, "times", SMALL, _ratio("fp32", "total_s")),
    Target(f"{_WHOLE} 0.6B", "transformers bf16", 4.0, "times", SMALL, _ratio("bf16", "total_s")),
    Target(f"{_WHOLE} 7B", "transformers bf16", 4.0, "times", LARGE, _ratio("bf16", "total_s")),
)
BENCHMARK = Benchmark("peers", headline, section, summary, TARGETS, rank=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    options = parser(__doc__, "checkpoint", "bundle")
    options.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="of PyTorch")
    options.add_argument("--tokens", type=int, default=TOKENS, help="of a caption")
    options.add_argument("--apart", action="store_true", help="one process at a time, for models that fill the memory")
    given = options.parse_args(arguments)

    def measured(bundle: Bundle) -> dict[str, Any]:
        decoder = bundle.decoder_facts
        with tempfile.TemporaryDirectory() as work:
            clip = Path(work) / "clip.npy"
            task = Task(given.checkpoint, bundle, given.dtypes, clip, given.tokens, given.threads)
            variants = measure(task, given.rounds, apart=given.apart)
        return {
            "encoder": bundle.manifest.encoder.precision, "decoder": decoder.precision, "clip_s": CLIP_S,
            "rate_hz": RATE_HZ, "tokens": given.tokens, "apart": given.apart, "variants": variants,
        }  # fmt: skip

    return run(BENCHMARK, given, measured)


if __name__ == "__main__":
    sys.exit(main())
