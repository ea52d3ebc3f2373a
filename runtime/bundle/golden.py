"""`golden.npz`: what the fp32 reference makes of a few clips, to compare with on any machine.

It holds `names`, and for clip i: `waveform_i` int16 [n] (the samples are v / 32768), `log_mel_i`
float32 [n_mels, frames] and `patches_i` float32 [patches, audio_dim]; where the encoder has an acoustic branch,
`acoustic_mel_i` float32 [n_acoustic, frames]; where there is a decoder, `embeddings_i` float32 [tokens, llm_dim],
`prompt_i` int32 (token ids of the default prompt, one -1 where the audio goes), `logits_i` float32 [vocab]
(after the prompt), `tokens_i` int32 (what greedy decoding gives) and `margins_i` float32 (by how much the
reference preferred each of them to the next best, in logits).

`golden.safetensors` holds the same but `names`, which are in its metadata: the length of a JSON header, the header, and
the arrays one behind the other. Nothing here computes with it.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.errors import BundleFileError

from .bundle import GOLDEN, GOLDEN_FLAT, Bundle

Array = NDArray[np.float32]
AUDIO_MARK = -1  # in `prompt_i`
FULL_SCALE = 32768  # of `waveform_i`
# Of the file, and of all arrays that are read: of the 7B, three clips have 10 MB. Headers may state anything.
MAX_BYTES = 64 << 20
MAX_NAMES_BYTES = 1 << 16
# Fields of a clip -> (dtype, dimensions)
_AUDIO_FIELDS = {"waveform": (np.int16, 1), "log_mel": (np.float32, 2), "patches": (np.float32, 2)}
_ACOUSTIC_FIELDS = {"acoustic_mel": (np.float32, 2)}
_TEXT_FIELDS = {
    "embeddings": (np.float32, 2),
    "prompt": (np.int32, 1),
    "logits": (np.float32, 1),
    "tokens": (np.int32, 1),
    "margins": (np.float32, 1),
}


@dataclass(frozen=True)
class GoldenText:
    """What the reference's decoder made of one clip; see the module's docstring."""

    embeddings: Array
    prompt: NDArray[np.int32]
    logits: Array
    tokens: NDArray[np.int32]
    margins: Array

    @property
    def segments(self) -> list[tuple[int, ...] | Array]:
        """Tokens before the audio, the reference's own embeddings, tokens after it: what a decoder is given."""
        prompt = self.prompt.tolist()
        place = prompt.index(AUDIO_MARK)
        return [tuple(prompt[:place]), self.embeddings, tuple(prompt[place + 1 :])]


@dataclass(frozen=True)
class GoldenClip:
    """The reference's values for one clip; see the module's docstring."""

    name: str
    waveform: NDArray[np.int16]
    log_mel: Array
    patches: Array
    acoustic_mel: Array | None = None
    text: GoldenText | None = None

    @property
    def samples(self) -> Array:
        """The waveform as float32 [n], full scale = 1."""
        return self.waveform.astype(np.float32) / np.float32(FULL_SCALE)


def read_golden(bundle: Bundle) -> tuple[GoldenClip, ...]:
    """Read all golden clips, with the fields that a bundle of its kind has.

    Raises:
        BundleFileError: the file is not a golden file, lacks a field, is damaged or holds no clip.
    """
    path, manifest = bundle.path(GOLDEN), bundle.manifest
    acoustic = _ACOUSTIC_FIELDS if manifest.front_end.acoustic else {}
    text = _TEXT_FIELDS if manifest.decoder else {}
    fields = {**_AUDIO_FIELDS, **acoustic, **text}
    try:
        with _Arrays(path) as arrays:
            names = [str(name) for name in arrays.read_array("names", MAX_NAMES_BYTES)]
            clips = [{field: arrays.read_array(f"{field}_{index}") for field in fields} for index in range(len(names))]
    except Exception as error:  # what numpy and zipfile raise for files that are damaged or something else has no base
        raise BundleFileError(f"{path} is not a readable golden file ({error}); export the bundle again") from error
    if not clips:
        raise BundleFileError(f"{path} holds no clip, so nothing can be verified; export again")
    for name, clip in zip(names, clips, strict=True):
        for field, (dtype, ndim) in fields.items():
            got = clip[field]
            if got.dtype != dtype or got.ndim != ndim or not got.size:
                raise BundleFileError(
                    f"{path}: {field} of clip {name!r} is {got.dtype} of shape {got.shape}, expected "
                    f"{np.dtype(dtype)} with {ndim} dimensions and not empty; export the bundle again"
                )
        if text and (places := int((clip["prompt"] == AUDIO_MARK).sum())) != 1:
            raise BundleFileError(
                f"{path}: prompt of clip {name!r} has {places} places for audio, expected one; export the bundle again"
            )
    return tuple(
        GoldenClip(
            name,
            **{field: clip[field] for field in (*_AUDIO_FIELDS, *acoustic)},
            text=GoldenText(**{field: clip[field] for field in text}) if text else None,
        )
        for name, clip in zip(names, clips, strict=True)
    )


class _Arrays(zipfile.ZipFile):
    """The arrays of a golden file; one is allocated only where its header and its size in the file agree.

    Raises:
        ValueError: the file, or all that was asked for so far, is larger than `MAX_BYTES`.
    """

    def __init__(self, path: Path) -> None:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"it has {size} bytes, expected at most {MAX_BYTES}")
        super().__init__(path)
        self._left = MAX_BYTES

    def read_array(self, name: str, max_bytes: int = MAX_BYTES) -> NDArray[Any]:
        """An array by its name; numbers or texts, no objects."""
        info = self.getinfo(f"{name}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others take memory as they state
            raise ValueError(f"{name} is compressed by method {info.compress_type}")
        with self.open(info) as member:
            shape, _, dtype = _HEADERS[np.lib.format.read_magic(member)](member)
            size = math.prod(shape) * dtype.itemsize
            if dtype.hasobject:
                raise ValueError(f"{name} holds objects, which would be a pickle")
            if size != info.file_size - member.tell() or size > min(max_bytes, self._left):
                raise ValueError(
                    f"{name} is {dtype} of shape {shape} in {info.file_size} bytes, expected these to agree and to be "
                    f"at most {min(max_bytes, self._left)}"
                )
            self._left -= size
        with self.open(info) as member:
            array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
            return array


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def save_golden(path: Path, clips: Sequence[GoldenClip]) -> None:
    """Write what `read_golden` reads."""
    names: NDArray[Any] = np.array([clip.name for clip in clips])
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, names=names, **_vectors(clips))


def flat_golden(clips: Sequence[GoldenClip]) -> bytes:
    """The content of `golden.safetensors`, the same for the same clips."""
    header: dict[str, object] = {"__metadata__": {f"name_{index}": clip.name for index, clip in enumerate(clips)}}
    place, content = 0, []
    # Those with larger items come first, so that each begins at a multiple of its items' size.
    for name, values in sorted(_vectors(clips).items(), key=lambda item: -item[1].dtype.itemsize):
        data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
        kind = f"{values.dtype.kind.upper()}{8 * values.dtype.itemsize}"  # F32, I16, I32
        header[name] = {"dtype": kind, "shape": values.shape, "data_offsets": (place, place + len(data))}
        content.append(data)
        place += len(data)
    described = json.dumps(header, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)
    return b"".join([len(described).to_bytes(8, "little"), described, *content])


def save_flat_golden(path: Path, clips: Sequence[GoldenClip]) -> None:
    """Write `golden.safetensors` beside the golden file `path`, in place of one that may be a link."""
    flat = path.with_name(GOLDEN_FLAT)
    flat.unlink(missing_ok=True)
    flat.write_bytes(flat_golden(clips))


def check_flat_golden(bundle: Bundle, clips: Sequence[GoldenClip]) -> None:
    """The flat file must hold what the other does.

    Raises:
        BundleFileError: it does not.
    """
    if GOLDEN_FLAT not in bundle.manifest.files:
        return
    path, wanted = bundle.path(GOLDEN_FLAT), flat_golden(clips)
    with path.open("rb") as file:
        if file.read(len(wanted) + 1) != wanted:
            raise BundleFileError(f"{path} holds other vectors than {GOLDEN}; export the bundle again")


def _vectors(clips: Sequence[GoldenClip]) -> dict[str, NDArray[Any]]:
    """All arrays but the names."""
    vectors: dict[str, NDArray[Any]] = {}
    for index, clip in enumerate(clips):
        audio = {name: getattr(clip, name) for name in ("waveform", "log_mel", "acoustic_mel", "patches")}
        vectors |= {f"{name}_{index}": values for name, values in audio.items() if values is not None}
    texts = [(index, clip.text) for index, clip in enumerate(clips) if clip.text]
    vectors |= {f"embeddings_{index}": text.embeddings for index, text in texts}
    for index, text in texts:
        vectors |= {f"{name}_{index}": getattr(text, name) for name in ("prompt", "logits", "tokens", "margins")}
    return vectors
