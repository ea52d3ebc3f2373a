"""How long the work of each part takes with some settings, whatever other programs do: what `tune` compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter

import numpy as np

from dasheng_edge.runtime.audio.audio_parts import AudioInputParts, AudioParts
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.parts import TextParts

CLIP_S = 10.0  # of the clip that is measured: one chunk of the encoder
CONTEXT_ROWS = 128  # positions before the token that is decoded: about a prompt with ten seconds of audio
MIN_RUNS, MIN_S, MAX_S = 5, 0.5, 2.0  # of one setting: so many runs in so long, unless they take too long


def typical_ms(run: Callable[[], object]) -> float:
    """Median time of a call, once it has been made."""
    run()
    times: list[float] = []
    while (spent := sum(times)) < MAX_S and (len(times) < MIN_RUNS or spent < MIN_S):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return 1000 * median(times)


def encode_ms(bundle: Bundle, threads: int) -> float:
    """Waveform of CLIP_S seconds to audio embeddings, in milliseconds; to patches if the bundle has no decoder."""
    settings = EngineSettings(encoder_threads=threads)
    samples = round(CLIP_S * bundle.manifest.front_end.sample_rate_hz)
    waveform = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    if bundle.manifest.decoder:
        input_parts = AudioInputParts.open(bundle, settings)
        return typical_ms(lambda: input_parts.embeddings([waveform]))
    audio = AudioParts.open(bundle, settings)
    return typical_ms(lambda: audio.encoder.patches(audio.front_end.features([waveform])))


def answer_ms(bundle: Bundle, settings: EngineSettings) -> tuple[float, float]:
    """What the decoder needs for the default prompt with CLIP_S seconds of audio, and for one token, in milliseconds.

    The beginning of the prompt is in the cache, as it is with every clip but the first.

    Raises what `TextParts.open` and `Decoder.prefill` raise.
    """
    # With as many threads as the settings say, whatever others do meanwhile.
    spec, text = bundle.manifest.front_end, TextParts.open(bundle, replace(settings, adaptive_threads=False))
    decoder = text.decoder
    try:
        tokens = spec.tokens_of(round(CLIP_S * spec.sample_rate_hz))
        audio = np.random.default_rng(0).normal(0, 0.02, (tokens, decoder.n_embd)).astype(np.float32)
        rows = text.prompts.build(None).rows(audio)
        prefill_ms = typical_ms(lambda: decoder.prefill(rows))
        # One row behind tokens that are in the cache is what a generated token costs, and never ends an answer.
        before = tuple(index % decoder.n_vocab for index in range(min(CONTEXT_ROWS, decoder.context_length - 1)))
        return prefill_ms, typical_ms(lambda: decoder.prefill([before, audio[:1]]))
    finally:
        decoder.close()


def batch_token_ms(bundle: Bundle, settings: EngineSettings) -> float:
    """Milliseconds for each token where `batch` answers are made together, with weights as they are stored.

    Raises what `answer_ms` raises.
    """
    stored, size = replace(settings, weights="mapped", huge_pages=False, adaptive_threads=False), settings.batch
    decoder = TextParts.open(bundle, stored).decoder
    try:
        rows = min(CONTEXT_ROWS, decoder.context_length - 1)
        context = decoder.new_context(size * 2 * CONTEXT_ROWS, sequences=size, outputs=size)
        context.extend(np.arange(rows, dtype=np.int32) % decoder.n_vocab, sequence=0, past=0, outputs=0)
        state = context.state(0)
        for sequence in range(1, size):
            context.restore(sequence, state, rows)
        every, ones = np.arange(size, dtype=np.int32), np.ones(size, np.int8)

        def step() -> None:
            context.decode(every % decoder.n_vocab, np.full(size, rows, np.int32), every, ones)
            for sequence in every.tolist():
                context.forget(sequence, rows)

        return typical_ms(step) / size
    finally:
        decoder.close()
