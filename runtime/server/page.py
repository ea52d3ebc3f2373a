"""The page at `/`: one file, and the policy by which a browser runs what is in it and loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

# What the page does: talks to its own server, plays and draws the user's own audio, and shows its icon.
_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; media-src blob:; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)


@dataclass(frozen=True)
class Page:
    """What `GET /` answers."""

    body: bytes
    headers: dict[str, str]


@cache
def page() -> Page:
    """The page; it is read once."""
    body = files("dasheng_edge.runtime.server").joinpath("page.html").read_bytes()
    policy = _POLICY.format(script=_hashes(body, "script"), style=_hashes(body, "style"))
    return Page(body, {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": policy,
        "permissions-policy": "microphone=(self), camera=(), geolocation=()",
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    })  # fmt: skip


def _hashes(body: bytes, tag: str) -> str:
    """The inline elements of a kind, as a content security policy names them."""
    inside = re.findall(rb"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), body, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in inside)
