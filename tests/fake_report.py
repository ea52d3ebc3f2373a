"""Reports of comparisons that never ran, for tests: deterministic, and shaped like real ones."""

from __future__ import annotations

import random
from dataclasses import dataclass

from dasheng_edge.quant.compare.recommend import recommend
from dasheng_edge.quant.compare.record import (
    Candidate,
    ClipTexts,
    Cost,
    DecoderScores,
    EncoderScores,
    Interval,
    LengthScores,
    NoiseFloor,
    Quantiles,
    RecipeFacts,
    Report,
    Settings,
    TaskScore,
)

PARAMETERS_ENCODER, PARAMETERS_DECODER = 85_000_000, 600_000_000
# Bits per weight and mean KL, shaped like llama.cpp's figures for a small model.
DECODERS = {
    "F16": (16.0, 0.0), "Q8_0": (8.5, 0.0012), "Q6_K": (6.56, 0.0051), "Q5_K_M": (5.69, 0.0104),
    "Q4_K_M": (4.85, 0.031), "Q3_K_M": (3.91, 0.105), "Q2_K": (2.96, 0.42), "IQ4_XS": (4.25, 0.034),
    "IQ3_XXS": (3.06, 0.19), "IQ2_XXS": (2.06, 1.3),
}  # fmt: skip
# Bits per weight, SNR in dB and mean KL.
ENCODERS = {
    "fp32": (32.0, None, 0.0), "int8": (8.1, 31.0, 0.0021), "int8-block": (8.5, 38.0, 0.0008),
    "int4-block": (4.5, 13.5, 0.09), "mixed": (6.3, 24.0, 0.0062),
}  # fmt: skip
NAMES = (
    "fp32+Q8_0", "fp32+Q6_K", "fp32+Q5_K_M", "fp32+Q4_K_M", "fp32+Q4_K_M-imatrix", "fp32+Q3_K_M-imatrix",
    "int8+F16", "int8+Q8_0", "int8+Q6_K", "int8+Q5_K_M", "int8+Q4_K_M", "int8+Q4_K_M-imatrix", "int8+IQ4_XS-imatrix",
    "int8+Q3_K_M-imatrix", "int8+IQ3_XXS-imatrix", "int8+Q2_K-imatrix", "int8+IQ2_XXS-imatrix", "int8-block+Q6_K",
    "mixed+Q4_K_M-imatrix", "mixed+IQ3_XXS-imatrix-kv_q8_0", "int4-block+F16", "int4-block+Q4_K_M-imatrix",
)  # fmt: skip
WORDS = [
    "a",
    "dog",
    "barks",
    "twice",
    "while",
    "rain",
    "falls",
    "on",
    "a",
    "metal",
    "roof",
    "and",
    "a",
    "man",
    "says",
    "the",
    "digits",
    "three",
    "seven",
    "one",
    "in",
    "the",
    "background",
    "then",
    "a",
    "car",
    "passes",
    "slowly",
    "from",
    "left",
    "to",
    "right",
    "with",
    "its",
    "engine",
    "humming",
    "near",
    "a",
    "busy",
    "street",
]
HOSTILE = (
    '<script>alert("x")</script> & <b>bold</b> | pipe `tick` *star* [link](https://example.org) 雨が降る — naïve\x1b[0m'
)


@dataclass(frozen=True)
class Losses:
    """What a made-up candidate is."""

    encoder: str
    decoder: str
    imatrix: bool
    kv_type: str

    @classmethod
    def of(cls, name: str) -> Losses:
        encoder, _, rest = name.partition("+")
        parts = rest.split("-")
        kv_type = next((part[3:] for part in parts if part.startswith("kv_")), "f16")
        return cls(encoder, parts[0], "imatrix" in parts, kv_type)

    @property
    def encoder_kl(self) -> float:
        return ENCODERS[self.encoder][2]

    @property
    def decoder_kl(self) -> float:
        return DECODERS[self.decoder][1] * (0.8 if self.imatrix else 1.0)


def interval(value: float, width: float = 0.1) -> Interval:
    """Ends that lie a share of the value away from it."""
    return Interval(value=value, low=value * (1 - width), high=value * (1 + width))


def decoder_scores(kl: float) -> DecoderScores:
    share = max(0.0, 0.997 - 0.35 * kl**0.5)
    same = Interval(value=share, low=max(0.0, share - 0.011), high=min(1.0, share + 0.009))
    identical = max(0.0, 1 - 2.2 * kl**0.4)
    return DecoderScores(
        clips=120, tokens=4213, kl_mean=interval(kl, 0.14), kl_median=interval(kl * 0.2), kl_p90=interval(kl * 2.7),
        kl_p99=interval(kl * 14), same_top1=same, perplexity=interval(1.83 * (1 + kl), 0.03),
        identical=Interval(value=identical, low=max(0.0, identical - 0.08), high=min(1.0, identical + 0.08)),
        first_divergence=None if identical == 1 else round(3 + 9 * identical),
    )  # fmt: skip


def encoder_scores(snr_db: float | None) -> EncoderScores:
    noise = 0.0 if snr_db is None else 10 ** (-snr_db / 10)
    lengths = tuple(
        LengthScores(
            seconds=seconds, snr_db=None if snr_db is None else snr_db - 0.06 * seconds, cosine_mean=1 - noise / 2,
            cosine_worst=1 - noise * 4 if noise < 0.2 else 0.1,
        )
        for seconds in (1.0, 5.0, 10.08, 30.0, 60.0)
    )  # fmt: skip
    return EncoderScores(snr_db=snr_db, cosine_mean=1 - noise / 2, cosine_worst=1 - noise * 3, by_length=lengths)


def cost(facts: Losses) -> Cost:
    encoder_bits, decoder_bits = ENCODERS[facts.encoder][0], DECODERS[facts.decoder][0]
    encoder_bytes = int(PARAMETERS_ENCODER * encoder_bits / 8) + 1_100_000
    decoder_bytes = int(PARAMETERS_DECODER * decoder_bits / 8) + 6_000_000
    encoder_ms = 90 if facts.encoder.startswith("int8") else 210
    prefill = 150 + 12 * (16 - decoder_bits)
    decode = 250 / (decoder_bits + 3)
    first = encoder_ms + 160_000 / prefill
    return Cost(
        total_bytes=encoder_bytes + decoder_bytes, encoder_bytes=encoder_bytes, decoder_bytes=decoder_bytes,
        encoder_bits_per_weight=encoder_bits, decoder_bits_per_weight=decoder_bits,
        peak_rss_bytes=int(1.15 * (encoder_bytes + decoder_bytes)) + 150_000_000, load_ms=decoder_bytes / 1.2e6,
        encoder_ms=Quantiles(p50=encoder_ms, p90=encoder_ms * 1.2),
        first_token_ms=Quantiles(p50=first, p90=first * 1.3),
        prefill_tokens_per_s=prefill, decode_tokens_per_s=decode, real_time_factor=(first / 1e3 + 35 / decode) / 10.2,
        energy_j=30 * (first / 1e3 + 35 / decode),
    )  # fmt: skip


def task_scores(kl: float, *, changes: bool) -> dict[str, TaskScore]:
    loss = 0.22 * kl**0.8

    def score(value: float, sign: float, better: str) -> TaskScore:
        change = Interval(value=sign * loss, low=sign * loss - 0.012, high=sign * loss + 0.012) if changes else None
        return TaskScore.model_validate(
            {"value": interval(value + sign * loss, 0.04), "change": change, "clips": 120, "better": better}
        )

    return {
        "event_f1": score(0.912, -1, "higher"),
        "word_error_rate": score(0.064, 1, "lower"),
        "rouge_l": score(0.71, -1, "higher"),
    }


def candidate(name: str, losses: Losses | None = None) -> Candidate:
    facts = losses or Losses.of(name)
    kl = facts.encoder_kl + facts.decoder_kl + (0.002 if facts.kv_type != "f16" else 0)
    crossed = facts.encoder != "fp32" and facts.decoder != "F16"
    return Candidate(
        name=name,
        recipe=RecipeFacts(
            encoder=facts.encoder, decoder=facts.decoder, kv_type=facts.kv_type,
            imatrix="audio" if facts.imatrix else None, imatrix_sha256="ab" * 32 if facts.imatrix else None,
        ),
        encoder=encoder_scores(ENCODERS[facts.encoder][1]),
        both=decoder_scores(kl),
        encoder_only=decoder_scores(facts.encoder_kl) if crossed else None,
        decoder_only=decoder_scores(facts.decoder_kl) if crossed else None,
        task=task_scores(kl, changes=True),
        cost=cost(facts),
    )  # fmt: skip


def reference() -> Candidate:
    facts = Losses("fp32", "F16", imatrix=False, kv_type="f16")
    return candidate("reference", facts).model_copy(
        update={"encoder": None, "both": None, "task": task_scores(0.0, changes=False)}
    )


def noise_floor() -> NoiseFloor:
    return NoiseFloor(threads=(2, 1), encoder=encoder_scores(118.0), decoder=decoder_scores(0.000021))


def clips(names: tuple[str, ...], count: int) -> tuple[ClipTexts, ...]:
    """Answers that go astray at a word that depends on the clip, in the worse half of the candidates."""
    draw = random.Random(7)
    made = []
    for index in range(count):
        start = draw.randrange(len(WORDS) - 12)
        words = WORDS[start : start + 12]
        texts = {"reference": " ".join(words) + "."}
        for name in names:
            kl = Losses.of(name).encoder_kl + Losses.of(name).decoder_kl if "+" in name else 0.02
            changed = [draw.choice(WORDS) if draw.random() < kl**0.5 * 0.6 else word for word in words]
            texts[name] = " ".join(changed) + "."
        made.append(ClipTexts(
            clip=f"scene_{index:03}.flac", seconds=4.0 + index % 9, prompt="Caption the audio.",
            references=(" ".join(words[:7]),), texts=texts,
        ))  # fmt: skip
    return tuple(made)


def report(names: tuple[str, ...] = NAMES, clip_count: int = 30) -> Report:
    """A comparison of 22 candidates, or of those that are named."""
    made = tuple(candidate(name) for name in names)
    return Report(
        tool="dasheng-edge 0.1.0", created="2026-07-22T14:03:59+00:00", model="midashenglm-0.6b",
        machine={"cpu": "AMD EPYC 9R14", "cores": "2", "memory": "7.6 GiB", "os": "Linux 6.1", "onnxruntime": "1.23.2"},
        settings=Settings(
            clips=120, clips_sha256="0123456789abcdef" * 4, audio_s=1224.5, calibration_clips=64, max_new_tokens=96,
            threads=2, bootstrap_draws=2000,
        ),
        reference=reference(), noise_floor=noise_floor(), candidates=made, clips=clips(names, clip_count),
        recommendation=recommend(reference(), made, noise_floor()),
        limits=("Speech other than digits was not compared.", "Nothing longer than 60 s was compared."),
    )  # fmt: skip


def bare_report() -> Report:
    """Everything missing that may be missing, and every text hostile."""
    whole = report((NAMES[0],), clip_count=1)
    one = whole.candidates[0]
    scores = one.both
    assert scores is not None
    bare = one.model_copy(update={
        "name": HOSTILE, "encoder": encoder_scores(None), "task": {},
        "both": scores.model_copy(update={"first_divergence": None}),
        "cost": one.cost.model_copy(update={"peak_rss_bytes": None, "energy_j": None}),
        "recipe": one.recipe.model_copy(update={"imatrix": HOSTILE}),
    })  # fmt: skip
    base = whole.reference.model_copy(update={"name": "<i>ref</i>", "task": {}})
    clip = ClipTexts(
        clip=HOSTILE, seconds=3.25, prompt=HOSTILE, references=(HOSTILE, ""),
        texts={"<i>ref</i>": "a dog " + HOSTILE, HOSTILE: HOSTILE + " a cat"},
    )  # fmt: skip
    return whole.model_copy(update={
        "model": HOSTILE, "machine": {HOSTILE: HOSTILE}, "reference": base, "candidates": (bare,), "clips": (clip,),
        "settings": whole.settings.model_copy(update={"calibration_clips": None}), "limits": (HOSTILE,),
        "recommendation": recommend(base, (bare,), whole.noise_floor),
    })  # fmt: skip
