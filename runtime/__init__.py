"""Captions and embeds audio with an exported bundle; needs neither PyTorch nor transformers.

>>> from dasheng_edge.runtime import Captioner      # doctest: +SKIP
>>> with Captioner.open("bundle") as captioner:
...     print(captioner.caption("clip.wav").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dasheng_edge.runtime.bundle.bundle import Bundle as Bundle
    from dasheng_edge.runtime.bundle.manifest import Manifest as Manifest

    from .caption import Caption as Caption
    from .captioner import Captioner as Captioner
    from .embedder import Embedder as Embedder
    from .embedder import Embedding as Embedding
    from .engine.conversation import ChatOptions as ChatOptions
    from .engine.conversation import Message as Message
    from .engine.conversation import Reply as Reply
    from .engine.engine import Engine as Engine
    from .engine_options import EngineOptions as EngineOptions
    from .errors import DashengEdgeError as DashengEdgeError

# Resolved on first use, so that `dasheng-edge --help` loads neither ONNX Runtime nor llama.cpp.
_HOMES = {
    "Bundle": "bundle.bundle",
    "Manifest": "bundle.manifest",
    "Message": "engine.conversation",
    "Caption": "caption",
    "Captioner": "captioner",
    "ChatOptions": "engine.conversation",
    "DashengEdgeError": "errors",
    "Embedder": "embedder",
    "Embedding": "embedder",
    "Engine": "engine.engine",
    "EngineOptions": "engine_options",
    "Reply": "engine.conversation",
}

__all__ = [
    "Bundle", "Caption", "Captioner", "ChatOptions", "DashengEdgeError", "Embedder", "Embedding", "Engine",
    "EngineOptions", "Manifest", "Message", "Reply",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
