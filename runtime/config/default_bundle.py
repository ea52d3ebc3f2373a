"""Which bundle is meant: by its path, by its name in the user's folder of bundles, or by default."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dasheng_edge.runtime.atomic_output import unfinished
from dasheng_edge.runtime.errors import BundleNotFoundError
from dasheng_edge.runtime.machine.user_folders import bundles_folder, config_file
from dasheng_edge.runtime.names import MAX_LISTED, address_hint, did_you_mean
from dasheng_edge.runtime.progress import typed_path

from .settings import Setting, variable

SMALLEST_MODEL = "mispeech/midashenglm-0.6b-fp32"  # for those who have none: 2.8 GB, the others have ten times as much
# ".wav", "clip?.mp3": such a name is a file's or a pattern for files. That of a model may hold ".6b-fp32".
_FILE_NAME = re.compile(r".*\.[A-Za-z]\w{0,4}|.*[*?[].*", re.DOTALL)


@dataclass(frozen=True)
class DefaultBundle:
    """The bundle where none is named, and why it is that."""

    path: Path
    origin: str


def stored_bundles() -> dict[str, Path]:
    """The bundles in the user's folder, by their names in alphabetical order. Raises nothing."""
    folder = bundles_folder()
    try:
        found = sorted(folder.iterdir()) if folder else []
    except OSError:
        found = []
    return {path.name: path for path in found if _is_bundle(path) and not unfinished(path)}


def bundle_path(text: str) -> Path:
    """The path of a bundle that was typed: as it is, or that of a stored bundle where nothing else has its name."""
    if not os.path.lexists(text) and (stored := stored_bundles().get(text)):
        return stored
    return Path(text)


def names_bundle(words: list[str]) -> bool:
    """Whether the first of the words behind `caption` is a bundle, and not audio yet.

    It is if it is a folder with a manifest, or the name of a stored bundle where nothing else has that name. What does
    not exist is a mistyped bundle if more follows, unless it is named like a file or a pattern for files.
    """
    first, *others = words
    if first == "-":
        return False
    if os.path.lexists(first):
        return _is_bundle(Path(first))
    if address_hint(first) or first in stored_bundles():
        return True
    return bool(others) and not _FILE_NAME.fullmatch(first)


def default_bundle(found: dict[str, Setting]) -> DefaultBundle:
    """The bundle of the settings, or the only one that is stored.

    Raises:
        BundleNotFoundError: there is none, or there are several.
    """
    if setting := found.get("bundle"):
        text = os.path.expanduser(str(setting.value))  # noqa: PTH111  # raises nothing
        typed = setting.origin == f"${variable('bundle')}"  # in the folder where it is typed
        path = bundle_path(text) if typed else (bundles_folder() or Path()) / text
        if not os.path.lexists(path):
            raise BundleNotFoundError(
                f"{setting.origin}: there is no bundle {path}; name another: dasheng-edge config set bundle BUNDLE"
            )
        return DefaultBundle(path, setting.origin)
    stored, folder = stored_bundles(), bundles_folder()
    if len(stored) == 1:
        (path,) = stored.values()
        return DefaultBundle(path, f"the only one in {folder}")
    if stored:
        names = [*stored]
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        raise BundleNotFoundError(
            f"no bundle is named, and {folder} holds several: {', '.join(names[:MAX_LISTED])}{more}; name one, or "
            f"choose one for good: dasheng-edge config set bundle {typed_path(names[0])}"
        )
    file = config_file()
    places = [f"${variable('bundle')}", *([f"`bundle` in {file}"] if file else []), f"the folder {folder}"]
    raise BundleNotFoundError(
        f"no bundle is named, and there is none in {', '.join(places)}; make one: dasheng-edge pull {SMALLEST_MODEL}, "
        f"then dasheng-edge export {SMALLEST_MODEL.partition('/')[2]} --out {typed_path(place_for(SMALLEST_MODEL))}"
    )


def place_for(model_id: str) -> Path:
    """Where a model's bundle is found by its name, or alone, without being named."""
    return (bundles_folder() or Path("bundles")) / model_id.partition("/")[2].removesuffix("-fp32")


def check_bundle(text: str) -> str:
    """What a file of settings says for a bundle that was typed: a stored one's name, or a path from the root.

    Raises:
        BundleNotFoundError: there is no bundle there.
    """
    path, stored = bundle_path(os.path.expanduser(text)), stored_bundles()  # noqa: PTH111
    if not _is_bundle(path):
        known = f"; {did_you_mean(text, [*stored])}" if stored else ""
        raise BundleNotFoundError(
            f"{text} is no bundle: expected a folder with a manifest.json, made by `dasheng-edge export`{known}"
        )
    return text if text in stored and path == stored[text] else os.path.abspath(path)  # noqa: PTH100  # keeps links


def _is_bundle(path: Path) -> bool:
    """Whether a folder has a manifest and a part of a bundle: folders of recordings have files of that name, too."""
    from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END
    from dasheng_edge.runtime.bundle.manifest import MANIFEST

    with suppress(OSError, ValueError):
        return (path / MANIFEST).is_file() and any((path / part).is_file() for part in (FRONT_END, ENCODER, DECODER))
    return False
