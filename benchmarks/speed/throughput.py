"""How long several clips take: one by one, decoded together, and with the encoder a clip ahead of the decoder.

    python -m benchmarks.speed.throughput BUNDLE

Eight clips of 10 s, 40 tokens each, greedily. In batches, each step of the decoder says one token of every clip. Ahead,
one thread encodes the next clip while the decoder works on this one, which can only help where the decoder leaves cores
idle. The last line is JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.records.benchmark import Benchmark, parser, run
from benchmarks.records.plots import Panel, bars, bars_of
from benchmarks.records.record import BenchmarkError, Record
from benchmarks.records.section import Section, table
from benchmarks.records.turns import summed_up, take_turns, timed, times
from benchmarks.synthetic.noise import GREEDY, RATE_HZ, talkative_noise
from dasheng_edge.runtime import Bundle, Captioner
from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.engine.engine import DEFAULT_BATCH
from dasheng_edge.runtime.engine_options import EngineOptions

CLIPS, CLIP_S, TOKENS = 8, 10, 40
BATCHES = (2, 4, 8)
ONE, AHEAD = "one by one", "encoder a clip ahead"
Waveform = NDArray[np.float32]


def batch_name(size: int) -> str:
    """Of the variant that decodes so many clips together."""
    return f"in batches of {size}"


@dataclass(frozen=True)
class Ahead:
    """Encodes the next clip in a thread of its own."""

    captioner: Captioner
    audio: AudioInputParts
    tokens: int

    @classmethod
    def open(cls, captioner: Captioner, threads: int, tokens: int) -> Ahead:
        """With `threads` for the encoder; the decoder has those of the captioner."""
        return cls(captioner, AudioInputParts.open(captioner.bundle, EngineOptions().changed(threads=threads)), tokens)

    def caption_all(self, clips: Sequence[Waveform]) -> None:
        """Every clip, in turn."""
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._encode, clips[0])
            for clip in (*clips[1:], None):
                embeddings = coming.result()
                if clip is not None:
                    coming = pool.submit(self._encode, clip)
                self._say(embeddings)

    def _encode(self, clip: Waveform) -> NDArray[np.float32]:
        return np.concatenate(list(self.audio.embedding_groups([clip])))

    def _say(self, embeddings: NDArray[np.float32]) -> None:
        parts = self.captioner.parts
        parts.decoder.prefill(parts.prompts.build(None).rows(embeddings), reserve=self.tokens)
        if len(list(parts.decoder.generate(self.tokens, GREEDY))) != self.tokens:
            raise BenchmarkError(f"the text ends before {self.tokens} tokens; ask for fewer with --tokens")


def measure(captioner: Captioner, threads: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds of all clips, for each variant."""
    clips = [talkative_noise(captioner, CLIP_S, tokens)] * CLIPS
    sources = [(clip, RATE_HZ) for clip in clips]

    def one_by_one() -> None:
        for source in sources:
            captioner.caption(source, max_new_tokens=tokens, sampling=GREEDY)

    def together(size: int) -> Callable[[], object]:
        return lambda: captioner.caption_batch(sources, max_new_tokens=tokens, sampling=GREEDY, batch=size)

    turns: dict[str, Callable[[], object]] = {ONE: one_by_one}
    turns |= {batch_name(size): together(size) for size in BATCHES}
    for count in sorted({max(1, threads // 2), threads}):
        ahead = Ahead.open(captioner, count, tokens)
        turns[f"{AHEAD}, on {count} of {threads} threads"] = lambda ahead=ahead: ahead.caption_all(clips)  # type: ignore[misc]
    taken = take_turns({name: timed(turn) for name, turn in turns.items()}, rounds)
    return {
        "clips": CLIPS, "clip_s": CLIP_S, "tokens": tokens, "default_batch": DEFAULT_BATCH,
        "seconds": {name: summed_up(values) for name, values in taken.items()},
    }  # fmt: skip


def headline(record: Record) -> dict[str, float]:
    """How many times as fast as one by one."""
    seconds = record["seconds"]
    return {name: times(seconds[ONE], timed) for name, timed in seconds.items() if name != ONE}


def section(record: Record) -> Section:
    """Several clips, one after another and together."""
    seconds, count = record["seconds"], record["clips"]
    rows = [
        [
            name, f"{timed['p50']:.2f}", f"{timed['p90']:.2f}", f"{_audio_s(record, timed):.0f}",
            f"{times(seconds[ONE], timed):.2f}",
        ]
        for name, timed in seconds.items()
    ]  # fmt: skip
    about = (
        f"{count} clips of {record['clip_s']} s, {record['tokens']} tokens each, with one captioner. In batches, a "
        "step of the decoder says one token of every clip. With the encoder a clip ahead, the next clip is encoded "
        "while the decoder works on this one, which pays where it leaves cores idle; the runtime does not do it."
    )
    head = ("", "p50, s", "p90, s", "seconds of audio a second", "times as fast as one by one")
    title = f"{count} clips of {record['clip_s']} s with {record['model']}"
    panel = Panel(bars_of(seconds, 1, (batch_name(record["default_batch"]),)), "seconds")
    return Section(f"Throughput, {record['model']}", f"{about}\n\n{table(head, rows)}", bars([panel], title))


def summary(record: Record) -> dict[str, str]:
    """Clips in the default batch."""
    timed = record["seconds"][batch_name(record["default_batch"])]
    return {f"seconds of audio captioned in a second, {batch_name(record['default_batch'])}":
            f"{_audio_s(record, timed):.0f}"}  # fmt: skip


def _audio_s(record: Record, timed: Record) -> float:
    return float(record["clips"] * record["clip_s"] / timed["p50"])


BENCHMARK = Benchmark("throughput", headline, section, summary, rank=3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    options = parser(__doc__, "bundle")
    options.add_argument("--tokens", type=int, default=TOKENS, help="of each caption")
    given = options.parse_args(arguments)

    def measured(bundle: Bundle) -> dict[str, Any]:
        with Captioner.open(bundle.folder, threads=given.threads, check_sha256=False) as captioner:
            return measure(captioner, given.threads, given.tokens, given.rounds)

    return run(BENCHMARK, given, measured)


if __name__ == "__main__":
    sys.exit(main())
