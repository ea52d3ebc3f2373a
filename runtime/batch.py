"""Clips that are decoded together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .batch_decoder import BatchDecoder
from .caption import Caption
from .prompt import Segment, Text
from .stitch import Request, Stitch, text_tokens
from .stopwatch import Meter, Stopwatch

# On two cores with AVX-512, four sequences together write 1.1 times as many tokens as one by one, eight no more.
DEFAULT_BATCH = 4


def caption_together(stitch: Stitch, requests: Sequence[Request]) -> list[Caption]:
    """Captions of requests that agree in everything but the audio.

    Raises what `Captioner.stream` raises.
    """
    parts = stitch.parts
    prepared: list[tuple[tuple[Segment, ...], int, Meter, Stopwatch]] = []
    prompts = []
    for request in requests:
        watch = Stopwatch(request.read_ms)
        segments = parts.prompts.build(request.prompt, system=request.system)
        watch.lap("prompt")
        meter = stitch.meter(request, segments)
        embeddings = np.concatenate(list(stitch.embedded(meter, watch)))
        prompts.append([segment.tokens if isinstance(segment, Text) else embeddings for segment in segments])
        prepared.append((segments, len(embeddings), meter, watch))
    answers = BatchDecoder(parts.decoder).answers(prompts, requests[0].max_new_tokens, requests[0].sampling)
    captions = []
    for answer, (segments, audio_tokens, meter, watch) in zip(answers, prepared, strict=True):
        watch.ms["prefill"] = answer.prefill_ms
        own_ms = sum(watch.ms.values())
        timings = watch.timings(meter.spent_ms, own_ms, own_ms - meter.spent_ms, answer.spent_ms)
        text = parts.decoder.detokenize(answer.tokens)
        captions.append(stitch.result(text, answer.tokens, (text_tokens(segments), audio_tokens), meter, timings))
    return captions
