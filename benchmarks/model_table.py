"""Prints the README's table of models, from the records of exports and speed: `python -m benchmarks.model_table`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from benchmarks.places import RESULTS
from benchmarks.records.section import NONE, table
from dasheng_edge.runtime.bundle.bundle import DECODER

EXPORTS = RESULTS / "export.json"
HEAD = ("model", "download", "bundle as exported", "`small` bundle", "its memory", "10 s of audio", "tested")
RANDOM = "at true size, with random weights"


@dataclass(frozen=True)
class Model:
    """A row: what it is called, its name in the records, and how far it is tested."""

    name: str
    record: str
    tested: str = RANDOM


MODELS = (
    Model("MiDashengLM-micro, in this repository", "micro", "trained; all examples run on it"),
    Model("MiDashengLM-0.6B", "0.6b", f"{RANDOM}; its tensors' names are not known for certain"),
    Model("MiDashengLM-7B, 0804 and 1021", "7b", f"{RANDOM} under the published names"),
    Model("Dasheng base: vectors, no captions", "dasheng-base"),
    Model("Dasheng 0.6B: vectors, no captions", "dasheng-0.6b"),
    Model("Dasheng 1.2B: vectors, no captions", "dasheng-1.2b"),
)


def main() -> None:
    """Print the table as Markdown."""
    exports = {row["variant"]: row for row in json.loads(EXPORTS.read_text("utf-8"))["variants"]}
    print(table(HEAD, [cells(model, exports[model.record]) for model in MODELS]))


def cells(model: Model, export: dict[str, Any]) -> list[str]:
    """A row of the table."""
    parameters, decoder, peers = export["parameters"], speed("decoder", model), speed("peers", model)
    audio_bytes = sum(size for name, size in export["files"].items() if name != DECODER)
    small = sum(parameters.values()) - parameters.get("decoder", 0) + decoder["bytes"] if decoder else None
    ours = peers["variants"]["dasheng-edge"] if peers else None
    download = NONE if model.record == "micro" else size(export["checkpoint"]["bytes"])
    return [
        model.name,
        download,
        size(audio_bytes + 2 * parameters.get("decoder", 0)),  # two bytes a weight
        size(small),  # one byte a weight beside the decoder
        size(ours["peak_rss_bytes"]["p50"] if ours else None),
        f"{ours['total_s']['p50']:.1f} s" if ours else NONE,
        model.tested,
    ]


def speed(benchmark: str, model: Model) -> Any:
    """A speed record; None where that was not measured."""
    path = RESULTS / "speed" / f"{benchmark}-{model.record}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def size(count: float | None) -> str:
    """10^6 or 10^9 bytes, two digits."""
    if count is None:
        return NONE
    return f"{count / 1e9:.2g} GB" if count >= 99.5e6 else f"{count / 1e6:.2g} MB"


if __name__ == "__main__":
    main()
