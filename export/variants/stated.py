"""What a checkpoint's configuration states about its encoder, held against tensors and implementation."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AliasChoices, Field, NonNegativeFloat, PositiveInt, model_validator

from dasheng_edge.export.files.json_files import StatedFields
from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec
from dasheng_edge.runtime.errors import CheckpointFileError

Length = Annotated[int, Field(gt=0, le=8192)]  # samples, half a second: the matrix of a transform has its square
FIX = "take config.json and weights from one revision"


class EncoderConfig(StatedFields):
    """`audio_encoder_config`; the defaults are those of the published class, since only differences are stored.

    A Dasheng encoder alone calls two of the fields `win_size` and `hop_size`.
    """

    num_heads: PositiveInt | None = None  # its default differs by class
    n_fft: Length = 512
    win_length: Length = Field(default=512, validation_alias=AliasChoices("win_length", "win_size"))
    hop_length: Length = Field(default=160, validation_alias=AliasChoices("hop_length", "hop_size"))
    f_min: NonNegativeFloat = 0.0
    f_max: Annotated[float, Field(gt=0, le=8000)] = 8000.0  # at most half the sample rate

    @model_validator(mode="after")
    def _fits(self) -> EncoderConfig:
        if self.win_length > self.n_fft:
            raise ValueError(f"expected win_length {self.win_length} <= n_fft {self.n_fft}")
        if self.f_min >= self.f_max:
            raise ValueError(f"expected f_min {self.f_min:g} < f_max {self.f_max:g}")
        return self


@dataclass(frozen=True)
class Stated:
    """A checkpoint's configuration, and what messages call it and the checkpoint."""

    where: str  # the checkpoint
    source: str  # the configuration, e.g. "FOLDER/config.json"
    config: Mapping[str, Any]
    mel: Mapping[str, Any]  # the feature extractor's
    mel_source: str  # its configuration, e.g. "FOLDER/preprocessor_config.json"

    def section(self, name: str) -> Mapping[str, Any]:
        """A part of the configuration, empty where it is absent; `checked` refuses what is no object."""
        value: Mapping[str, Any] = self.config.get(name, {})
        return value


def agree(source: str, section: str, config: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Each field that a configuration states must equal what the tensors (or the implementation) have.

    Raises:
        CheckpointFileError: one does not.
    """
    for key, value in got.items():
        said = list(config[key]) if isinstance(config.get(key), tuple) else config.get(key)
        if key in config and said != value:
            field = f"{section}.{key}" if section else key
            raise CheckpointFileError(
                f"{source} says {field} = {reprlib.repr(said)}, but the tensors or the implementation have "
                f"{value!r}; {FIX}"
            )


def front_end_spec(
    source: str,
    known: EncoderConfig,
    sizes: Mapping[str, Any],
    tokens_patches: int,
    acoustic: AcousticSpec | None = None,
) -> FrontEndSpec:
    """Clips that yield no token are padded to `min_samples`; all others are encoded as they are."""
    width = sizes["patch_stride"][1]
    min_samples = known.hop_length * width * tokens_patches
    reflected = max(known.n_fft, acoustic.n_fft if acoustic else 0) // 2  # at both ends: a clip must be longer
    shortest = max(min_samples - known.hop_length, reflected + 1)  # the first frame is centred on the first sample
    _check_windows(source, "log-mel", known.n_fft, known.win_length, min_samples)
    if acoustic:
        _check_windows(source, "acoustic mel", acoustic.n_fft, acoustic.win_length, min_samples)
    return FrontEndSpec(
        n_fft=known.n_fft, win_length=known.win_length, hop_length=known.hop_length, n_mels=sizes["n_mels"],
        f_min_hz=known.f_min, f_max_hz=known.f_max, patch_frames=width, chunk_frames=sizes["target_length"],
        tokens_patches=tokens_patches, min_samples=min_samples, pads_below=shortest, acoustic=acoustic,
    )  # fmt: skip


def _check_windows(source: str, spectrogram: str, n_fft: int, win_length: int, min_samples: int) -> None:
    """Both ends of a clip are reflected by n_fft / 2; with an odd n_fft some clips would have a frame less."""
    if n_fft % 2 or win_length > n_fft or n_fft // 2 >= min_samples:
        raise CheckpointFileError(
            f"{source}: the {spectrogram} has n_fft {n_fft} and win_length {win_length}, expected win_length <= n_fft, "
            f"and n_fft even and less than {2 * min_samples}, twice the shortest clip (hop_length * patch width * "
            f"subsample_factor); {FIX}"
        )
