"""Scores bundles of MiDashengLM-small on scenes and recordings that no training step heard.

python -m benchmarks.small.training.evaluate                        # build/small/bundle, as `make small` writes it
python -m benchmarks.small.training.evaluate --bundle A --bundle B  # several, side by side
python -m benchmarks.small.training.evaluate --write-card           # renews scores.json and the model card
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from benchmarks.micro.training.evaluate import shown
from benchmarks.places import REPOSITORY, SMALL
from benchmarks.small.scenes.kinds import KINDS, named_kinds
from benchmarks.small.scenes.scenes import Scene, make_scene
from benchmarks.small.scenes.sentences import CAPTION_PROMPT, LABELS_PROMPT, LANGUAGE_PROMPT, language_answer
from benchmarks.small.training.encoder_stage import f1, hits
from benchmarks.small.training.features import EVALUATION, held_out_scenes
from dasheng_edge.runtime.atomic_output import replace_text
from dasheng_edge.runtime.captioner import Captioner

CARD, SCORES = SMALL / "README.md", SMALL / "scores.json"
BEGIN, END = "<!-- scores: written by evaluate.py -->", "<!-- end of scores -->"
RATE_HZ, ANSWER_TOKENS = 16_000, 48
SENTENCE = re.compile(r"[A-Z][A-Za-z0-9',;: -]+[.!?]")

Ask = Callable[[Scene, str], str]


@dataclass(frozen=True)
class Scores:
    """Shares from 0 to 1. F1 is micro-averaged over kinds; every recording has as many clips."""

    event_f1: float  # of captions of synthetic scenes
    label_f1: float
    language: float
    caption_hit: float  # kind named in the caption of a recording
    label_hit: float
    sentences: float  # captions that are one sentence


TITLES = {
    "event_f1": "scenes: event F1 of the captions",
    "label_f1": "scenes: event F1 of the labels",
    "language": "scenes: language right, or that nobody speaks",
    "caption_hit": "held-out recordings: kind in the caption",
    "label_hit": "held-out recordings: kind in the labels",
    "sentences": "captions that are one English sentence",
}


def is_sentence(text: str) -> bool:
    """Whether a text is one sentence: a capital, words, a full stop, no word three times in a row."""
    words = text.lower().split()
    stuck = any(a == b == c for a, b, c in zip(words, words[1:], words[2:], strict=False))
    return bool(SENTENCE.fullmatch(text)) and not stuck


def score(ask: Ask, scenes: Sequence[Scene], recordings: Sequence[Scene]) -> tuple[Scores, dict[str, list[str]]]:
    """Scores of what answers, and the captions of the recordings by kind."""
    kinds = [frozenset(event.kind for event in scene.events) for scene in scenes]
    captions = [ask(scene, CAPTION_PROMPT) for scene in scenes]
    labels = [named_kinds(ask(scene, LABELS_PROMPT)) for scene in scenes]
    languages = [ask(scene, LANGUAGE_PROMPT) == language_answer(scene.told) for scene in scenes]
    real = [frozenset({scene.events[0].kind}) for scene in recordings]
    told = [ask(scene, CAPTION_PROMPT) for scene in recordings]
    listed = [named_kinds(ask(scene, LABELS_PROMPT)) for scene in recordings]
    shown_captions = defaultdict(list)
    for known, text in zip(real, told, strict=True):
        shown_captions[next(iter(known))].append(text)
    scores = Scores(
        event_f1=f1([(named_kinds(text), known) for text, known in zip(captions, kinds, strict=True)]),
        label_f1=f1(list(zip(labels, kinds, strict=True))),
        language=float(np.mean(languages)),
        caption_hit=hits([(named_kinds(text), known) for text, known in zip(told, real, strict=True)]),
        label_hit=hits(list(zip(listed, real, strict=True))),
        sentences=float(np.mean([is_sentence(text) for text in captions + told])),
    )
    return scores, dict(shown_captions)


def asks_bundle(captioner: Captioner) -> Ask:
    """Greedy answers of a bundle through the runtime."""

    def ask(scene: Scene, prompt: str) -> str:
        return captioner.caption((scene.waveform, RATE_HZ), prompt=prompt, max_new_tokens=ANSWER_TOKENS).text

    return ask


def card_block(scores: dict[str, Scores], examples: dict[str, list[str]], count: int) -> str:
    """What stands between the marks of the model card."""
    sources = sum(len(kind.held_out) for kind in KINDS.values())
    lines = [
        f"| {count} scenes, {sources} recordings | {' | '.join(scores)} |",
        "|---|" + "---|" * len(scores),
        *(
            f"| {TITLES[field.name]} | {' | '.join(shown(getattr(one, field.name)) for one in scores.values())} |"
            for field in fields(Scores)
        ),
        "",
        "What it says about held-out recordings, the first clip of each kind:",
        "",
        "| kind | caption |",
        "|---|---|",
        *(f"| {kind} | {texts[0]} |" for kind, texts in sorted(examples.items())),
    ]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small.training.evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--bundle", type=Path, action="append", help="repeatable (default: build/small/bundle)")
    parser.add_argument("--count", type=int, default=200, help="scenes (default: 200)")
    parser.add_argument("--write-card", action="store_true", help="renew scores.json and the model card")
    options = parser.parse_args()
    scenes = [make_scene(seed) for seed in range(EVALUATION, EVALUATION + options.count)]
    recordings, scores, examples = list(held_out_scenes()), dict[str, Scores](), dict[str, list[str]]()
    for bundle in options.bundle or [REPOSITORY / "build" / "small" / "bundle"]:
        with Captioner.open(bundle) as captioner:
            scores[bundle.name], captions = score(asks_bundle(captioner), scenes, recordings)
        examples = examples or captions
    if options.write_card:
        card = CARD.read_text(encoding="utf-8")
        before, after = card.split(BEGIN)[0], card.split(END)[1]
        block = card_block(scores, examples, options.count)
        replace_text(CARD, f"{before}{BEGIN}\n{block}\n{END}{after}")
        record = {"count": options.count, "first_seed": EVALUATION, "scores": {n: asdict(s) for n, s in scores.items()}}
        replace_text(SCORES, json.dumps(record, indent=2) + "\n")
    for kind, texts in examples.items():
        print(f"{kind}: {' / '.join(texts)}")
    print(json.dumps({name: asdict(one) for name, one in scores.items()}))


if __name__ == "__main__":
    main()
