"""Which audio track of a file is read, and how it is called."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import av
import av.container
import av.logging
import av.stream

from dasheng_edge.runtime.errors import AudioDecodeError, AudioError
from dasheng_edge.runtime.languages.language import Language, find_language


def choose_track(
    container: av.container.InputContainer, name: str, wanted: int | str | None
) -> tuple[av.AudioStream, int, str]:
    """The track that was asked for, by its number from 1 or its language, or else the one that players take.

    With its number, and what to say where there are several to choose from.

    Raises:
        AudioDecodeError: there is no track, or FFmpeg has no decoder for it.
        AudioError: there is no such track.
    """
    tracks = container.streams.audio
    if not tracks:
        raise AudioDecodeError(f"{name} has no audio track (it is {container.format.name}); expected one")
    if wanted is None:
        usable = [track for track in tracks if _decoder(track)] or list(tracks)
        marked = [track for track in usable if track.disposition & av.stream.Disposition.default]
        taken: av.AudioStream | None = (marked or usable)[0]
    elif isinstance(wanted, int) and not isinstance(wanted, bool):
        taken = tracks[wanted - 1] if 0 < wanted <= len(tracks) else None
    else:
        taken = _of_language(tracks, str(wanted).lower())
    listed = "; ".join(_told(place, track) for place, track in enumerate(tracks, 1))
    if taken is None:
        raise AudioError(f"{name} has no audio track {wanted!r}; it has {listed}")
    if _decoder(taken) is None:
        raise AudioDecodeError(f"{name} is of a codec that FFmpeg has no decoder for: {_codec(container, taken)}")
    number = 1 + list(tracks).index(taken)
    several = wanted is None and len(tracks) > 1
    note = f"it has {len(tracks)} audio tracks ({listed}); track {number} is taken, see --track" if several else ""
    return taken, number, note


def _of_language(tracks: Sequence[av.AudioStream], asked: str) -> av.AudioStream | None:
    """The first of the language as it is asked for, or as it is spoken elsewhere, or that begins so."""
    wanted = _language(asked)
    likes: tuple[Callable[[Language], bool], ...] = (
        lambda stated: stated == wanted,
        lambda stated: stated.code == wanted.code,
    )
    stated = [(track, _language(track.language)) for track in tracks if track.language]
    alike = [track for like in likes for track, language in stated if like(language)]
    alike += [track for track, _ in stated if asked and str(track.language).lower().startswith(asked)]
    return next(iter(alike), None)


def _language(text: str) -> Language:
    """One that is not known is what it is called."""
    tag = text.lower().replace("_", "-")
    return find_language(text) or Language(tag, tag, tag)


def _told(place: int, track: av.AudioStream) -> str:
    about = (track.language, track.metadata.get("title") or track.metadata.get("handler_name"))
    decoder = _decoder(track)
    return f"{place}: " + ", ".join(filter(None, (*about, decoder.name if decoder else "no decoder")))


def _decoder(track: av.AudioStream) -> Any:
    """None where FFmpeg has none, which PyAV's types do not say."""
    return track.codec_context


def _codec(container: av.container.InputContainer, track: av.AudioStream) -> str:
    """FFmpeg's words about a track; PyAV has no others for one without a decoder."""
    level = av.logging.get_level()
    try:
        av.logging.set_level(av.logging.INFO)
        told = re.search(rf"Stream #0:{track.index}\b.*?Audio: ([^\n]*)", container.dumps_format())  # type: ignore[attr-defined]
    finally:
        av.logging.set_level(level)
    return told[1] if told else "it is not known to it"
