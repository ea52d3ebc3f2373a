"""Which clips a comparison is of: those that every candidate can answer, until one fails on the way.

The others go on without it, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.clips.clips import Clip, ClipSet
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import AudioTooLongError, DashengEdgeError, DecoderError, PromptError, clip_error
from dasheng_edge.runtime.parts import TextParts
from dasheng_edge.runtime.progress import Advance, no_advance


class ClipsFailedError(Exception):
    """Clips that could be used at first and fail now, as a file does that is moved meanwhile; `why` is by their ids."""

    def __init__(self, why: Mapping[str, DashengEdgeError]) -> None:
        super().__init__("; ".join(map(str, why.values())))
        self.why = why


@contextmanager
def about(clip: Clip) -> Generator[None]:
    """Whatever goes wrong in the block is the clip's, unless all clips have it.

    Raises:
        ClipsFailedError: it failed.
    """
    try:
        yield
    except ClipsFailedError:
        raise
    except Exception as error:
        raise ClipsFailedError({clip.id: _left_out(clip, error)}) from error


@contextmanager
def collecting(failed: dict[str, DashengEdgeError]) -> Generator[None]:
    """Clips that fail in the block are added, and do not end the loop around it."""
    try:
        yield
    except ClipsFailedError as error:
        failed |= error.why


@dataclass(frozen=True)
class Usable:
    """Clips that every candidate can answer, their lengths, and why others are left out."""

    clips: ClipSet
    samples: tuple[int, ...]
    left_out: tuple[str, ...]  # a sentence for each clip
    warnings: tuple[str, ...] = ()  # about others

    def without(self, failed: Mapping[str, DashengEdgeError]) -> Usable:
        """Without clips that failed, by their ids.

        Raises:
            DashengEdgeError: none is left, for the reason of the first.
        """
        left = [pair for pair in zip(self.clips.clips, self.samples, strict=True) if pair[0].id not in failed]
        if not left:
            raise next(iter(failed.values()))
        clips = ClipSet(self.clips.name, tuple(clip for clip, _ in left))
        why = (*self.left_out, *map(str, failed.values()))
        return replace(self, clips=clips, samples=tuple(samples for _, samples in left), left_out=why)


def usable_clips(bundle: Bundle, clips: ClipSet, max_new_tokens: int, advance: Advance = no_advance) -> Usable:
    """Clips that can be read and leave the decoder room for an answer; each is read once, a block at a time.

    Raises:
        DashengEdgeError: there is none, for the reason of the first, an AudioError mostly; or one ends them all.
    """
    known: list[tuple[Clip, int]] = []
    errors: list[DashengEdgeError] = []
    said: list[str] = []
    text = TextParts.open(bundle, EngineOptions(weights="mapped"))
    try:
        for clip in clips.clips:
            try:
                known.append((clip, _samples(bundle, text, clip, max_new_tokens, said.append)))
            except Exception as error:  # noqa: BLE001  # whatever a clip does, the others go on
                errors.append(_left_out(clip, error))
            advance(1)
    finally:
        text.decoder.close()
    if not known:
        raise errors[0]
    kept = ClipSet(clips.name, tuple(clip for clip, _ in known))
    return Usable(kept, tuple(samples for _, samples in known), tuple(map(str, errors)), tuple(said))


def _left_out(clip: Clip, error: Exception) -> DashengEdgeError:
    """Why a clip is left out; an error that all clips have is raised again."""
    if isinstance(error, DecoderError) or (isinstance(error, PromptError) and clip.prompt is not None):
        return type(error)(f"clip {clip.id}: {error}")
    return clip_error(f"clip {clip.id}", error)


def _samples(bundle: Bundle, text: TextParts, clip: Clip, max_new_tokens: int, warn: Callable[[str], object]) -> int:
    """Samples of a clip.

    Raises:
        AudioError: it cannot be read, or leaves the decoder no room for an answer; the message names the clip.
        PromptError: its prompt cannot be rendered.
    """
    spec, stored = bundle.manifest.front_end, bundle.decoder_facts
    room = stored.context_length - max_new_tokens - text.prompts.build(clip.prompt).text_tokens
    samples = sum(len(block) for block in clip.blocks(spec.sample_rate_hz, warn))
    tokens = spec.tokens_of(spec.padded_samples_of(samples))
    if tokens > room:
        raise AudioTooLongError(
            f"clip {clip.id} has {samples / spec.sample_rate_hz:.1f} s, which are {tokens} audio tokens; with "
            f"{max_new_tokens} new tokens and the prompt at most {max(room, 0)} fit the decoder's context of "
            f"{stored.context_length}: cut the clip, or pass a smaller --max-new-tokens"
        )
    return samples
