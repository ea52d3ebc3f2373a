"""The speed records as sections of a page: a table of each, with its error where there is one, and a plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from benchmarks.records.plots import Bar, bars, stacks
from benchmarks.records.turns import times
from benchmarks.speed import decoder, encoder, latency, memory, mtmd, peers, throughput

Record = Mapping[str, Any]
NONE = "-"
OPERATORS = 8  # of the profile, the costliest
STAGE_NAMES = {
    "audio_decode_ms": "audio file", "front_end_ms": "front end", "encoder_ms": "encoder", "projector_ms": "projector",
    "prefill_ms": "prefill", "choice_ms": "first token", "decode_ms": "other tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """One record on the page."""

    title: str
    text: str  # Markdown: tables and what they say
    plot: Figure


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Markdown; the first columns are words, the others numbers, which stand on the right."""
    rule = [*("---" for _ in head[:words]), *("---:" for _ in head[words:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def section(record: Record) -> Section:
    """What a record says."""
    return SECTIONS[record["benchmark"]](record)


def encoder_section(record: Record) -> Section:
    """Precisions with speed and SNR in one row, lengths, operators."""
    chunk = record["seconds"][encoder.CHUNK]
    rows = [
        [
            name, _ms(found["p50"]), _ms(found["p90"]), f"{times(chunk[encoder.TORCH], found):.2f}",
            _decibel(record["snr_db"], name), _megabytes(record["bytes"].get(name)),
        ]
        for name, found in chunk.items()
    ]  # fmt: skip
    lengths = [
        [f"{clip} s", *(_ms(found[name]["p50"]) for name in (encoder.EXACT, encoder.INT8)),
         f"{times(found[encoder.EXACT], found[encoder.INT8]):.2f}"]
        for clip, found in sorted(record["seconds"].items(), key=lambda item: float(item[0]))
    ]  # fmt: skip
    total = sum(row["ms"] for row in record["profile"].values())
    profile = [
        [name, f"{row['ms']:.1f}", f"{row['calls']:g}", f"{100 * row['ms'] / total:.1f} %"]
        for name, row in list(record["profile"].items())[:OPERATORS]
    ]
    peaks = [record["gemm_operations"] / chunk[name]["p50"] / 1e9 for name in (encoder.PEAK, encoder.EXACT_PEAK)]
    least_s = chunk[encoder.PEAK]["p50"] + record["profile"].get("Attention", {"ms": 0.0})["ms"] / 1000
    about = (
        f"{record['parameters'] / 1e6:.0f} M parameters, a clip of one full chunk of {record['patches']} patches. "
        f"The GEMMs alone reach {peaks[0]:.0f} GOP/s in int8 and {peaks[1]:.0f} in fp32, of which ONNX Runtime's fp32 "
        f"encoder gets {times(chunk[encoder.EXACT_PEAK], chunk[encoder.EXACT]):.0%}. If all but the int8 GEMMs and the "
        f"attention between them took no time, int8 would be {chunk[encoder.EXACT]['p50'] / least_s:.2f} times as fast "
        "as fp32."
    )
    text = "\n\n".join([
        about,
        table(("", "p50, ms", "p90, ms", "times as fast as PyTorch fp32", "SNR to it, dB", "MB"), rows),
        "Clips of other lengths:",
        table(("clip", "fp32, ms", "int8, ms", "int8, times as fast"), lengths),
        "Operators of the int8 graph, by ONNX Runtime's profile (which itself takes time):",
        table(("", "ms", "calls", "share"), profile),
    ])  # fmt: skip
    plot = bars(_bars(chunk, 1000, ("ONNX",)), "milliseconds for one chunk (10.08 s)", f"Encoder {record['model']}")
    return Section(f"Encoder, {record['model']}", text, plot)


def decoder_section(record: Record) -> Section:
    """Tokens per second, and next to llama-bench."""
    rows, plotted = [], []
    for what, by_name in record["tokens_per_s"].items():
        for name, found in by_name.items():
            ratio = times(found, by_name[decoder.BENCH])
            rows.append([f"{what}: {name}", f"{found['p50']:.1f}", f"{found['p90']:.1f}", f"{ratio:.3f}"])
        plotted += _bars({f"{what}: {name}": found for name, found in by_name.items()}, 1, (f"{what}: {decoder.OURS}",))
    about = (
        f"{record['parameters'] / 1e6:.0f} M parameters in {record['decoder']}, {_megabytes(record['bytes'])} MB; "
        f"{record['prompt_tokens']} tokens of prompt and {record['generated_tokens']} generated. llama-bench computes "
        f"with {record['llama_bench']}"
        f"{', and asks for no huge pages as the runtime does' if record.get('huge_pages') else ''}."
    )
    text = "\n\n".join([
        about,
        table(("", "p50, tokens/s", "p90, tokens/s", "of llama-bench"), rows),
    ])  # fmt: skip
    title = f"Decoder {record['model']} {record['decoder']}, prompt of {record['prompt_tokens']} tokens"
    return Section(f"Decoder, {record['model']}", text, bars(plotted, "tokens per second", title))


def latency_section(record: Record) -> Section:
    """Stages of first and second clips; starts; imports."""
    rows, stages = [], {}
    for which in (latency.FIRST, latency.SECOND):
        for clip, found in record["clips"][which].items():
            spent = _stages(found)
            if which == latency.SECOND:
                stages[f"{clip} s"] = spent
            rows.append([
                f"{which}, {clip} s", *(f"{spent[name]:.1f}" for name in STAGE_NAMES.values()),
                f"{found['first_token_ms']['p50']:.1f}", f"{found['total_ms']['p50']:.1f}",
                f"{found['total_ms']['p90']:.1f}", f"{found['tokens']['p50']:g}",
                f"{found['prefilled_rows']['p50']:g} of {found['prompt_rows']['p50']:g}",
            ])  # fmt: skip
    starts = [
        [name, f"{found['p50']:.3f}", f"{found['p90']:.3f}", f"{times(found, record['start_s'][latency.BARE]):.2f}"]
        for name, found in record["start_s"].items()
    ]
    imports = [[latency.IMPORTS[name], f"{found['p50']:.3f}", f"{found['p90']:.3f}"]
               for name, found in record["import_s"].items()]  # fmt: skip
    head = ("", *STAGE_NAMES.values(), "to the first token", "whole, p50", "whole, p90", "tokens", "rows prefilled")
    text = "\n\n".join([
        "Stages of a caption in milliseconds, p50. The second clip finds the beginning of the prompt in the cache.",
        table(head, rows),
        "From the start of a process to its first token, a clip of 10 s, seconds:",
        table(("", "p50", "p90", "times the bare engines"), starts),
        "Imports in a process of their own, seconds:",
        table(("", "p50", "p90"), imports),
    ])  # fmt: skip
    plot = stacks(stages, "milliseconds, second clip with the same prompt", f"Caption with {record['model']}")
    return Section(f"Latency, {record['model']}", text, plot)


def _stages(found: Record) -> dict[str, float]:
    """Medians by stage in milliseconds, by their names."""
    return {label: float(found[name]["p50"]) for name, label in STAGE_NAMES.items()}


def memory_section(record: Record) -> Section:
    """Peaks of processes."""
    caption = record[memory.CAPTION]
    named = {f"caption of {caption['clip_s']:g} s": caption}
    named |= {f"encoder, {float(length):g} s of audio": found for length, found in record["encode"].items()}
    rows = [
        [
            name, _megabytes(found["peak_rss_bytes"]["p50"]),
            _megabytes(found.get("peak_anonymous_bytes", {}).get("p50")), f"{found['seconds']['p50']:.2f}",
            f"{found['encoder_s']['p50']:.3f}" if "encoder_s" in found else NONE,
        ]
        for name, found in named.items()
    ]  # fmt: skip
    text = "\n\n".join([
        f"The bundle has {_megabytes(record['bundle_bytes'])} MB. Peaks count the pages of mapped files.",
        table(("process", "peak, MB", "of it anonymous, MB", "process, s", "encoder and projector, s"), rows),
    ])  # fmt: skip
    peaks = {name: found["peak_rss_bytes"] for name, found in named.items()}
    plotted = [Bar("files of the bundle", [record["bundle_bytes"] / 1e6], record["bundle_bytes"] / 1e6, ours=False),
               *_bars(peaks, 1e-6, tuple(peaks))]  # fmt: skip
    return Section(f"Memory, {record['model']}", text, bars(plotted, "peak resident MB", f"Memory, {record['model']}"))


def throughput_section(record: Record) -> Section:
    """Several clips, one after another and together."""
    seconds, count = record["seconds"], record["clips"]
    rows = [
        [
            name, f"{found['p50']:.2f}", f"{found['p90']:.2f}", f"{count * record['clip_s'] / found['p50']:.0f}",
            f"{times(seconds[throughput.ONE], found):.2f}",
        ]
        for name, found in seconds.items()
    ]  # fmt: skip
    about = (
        f"{count} clips of {record['clip_s']} s, {record['tokens']} tokens each, with one captioner. In batches, a "
        "step of the decoder says one token of every clip. With the encoder a clip ahead, the next clip is encoded "
        "while the decoder works on this one, which pays where it leaves cores idle; the runtime does not do it."
    )
    head = ("", "p50, s", "p90, s", "seconds of audio a second", "times as fast as one by one")
    title = f"{count} clips of {record['clip_s']} s with {record['model']}"
    plot = bars(_bars(seconds, 1, (throughput.batch_name(record["default_batch"]),)), "seconds", title)
    return Section(f"Throughput, {record['model']}", f"{about}\n\n{table(head, rows)}", plot)


def peers_section(record: Record) -> Section:
    """Against transformers."""
    variants = record["variants"]
    ours = variants[peers.OURS]
    rows = [
        [
            name, _ms(found["audio_s"]["p50"]), _ms(found["first_token_s"]["p50"]), f"{found['total_s']['p50']:.2f}",
            f"{found['total_s']['p90']:.2f}", f"{times(found['first_token_s'], ours['first_token_s']):.2f}",
            f"{times(found['total_s'], ours['total_s']):.2f}",
            _megabytes(found.get("peak_rss_bytes", {}).get("p50")),
        ]
        for name, found in variants.items()
    ]  # fmt: skip
    head = ("", "to the audio's embeddings, ms", "to the first token, ms", "whole, p50, s", "whole, p90, s",
            "first token, times ours", "whole, times ours", "peak, MB")  # fmt: skip
    how = "one process at a time" if record["apart"] else "in processes of their own, all loaded before"
    about = (
        f"{record['clip_s']} s of noise, exactly {record['tokens']} tokens. Ours is {record['encoder']} and "
        f"{record['decoder']}, with the beginning of the prompt in the cache; transformers has the same weights. "
        f"They ran {how}."
    )
    text = "\n\n".join([
        about,
        table(head, rows),
    ])  # fmt: skip
    totals = {name: found["total_s"] for name, found in variants.items()}
    title = f"Caption of {record['tokens']} tokens with {record['model']}"
    return Section(f"Peers, {record['model']}", text, bars(_bars(totals, 1, (peers.OURS,)), "seconds", title))


def mtmd_section(record: Record) -> Section:
    """Next to the encoder that llama.cpp has."""
    rows = [
        [
            f"{clip} s: {name}", f"{record['parameters'][name] / 1e6:.0f}", f"{found['seconds']['p50']:.3f}",
            f"{found['seconds']['p90']:.3f}", f"{times(found['seconds'], clips[mtmd.OURS]['seconds']):.1f}",
            f"{found['rows']['p50']:.0f}",
        ]
        for clip, clips in record["clips"].items()
        for name, found in clips.items()
    ]  # fmt: skip
    about = (
        "From samples to the rows that a decoder is given: llama.cpp's own library for audio, mtmd, with an encoder of "
        f"the shape of Qwen2-Audio's (Whisper large-v3), next to ours in {record['encoder']}. Theirs fills every clip "
        "up to 30 s."
    )
    head = ("clip", "M parameters", "p50, s", "p90, s", "times ours", "rows to prefill")
    clips = record["clips"][str(mtmd.CLIP_S)]
    plotted = _bars({name: found["seconds"] for name, found in clips.items()}, 1, (mtmd.OURS,))
    plot = bars(plotted, "seconds", f"Hearing {mtmd.CLIP_S} s of audio")
    return Section(f"Mtmd, {record['model']}", f"{about}\n\n{table(head, rows)}", plot)


def _bars(found: Mapping[str, Record], scale: float, ours: tuple[str, ...]) -> list[Bar]:
    """`ours` are beginnings of names."""
    return [
        Bar(name, [scale * value for value in one["values"]], scale * one["p50"], name.startswith(ours))
        for name, one in found.items()
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _megabytes(size: float | None) -> str:
    return NONE if size is None else f"{size / 1e6:,.0f}"


def _decibel(found: Mapping[str, float | None], name: str) -> str:
    if name not in found:
        return NONE
    value = found[name]
    return "no difference" if value is None else f"{value:.1f}"


SECTIONS: Mapping[str, Callable[[Record], Section]] = {
    "encoder": encoder_section, "decoder": decoder_section, "latency": latency_section, "memory": memory_section,
    "throughput": throughput_section, "peers": peers_section, "mtmd": mtmd_section,
}  # fmt: skip
