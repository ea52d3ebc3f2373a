"""Speed records as the benchmarks write them, with numbers that are easy to follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.turns import summed_up

Record = dict[str, Any]
CARD = {
    "cpu": "Testium 5", "cpu_flags": ["avx2"], "usable_cores": 2, "memory_gib": 8.0, "os": "Linux", "python": "3.11",
    "versions": {"numpy": "2.0"}, "commit": "0123456789abcdef", "dirty": False,
}  # fmt: skip


def five(value: float) -> dict[str, Any]:
    """Five turns about a median."""
    return dict(summed_up([value * share for share in (0.9, 1.0, 1.1, 1.0, 0.95)]))


def record(benchmark: str, model: str, **facts: Any) -> Record:
    """What all records have."""
    return {
        "schema_version": 1, "benchmark": benchmark, "model": model, "date": "2026-01-02", "threads": 2, "rounds": 5,
        "took_s": 9.0, "others_share": 0.01, "machine": CARD, "llama_cpp": "CPU : AVX2 = 1", **facts,
    }  # fmt: skip


def encoder_record() -> Record:
    """int8 takes a second; fp32 4, PyTorch 16 and 2, the GEMMs 0.75."""
    lengths = {clip: {"ONNX Runtime fp32": five(4), "ONNX Runtime int8": five(1)} for clip in ("2", "5", "30")}
    others = {
        "PyTorch fp32": five(16),
        "PyTorch bf16": five(2),
        "int8 GEMMs alone": five(0.75),
        "fp32 GEMMs alone": five(3),
    }
    return record(
        "encoder", "dasheng-0.6b", parameters=630_000_000, patches=252, gemm_operations=600_000_000_000,
        snr_db={"ONNX Runtime fp32": 120.0, "ONNX Runtime int8": 35.25, "PyTorch fp32": None, "PyTorch bf16": 40.0},
        bytes={"ONNX Runtime fp32": 2_500_000_000, "ONNX Runtime int8": 640_000_000},
        seconds={"10": {**lengths["2"], **others}, **lengths},
        profile={"MatMulInteger": {"ms": 75.0, "calls": 128.0}, "Attention": {"ms": 25.0, "calls": 32.0}},
    )  # fmt: skip


def decoder_record(model: str) -> Record:
    """98 % of llama-bench's prefill and 90 % of its generation."""
    speeds = {
        "prefill": {"dasheng-edge": five(196), "llama-bench": five(200), "dasheng-edge, text and audio": five(190)},
        "decode": {"dasheng-edge": five(45), "llama-bench": five(50), "dasheng-edge, without sampling": five(49)},
    }
    return record(
        "decoder", model, decoder="Q4_K_M", parameters=600_000_000, bytes=400_000_000, prompt_tokens=300,
        huge_pages=True, generated_tokens=40, llama_bench="the runtime's own library", tokens_per_s=speeds,
    )  # fmt: skip


def latency_record(prefilled_again: int = 0) -> Record:
    """A start takes 1.1 times the bare engines', an import 0.1 s less than numpy's."""
    stages = {
        "audio_decode_ms": 5.0, "front_end_ms": 10.0, "encoder_ms": 90.0, "projector_ms": 5.0, "prefill_ms": 200.0,
        "choice_ms": 1.0, "first_token_ms": 311.0, "decode_ms": 800.0, "total_ms": 1111.0, "tokens": 40.0,
        "prompt_rows": 70.0, "prefilled_rows": 66.0,
    }  # fmt: skip
    clip = {name: five(value) for name, value in stages.items()}
    first = {**clip, "prefix_tokens_prefilled": five(4)}
    second = {**clip, "prefix_tokens_prefilled": summed_up([0, 0, 0, 0, prefilled_again])}
    return record(
        "latency", "0.6b", bytes=500_000_000, tokens=40,
        clips={
            "first clip": dict.fromkeys(("2", "5", "10", "30"), first),
            "second clip": dict.fromkeys(("2", "5", "10", "30"), second),
        },
        start_s={"bare engines": five(1), "runtime": five(1.1), "command, files checked": five(1.5)},
        import_s={"numpy": five(0.2), "runtime": five(0.1), "captioner": five(0.5)},
    )  # fmt: skip


def memory_record() -> Record:
    """300 MB beyond 1.1 times the bundle; long audio takes 10 times as long and 20 MB more."""
    caption = {"peak_rss_bytes": five(850e6), "peak_anonymous_bytes": five(400e6), "seconds": five(3)}
    encode = {
        "60": {"peak_rss_bytes": five(300e6), "seconds": five(2), "encoder_s": five(1)},
        "600": {"peak_rss_bytes": five(320e6), "seconds": five(12), "encoder_s": five(10)},
    }
    return record("memory", "0.6b", bundle_bytes=500_000_000, caption={"clip_s": 10, **caption}, encode=encode)


def throughput_record() -> Record:
    """Batches of 8 take half as long."""
    seconds = {"one by one": five(8), "in batches of 8": five(4), "encoder a clip ahead, on 1 of 2 threads": five(8.5)}
    return record("throughput", "0.6b", clips=8, clip_s=10, tokens=40, default_batch=8, seconds=seconds)


def peers_record(model: str = "0.6b", dtypes: tuple[str, ...] = ("fp32", "bf16")) -> Record:
    """Ours takes 0.25 s to the first token and 1 s in all; fp32 1 and 8, bf16 0.5 and 3."""
    spent = {"fp32": (1.0, 8.0), "bf16": (0.5, 3.0)}
    variants = {"dasheng-edge": {"audio_s": five(0.1), "first_token_s": five(0.25), "total_s": five(1)}}
    for dtype in dtypes:
        first, total = spent[dtype]
        variants[f"transformers {dtype}"] = {
            "audio_s": five(0.2), "first_token_s": five(first), "total_s": five(total), "peak_rss_bytes": five(3e9),
        }  # fmt: skip
    return record(
        "peers", model, encoder="int8", decoder="Q4_K_M", clip_s=10, tokens=40, apart=model == "7b", variants=variants
    )


def mtmd_record() -> Record:
    """llama.cpp takes 30 times as long, for 15 times as many rows."""
    ours, theirs = {"seconds": five(0.3), "rows": five(50)}, {"seconds": five(9), "rows": five(750)}
    clips = {clip: {"dasheng-edge": ours, "llama.cpp mtmd F16": theirs} for clip in ("10", "28")}
    parameters = {"dasheng-edge": 630_000_000, "llama.cpp mtmd F16": 637_000_000}
    return record("mtmd", "7b", encoder="int8", parameters=parameters, clips=clips)


def all_records() -> list[Record]:
    """As `make bench` and `make bench-full` leave them."""
    return [
        encoder_record(), decoder_record("0.6b"), decoder_record("7b"), latency_record(), memory_record(),
        throughput_record(), peers_record(), peers_record("7b", ("bf16",)), mtmd_record(),
    ]  # fmt: skip


def write_records(folder: Path, records: list[Record]) -> Path:
    """Write them as files; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in records:
        (folder / f"{one['benchmark']}-{one['model']}.json").write_text(json.dumps(one), "utf-8")
    return folder
