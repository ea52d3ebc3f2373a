"""Finds out what is fastest on this machine: threads of each part, how keys and values are kept, and which bundle.

Two settings are compared by what they need for the same work, one opened at a time. The default is measured first, then
all others; those that seem faster are then measured again, in turns with the default, since other programs come and go.
A setting is taken only if it was more than `GAIN` faster each time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Generic, Literal, TypeAlias, TypeVar, get_args

import numpy as np

from dasheng_edge.runtime.audio.audio_parts import AudioInputParts, AudioParts
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import KvType
from dasheng_edge.runtime.engine_options import (
    FLOAT_TYPES,
    EngineOptions,
    EngineSettings,
    Host,
    WeightLayout,
    resolve,
)
from dasheng_edge.runtime.errors import BundleError, DecoderError
from dasheng_edge.runtime.machine.devices import usable_hardware_threads
from dasheng_edge.runtime.parts import TextParts
from dasheng_edge.runtime.tuned import store_tuned, tuned_path

Part: TypeAlias = Literal["encoder", "prefill", "decode", "weights", "keys and values", "bundle"]
CLIP_S = 10.0  # of the clip that is measured: one chunk of the encoder
ANSWER_TOKENS = 24  # of a caption, where prefill and decoding are added up
CONTEXT_ROWS = 128  # positions before the token that is decoded: about a prompt with ten seconds of audio
GAIN = 0.03  # less is noise
CONFIRMATIONS = 2  # how often a setting that seems faster is measured again
BUDGET_S = 100.0  # for all bundles; what is under way then is finished, which keeps it below two minutes
MIN_RUNS, MIN_S, MAX_S = 5, 0.5, 2.0  # of one setting: so many runs in so long, unless they take too long
_K = TypeVar("_K", bound=Hashable)
_Times: TypeAlias = dict[_K, dict[Part, list[float]]]  # setting -> part -> median of each visit, in milliseconds
Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class TuneOptions:
    """What to measure; the first bundle is the one that others must beat."""

    bundles: tuple[Path, ...]
    allow_kv: bool = False  # whether keys and values may be kept otherwise, which changes the numbers
    budget_s: float = BUDGET_S


@dataclass(frozen=True)
class Row:
    """One setting as it was measured."""

    bundle: str
    part: Part
    setting: str
    times_ms: tuple[float, ...]  # of each visit: a clip's encoding, its prefill, one token, a caption
    gain: float  # over the default, by medians: 0.1 is 10 % less time, negative is slower
    default: bool
    chosen: bool

    @property
    def ms(self) -> float:
        """Median over the visits."""
        return median(self.times_ms)


@dataclass(frozen=True)
class TunedBundle:
    """What was chosen for one bundle, and where it is stored."""

    bundle: str
    choice: EngineSettings
    caption_ms: float  # of CLIP_S seconds with ANSWER_TOKENS tokens; without a decoder, of the encoder
    file: str


@dataclass(frozen=True)
class TuneReport:
    """All measurements, all choices and the reasons."""

    rows: tuple[Row, ...]
    tuned: tuple[TunedBundle, ...]
    fastest: str
    reasons: tuple[str, ...]
    seconds: float


def tune(options: TuneOptions, say: Say = lambda _: None) -> TuneReport:
    """Measure each bundle, store what is fastest for it, and compare the bundles. All on the CPU.

    Raises:
        BundleError: one of the bundles cannot be opened, or is of another model than the first.
        OutputWriteError: the choice cannot be stored.
        DecoderError, DeviceError, MissingExtraError: llama.cpp or ONNX Runtime failed with the default.
    """
    start = perf_counter()
    bundles = [Bundle.open(path, check_sha256=False) for path in options.bundles]
    for bundle in bundles:
        _check_same_model(bundles[0], bundle)
        tuned_path(bundle)  # before two minutes of work
    found: list[_Tuning] = []
    for index, bundle in enumerate(bundles):
        tuning = _Tuning(bundle, options, start + options.budget_s * (index + 1) / len(bundles), say)
        tuning.run(perf_counter())
        found.append(tuning)
    tuned = [
        TunedBundle(one.name, one.choice, one.caption_ms, str(store_tuned(one.bundle, one.choice))) for one in found
    ]
    rows, reasons = [row for one in found for row in one.rows], [reason for one in found for reason in one.reasons]
    fastest = tuned[0].bundle
    if len(bundles) > 1:
        times: _Times[str] = {one.bundle: {"bundle": [one.caption_ms]} for one in tuned}
        fastest, why = _winner(times, fastest, "bundle", visits=1)
        reasons.append(f"bundle: {fastest}, {why}; `dasheng-edge compare` says what each loses")
        rows += _rows("", "bundle", times, tuned[0].bundle, fastest)
    return TuneReport(tuple(rows), tuple(tuned), fastest, tuple(reasons), perf_counter() - start)


def _check_same_model(first: Bundle, other: Bundle) -> None:
    """Raises BundleError where the two were not made of the same checkpoint and adapters."""
    wanted, got = first.manifest.provenance, other.manifest.provenance
    if (got.checkpoint_sha256, got.adapters) != (wanted.checkpoint_sha256, wanted.adapters):
        raise BundleError(
            f"{other.folder} is made of {' with '.join((got.checkpoint, *got.adapters))}, {first.folder} of "
            f"{' with '.join((wanted.checkpoint, *wanted.adapters))}; expected bundles of one model: tune them one by "
            "one"
        )


def named(setting: object) -> str:
    """A setting, for people: a number is one of threads."""
    return f"{setting} {'thread' if setting == 1 else 'threads'}" if isinstance(setting, int) else str(setting)


def thread_counts(cores: int, hardware_threads: int) -> list[int]:
    """Numbers of threads that are worth a try: the nearest to the default, which is one for each core, first."""
    if cores <= 6:
        counts = set(range(1, cores + 1))
    else:  # a few, since each must be opened: a core or two left to others, or as many as memory can feed
        counts = {cores // 4, cores // 2, 3 * cores // 4, cores - 2, cores - 1, cores}
    return sorted({*counts, max(cores, hardware_threads)}, key=lambda count: (abs(count - cores), count))


@dataclass(frozen=True)
class _Contest(Generic[_K]):
    """Measures settings by visits, until a deadline; a visit opens what it needs and closes it again."""

    visit: Callable[[_K], Mapping[Part, float]]
    deadline: float  # of perf_counter
    say: Callable[[_K], None]

    def run(self, settings: Sequence[_K]) -> _Times[_K]:
        """The default is the first of the settings and is measured in any case."""
        default, *others = settings
        times: _Times[_K] = {}
        last_s = self._once(default, times)
        for setting in others:
            if perf_counter() + last_s < self.deadline:
                last_s = max(last_s, self._once(setting, times))
        challengers = {best for part in times[default] if (best := _best(times, default, part)) != default}
        for turn in range(CONFIRMATIONS if challengers else 0):
            if perf_counter() + last_s * (1 + len(challengers)) >= self.deadline:
                break
            for setting in sorted((default, *challengers), key=str, reverse=bool(turn % 2)):
                self._once(setting, times)
        return times

    def _once(self, setting: _K, times: _Times[_K]) -> float:
        """One visit; returns how many seconds it took. A setting that llama.cpp refuses is left out."""
        self.say(setting)
        start = perf_counter()
        try:
            found = self.visit(setting)
        except DecoderError:
            if not times:  # the default
                raise
            return perf_counter() - start
        for part, ms in found.items():
            times.setdefault(setting, {}).setdefault(part, []).append(ms)
        return perf_counter() - start


def _best(times: _Times[_K], default: _K, part: Part) -> _K:
    """The fastest at first sight, if it was more than GAIN faster than the default."""
    best = min(times, key=lambda setting: times[setting][part][0])
    return best if 1 - times[best][part][0] / times[default][part][0] > GAIN else default


def _winner(times: _Times[_K], default: _K, part: Part, *, visits: int = 2) -> tuple[_K, str]:
    """What to take, and why. A setting must have been measured `visits` times or more."""
    best = _best(times, default, part)
    if best == default:
        return default, f"the default: nothing else is more than {GAIN:.0%} faster"
    pairs = zip(times[best][part], times[default][part], strict=False)  # unless llama.cpp refused it the second time
    gains = [1 - ms / default_ms for ms, default_ms in pairs]
    if len(gains) < visits:
        return default, f"the default: there was no time to confirm that {named(best)} is {gains[0]:.0%} faster"
    if min(gains) <= GAIN:
        return default, f"the default: {named(best)} was {gains[0]:.0%} faster once, and then not again"
    return best, f"which takes at least {min(gains):.0%} less time than the default, {named(default)}"


def _rows(bundle: str, part: Part, times: _Times[_K], default: _K, chosen: _K) -> list[Row]:
    base = median(times[default][part])
    return [
        Row(
            bundle, part, named(setting), tuple(found[part]), 1 - median(found[part]) / base, setting == default,
            setting == chosen,
        )
        for setting, found in times.items()
    ]  # fmt: skip


class _Tuning:
    """One bundle."""

    def __init__(self, bundle: Bundle, options: TuneOptions, deadline: float, say: Say) -> None:
        self.bundle, self.name = bundle, str(bundle.folder)
        self.rows: list[Row] = []
        self.reasons: list[str] = []
        self._options, self._deadline, self._say = options, deadline, say
        self._host = Host.here()
        self.choice = resolve(EngineOptions(), bundle.manifest.decoder, self._host)
        self.caption_ms = 0.0

    def run(self, start: float) -> None:
        """Measure until the deadline, in this order: what matters most first."""
        left = self._deadline - start
        counts = thread_counts(self._host.cores, usable_hardware_threads())
        encoder = self._contest("encoder", self._encoder, start + left / 2)
        encoder_threads, self.caption_ms = self._decide(encoder.run(counts), counts[0], "encoder")
        self.choice = replace(self.choice, encoder_threads=encoder_threads)
        if self.bundle.manifest.decoder is None:
            return
        decoder = self._contest("decoder", self._decoder, start + left * 0.75)
        times = decoder.run(counts)
        prefill, _ = self._decide(times, counts[0], "prefill")
        decode, _ = self._decide(times, counts[0], "decode")
        self.choice = replace(self.choice, prefill_threads=prefill, decode_threads=decode)
        self._weights(start + left * 0.85)
        self._keys_and_values()

    def _contest(self, what: str, visit: Callable[[_K], Mapping[Part, float]], deadline: float) -> _Contest[_K]:
        return _Contest(visit, deadline, lambda setting: self._say(f"{self.name}: {what}, {named(setting)}"))

    def _decide(self, times: _Times[int], default: int, part: Part) -> tuple[int, float]:
        chosen, why = _winner(times, default, part)
        self.rows += _rows(self.name, part, times, default, chosen)
        self.reasons.append(f"{self.name}, {part}: {named(chosen)}, {why}")
        return chosen, median(times[chosen][part])

    def _encoder(self, threads: int) -> Mapping[Part, float]:
        return {"encoder": encode_ms(self.bundle, threads)}

    def _decoder(self, threads: int) -> Mapping[Part, float]:
        settings = replace(self.choice, prefill_threads=threads, decode_threads=threads)
        prefill_ms, token_ms = answer_ms(self.bundle, settings)
        return {"prefill": prefill_ms, "decode": token_ms}

    def _caption_ms(self, settings: EngineSettings) -> float:
        """A whole answer."""
        prefill_ms, token_ms = answer_ms(self.bundle, settings)
        return prefill_ms + ANSWER_TOKENS * token_ms

    def _weights(self, deadline: float) -> None:
        """Whether llama.cpp shall copy weights into its layouts, and whether in huge pages.

        The layouts are faster for some numbers of rows and slower for others. What loading takes does not count.
        """
        decoder = self.bundle.manifest.decoder
        if decoder is None or decoder.precision in FLOAT_TYPES:  # one layout, and too large to be read beside its file
            return
        layouts: dict[str, WeightLayout] = {"as stored": "mapped", "repacked": "repacked"}
        kinds = {
            name + (", huge pages" if huge_pages else ""): replace(self.choice, weights=layout, huge_pages=huge_pages)
            for name, layout in layouts.items()
            for huge_pages in ((False, True) if self._host.huge_pages else (False,))
        }

        def visit(kind: str) -> Mapping[Part, float]:
            return {"weights": self._caption_ms(kinds[kind])}

        default = next(kind for kind, settings in kinds.items() if settings == self.choice)
        others = [kind for kind in kinds if kind != default]
        times = self._contest("weights", visit, deadline).run([default, *others])
        best, why = _winner(times, default, "weights")
        self.rows += _rows(self.name, "weights", times, default, best)
        self.reasons.append(f"{self.name}, weights: {best}, {why}")
        self.choice = kinds[best]

    def _keys_and_values(self) -> None:
        """Another type is taken where that is allowed."""
        kinds: dict[str, EngineSettings] = {kind: replace(self.choice, kv_type=kind) for kind in get_args(KvType)}

        def visit(kind: str) -> Mapping[Part, float]:
            return {"keys and values": self._caption_ms(kinds[kind])}

        default: str = self.choice.kv_type
        times = self._contest("keys and values", visit, self._deadline).run(
            [default, *(kind for kind in kinds if kind != default)]
        )
        best, why = _winner(times, default, "keys and values")
        if best != default and not self._options.allow_kv:
            why = f"the bundle's: {best} takes less time, but changes the numbers; --allow-kv lets it be chosen"
            best = default
        elif best != default:
            why += "; it changes the numbers: see `dasheng-edge compare`"
        self.rows += _rows(self.name, "keys and values", times, default, best)
        self.reasons.append(f"{self.name}, keys and values: {best}, {why}")
        self.caption_ms += median(times[best]["keys and values"])
        self.choice = kinds[best]


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
    """Waveform of CLIP_S seconds to audio embeddings, in milliseconds; to patches where there is no decoder."""
    settings, samples = (
        EngineSettings(encoder_threads=threads),
        round(CLIP_S * bundle.manifest.front_end.sample_rate_hz),
    )
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
    spec, text = bundle.manifest.front_end, TextParts.open(bundle, settings)
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
