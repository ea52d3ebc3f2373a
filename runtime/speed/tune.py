"""Measures what is fastest on this machine: threads of each part, layout of weights, keys and values, and which bundle.

Settings are compared by the time they need for the same work; only one is open at a time. The default is measured
first, then all others. Those that seem faster are measured again, in turns with the default, since other programs come
and go. A setting is chosen only if it was more than `GAIN` faster each time, and the choice is stored only if no
measurement was made while others used the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal, TypeAlias, get_args

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
from dasheng_edge.runtime.errors import BundleError, DecoderError, MachineBusyError
from dasheng_edge.runtime.machine.devices import usable_hardware_threads
from dasheng_edge.runtime.machine.load import WAIT_S, Load, busy, wait_for_calm
from dasheng_edge.runtime.tuned import store_tuned, tuned_path

from .timing import answer_ms, batch_token_ms, encode_ms

Part: TypeAlias = Literal["encoder", "prefill", "decode", "weights", "keys and values", "batch", "bundle"]
ANSWER_TOKENS = 24  # of a caption, where prefill and decoding are added up
BATCHES = (8, 16, 32, 64)  # answers together
GAIN = 0.03  # less is noise
CONFIRMATIONS = 2  # how often a setting that seems faster is measured again
BUDGET_S = 100.0  # for all bundles; what is under way then is finished, which keeps it below two minutes
MAX_TRIES = 3  # of a measurement beside which others used the machine
# Setting -> part -> median of each visit, in milliseconds; the first setting is the default.
_Times: TypeAlias = dict[str, dict[Part, list[float]]]
Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class TuneOptions:
    """What to measure; the first bundle is the one that others must beat."""

    bundles: tuple[Path, ...]
    allow_kv: bool = False  # whether another type of keys and values may be chosen, which changes the numbers
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
    file: str | None  # None: not stored, since others used the machine
    others_share: float | None  # of the machine, beside the measurement where it was most; None where it is not told


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
        MachineBusyError: other programs use the machine, and have not ended after a while.
        DecoderError, DeviceError, MissingExtraError: llama.cpp or ONNX Runtime failed with the default.
    """
    bundles = [Bundle.open(path, check_sha256=False) for path in options.bundles]
    for bundle in bundles:
        _check_same_model(bundles[0], bundle)
        tuned_path(bundle)  # before two minutes of work
    if busy(share := wait_for_calm(say)):
        raise MachineBusyError(
            f"other programs use {share:.0%} of the machine, so nobody can tell what is fastest on it; end them, and "
            "tune again"
        )
    start = perf_counter()
    contests: list[_Contests] = []
    for index, bundle in enumerate(bundles):
        contests.append(_Contests(bundle, start + options.budget_s * (index + 1) / len(bundles), say))
        contests[-1].run(allow_kv=options.allow_kv)
    tuned = [contest.stored() for contest in contests]
    rows = [row for contest in contests for row in contest.rows]
    reasons = [reason for contest in contests for reason in contest.reasons]
    fastest = tuned[0].bundle
    if len(bundles) > 1:
        times: _Times = {bundle.bundle: {"bundle": [bundle.caption_ms]} for bundle in tuned}
        fastest, why = _winner(times, "bundle", visits=1)
        reasons.append(f"bundle: {fastest}, {why}; `dasheng-edge compare` says what each loses")
        rows += _rows("", "bundle", times, fastest)
    return TuneReport(tuple(rows), tuple(tuned), fastest, tuple(reasons), perf_counter() - start)


def _check_same_model(first: Bundle, other: Bundle) -> None:
    """Raises BundleError where the two were not made of the same checkpoint and adapters."""
    wanted, got = first.manifest.provenance, other.manifest.provenance
    if (got.checkpoint_sha256, got.adapters) != (wanted.checkpoint_sha256, wanted.adapters):
        raise BundleError(
            f"{other.folder} is made of {' with '.join((got.checkpoint, *got.adapters))}, {first.folder} of "
            f"{' with '.join((wanted.checkpoint, *wanted.adapters))}; expected bundles of one model: tune each "
            "by itself"
        )


def named(threads: int) -> str:
    """A number of threads, for people."""
    return f"{threads} {'thread' if threads == 1 else 'threads'}"


def thread_counts(cores: int, hardware_threads: int) -> list[int]:
    """Numbers of threads that are worth a try, those near the default first, which is one thread for each core."""
    if cores <= 6:
        counts = set(range(1, cores + 1))
    else:  # not all, since each must be opened: a core or two left to others, or as many as memory can feed
        counts = {cores // 4, cores // 2, 3 * cores // 4, cores - 2, cores - 1, cores}
    return sorted({*counts, max(cores, hardware_threads)}, key=lambda count: (abs(count - cores), count))


class _Contests:
    """The contests of one bundle. Each starts from what those before it have chosen; the first setting is the default.

    What matters most comes first, since there is a deadline, on the clock of `perf_counter`.
    """

    def __init__(self, bundle: Bundle, deadline_s: float, say: Say) -> None:
        self.bundle, self.name = bundle, str(bundle.folder)
        self.rows: list[Row] = []
        self.reasons: list[str] = []
        self.caption_ms = 0.0
        self.others_share: float | None = None
        self._host = Host.here()
        self.settings = resolve(EngineOptions(), bundle.manifest.decoder, self._host)
        self._deadline_s, self._say = deadline_s, say

    def run(self, *, allow_kv: bool) -> None:
        """Hold them all. What loading takes does not count."""
        start, decoder = perf_counter(), self.bundle.manifest.decoder
        left = self._deadline_s - start
        counts = thread_counts(self._host.cores, usable_hardware_threads())
        of_encoder = {named(count): replace(self.settings, encoder_threads=count) for count in counts}
        times = self._measured("encoder", of_encoder, self._encoder, start + left / 2)
        self.settings = of_encoder[self._decided(times, "encoder")]
        if decoder is None:
            return
        of_decoder = {
            named(count): replace(self.settings, prefill_threads=count, decode_threads=count) for count in counts
        }
        times = self._measured("decoder", of_decoder, self._decoder, start + left * 0.75)
        prefill, decode = of_decoder[self._decided(times, "prefill")], of_decoder[self._decided(times, "decode")]
        self.settings = replace(prefill, decode_threads=decode.decode_threads)
        if decoder.precision not in FLOAT_TYPES:  # these have one layout, and are too large to be read into memory
            self._decide_between(_layouts(self.settings, self._host), "weights", start + left * 0.85)
        # Another type of keys and values is measured only if it may be chosen: at CONTEXT_ROWS positions, q8_0 saves
        # 2 % of what a 0.6B in Q4_K_M reads for a token, which is less than GAIN.
        kinds = [self.settings.kv_type, *(get_args(KvType) if allow_kv else ())]
        of_kind = {kind: replace(self.settings, kv_type=kind) for kind in dict.fromkeys(kinds)}
        self.caption_ms += self._decide_between(of_kind, "keys and values", start + left * 0.93)
        of_batch = {f"{size} together": replace(self.settings, batch=size) for size in BATCHES}
        of_batch = dict(sorted(of_batch.items(), key=lambda item: item[1].batch != self.settings.batch))
        times = self._measured("batch", of_batch, self._batch, self._deadline_s)
        self.settings = of_batch[self._decided(times, "batch")]

    def stored(self) -> TunedBundle:
        """The choice, which is stored where it was measured in calm."""
        file = None if busy(self.others_share) else str(store_tuned(self.bundle, self.settings))
        return TunedBundle(self.name, self.settings, self.caption_ms, file, self.others_share)

    def _encoder(self, settings: EngineSettings) -> Mapping[Part, float]:
        return {"encoder": encode_ms(self.bundle, settings.encoder_threads)}

    def _decoder(self, settings: EngineSettings) -> Mapping[Part, float]:
        prefill_ms, token_ms = answer_ms(self.bundle, settings)
        return {"prefill": prefill_ms, "decode": token_ms}

    def _batch(self, settings: EngineSettings) -> Mapping[Part, float]:
        return {"batch": batch_token_ms(self.bundle, settings)}

    def _decide_between(self, settings: Mapping[str, EngineSettings], part: Part, deadline_s: float) -> float:
        """Take what answers fastest, with prefill and ANSWER_TOKENS tokens; how many milliseconds that takes."""

        def answer(candidate: EngineSettings) -> Mapping[Part, float]:
            prefill_ms, token_ms = answer_ms(self.bundle, candidate)
            return {part: prefill_ms + ANSWER_TOKENS * token_ms}

        times = self._measured(part, settings, answer, deadline_s)
        best = self._decided(times, part)
        self.settings = settings[best]
        return median(times[best][part])

    def _measured(
        self,
        what: str,
        settings: Mapping[str, EngineSettings],
        visit: Callable[[EngineSettings], Mapping[Part, float]],
        deadline_s: float,
    ) -> _Times:
        """Times of the settings, by visits. A setting that llama.cpp refuses is left out, unless it is the default."""
        times: _Times = {}

        def once(name: str) -> float:
            """One visit, and how many seconds it took."""
            self._say(f"{self.name}: {what}, {name}")
            start = perf_counter()
            try:
                visited = self._in_calm(lambda: visit(settings[name]), deadline_s)
            except DecoderError:
                if not times:
                    raise
                visited = {}
            for part, ms in visited.items():
                times.setdefault(name, {}).setdefault(part, []).append(ms)
            return perf_counter() - start

        default, *others = settings
        last_s = once(default)
        for name in others:
            if perf_counter() + last_s < deadline_s:
                last_s = max(last_s, once(name))
        challengers = {best for part in times[default] if (best := _best(times, part)) != default}
        for turn in range(CONFIRMATIONS if challengers else 0):
            if perf_counter() + last_s * (1 + len(challengers)) >= deadline_s:
                break
            for name in sorted((default, *challengers), reverse=bool(turn % 2)):
                once(name)
        return times

    def _in_calm(self, visit: Callable[[], Mapping[Part, float]], deadline_s: float) -> Mapping[Part, float]:
        """A visit, again where others used the machine meanwhile; what they used at last is remembered."""
        tries = 1
        while True:
            load = Load()
            visited, share = visit(), load.share()
            if not busy(share) or tries == MAX_TRIES or perf_counter() >= deadline_s:
                self.others_share = max(filter(None, (share, self.others_share)), default=share)
                return visited
            self._say(f"other programs used {share:.0%} of the machine meanwhile: once more")
            wait_for_calm(self._say, min(WAIT_S, deadline_s - perf_counter()))
            tries += 1

    def _decided(self, times: _Times, part: Part) -> str:
        best, why = _winner(times, part)
        self.rows += _rows(self.name, part, times, best)
        self.reasons.append(f"{self.name}, {part}: {best}, {why}")
        if part == "encoder":
            self.caption_ms = median(times[best][part])
        return best


def _layouts(settings: EngineSettings, host: Host) -> dict[str, EngineSettings]:
    """How weights may be kept, the present way first. The layouts are faster for some numbers of rows only."""
    names: dict[str, WeightLayout] = {"as stored": "mapped", "repacked": "repacked"}
    layouts = {
        name + (", huge pages" if huge_pages else ""): replace(settings, weights=weights, huge_pages=huge_pages)
        for name, weights in names.items()
        for huge_pages in ((False, True) if host.huge_pages else (False,))
    }
    return dict(sorted(layouts.items(), key=lambda item: item[1] != settings))


def _best(times: _Times, part: Part) -> str:
    """The fastest at first sight, if it was more than GAIN faster than the default, which is the first."""
    default, best = next(iter(times)), min(times, key=lambda name: times[name][part][0])
    return best if 1 - times[best][part][0] / times[default][part][0] > GAIN else default


def _winner(times: _Times, part: Part, *, visits: int = 2) -> tuple[str, str]:
    """What to take, and why. A setting must have been measured `visits` times or more."""
    default, best = next(iter(times)), _best(times, part)
    if best == default:
        return default, f"the default: nothing else is more than {GAIN:.0%} faster"
    pairs = zip(times[best][part], times[default][part], strict=False)  # unless llama.cpp refused it the second time
    gains = [1 - ms / default_ms for ms, default_ms in pairs]
    if len(gains) < visits:
        return default, f"the default: there was no time to confirm that {best} is {gains[0]:.0%} faster"
    if min(gains) <= GAIN:
        return default, f"the default: {best} was {gains[0]:.0%} faster once, and then not again"
    changes = "; it changes the numbers: see `dasheng-edge compare`" if part == "keys and values" else ""
    return best, f"which takes at least {min(gains):.0%} less time than the default, {default}{changes}"


def _rows(bundle: str, part: Part, times: _Times, chosen: str) -> list[Row]:
    default = next(iter(times))
    base = median(times[default][part])
    return [
        Row(
            bundle, part, name, tuple(parts[part]), 1 - median(parts[part]) / base, name == default, name == chosen
        )
        for name, parts in times.items()
    ]  # fmt: skip
