"""What `dasheng-edge tune` chose on this machine, stored in the user's cache and looked up when a bundle is opened.

One JSON file for each bundle and machine, `tuned/KEY.json` in `cache_folder`: another CPU, another number of cores or
another version of an engine has another key, so that nothing is applied that was measured elsewhere.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

from dasheng_edge.runtime.bundle.bundle import Bundle, sha256_of
from dasheng_edge.runtime.bundle.manifest import MANIFEST, UNREADABLE, KvType
from dasheng_edge.runtime.engine_options import DEFAULT_BATCH, EngineOptions, EngineSettings, Host, resolve
from dasheng_edge.runtime.machine.devices import usable_hardware_threads
from dasheng_edge.runtime.machine.identity import identify, installed
from dasheng_edge.runtime.machine.user_folders import FOLDER_VARIABLE, cache_folder

from .atomic_output import PartialOutput, not_a_file
from .errors import DeviceError, OutputWriteError

_SHARED = (
    "encoder_threads",
    "prefill_threads",
    "decode_threads",
    "kv_type",
    "huge_pages",
    "batch",
)  # with `EngineSettings`


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Model):
    """What decides which settings are the fastest, besides the bundle."""

    cpu: str
    cpu_flags: tuple[str, ...]
    cores: PositiveInt  # that this process may use
    hardware_threads: PositiveInt
    engines: dict[str, str]  # distribution -> version


class TunedFile(_Model):
    """Settings, and what they were measured with. For a bundle without a decoder, the decoder's part is the default."""

    encoder_threads: PositiveInt
    prefill_threads: PositiveInt
    decode_threads: PositiveInt
    kv_type: KvType
    repack: bool  # how schema 1 says `weights`
    huge_pages: bool = False
    batch: PositiveInt = DEFAULT_BATCH["cpu"]  # not in files of earlier versions
    schema_version: Literal[1] = 1
    bundle: str  # its name, for readers
    manifest_sha256: str
    machine: Machine

    @property
    def settings(self) -> EngineSettings:
        """The settings that were stored.

        Raises:
            DeviceError: they ask for more threads than there are.
        """
        shared = {name: getattr(self, name) for name in _SHARED}
        return EngineSettings(**shared, weights="repacked" if self.repack else "mapped")


def stored_fields(settings: EngineSettings) -> dict[str, Any]:
    """Settings by the names that files and `tune --json` have for them."""
    return {name: getattr(settings, name) for name in _SHARED} | {"repack": settings.weights == "repacked"}


def this_machine() -> Machine:
    """Takes 20 ms, and raises nothing."""
    identity = identify()
    return Machine(
        cpu=identity.cpu,
        cpu_flags=identity.cpu_flags,
        cores=identity.usable_cores,
        hardware_threads=usable_hardware_threads(),
        engines=installed(),
    )


def settings_for(bundle: Bundle, options: EngineOptions) -> EngineSettings:
    """What the engines run a bundle with on this machine: as given, as tuned, or the default. See `resolve`."""
    tuned = tuned_for(bundle) if options.may_be_tuned else None
    return resolve(options, bundle.manifest.decoder, Host.here(), tuned.settings if tuned else None)


def tuned_for(bundle: Bundle) -> TunedFile | None:
    """What was stored for this bundle on this machine.

    None if nothing was, if the file cannot be read or holds something else, or if it asks for more threads than there
    are. Raises nothing.
    """
    try:
        manifest_sha256, machine = sha256_of(bundle.path(MANIFEST)), this_machine()
        path = _path(manifest_sha256, machine)
        if path is None:
            return None
        tuned = TunedFile.model_validate_json(path.read_bytes())
        _ = tuned.settings
    except (*UNREADABLE, DeviceError):
        return None
    own = (tuned.manifest_sha256, tuned.machine) == (manifest_sha256, machine)  # unless somebody copied or edited it
    return tuned if own else None


def store_tuned(bundle: Bundle, settings: EngineSettings) -> Path:
    """Store settings for this bundle on this machine, in place of earlier ones; returns the file.

    Raises:
        OutputWriteError: the cache cannot be written.
    """
    tuned = TunedFile(
        **stored_fields(settings),
        bundle=bundle.manifest.name,
        manifest_sha256=sha256_of(bundle.path(MANIFEST)),
        machine=this_machine(),
    )
    path = tuned_path(bundle)
    output = PartialOutput(
        path, overwrite=True, what="a choice of `dasheng-edge tune`", why_not=not_a_file, option=FOLDER_VARIABLE
    )
    try:
        output.open(folder=False)
        with output.write_errors():
            output.path.write_text(tuned.model_dump_json(indent=2) + "\n", "utf-8")
            output.move()
    finally:
        output.discard()
    return path


def forget_tuned(bundle: Bundle) -> bool:
    """Remove what is stored for this bundle on this machine; whether there was something.

    Raises:
        OutputWriteError: it cannot be removed.
    """
    path = tuned_path(bundle)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputWriteError(f"cannot remove {path}: {error.strerror or error}; remove it by hand") from error
    return True


def _path(manifest_sha256: str, machine: Machine) -> Path | None:
    """The file; None where this user has no caches."""
    folder = cache_folder()
    key = hashlib.sha256(f"{manifest_sha256}\n{machine.model_dump_json()}".encode()).hexdigest()
    return None if folder is None else folder / "tuned" / f"{key}.json"


def tuned_path(bundle: Bundle) -> Path:
    """Where a choice for this bundle on this machine is stored.

    Raises:
        OutputWriteError: nothing is stored for this user.
    """
    path = _path(sha256_of(bundle.path(MANIFEST)), this_machine())
    if path is None:
        raise OutputWriteError(
            f"there is no place for what was tuned: {FOLDER_VARIABLE} is off, or there is no home; set "
            f"{FOLDER_VARIABLE} to a folder"
        )
    return path
