"""Where this user's caches are: prompts that were computed, and what `tune` chose."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

FOLDER_VARIABLE = "DASHENG_EDGE_CACHE"  # a folder; "off" keeps nothing on disk


def cache_folder() -> Path | None:
    """$DASHENG_EDGE_CACHE, else the system's place: on Linux dasheng-edge in $XDG_CACHE_HOME or ~/.cache; None: off."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return None if named.lower() == "off" else Path(named)
    folder = user_cache_path("dasheng-edge", appauthor=False)
    return folder if folder.is_absolute() else None  # there is no home
