"""What each client is asked to do, and how it tells: a line of JSON with "ok", or what went wrong, for each cell.

This runs in the environment of the clients, which has none of dasheng-edge.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ADDRESS = os.environ.get("SERVER", "http://127.0.0.1:8000")
BASE, KEY = f"{ADDRESS}/v1", "none"
MODEL, CAPTION = "micro", "micro:caption"
CLIP = Path("benchmarks/micro/clips/scene_9000006.flac")
SAYS = "a guitar plays, followed by people applauding, followed by a car horn honking"
LABELS = "guitar; applause; car horn"
QUESTION = "Which labels describe the sound?"
DATA = base64.b64encode(CLIP.read_bytes()).decode()
AUDIO = {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}}
CONTENT = [AUDIO, {"type": "text", "text": QUESTION}]
SCHEMA = {
    "type": "object", "properties": {"loud": {"type": "boolean"}}, "required": ["loud"], "additionalProperties": False,
}  # fmt: skip
# Takes seconds to write, and is no loop.
_LIST = {"type": "array", "items": {"type": "boolean"}, "minItems": 400, "maxItems": 400}
LONG: dict[str, Any] = {
    "max_tokens": 1500, "temperature": 2,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": _LIST}},
}  # fmt: skip
LEFT_S = 10.0


def same(got: object, want: object) -> None:
    """Raises where they differ."""
    if got != want:
        raise AssertionError(f"got {got!r:.200}, expected {want!r:.200}")


def left() -> int:
    """How many clients have left before their answer was complete, as the server sees it."""
    with urllib.request.urlopen(f"{ADDRESS}/metrics") as answer:  # noqa: S310  # as its caller says
        numbers = answer.read().decode()
    found = re.search(
        r'^dasheng_edge_requests_total\{path="/v1/chat/completions",status="499"\} (\S+)', numbers, re.MULTILINE
    )
    return round(float(found[1])) if found else 0


def leaves(leave: Callable[[], None]) -> None:
    """Raises where the server goes on with an answer that nobody waits for; `leave` asks for `LONG`, and leaves."""
    before, start = left(), time.monotonic()
    leave()
    while left() == before:
        if time.monotonic() - start > LEFT_S:
            raise AssertionError("the server does not see that its client left")


def run(cells: Mapping[str, Callable[[], None]]) -> None:
    """Run each, and print what came of it."""
    for name, cell in cells.items():
        try:
            cell()
        except Exception as error:  # noqa: BLE001, PERF203  # whatever a client does is what is asked here
            print(json.dumps({"cell": name, "result": f"{type(error).__name__}: {error}"[:300]}), flush=True)
        else:
            print(json.dumps({"cell": name, "result": "ok"}), flush=True)
