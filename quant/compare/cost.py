"""What captioning costs, in a process of its own: `python -m dasheng_edge.quant.compare.cost` with a request on stdin.

Memory is that process's alone. One clip is captioned before the measurement, so that caches are warm.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dasheng_edge.runtime import errors
from dasheng_edge.runtime.bundle.bundle import CUDA_GRAPHS, DECODER, ENCODER, FRONT_END, PROJECTOR, Bundle
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.child import Child, serve
from dasheng_edge.runtime.clips.clips import Clip
from dasheng_edge.runtime.errors import DashengEdgeError, QuantizeError
from dasheng_edge.runtime.machine.load import WAIT_S, Load, wait_for_calm
from dasheng_edge.runtime.machine.meters import EnergyMeter, peak_rss_bytes
from dasheng_edge.runtime.machine.user_folders import FOLDER_VARIABLE
from dasheng_edge.runtime.progress import NoProgress, Progress, Steps

from .recommend import MIN_TURNS
from .record import Cost, Quantiles
from .usable_clips import ClipsFailedError, about

MEASURED_CLIPS = 20


@dataclass(frozen=True)
class Measurement:
    """What the child measured in one turn: milliseconds and rates, one value for each clip."""

    load_ms: float
    audio_ms: list[float]
    first_token_ms: list[float]
    prefill_tokens_per_s: list[float]
    decode_tokens_per_s: list[float]
    total_ms: float
    audio_s: float
    peak_rss_bytes: int | None
    energy_j: float | None  # of all clips
    others_share: float | None = None  # of the machine; the parent adds it


def measure_costs(
    bundles: Sequence[Bundle],
    clips: Sequence[Clip],
    threads: int,
    max_new_tokens: int,
    progress: Progress | None = None,
) -> list[Cost]:
    """Caption up to MEASURED_CLIPS clips with each bundle, one by one: clips evenly spaced over all of them.

    The bundles take turns, in one order and then in the other, so that a machine that gets hot or busy does not favour
    one of them; only one is in memory at a time. Each turn of all is a step for `progress`. Before them,
    other programs have half a minute in all to end.

    Raises:
        QuantizeError: a bundle cannot be opened, or the process ended; the message says why.
        ClipsFailedError: a clip cannot be captioned.
    """
    turns, steps = turns_of(measured_clips(clips)), Steps(progress or NoProgress())
    measured: list[list[Measurement]] = [[] for _ in bundles]
    patience_s = WAIT_S
    for number, some in enumerate(turns):
        start = time.monotonic()
        wait_for_calm(lambda text: steps.progress.begin(text, 1, "turns"), patience_s)
        patience_s = max(0.0, patience_s - (time.monotonic() - start))
        places = range(len(bundles))
        step = steps.begin(f"costs: turn {number + 1} of {len(turns)}", len(bundles), "bundles")
        for place in reversed(places) if number % 2 else places:
            measured[place].append(_turn(bundles[place], some, threads, max_new_tokens))
            steps.progress.advance(1)
        step.end()
    return [_cost(bundle, turns) for bundle, turns in zip(bundles, measured, strict=True)]


def turns_of(clips: Sequence[Clip]) -> list[list[Clip]]:
    """What a bundle captions before the next one has its turn; as many turns as it takes to tell speeds apart."""
    turns = min(MIN_TURNS, len(clips))
    return [list(clips[turn::turns]) for turn in range(turns)]


def _turn(bundle: Bundle, clips: Sequence[Clip], threads: int, max_new_tokens: int) -> Measurement:
    request = {
        "bundle": str(bundle.folder),
        "threads": threads,
        "max_new_tokens": max_new_tokens,
        "clips": [[clip.id, str(clip.path), clip.offset_s, clip.duration_s, clip.prompt] for clip in clips],
    }
    load = Load()
    try:
        with Child(__name__, environment={FOLDER_VARIABLE: "off"}) as child:  # candidates fill no caches
            answer = child.ask(request)
    except DashengEdgeError as error:
        raise QuantizeError(
            f"cannot measure what {bundle.folder} costs: {error}; try `dasheng-edge caption` on that bundle"
        ) from error
    if failed := answer.get("failed"):
        raise ClipsFailedError({name: getattr(errors, kind)(said) for name, (kind, said) in failed.items()})
    return replace(Measurement(**answer), others_share=load.share())


def measured_clips(clips: Sequence[Clip]) -> list[Clip]:
    """The first clip, the last, and what lies between at even distances: sets are often sorted by kind or length."""
    places = np.linspace(0, len(clips) - 1, min(len(clips), MEASURED_CLIPS)).round().astype(int)
    return [clips[place] for place in places]


def _cost(bundle: Bundle, turns: Sequence[Measurement]) -> Cost:
    manifest = bundle.manifest
    decoder = bundle.decoder_facts

    def stored(*names: str) -> int:
        return sum(
            facts.bytes for file, facts in manifest.files.items()
            if file.startswith(names) and file not in CUDA_GRAPHS.values()
        )  # fmt: skip

    def values(name: str) -> list[float]:
        return [value for turn in turns for value in getattr(turn, name)]

    def known(name: str) -> list[float]:
        return [value for turn in turns if (value := getattr(turn, name)) is not None]

    weights = manifest.encoder.parameters + (manifest.projector_parameters or 0)
    clips, shares, energy = len(values("audio_ms")), known("others_share"), known("energy_j")
    return Cost(
        clips=clips,
        total_bytes=manifest.total_bytes,
        encoder_bytes=stored(FRONT_END, ENCODER, PROJECTOR),
        decoder_bytes=stored(DECODER),
        encoder_bits_per_weight=8 * stored(ENCODER, PROJECTOR) / weights,
        decoder_bits_per_weight=8 * stored(DECODER) / decoder.parameters,
        peak_rss_bytes=max((int(size) for size in known("peak_rss_bytes")), default=None),
        load_ms=float(np.median(known("load_ms"))),
        encoder_ms=_quantiles(values("audio_ms")),
        first_token_ms=_quantiles(values("first_token_ms")),
        prefill_tokens_per_s=float(np.median(values("prefill_tokens_per_s"))),
        decode_tokens_per_s=float(np.median(values("decode_tokens_per_s") or [0.0])),
        real_time_factor=sum(known("total_ms")) / 1000 / sum(known("audio_s")),
        real_time_factors=tuple(turn.total_ms / 1000 / turn.audio_s for turn in turns),
        others_share=round(max(shares), 3) if shares else None,
        energy_j=sum(energy) / clips if len(energy) == len(turns) else None,
    )


def _quantiles(values: Sequence[float]) -> Quantiles:
    return Quantiles(p50=float(np.percentile(values, 50)), p90=float(np.percentile(values, 90)))


def measure(request: Mapping[str, Any], _: object = None) -> dict[str, Any]:
    """What the child does: a measurement, or clips that fail, by their ids."""
    try:
        return _measured(request)
    except ClipsFailedError as error:
        return {"failed": {name: [type(why).__name__, str(why)] for name, why in error.why.items()}}


def _measured(request: Mapping[str, Any]) -> dict[str, Any]:
    clips = [Clip(name, Path(path), *span_and_prompt) for name, path, *span_and_prompt in request["clips"]]
    start = time.perf_counter()
    with Captioner.open(request["bundle"], threads=request["threads"], check_sha256=False) as captioner:
        load_ms = 1000 * (time.perf_counter() - start)
        rate = captioner.bundle.manifest.front_end.sample_rate_hz

        def caption(clip: Clip) -> Caption:
            with about(clip):
                return captioner.caption((clip.read(rate), rate), clip.prompt, max_new_tokens=request["max_new_tokens"])

        caption(clips[0])
        energy = EnergyMeter()
        captions: list[Caption] = []
        prefill: list[float] = []
        for clip in clips:
            captions.append(caption(clip))
            prefill.append(1000 * captioner.parts.decoder.prefilled / captions[-1].timings.prefill_ms)
        energy_j = energy.joules()
    times = [caption.timings for caption in captions]
    measurement = Measurement(
        load_ms,
        [timing.front_end_ms + timing.encoder_ms + timing.projector_ms for timing in times],
        [timing.first_token_ms for timing in times],
        prefill,
        [timing.tokens_per_s for timing in times if timing.decode_tokens],
        sum(timing.total_ms for timing in times),
        sum(caption.audio_s for caption in captions),
        peak_rss_bytes(),
        energy_j,
    )
    return asdict(measurement)


if __name__ == "__main__":
    serve(measure)
