"""How fast the decoder prefills and generates, next to llama.cpp's own llama-bench on the same file.

    python -m benchmarks.speed.decoder BUNDLE

Both take turns with the same number of threads and the same layout of the weights, which is the runtime's default for
the type; llama-bench is run with the other layout, too. It decodes random tokens and chooses none; the runtime's
generation is greedy and checks its logits. "without sampling" decodes as llama-bench does, through the runtime, and
"text and audio" is a prompt as captions have, embeddings between tokens. The last line is JSON.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.peers.llama_bench import SAME, LlamaBench, Work, find_llama_bench
from benchmarks.records.benchmark import LARGE, SMALL, Benchmark, Target, parser, run
from benchmarks.records.plots import Panel, bars, bars_of
from benchmarks.records.record import BenchmarkError, Record
from benchmarks.records.section import Section, megabytes, table
from benchmarks.records.turns import field, take_turns, times
from dasheng_edge.runtime.bundle.bundle import DECODER, Bundle
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.parts import TextParts
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.model import Tokens

PROMPT, GENERATED = 300, 40  # tokens
AUDIO_ROWS = 252  # of a caption's prompt; the others are text on both sides
TRIES = 50
OURS, BENCH = "dasheng-edge", "llama-bench"
OTHER = "llama-bench, weights in the other layout"
ROWS, CAPTION = f"{OURS}, without sampling", f"{OURS}, text and audio"


class Variants:
    """Ways to use an open decoder, one for each turn; all return tokens per second."""

    def __init__(self, decoder: Decoder, prompt: int, generated: int) -> None:
        self._decoder, self._prompt, self._generated = decoder, prompt, generated
        self._random = np.random.default_rng(0)
        self._start = self._talkative()
        text = max(1, round(prompt * (1 - AUDIO_ROWS / PROMPT) / 2))  # on each side
        rows = np.random.default_rng(0).standard_normal((max(1, prompt - 2 * text), decoder.n_embd))
        self._text, self._audio = text, rows.astype(np.float32)

    def _talkative(self) -> Tokens:
        """A token after which the model, greedily, writes at least as many tokens as are timed."""
        for _ in range(TRIES):
            start = self._tokens(1)
            self._decoder.prefill((start,), reserve=self._generated + 1)
            if len(list(self._decoder.generate(self._generated + 1))) == self._generated + 1:
                return start
        raise BenchmarkError(f"the decoder ends its text before {self._generated} tokens after each of {TRIES} tokens; "
                             "ask for fewer with --generated")  # fmt: skip

    def _tokens(self, count: int) -> Tokens:
        return tuple(self._random.integers(0, self._decoder.n_vocab, count).tolist())

    def _fresh(self, count: int) -> Tokens:
        """Random tokens, none of which is in the cache."""
        tokens = self._tokens(count)
        self._decoder.prefill((((tokens[0] + 1) % self._decoder.n_vocab,),), reserve=self._prompt + self._generated)
        return tokens

    def prefill(self) -> float:
        """As llama-bench: random tokens, logits of the last."""
        prompt = self._fresh(self._prompt)
        start = time.perf_counter()
        self._decoder.prefill((prompt,), reserve=self._generated)
        return self._prompt / (time.perf_counter() - start)

    def caption(self) -> float:
        """The same number of rows as a caption's prompt has them: text, audio, text."""
        text = self._fresh(2 * self._text)
        parts = (text[: self._text], self._audio, text[-self._text :])
        start = time.perf_counter()
        self._decoder.prefill(parts, reserve=self._generated)
        return sum(map(len, parts)) / (time.perf_counter() - start)

    def generate(self) -> float:
        """Greedily, from an almost empty cache as llama-bench does."""
        self._decoder.prefill((self._start,), reserve=self._generated + 1)
        tokens = self._decoder.generate(self._generated + 1)
        next(tokens)  # of the prefill's logits
        start = time.perf_counter()
        for _ in tokens:
            pass
        return self._generated / (time.perf_counter() - start)

    def rows(self) -> float:
        """Random tokens, decoded one by one without sampling."""
        tokens = self._fresh(self._generated + 1)
        self._decoder.prefill((tokens[:1],), reserve=self._generated + 1)
        start = time.perf_counter()
        for end in range(2, len(tokens) + 1):
            self._decoder.prefill((tokens[:end],))
        return self._generated / (time.perf_counter() - start)


def measure(bundle: Bundle, bench: LlamaBench, given: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of each turn."""
    path, facts = bundle.path(DECODER), bundle.decoder_facts
    decoder = TextParts.open(bundle, EngineOptions().changed(threads=given.threads)).decoder
    settings, repacked = decoder.settings, decoder.settings.weights == "repacked"
    try:
        test = Work(path, given.prompt, given.generated, given.threads, facts.kv_type, repacked)
        ours = Variants(decoder, given.prompt, given.generated)
        turns: dict[str, Callable[[], dict[str, float]]] = {
            OURS: lambda: {"prefill": ours.prefill(), "decode": ours.generate()},
            BENCH: lambda: bench.speeds(test),
            OTHER: lambda: bench.speeds(replace(test, repack=not test.repack)),
            ROWS: lambda: {"decode": ours.rows()},
            CAPTION: lambda: {"prefill": ours.caption()},
        }
        taken = take_turns(turns, given.rounds)
    finally:
        decoder.close()
    return {
        "decoder": facts.precision,
        "parameters": facts.parameters,
        "bytes": path.stat().st_size,
        "llama_bench": bench.library,
        "repacked": repacked,
        "huge_pages": settings.huge_pages,
        "prompt_tokens": given.prompt,
        "generated_tokens": given.generated,
        "tokens_per_s": {
            what: {name: field(rows, what) for name, rows in taken.items() if what in rows[0]}
            for what in ("prefill", "decode")
        },
    }


def headline(record: Record) -> dict[str, float | str]:
    """The main numbers of a record."""
    figures: dict[str, float | str] = {"llama_bench": record["llama_bench"]}
    for what, by_name in record["tokens_per_s"].items():
        figures |= {
            f"{what}_tokens_per_s": by_name[OURS]["p50"],
            f"{what}_llama_bench_tokens_per_s": by_name[BENCH]["p50"],
        }
        figures[f"{what}_ratio"] = times(by_name[OURS], by_name[BENCH])  # of speeds
    return figures


def section(record: Record) -> Section:
    """Tokens per second, and the ratio to llama-bench."""
    rows, panels = [], []
    for what, by_name in record["tokens_per_s"].items():
        for name, speeds in by_name.items():
            ratio = times(speeds, by_name[BENCH])
            rows.append([f"{what}: {name}", f"{speeds['p50']:.1f}", f"{speeds['p90']:.1f}", f"{ratio:.3f}"])
        panels.append(Panel(bars_of(by_name, 1, (OURS,)), f"{what}, tokens per second", "higher"))
    about = (
        f"{record['parameters'] / 1e6:.0f} M parameters in {record['decoder']}, {megabytes(record['bytes'])} MB; "
        f"{record['prompt_tokens']} tokens of prompt and {record['generated_tokens']} generated. llama-bench computes "
        f"with {record['llama_bench']}"
        f"{', and asks for no huge pages as the runtime does' if record.get('huge_pages') else ''}."
    )
    text = f"{about}\n\n{table(('', 'p50, tokens/s', 'p90, tokens/s', 'of llama-bench'), rows)}"
    title = f"Decoder {record['model']} {record['decoder']}, prompt of {record['prompt_tokens']} tokens"
    return Section(f"Decoder, {record['model']}", text, bars(panels, title))


def _speed(what: str) -> Callable[[Record], float]:
    def measure(record: Record) -> float:
        if record["llama_bench"] != SAME:  # built for any CPU, it is easily outrun
            return math.nan
        return times(record["tokens_per_s"][what][OURS], record["tokens_per_s"][what][BENCH])

    return measure


def summary(record: Record) -> dict[str, str]:
    """Tokens per second."""
    prefill, decode = (record["tokens_per_s"][what][OURS]["p50"] for what in ("prefill", "decode"))
    return {"tokens of a prompt read in a second": f"{prefill:.0f}", "tokens written in a second": f"{decode:.1f}"}


TARGETS = tuple(
    Target(f"{what}, {name} Q4_K_M", "llama-bench, same file, same library, same threads", 0.97, "times", model,
           _speed(what))
    for name, model in (("0.6B", SMALL), ("7B", LARGE))
    for what in ("prefill", "decode")
)  # fmt: skip
BENCHMARK = Benchmark("decoder", headline, section, summary, TARGETS, rank=5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    options = parser(__doc__, "bundle")
    options.add_argument("--prompt", type=int, default=PROMPT, help="tokens to prefill")
    options.add_argument("--generated", type=int, default=GENERATED, help="tokens to generate")
    given = options.parse_args(arguments)
    return run(BENCHMARK, given, lambda bundle: measure(bundle, find_llama_bench(), given))


if __name__ == "__main__":
    sys.exit(main())
