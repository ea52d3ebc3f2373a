"""This machine's rates, measured in a minute on graphs and decoders of zeros, in a process that nothing else is in."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np

from dasheng_edge.runtime.audio.onnx_session import onnx_session
from dasheng_edge.runtime.child import Child, Tell, serve
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.machine.devices import usable_cores
from dasheng_edge.runtime.machine.identity import identify
from dasheng_edge.runtime.machine.memory import free_bytes
from dasheng_edge.runtime.machine.meters import peak_rss_bytes
from dasheng_edge.runtime.text.decoder import Decoder

from .board import Board, Figure, RatedType, Rates, TypeRates, this_machine
from .memory import PROCESS_BYTES
from .speed import row_values
from .synthetic import Compute, DecoderSpec, encoder_graph, write_decoder

Say: TypeAlias = Callable[[str], None]
KINDS: Mapping[RatedType, int] = {"Q4_K": 12, "Q6_K": 14, "Q8_0": 8, "IQ3_XXS": 18, "F16": 1}  # enum ggml_type
MAX_GOP_PER_S = 1e6  # what is measured as more is no measurement
NARROW, WIDE, DEEP = 256, 1024, 12  # widths, and layers of a wide decoder: 106 to 377 MB, more than caches hold
NARROW_LAYERS, BLOCKS = 8, 4
FEW, MANY, CHUNK = 16, 144, 252  # rows
FAR = 229  # positions; with LEAD and MANY all stay in a context of 512
MIN_RUNS, MIN_S, MAX_S = 3, 0.15, 1.2  # of one figure
LEAD = 5  # tokens that are in the cache
COMMAND_BYTES = 2_000_000  # of `caption`, beside what the process that measures has loaded
_READ_BYTES = 64 << 20


@dataclass(frozen=True)
class Decoded:
    """What a decoder of zeros takes, in seconds."""

    one: float
    far: float  # behind FAR others
    few: float
    many: float

    @property
    def start(self) -> float:
        """Of a prefill, whatever its rows."""
        return max(self.few - FEW * self.row, self.one / 2)

    @property
    def row(self) -> float:
        return max((self.many - self.few) / (MANY - FEW), self.many / MANY / 2)


def calibrate(say: Say = lambda _: None, threads: Sequence[int] | None = None) -> Board:
    """Measure this machine, with one thread and with one for each core.

    Raises:
        ChildError: the process that measures ended; MissingExtraError and MemoryShortError as engines raise them.
    """
    counts = sorted(set(threads or (1, usable_cores())))
    start = perf_counter()
    with Child(__name__) as child:
        start_s = perf_counter() - start
        measured: dict[str, Any] = child.ask({"threads": counts}, lambda line: say(str(line)))
    memory = identify().memory_gib
    return Board(
        name=identify().cpu,
        memory_mb=(memory or 1.0) * 2**30 / 1e6,
        start_s=start_s + measured.pop("engines_s"),
        **measured,
        figures=(Figure(what="all figures", source="dasheng-edge plan --calibrate"),),
        machine=this_machine(),
    )


def run(wanted: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """What the child does."""
    start = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _first(place)
        peak = peak_rss_bytes()
        process_mb = (PROCESS_BYTES if peak is None else peak + COMMAND_BYTES) / 1e6
        engines_s = perf_counter() - start
        rates, open_mb_per_s = list[dict[str, Any]](), 0.0
        for threads in wanted["threads"]:
            tell(f"{threads} thread{'s' * (threads > 1)}: encoder")
            encoder, open_mb_per_s = _encoder(place, threads)
            types, decoder = {}, dict[str, float]()
            for name, kind in KINDS.items():
                tell(f"{threads} thread{'s' * (threads > 1)}: decoder in {name}")
                types[name], decoder = type_rates(place, kind, threads, decoder)
            rates.append(Rates(threads=threads, **encoder, **decoder, types=types).model_dump())
        tell("disk and vocabulary")
        return {
            "process_mb": process_mb, "engines_s": engines_s, "rates": rates, "open_mb_per_s": open_mb_per_s,
            "vocabulary_us": _vocabulary_us(place), "disk_mb_per_s": _disk(place),
        }  # fmt: skip


def _first(place: Path) -> None:
    """Load both engines, and compute a little with each."""
    import av  # noqa: F401  # which captioning loads

    _encode_s(place, "fp32", NARROW, 1, 1, (FEW,))
    _decode(place, DecoderSpec(KINDS["F16"], NARROW, 1), 1)


def _typical_s(work: Callable[[], object]) -> float:
    """Time of a call, once it has been made: the lower quartile, since other programs only ever add to it."""
    work()
    times = list[float]()
    while (spent := sum(times)) < MAX_S and (len(times) < MIN_RUNS or spent < MIN_S):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return sorted(times)[len(times) // 4]


def _encode_s(
    place: Path, compute: Compute, width: int, depth: int, threads: int, rows: Sequence[int]
) -> tuple[list[float], float]:
    """Seconds for so many rows, and MB of the graph opened in a second."""
    path = place / "encoder.onnx"
    path.write_bytes(encoder_graph(compute, width, depth))
    start = perf_counter()
    session = onnx_session(path, "cpu", threads, packed=False)  # as `caption` opens it for a few clips
    opened = path.stat().st_size / 1e6 / (perf_counter() - start)
    generator, times = np.random.default_rng(0), list[float]()
    for count in rows:
        values = generator.normal(0, 1, (1, count, width)).astype(np.float32)
        times.append(_typical_s(partial(session.run, None, {"x": values})))
    return times, opened


def _encoder(place: Path, threads: int) -> tuple[dict[str, float], float]:
    """Rates of both precisions: products and the rest told apart by two widths, beginnings by two numbers of rows."""
    (narrow_few, narrow), _ = _encode_s(place, "int8", NARROW, BLOCKS, threads, (FEW, CHUNK))
    (wide,), _ = _encode_s(place, "int8", WIDE, BLOCKS, threads, (CHUNK,))
    (single,), opened = _encode_s(place, "fp32", WIDE, BLOCKS, threads, (CHUNK,))
    block = max(0.0, narrow_few - (narrow - narrow_few) / (CHUNK - FEW) * FEW) / BLOCKS
    return encoder_rates(narrow / BLOCKS, wide / BLOCKS, single / BLOCKS, block), opened


def encoder_rates(narrow: float, wide: float, single: float, block: float) -> dict[str, float]:
    """Of seconds that CHUNK rows take in a block: int8 of two widths, float32 of the larger one, and what is fixed."""
    values = CHUNK * NARROW
    scale = WIDE / NARROW
    # a block takes `fixed + x width^2 + y width`; x and y follow of two widths
    narrow, wide, single = (max(time - block, 1e-9) for time in (narrow, wide, single))
    square = max((wide - scale * narrow) / (scale * scale - scale), wide / (scale * scale) / 2)
    linear = max(0.0, narrow - square)
    operations = 2 * 12 * NARROW * NARROW * CHUNK / 1e9
    rest = min(linear * scale, single / 2)
    fp32 = min(operations * scale * scale / (single - rest), MAX_GOP_PER_S)
    scores = 4 * CHUNK * values / 1e9 / fp32  # `speed` counts attention by itself
    return {
        "int8_gop_per_s": min(operations / square, MAX_GOP_PER_S), "fp32_gop_per_s": fp32,
        "encoder_value_ns": max(0.0, linear - scores) / values * 1e9, "encoder_block_us": block * 1e6,
    }  # fmt: skip


def _decode(place: Path, spec: DecoderSpec, threads: int) -> Decoded:
    path = place / "decoder.gguf"
    write_decoder(path, spec)
    settings = EngineSettings(prefill_threads=threads, decode_threads=threads, adaptive_threads=False)
    decoder = Decoder.open(path, settings)
    try:
        rows = np.zeros((MANY, spec.width), np.float32)
        cases = ((LEAD, 1), (FAR, 1), (LEAD, FEW), (LEAD, MANY))
        leads = {length: tuple(index % spec.tokens for index in range(length)) for length, _ in cases}
        times = [_typical_s(partial(decoder.prefill, [leads[length], rows[:count]])) for length, count in cases]
    finally:
        decoder.close()
    return Decoded(*times)


def type_rates(place: Path, kind: int, threads: int, known: dict[str, float]) -> tuple[TypeRates, dict[str, float]]:
    """Rates of a type, and what is the same of all types, which is measured with the first."""
    layers = DEEP
    while layers > 2 and 2 * (1 << 24) * layers * 2 > (free_bytes() or math.inf):
        layers //= 2
    spec = DecoderSpec(kind, WIDE, layers)
    wide = _decode(place, spec, threads)
    values = sum(map(math.prod, spec.matrices))
    size = sum(map(spec.bytes_of, spec.matrices))
    if not known:
        small = replace(spec, width=NARROW, layers=NARROW_LAYERS)
        narrow, fewer = (
            _decode(place, small, threads),
            _decode(place, replace(small, layers=NARROW_LAYERS // 4), threads),
        )
        known = decoder_rates(narrow, fewer, wide, small, spec)
    per_row = max(wide.row - known["decoder_value_ns"] * 1e-9 * row_values(spec.sizes) * layers, wide.row / 2)
    read = max(wide.one - known["layer_us"] * 1e-6 * layers - known["token_us"] * 1e-6, wide.one / 2)
    start = max(wide.start - known["layer_us"] * 1e-6 * layers, wide.start / 2)
    gb = size / 1e9
    rates = TypeRates(
        decode_gb_per_s=gb / read, start_gb_per_s=gb / start, prefill_gop_per_s=2 * values / 1e9 / per_row
    )
    return rates, known


def decoder_rates(
    narrow: Decoded, fewer: Decoded, wide: Decoded, small: DecoderSpec, spec: DecoderSpec
) -> dict[str, float]:
    """What is the same of all types: of a narrow decoder, one of a quarter of its layers, and a wide one."""
    layers = small.layers - small.layers // 4
    small_bytes = sum(map(small.bytes_of, small.matrices))
    wide_bytes = sum(map(spec.bytes_of, spec.matrices))
    reading = small_bytes / small.layers * wide.one / wide_bytes  # of a layer; from caches it would be less
    layer = max(0.0, (narrow.one - fewer.one) / layers - reading / 2)
    token = max(0.0, narrow.one - (layer + reading / 2) * small.layers)
    values = sum(map(math.prod, small.matrices)), sum(map(math.prod, spec.matrices))
    widths = row_values(small.sizes) * small.layers, row_values(spec.sizes) * spec.layers
    share = values[0] / values[1]
    linear = max(0.0, (narrow.row - share * wide.row) / (widths[0] - share * widths[1]))
    queries = spec.sizes.heads * spec.sizes.head_width * spec.layers
    position = max(0.0, wide.far - wide.one) / (FAR - LEAD) / queries
    return {
        "decoder_value_ns": linear * 1e9, "layer_us": layer * 1e6, "token_us": token * 1e6,
        "position_ns": position * 1e9, "logit_ns": _logit_ns(),
    }  # fmt: skip


def _logit_ns() -> float:
    """Of choosing the largest of many logits, and its probability, as `text.sampler` does."""
    logits = np.random.default_rng(0).normal(0, 1, 150_000).astype(np.float32)

    def choose() -> object:
        return logits.max(), logits.argmax(), np.log(np.exp(logits - logits.max()).sum(dtype=np.float64))

    return _typical_s(choose) / len(logits) * 1e9


def _vocabulary_us(place: Path) -> float:
    path, times = place / "vocabulary.gguf", list[float]()
    for tokens in (512, 20_512):
        write_decoder(path, DecoderSpec(KINDS["F16"], NARROW, 1, tokens))
        start = perf_counter()
        Decoder.open(path, EngineSettings()).close()
        times.append(perf_counter() - start)
    return max(0.0, (times[1] - times[0]) / 20_000 * 1e6)


def _disk(place: Path) -> float:
    """MB that are read in a second of a file that is not in memory, where the system lets go of it."""
    path = place / "read"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20) * (_READ_BYTES >> 20))
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    return _READ_BYTES / 1e6 / (perf_counter() - start)


if __name__ == "__main__":
    serve(run)
