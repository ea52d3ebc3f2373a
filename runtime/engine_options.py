"""How ONNX Runtime and llama.cpp are to run: what callers may choose, and what becomes of what they leave open."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from dasheng_edge.runtime.bundle.manifest import DecoderFacts, KvType
from dasheng_edge.runtime.errors import DeviceError
from dasheng_edge.runtime.machine.devices import Device, Placement, checked_device, checked_threads, usable_cores

WeightLayout: TypeAlias = Literal["mapped", "repacked"]
Memory: TypeAlias = Literal["normal", "low"]

FLOAT_TYPES = ("F32", "F16", "BF16")  # llama.cpp computes with these as they are in the file
# Types whose weights llama.cpp copies into layouts of its own on x86-64; it has none for others there. On Zen with
# AVX-512 (0.6B, 300 rows / one token, tok/s): Q4_0 502 / 55 with and 248 / 45 without, IQ4_NL the same; Q4_K_M 452 / 54
# and 597 / 46, Q2_K alike: captions of ten seconds are faster with, captions of a minute without. `tune` measures it.
REPACKED_X86 = ("Q4_0", "IQ4_NL", "Q4_K_M", "Q4_K_S", "Q2_K")
# Answers together. 32 clips of 1 to 30 s with 5 to 60 tokens, 0.6B Q4_K_M on two cores: 33 s one by one, 30 s in eights
# and 25 s in sixteens or more. Each needs its own keys and values: 29 MB for 256 positions. On a GPU a step of 64 takes
# little more than one of 8.
DEFAULT_BATCH: Mapping[Device, int] = {"cpu": 16, "cuda": 64}
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True)
class EngineOptions:
    """How the engines run. None is automatic: `resolve` fills it in.

    Raises:
        DeviceError: the device is not known, or a number of threads is below 1 or above what the machine has.
    """

    device: Device = "cpu"
    encoder_threads: int | None = None  # of the front end and the projector too
    prefill_threads: int | None = None
    decode_threads: int | None = None
    kv_type: KvType | None = None  # how keys and values are kept
    # `mapped` leaves the decoder's weights in the pages of their file: a 7B opens in a second instead of ten, and a
    # caption of 40 tokens takes a tenth longer. `repacked` copies them into layouts in which llama.cpp is faster.
    weights: WeightLayout | None = None
    huge_pages: bool | None = None  # whether the decoder's weights are read into pages of 2 MB
    # True: nothing beside the weights rounds, so that a decoder can be held against the reference: keys and values in
    # F32, no flash attention. False: `kv_type`, and attention as llama.cpp chooses. None: True for a decoder in F32.
    exact: bool | None = None
    cache: Path | Literal["off"] | None = None  # folder for the keys and values of prompts; None: the user's cache
    decoder_device: Device | None = None  # of the decoder; None: `device`, where the other parts are in any case
    # Whether a GPU may multiply float32 numbers of the encoder with 10 bits of each: half the time, errors of 4e-4.
    allow_tf32: bool = False
    # Whether parts on a GPU are run when they open, alone and together, so that the first request or batch is as fast
    # as the next: what they compute with is planned and loaded then. None: for an `Engine`, and for a `Captioner`
    # unless `weights` is "mapped", which is said where few clips are to come.
    warm_up: bool | None = None
    # Whether the decoder computes on fewer threads while other programs use the cores (`machine.governor`). With less
    # than 512 rows before a token that changes no bit; with more, llama.cpp's sums are rounded by number of threads.
    adaptive_threads: bool = True
    batch: int | None = None  # how many answers are made together where there are many clips
    # `low` never has the weights of encoder and decoder in memory together: a few clips are heard, then answered. Where
    # nothing else is said, answers are made one by one, with keys in Q8_0 instead of F16 and no copies of weights. Both
    # parts are opened anew for each few clips, or each call for one.
    memory: Memory = "normal"
    # Whether ONNX Runtime copies the encoder's weights into its own order: see `onnx_session`. None: unless memory is
    # low, or few clips are to come, as for `warm_up`.
    packed: bool | None = None

    def __post_init__(self) -> None:
        for device in (self.device, self.text_device):
            checked_device(device)
        for threads in (self.encoder_threads, self.prefill_threads, self.decode_threads):
            if threads is not None:
                checked_threads(threads)
        if self.memory not in get_args(Memory):
            raise DeviceError(f"memory is {self.memory!r}; expected one of {', '.join(get_args(Memory))}")
        if self.memory == "low" and not self.device == self.text_device == "cpu":
            raise DeviceError('memory="low" is for the CPU, where parts take turns; choose cpu, or memory="normal"')

    def changed(
        self, *, device: Device | None = None, threads: int | None = None, weights: WeightLayout | None = None
    ) -> EngineOptions:
        """The same with all parts on a device, so many threads for each, or another layout; None changes nothing."""
        options = self if device is None else replace(self, device=device, decoder_device=None)
        if threads is not None:
            options = replace(options, encoder_threads=threads, prefill_threads=threads, decode_threads=threads)
        return options if weights is None else replace(options, weights=weights)

    def placed(self, place: Placement) -> EngineOptions:
        """The same with the parts where they are to be."""
        return replace(
            self, device=place.encoder, decoder_device=None if str(place) == place.encoder else place.decoder
        )

    @property
    def text_device(self) -> Device:
        """Where the decoder is."""
        return self.decoder_device or self.device

    @property
    def may_be_tuned(self) -> bool:
        """Whether the choice of `dasheng-edge tune` counts: on the CPU, unless a number of threads is given."""
        threads = (self.encoder_threads, self.prefill_threads, self.decode_threads)
        return self.device == self.text_device == "cpu" and all(count is None for count in threads)


@dataclass(frozen=True)
class EngineSettings(EngineOptions):
    """Engine options with nothing left open but `exact` and the cache.

    The defaults suit tests: one thread, weights mapped.
    """

    encoder_threads: int = 1
    prefill_threads: int = 1
    decode_threads: int = 1
    kv_type: KvType = "f16"
    weights: WeightLayout = "mapped"
    huge_pages: bool = False
    warm_up: bool = False
    batch: int = DEFAULT_BATCH["cpu"]
    packed: bool = True

    @property
    def text_threads(self) -> int:
        """The most threads that the decoder computes with."""
        return max(self.prefill_threads, self.decode_threads)


@dataclass(frozen=True)
class Host:
    """What the defaults depend on."""

    cores: int  # physical cores that this process may use
    x86: bool
    huge_pages: bool  # whether the system gives huge pages to programs that ask, and to no others

    @classmethod
    def here(cls) -> Host:
        """This machine."""
        return cls(usable_cores(), platform.machine().lower() in ("x86_64", "amd64"), huge_pages_on_request())


def resolve(
    options: EngineOptions, decoder: DecoderFacts | None, host: Host, tuned: EngineSettings | None = None
) -> EngineSettings:
    """What the engines run with: what is given, else what was tuned, else the default for this decoder and host."""
    tuned = tuned if options.may_be_tuned else None
    default = tuned or _defaults(decoder, host)
    if options.memory == "low":
        kv_type: KvType = "q8_0" if default.kv_type == "f16" else default.kv_type
        options = replace(
            options, weights="mapped", huge_pages=False, kv_type=options.kv_type or kv_type, batch=options.batch or 1
        )
    weights, huge_pages = options.weights or default.weights, options.huge_pages
    if huge_pages is None:
        repacked = weights == "repacked"
        huge_pages = default.huge_pages if options.weights is None else repacked and host.huge_pages
    return EngineSettings(
        device=options.device,
        decoder_device=options.decoder_device,
        encoder_threads=options.encoder_threads or default.encoder_threads,
        prefill_threads=options.prefill_threads or default.prefill_threads,
        decode_threads=options.decode_threads or default.decode_threads,
        kv_type=options.kv_type or default.kv_type,
        weights=weights,
        huge_pages=huge_pages,
        exact=options.exact,
        cache=options.cache,
        allow_tf32=options.allow_tf32,
        warm_up=_is_long(options) and not options.device == options.text_device == "cpu",
        packed=_is_long(options) and options.memory == "normal" if options.packed is None else options.packed,
        memory=options.memory,
        adaptive_threads=options.adaptive_threads,
        batch=options.batch or (tuned.batch if tuned else DEFAULT_BATCH[options.text_device]),
    )


def _is_long(options: EngineOptions) -> bool:
    """Whether so much is to come that it pays to prepare for it."""
    return options.weights != "mapped" if options.warm_up is None else options.warm_up


def resolve_here(options: EngineOptions, decoder: DecoderFacts | None = None) -> EngineSettings:
    """As `resolve`, on this machine, whatever was tuned."""
    return options if isinstance(options, EngineSettings) else resolve(options, decoder, Host.here())


def _defaults(decoder: DecoderFacts | None, host: Host) -> EngineSettings:
    """One thread for each core. Weights are repacked where llama.cpp has a layout for their type."""
    repacked = False
    if decoder is not None:
        repacked = decoder.precision in REPACKED_X86 if host.x86 else decoder.precision not in FLOAT_TYPES
    return EngineSettings(
        encoder_threads=host.cores,
        prefill_threads=host.cores,
        decode_threads=host.cores,
        kv_type=decoder.kv_type if decoder else "f16",
        weights="repacked" if repacked else "mapped",
        huge_pages=repacked and host.huge_pages,
    )


def huge_pages_on_request() -> bool:
    """Whether this system gives huge pages to programs that ask, and to no others."""
    try:
        return sys.platform == "linux" and "[madvise]" in _HUGE_PAGES.read_text("ascii")
    except OSError:
        return False
