"""Several questions about a clip, which is heard once, against as many captions of it.

    python -m benchmarks.speed.questions BUNDLE

A prompt has the text before the audio, or behind it; both are measured. With the text behind, the decoder reads the
audio once, too. The last line is JSON.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.records.benchmark import SMALL, Benchmark, Target, parser, run
from benchmarks.records.plots import Panel, bars, bars_of
from benchmarks.records.record import Record
from benchmarks.records.section import Section, table
from benchmarks.records.turns import summed_up, take_turns, timed, times
from benchmarks.synthetic.noise import GREEDY, RATE_HZ, noise
from dasheng_edge.runtime import Bundle, Captioner, EngineOptions
from dasheng_edge.runtime.prompt.prompt import PromptBuilder

QUESTIONS = (
    "Write an audio caption describing the sound", "Transcribe the speech", "What language is spoken?",
    "Which labels describe the sound?",
)  # fmt: skip
CLIPS_S = (10, 30)
ORDERS = {"text, audio": False, "audio, text": True}
ALONE, TOGETHER = "one by one", "together"


def measure(bundle: Bundle, threads: int, rounds: int, tokens: int, clips_s: Sequence[int]) -> dict[str, Any]:
    """Seconds of all answers by clip, by the order of the prompt and by the way of asking, and how many are equal."""
    seconds: dict[str, dict[str, dict[str, object]]] = {}
    equal = 0
    options = EngineOptions(weights="mapped").changed(threads=threads)
    with Captioner.open(bundle.folder, options=options, check_sha256=False) as captioner:
        for length in clips_s:
            clip = noise(length), RATE_HZ
            for order, audio_first in ORDERS.items():
                captioner.parts = _ordered(captioner, audio_first=audio_first)

                def alone(clip: Any = clip) -> list[Sequence[int]]:
                    ask = captioner.caption
                    return [ask(clip, one, max_new_tokens=tokens, sampling=GREEDY).tokens for one in QUESTIONS]

                def together(clip: Any = clip) -> list[Sequence[int]]:
                    answers = captioner.ask(clip, QUESTIONS, max_new_tokens=tokens, sampling=GREEDY)
                    return [answer.tokens for answer in answers.values()]

                equal += sum(one == other for one, other in zip(alone(), together(), strict=True))
                taken = take_turns({ALONE: timed(alone), TOGETHER: timed(together)}, rounds)
                seconds[f"{length} s, {order}"] = {name: summed_up(values) for name, values in taken.items()}
    asked = len(QUESTIONS) * len(seconds)
    return {"questions": len(QUESTIONS), "tokens": tokens, "asked": asked, "equal": equal, "seconds": seconds}


def _ordered(captioner: Captioner, *, audio_first: bool) -> Any:
    """The parts with prompts in this order."""
    facts = captioner.bundle.prompt_facts.model_copy(update={"audio_first": audio_first})
    decoder = captioner.parts.decoder
    return dataclasses.replace(captioner.parts, prompts=PromptBuilder(decoder.chat_template, facts, decoder))


def share(record: Record, which: str) -> float:
    """Of the time one by one that the answers together take."""
    taken = record["seconds"][which]
    return times(taken[TOGETHER], taken[ALONE])


def headline(record: Record) -> dict[str, float]:
    """The share of each clip and order, and how many answers are equal."""
    return {**{which: share(record, which) for which in record["seconds"]}, "equal": record["equal"]}


def section(record: Record) -> Section:
    """Both ways of asking about each clip."""
    rows = [
        [which, *(f"{taken[name]['p50']:.2f}" for name in (ALONE, TOGETHER)), f"{share(record, which):.2f}"]
        for which, taken in record["seconds"].items()
    ]
    about = (
        f"{record['questions']} questions about a clip, {record['tokens']} tokens each, seconds: a caption for each, "
        f"and all after one hearing. {record['equal']} of {record['asked']} answers are equal. Where the audio "
        "comes first, the decoder reads it once, too; where the text does, what it makes of it depends on the question."
    )
    panels = [Panel(bars_of(taken, 1, (TOGETHER,)), f"{which}: seconds") for which, taken in record["seconds"].items()]
    plot = bars(panels, f"Several questions about a clip, {record['model']}")
    return Section(
        f"Several questions, {record['model']}", f"{about}\n\n{table(('', ALONE, TOGETHER, 'share'), rows)}", plot
    )


def _target(which: str) -> Target:
    what, against = f"four questions in one hearing, {which}", "a caption for each"
    return Target(what, against, 0.45, "times", SMALL, lambda record: share(record, which), at_most=True)


TARGETS = [_target("10 s, text, audio"), _target("30 s, audio, text")]
BENCHMARK = Benchmark("questions", headline, section, targets=TARGETS, rank=3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    options = parser(__doc__, "bundle")
    options.add_argument("--tokens", type=int, default=10, help="of each answer")
    options.add_argument("--seconds", type=int, nargs="+", default=CLIPS_S, help="of the clips")
    given = options.parse_args(arguments)
    return run(
        BENCHMARK, given, lambda bundle: measure(bundle, given.threads, given.rounds, given.tokens, given.seconds)
    )


if __name__ == "__main__":
    sys.exit(main())
