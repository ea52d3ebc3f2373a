"""Opens what captions: a bundle, its parts with what was tuned for them, and the cache of its prompts."""

from __future__ import annotations

from pathlib import Path

from dasheng_edge.runtime.audio.front_end import check_front_end
from dasheng_edge.runtime.bundle.bundle import FRONT_END, Bundle
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.machine.forks import check_pool
from dasheng_edge.runtime.machine.memory import memory_errors
from dasheng_edge.runtime.machine.user_folders import cache_folder
from dasheng_edge.runtime.parts import Parts
from dasheng_edge.runtime.text.prefix_cache import PrefixCache, prefix_model
from dasheng_edge.runtime.text.sequences import Sequences
from dasheng_edge.runtime.tuned import settings_for

_LESS = 'free memory, take `weights="mapped"`, or quantize to a smaller recipe'


def open_parts(path: str | Path, options: EngineOptions, *, check_sha256: bool = True) -> tuple[Bundle, Parts]:
    """A bundle and its parts; what the options leave open is what `dasheng-edge tune` chose here, or the default.

    `check_sha256=False` saves reading every file once more; sizes are checked in any case. The cache of prompts
    goes by the hashes in the manifest, so what was not held against them neither reads it nor writes to it.

    Raises what `Bundle.open`, `check_front_end` and `Parts.open` raise, all of them `DashengEdgeError`.
    """
    with memory_errors(f"opening {path}", _LESS):
        bundle = Bundle.open(path, check_sha256=check_sha256)
        settings = settings_for(bundle, options)
        check_pool(settings.text_threads)
        check_front_end(bundle.path(FRONT_END), bundle.manifest.front_end)
        parts = Parts.open(bundle, settings)
    folder = cache_folder() if settings.cache is None else settings.cache
    folder = folder if check_sha256 and folder != "off" else None
    parts.decoder.prefixes = PrefixCache(folder, prefix_model(bundle, settings))
    return bundle, parts


def warm_up(bundle: Bundle, parts: Parts, alone: Sequences | None = None) -> None:
    """As `Parts.warm_up`, as a part of opening."""
    with memory_errors(f"opening {bundle.folder}", _LESS):
        parts.warm_up(alone)
