"""Where this user's files are: caches (prompts that were computed, what `tune` chose), settings and bundles."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_config_path, user_data_path

FOLDER_VARIABLE = "DASHENG_EDGE_CACHE"  # a folder; "off" keeps nothing on disk
CONFIG_VARIABLE = "DASHENG_EDGE_CONFIG"  # a file; "off" reads none
_NAME = "dasheng-edge"


def cache_folder() -> Path | None:
    """$DASHENG_EDGE_CACHE, else the system's place: on Linux dasheng-edge in $XDG_CACHE_HOME or ~/.cache; None: off."""
    return _named(FOLDER_VARIABLE, user_cache_path(_NAME, appauthor=False))


def config_file() -> Path | None:
    """$DASHENG_EDGE_CONFIG, else config.toml in the system's place: on Linux ~/.config/dasheng-edge; None: off."""
    return _named(CONFIG_VARIABLE, user_config_path(_NAME, appauthor=False) / "config.toml")


def bundles_folder() -> Path | None:
    """Where bundles are found by their names: on Linux ~/.local/share/dasheng-edge/bundles; None: there is no home."""
    return _absolute(user_data_path(_NAME, appauthor=False) / "bundles")


def _named(variable: str, place: Path) -> Path | None:
    named = os.environ.get(variable)
    if named:
        return None if named.lower() == "off" else Path(named)
    return _absolute(place)


def _absolute(place: Path) -> Path | None:
    return place if place.is_absolute() else None  # there is no home
