"""The record as a page: targets, first tokens, batches, stages, and shares of what the card can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.records import machine
from benchmarks.records.record import Record
from benchmarks.records.section import NONE, table

FIRST_TOKEN_MS = {2: 25, 10: 28, 20: 30, 30: 33}  # targets, prompt warm
CLIPS_PER_S = {1: 1.8, 8: 8, 32: 20, 64: 30, 128: 40}  # targets, of clips of 30 s with 100 tokens
SHARES = {"encoder": 0.30, "F16": 0.75, "Q4_K_M": 0.45}  # targets, of the floor
TYPES = ("F16", "Q4_K_M")
STAGES = ("audio_decode_ms", "front_end_ms", "encoder_ms", "projector_ms", "prefill_ms", "first_token_ms")
CHUNK_PATCHES, CLIP_PATCHES = 252, 750  # of a chunk, and of 30 s


def value(record: Record, *names: str) -> Any:
    """A figure of a stage; None where it failed or was not measured."""
    found: Any = record["stages"]
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def encoder_flop(shape: Mapping[str, Any]) -> float:
    """Multiplications and additions of a clip of 30 s: matrices of 12 dim^2 in a block, and attention in its chunks."""
    dim, depth = int(shape["embed_dim"]), int(shape["depth"])
    return 2.0 * CLIP_PATCHES * depth * (12 * dim**2 + 2 * CHUNK_PATCHES * dim)


def shares(record: Record) -> dict[str, float]:
    """How near the encoder comes to the card's products, and decoding to its memory."""
    floors, found = value(record, "floors", "floors") or value(record, "torch", "floors"), dict[str, float]()
    shape = value(record, "floors", "shape") or value(record, "torch", "shape")
    if not floors or "error" in floors or not shape:
        return {}
    text = shape["decoder"]
    for kind in TYPES:
        encoder_ms = value(record, kind, "first_token_30s", "warm", "encoder_ms")
        if encoder_ms:
            floor_ms = 1000 * encoder_flop(shape) / floors["flop_per_s"]
            found["encoder"] = max(found.get("encoder", 0), floor_ms / encoder_ms)
        if token_ms := value(record, kind, "caption", "ms_per_token"):
            # A token reads all weights but the embeddings, of which it reads a row.
            bits = 16 if kind == "F16" else 4.5
            size = value(record, kind, "decoder_bytes") - text["rows"] * text["hidden"] * bits / 8
            found[kind] = 1000 * size / floors["copy_bytes_per_s"] / token_ms
    return found


def headline(record: Record) -> dict[str, float]:
    """The main numbers."""
    found = {f"share_of_floor_{name}": share for name, share in shares(record).items()}
    for kind in TYPES:
        for seconds in FIRST_TOKEN_MS:
            ms = value(record, kind, f"first_token_{seconds}s", "warm", "first_token_ms")
            found |= {f"{kind}_first_token_{seconds}s_ms": ms} if ms else {}
        for size in CLIPS_PER_S:
            rate = value(record, kind, f"batch_{size}", "clips_per_s")
            found |= {f"{kind}_batch_{size}_clips_per_s": rate} if rate else {}
    return found


def _shown(number: Any, digits: int = 1) -> str:
    return f"{number:.{digits}f}" if isinstance(number, (int, float)) else NONE


def _first_tokens(record: Record) -> str:
    rows = []
    for seconds, target in FIRST_TOKEN_MS.items():
        row = [f"{seconds} s", f"<= {target}"]
        for kind in TYPES:
            figures = value(record, kind, f"first_token_{seconds}s") or {}
            row += [_shown(value(record, kind, f"first_token_{seconds}s", "warm", "first_token_ms"))]
            row += [_shown((figures.get("new_length") or {}).get("first_token_ms"))]
        rows.append([*row, _shown(value(record, "torch", f"first_token_{seconds}s", "ms"))])
    head = ("clip", "target", *(f"{kind}{what}" for kind in TYPES for what in ("", ", new length")), "PyTorch, SDPA")
    return table(head, rows)


def _stages(record: Record) -> str:
    rows = []
    for kind in TYPES:
        for seconds in FIRST_TOKEN_MS:
            warm = value(record, kind, f"first_token_{seconds}s", "warm") or {}
            rows.append([f"{kind}, {seconds} s", *(_shown(warm.get(name)) for name in STAGES)])
    return table(("", *(name.removesuffix("_ms").replace("_", " ") for name in STAGES)), rows)


def _batches(record: Record) -> str:
    rows = []
    for size, target in CLIPS_PER_S.items():
        row = [str(size), f">= {target:g}"]
        for kind in TYPES:
            row += [_shown(value(record, kind, f"batch_{size}", "clips_per_s"), 2)]
            busy = value(record, kind, f"batch_{size}", "busy_share")
            row += [_shown(None if busy is None else 100 * busy, 0)]
        rows.append([*row, _shown(value(record, "torch", f"batch_{size}", "clips_per_s"), 2)])
    head = ("batch", "target", *(f"{kind}{what}" for kind in TYPES for what in ("", ", GPU busy, %")), "PyTorch, SDPA")
    return table(head, rows)


def _first_batches(record: Record) -> str:
    """What is left to wait for after the warm-up."""
    rows = [[kind, *(_shown(value(record, kind, "first_batch", which), 2) for which in ("first_s", "again_s")),
             _shown(value(record, kind, "open_s"))] for kind in TYPES]  # fmt: skip
    return table(("8 clips of 10 s, 10 tokens; seconds", "first", "again", "to open"), rows)


def _correctness(record: Record) -> str:
    rows = []
    for name in ("fp32", "fp16", "int8"):
        status = value(record, "correctness", f"verify_{name}", "status")
        passed = {None: NONE, 0: "passed", 1: "failed"}
        row = [name, passed.get(status, str(status))]
        for what in ("captions", "batch"):
            found = value(record, "correctness", f"{what}_{name}") or {}
            row.append(f"{found['equal']} of {found['of']}" if "of" in found else found.get("error", NONE)[:40])
        rows.append(row)
    return table(("MiDashengLM-micro", "`verify`", "captions equal to the CPU's", "in batches of 8"), rows)


def _errors(record: Record) -> str:
    found = []
    for stage, facts in record["stages"].items():
        if facts["status"] != 0:
            found.append(f"- {stage}: {facts['status']}")
        found += [f"- {stage}, {name}: {figure['error']}" for name, figure in facts.items()
                  if isinstance(figure, Mapping) and "error" in figure]  # fmt: skip
    return "\n".join(found)


def page(record: Record) -> str:
    """Markdown."""
    card = value(record, "floors", "card") or value(record, "torch", "card") or record["device"]
    near = shares(record)
    share_rows = [[name, f">= {100 * target:.0f}", _shown(100 * near[name] if name in near else None)]
                  for name, target in SHARES.items()]  # fmt: skip
    parts = [
        f"# {record['model']} on {card}",
        f"{record['date']}. {machine.hardware(record['machine'])}. Random weights of true shape, fp16 encoder.",
        "First token in milliseconds, with a warm prompt; a new length is one that no clip had before:",
        _first_tokens(record), "Stages of it:", _stages(record),
        "Clips a second, clips of 30 s with 100 tokens:", _batches(record), _first_batches(record),
        "Per cent of what the card can do, by a bfloat16 product and a copy in its memory:",
        table(("", "target", "measured"), share_rows), _correctness(record),
    ]  # fmt: skip
    if errors := _errors(record):
        parts.append(f"What failed:\n\n{errors}")
    return "\n\n".join(parts) + "\n"
