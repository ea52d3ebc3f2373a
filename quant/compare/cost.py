"""What captioning costs, in a process of its own: `python -m dasheng_edge.quant.compare.cost` with a request on stdin.

Memory is that process's alone. One clip is captioned before the measurement, so that caches are warm.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dasheng_edge.runtime.audio.clips import Clip
from dasheng_edge.runtime.bundle.bundle import CUDA_GRAPHS, DECODER, ENCODER, FRONT_END, PROJECTOR, Bundle
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.child import Child, ChildError, serve
from dasheng_edge.runtime.errors import QuantizeError
from dasheng_edge.runtime.machine.meters import EnergyMeter, cpu_use, peak_rss_bytes
from dasheng_edge.runtime.machine.user_cache import FOLDER_VARIABLE

from .record import Cost, Quantiles

MEASURED_CLIPS = 20


@dataclass(frozen=True)
class Measurement:
    """What the child found: milliseconds and rates, one value for each clip."""

    load_ms: float
    audio_ms: list[float]
    first_token_ms: list[float]
    prefill_tokens_per_s: list[float]
    decode_tokens_per_s: list[float]
    total_ms: float
    audio_s: float
    peak_rss_bytes: int | None
    energy_j: float | None  # of all clips


def measure_cost(bundle: Bundle, clips: Sequence[Clip], threads: int, max_new_tokens: int) -> Cost:
    """Caption up to MEASURED_CLIPS clips with a bundle, one by one: clips evenly spaced over all of them.

    Raises:
        QuantizeError: the process failed; the message has its words.
    """
    request = {
        "bundle": str(bundle.folder),
        "threads": threads,
        "max_new_tokens": max_new_tokens,
        "clips": [
            [clip.id, str(clip.path), clip.offset_s, clip.duration_s, clip.prompt] for clip in measured_clips(clips)
        ],
    }
    before = cpu_use()
    try:
        with Child(__name__, environment={FOLDER_VARIABLE: "off"}) as child:  # candidates fill no caches
            answer = child.ask(request)
    except ChildError as error:
        raise QuantizeError(
            f"captioning with {bundle.folder} in a process of its own ended with {error.status}: {error.said}; try "
            "`dasheng-edge caption` on it"
        ) from error
    others_share = before.others_share(cpu_use())
    return _cost(bundle, Measurement(**answer), others_share)


def measured_clips(clips: Sequence[Clip]) -> list[Clip]:
    """The first clip, the last, and what lies between at even distances: sets are often sorted by kind or length."""
    places = np.linspace(0, len(clips) - 1, min(len(clips), MEASURED_CLIPS)).round().astype(int)
    return [clips[place] for place in places]


def _cost(bundle: Bundle, found: Measurement, others_share: float | None) -> Cost:
    manifest = bundle.manifest
    decoder = bundle.decoder_facts

    def stored(*names: str) -> int:
        return sum(
            facts.bytes for file, facts in manifest.files.items()
            if file.startswith(names) and file not in CUDA_GRAPHS.values()
        )  # fmt: skip

    weights = manifest.encoder.parameters + (manifest.projector_parameters or 0)
    return Cost(
        clips=len(found.audio_ms),
        total_bytes=manifest.total_bytes,
        encoder_bytes=stored(FRONT_END, ENCODER, PROJECTOR),
        decoder_bytes=stored(DECODER),
        encoder_bits_per_weight=8 * stored(ENCODER, PROJECTOR) / weights,
        decoder_bits_per_weight=8 * stored(DECODER) / decoder.parameters,
        peak_rss_bytes=found.peak_rss_bytes,
        load_ms=found.load_ms,
        encoder_ms=_quantiles(found.audio_ms),
        first_token_ms=_quantiles(found.first_token_ms),
        prefill_tokens_per_s=float(np.median(found.prefill_tokens_per_s)),
        decode_tokens_per_s=float(np.median(found.decode_tokens_per_s or [0.0])),
        real_time_factor=found.total_ms / 1000 / found.audio_s,
        others_share=None if others_share is None else round(others_share, 3),
        energy_j=None if found.energy_j is None else found.energy_j / len(found.audio_ms),
    )


def _quantiles(values: Sequence[float]) -> Quantiles:
    return Quantiles(p50=float(np.percentile(values, 50)), p90=float(np.percentile(values, 90)))


def measure(request: Mapping[str, Any], _: object = None) -> dict[str, Any]:
    """What the child does."""
    clips = [
        (Clip(name, Path(path), offset, duration), prompt) for name, path, offset, duration, prompt in request["clips"]
    ]
    start = time.perf_counter()
    with Captioner.open(request["bundle"], threads=request["threads"], check_sha256=False) as captioner:
        load_ms = 1000 * (time.perf_counter() - start)
        rate = captioner.bundle.manifest.front_end.sample_rate_hz
        limit = request["max_new_tokens"]
        first, prompt = clips[0]
        captioner.caption((first.read(rate), rate), prompt, max_new_tokens=limit)
        energy = EnergyMeter()
        captions: list[Caption] = []
        prefill: list[float] = []
        for clip, prompt in clips:
            caption = captioner.caption((clip.read(rate), rate), prompt, max_new_tokens=limit)
            captions.append(caption)
            prefill.append(1000 * captioner.parts.decoder.prefilled / caption.timings.prefill_ms)
        energy_j = energy.joules()
    times = [caption.timings for caption in captions]
    found = Measurement(
        load_ms,
        [one.front_end_ms + one.encoder_ms + one.projector_ms for one in times],
        [one.first_token_ms for one in times],
        prefill,
        [one.tokens_per_s for one in times if one.decode_tokens],
        sum(one.total_ms for one in times),
        sum(caption.audio_s for caption in captions),
        peak_rss_bytes(),
        energy_j,
    )
    return asdict(found)


if __name__ == "__main__":
    serve(measure)
