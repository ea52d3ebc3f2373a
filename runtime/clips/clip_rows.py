"""Lines of a manifest of clips: ours, NeMo's, and Lhotse's cuts and recordings.

Ours are strict, so that a misspelt key is found. What others write has many keys that say nothing here: theirs are
passed over where a line is theirs beyond doubt, by `audio_filepath` or by `recording` and `sources`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from dasheng_edge.runtime.errors import ClipsError
from dasheng_edge.runtime.names import printable

_NEMO, _RECORDING, _SOURCES = "audio_filepath", "recording", "sources"
_TO_THE_END = (None, -1, 0)  # what NeMo's tools write for a duration that is not known
_NO_TEXT = ("-", "")  # what they write for a text that is not known
_HARMLESS = ("Resample",)  # of the changes that Lhotse makes when it loads: audio is resampled here, too
MAX_S = 1e9  # 30 years: no recording is longer, and samples can be counted
_ONE = "write the audio with Lhotse's CutSet.save_audios, and list those files"


class ClipRow(BaseModel):
    """One line of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    audio: Annotated[str, Field(min_length=1, validation_alias=AliasChoices("audio", _NEMO, "file"))]
    id: Annotated[str, Field(min_length=1)] | None = None
    offset: Annotated[float, Field(ge=0, le=MAX_S)] | None = None
    duration: Annotated[float, Field(gt=0, le=MAX_S)] | None = None
    prompt: str | None = None
    references: tuple[str, ...] = ()
    text: str | None = None
    events: tuple[str, ...] | None = None
    transcript: str | None = None


def read_row(where: str, line: str) -> ClipRow:
    """A line of a manifest; `where` it is, for messages.

    Raises:
        ClipsError: it is not JSON, has wrong or unknown keys, or means audio that cannot be taken from one file.
    """
    try:
        said = json.loads(line)
        row = _row_of(said) if isinstance(said, dict) else None
    except _NotOneFileError as error:
        raise ClipsError(f"{where}: {error}") from None
    except (ValueError, RecursionError):
        row = None  # pydantic says where
    except (TypeError, AttributeError) as error:
        raise ClipsError(f"{where}: a value is of another type than NeMo or Lhotse write ({error}); {_ONE}") from None
    try:
        return ClipRow.model_validate_json(line if row is None else json.dumps(row))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the line"
        known = ", ".join(ClipRow.model_fields)
        raise ClipsError(f"{where}: {key}: {first['msg']}; expected an object with audio and any of {known}") from error


def named_row(line: str) -> ClipRow:
    """What a line that is wrong says of its id and its file, where it can be told; else None and ""."""
    said: Any = None
    with suppress(ValueError, RecursionError):
        said = json.loads(line)
    said = said if isinstance(said, dict) else {}
    names = [said[key] for key in ("audio", _NEMO, "file") if isinstance(said.get(key), str)]
    name = _name(said.get("id"))
    return ClipRow.model_construct(
        audio=printable(names[0]) if names else "", id=printable(name) if isinstance(name, str) else None
    )


class _NotOneFileError(ValueError):
    """A row of another tool means audio that is not simply a part of one file."""


def _row_of(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a row of another tool says in our words; None of one of ours."""
    if {"audio", "file"} & said.keys():
        return None
    if _NEMO in said:
        return _nemo(said)
    if isinstance(said.get(_RECORDING), dict):
        return _cut(said)
    if isinstance(said.get(_SOURCES), list) and "sampling_rate" in said:
        return {"id": _name(said.get("id")), "audio": _source(said)}
    if said.get("type") in ("MonoCut", "MultiCut", "MixedCut", "PaddingCut") or "recording_id" in said:
        what = said.get("type", "a supervision")
        raise _NotOneFileError(f"this is Lhotse's {what} without a recording of its own; {_ONE}")
    return None


def _nemo(said: Mapping[str, Any]) -> dict[str, Any]:
    """https://docs.nvidia.com/nemo-framework: a line of its manifests, of which each task has keys of its own."""
    if isinstance(said[_NEMO], list):
        raise _NotOneFileError(f"{_NEMO} lists {len(said[_NEMO])} files, one for each channel; mix them into one file")
    row = {name: said[name] for name in ClipRow.model_fields if name in said}
    if row.get("duration") in _TO_THE_END:
        row["duration"] = None
    if row.get("offset") == -1:
        row["offset"] = None
    if str(row.get("text")).strip() in _NO_TEXT:
        row["text"] = None
    return {**row, "id": _name(row.get("id")), "audio": said[_NEMO]}


def _cut(said: Mapping[str, Any]) -> dict[str, Any]:
    """https://lhotse.readthedocs.io: a cut, which is a part of a recording with what is said in it."""
    kind, recording = said.get("type", "MonoCut"), said[_RECORDING]
    if kind != "MonoCut" or isinstance(said.get("channel"), list):
        raise _NotOneFileError(
            f"this is Lhotse's {kind}, which takes several channels; only MonoCut can be read: {_ONE}"
        )
    spoken = [part.get("text") for part in said.get("supervisions") or () if isinstance(part, dict)]
    return {
        "id": _name(said.get("id")), "audio": _source(recording), "offset": said.get("start"),
        "duration": said.get("duration"), "text": " ".join(filter(None, spoken)) or None,
    }  # fmt: skip


def _source(recording: Mapping[str, Any]) -> Any:
    """The file of a recording that lies in one, and is taken as it is."""
    sources = recording.get(_SOURCES)
    if not (isinstance(sources, list) and len(sources) == 1 and isinstance(sources[0], dict)):
        raise _NotOneFileError(f"the recording has not one source, but {sources!r:.80}; {_ONE}")
    kind, channels = sources[0].get("type"), sources[0].get("channels") or ()
    if kind != "file":
        raise _NotOneFileError(f"the recording's source is of type {kind!r}, expected 'file'; {_ONE}")
    if len(channels) > 1:
        raise _NotOneFileError(f"the recording has {len(channels)} channels, of which a cut takes one; {_ONE}")
    changes = [change.get("name") for change in recording.get("transforms") or () if isinstance(change, dict)]
    if changes := [name for name in changes if name not in _HARMLESS]:
        raise _NotOneFileError(
            f"Lhotse changes the recording when it loads it ({', '.join(map(str, changes))}); {_ONE}"
        )
    return sources[0].get("source")


def _name(given: object) -> object:
    """An id, which other tools may write as a number."""
    return str(given) if isinstance(given, int) and not isinstance(given, bool) else given or None
