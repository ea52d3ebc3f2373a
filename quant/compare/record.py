"""The results of a comparison, and nothing about how they look: the content of `report.json`.

Divergences are in nats, shares and F1 between 0 and 1. Every interval covers 95 % and comes from a bootstrap that
draws whole clips, since the tokens of one clip are no independent observations; with few clips it covers less (see
`bootstrap.COVERED`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(_Model):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


class SeamScores(_Model):
    """How far audio embeddings are from the reference's.

    SNR is 10 log10(sum of squares of the reference / of the difference); cosines are taken token by token.
    """

    snr_db: float | None  # None: no difference at all
    cosine_mean: float
    cosine_worst: float


class LengthScores(SeamScores):
    """The same for clips of one length."""

    seconds: float


class EncoderScores(SeamScores):
    """Encoder and projector against the reference's: over all clips, and by length of the clip."""

    by_length: tuple[LengthScores, ...]


class DecoderScores(_Model):
    """Next-token distributions against the reference's, teacher-forced on the reference's own answers.

    KL is that of the model from the reference, sum over tokens of p_ref * (log p_ref - log p), at every position of
    the answer. `identical` and `first_divergence` are about free greedy answers.
    """

    clips: int
    tokens: int  # positions that were compared
    kl_mean: Interval
    kl_median: Interval
    kl_p90: Interval
    kl_p99: Interval
    same_top1: Interval  # share of positions where both prefer the same token
    perplexity: Interval  # of the reference's answers, for this model
    identical: Interval  # share of clips with the same greedy answer, token by token
    first_divergence: float | None  # median index of the first token that differs, over clips where one does


class TaskScore(_Model):
    """One score of the greedy answers against what the clip manifest states."""

    value: Interval
    change: Interval | None  # against the reference model, paired by clip; None for the reference itself
    clips: int
    better: Literal["higher", "lower"]


class Quantiles(_Model):
    """Over the clips that were captioned for the costs."""

    p50: float
    p90: float


class Cost(_Model):
    """What it takes: measured in a process of its own that captions clips one by one.

    These are some of the clips that were compared, evenly spaced over their order, or all where there are few. Bits per
    weight are of the files, what is not weights included.
    """

    clips: int | None = None  # how many were captioned; None in reports of versions that did not say

    total_bytes: int
    encoder_bytes: int  # front end, encoder and projector
    decoder_bytes: int
    encoder_bits_per_weight: float  # of encoder and projector
    decoder_bits_per_weight: float
    peak_rss_bytes: int | None  # None where the system does not tell
    load_ms: float  # from opening the bundle to being ready
    encoder_ms: Quantiles  # front end, encoder and projector
    first_token_ms: Quantiles  # from the call to the first token
    prefill_tokens_per_s: float  # median
    decode_tokens_per_s: float  # median
    real_time_factor: float  # seconds of work per second of audio, over those clips
    real_time_factors: tuple[float, ...] = ()  # of each turn; () in reports of versions that did not say
    energy_j: float | None  # per clip, of the processor package; None where it cannot be read
    others_share: float | None = None  # of all CPUs, that other programs used meanwhile; None where it cannot be told


class RecipeFacts(_Model):
    """What a candidate is made of."""

    encoder: str  # "fp32", "int8", "mixed" ...
    decoder: str  # "F16", "Q4_K_M" ...
    kv_type: str  # "f16", "q8_0", "q4_0"
    imatrix: str | None = None  # "audio", or the name of a file that was given; None: none
    imatrix_sha256: str | None = None


class Candidate(_Model):
    """One bundle; in the reference itself the comparisons are None."""

    name: str
    recipe: RecipeFacts
    encoder: EncoderScores | None
    both: DecoderScores | None  # its own encoder and decoder
    encoder_only: DecoderScores | None  # its encoder, the reference's decoder; None where that is not another pair
    decoder_only: DecoderScores | None  # the reference's encoder, its decoder; None likewise
    task: dict[str, TaskScore]  # "event_f1", "word_error_rate", "exact_match", "rouge_l", "cider_d" ...
    cost: Cost


class NoiseFloor(_Model):
    """The reference against itself with another number of threads, if the machine has two: what rounding alone does."""

    threads: tuple[int, int]
    encoder: EncoderScores
    decoder: DecoderScores


class ClipTexts(_Model):
    """What each model said about one clip."""

    clip: str
    seconds: float
    prompt: str
    references: tuple[str, ...]  # what the clip manifest states
    texts: dict[str, str]  # name of candidate, the reference included -> greedy answer


class Rejected(_Model):
    """A candidate that is not recommended, and why."""

    name: str
    why: str


class Recommendation(_Model):
    """Which one to take, in words."""

    choice: str | None  # None: no candidate is good enough
    reason: str
    rejected: tuple[Rejected, ...]


class Settings(_Model):
    """What the comparison was asked for."""

    clips: int
    clips_sha256: str
    audio_s: float
    calibration_clips: int | None
    max_new_tokens: int
    threads: int
    bootstrap_draws: int


class Report(_Model):
    """`report.json`."""

    schema_version: Literal[1] = 1
    tool: str  # "dasheng-edge 0.1.0"
    created: str  # date and time, ISO 8601, UTC
    model: str  # name in the reference's manifest
    machine: dict[str, str]
    settings: Settings
    reference: Candidate
    noise_floor: NoiseFloor
    candidates: tuple[Candidate, ...]
    clips: tuple[ClipTexts, ...]
    recommendation: Recommendation
    limits: tuple[str, ...]  # what these figures cannot say
