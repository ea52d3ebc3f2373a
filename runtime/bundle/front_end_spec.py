"""The counting law: how many frames, patches and audio tokens a clip of so many samples gives.

Every other part must agree with it: the encoder cuts chunks by it, the prompt reserves audio tokens by it and the
exporter sizes its graphs by it. Pure arithmetic: what computes frames is `runtime.audio.front_end`.

    samples --STFT, centred--> frames = 1 + samples // 160 --> patches = frames // 4 --> tokens = patches // 5
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, model_validator

# Ranges far around what models have: a manifest may state anything, and memory and time follow from these numbers.
TransformSize: TypeAlias = Annotated[int, Field(gt=0, le=1 << 14, multiple_of=2)]  # both ends reflect half of it
WindowSize: TypeAlias = Annotated[int, Field(gt=0, le=1 << 14)]
Bands: TypeAlias = Annotated[int, Field(gt=0, le=1 << 12)]
HighestHz: TypeAlias = Annotated[float, Field(gt=0, le=8000)]  # half of the sample rate
LogFloor: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Samples: TypeAlias = Annotated[int, Field(gt=0)]
MIN_CHUNK_SAMPLES = 4000  # a quarter of a second: each chunk is a run, and costs what a run may cost
Few: TypeAlias = Annotated[int, Field(gt=0, le=1000)]


class AcousticSpec(BaseModel):
    """The second spectrogram of a DashengTokenizer encoder: magnitudes on the HTK mel scale, natural logarithm.

    Equals torchaudio's MelSpectrogram with power 1, then log(max(mel, log_floor)); hop and centring are those of
    the first, so both have the same number of frames. Nothing in it depends on the rest of the clip.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    n_mels: Bands
    n_fft: TransformSize = 1024
    win_length: WindowSize = 1024
    f_min_hz: NonNegativeFloat = 0.0
    f_max_hz: HighestHz = 8000.0
    log_floor: LogFloor = 1e-7  # magnitude; its natural logarithm is -16.1

    @model_validator(mode="after")
    def _check_sizes(self) -> AcousticSpec:
        _check_window(self.n_fft, self.win_length, self.f_min_hz, self.f_max_hz)
        return self


class FrontEndSpec(BaseModel):
    """How a clip becomes a log-mel spectrogram and how that is cut into patches and tokens.

    The defaults are those of MiDashengLM-7B; they equal torchaudio's MelSpectrogram (HTK mel scale, no
    normalisation, power 2, centred with reflect padding) followed by AmplitudeToDB (top_db per clip).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sample_rate_hz: Literal[16000] = 16000
    n_fft: TransformSize = 512
    win_length: WindowSize = 512
    hop_length: WindowSize = 160
    n_mels: Bands = 64
    f_min_hz: NonNegativeFloat = 0.0
    f_max_hz: HighestHz = 8000.0
    log_floor: LogFloor = 1e-10  # power; 10 * log10 of it is -100 dB
    top_db: Annotated[float, Field(gt=0, le=1000)] = 120.0  # nothing lies further below the clip's loudest bin
    patch_frames: Few = 4  # width (= stride) of the patch convolution on time: 40 ms
    chunk_frames: Annotated[int, Field(gt=0, le=100_000)] = 1008  # the encoder's window: 10.08 s
    tokens_patches: Few = 5  # patches that the projector joins into one audio token: 200 ms
    min_samples: Samples = 3200  # what a short clip is padded to with silence, which yields one token
    # Clips shorter than this are padded; the published code encodes all that yield a token as they are. None, as
    # before schema 4: all that are shorter than min_samples.
    pads_below: Samples | None = None
    acoustic: AcousticSpec | None = None  # of an encoder with an acoustic branch
    # Plain Dasheng fills the last chunk of a clip of several up to full length, behind the batch norm, with zeros
    # that are attended to like patches; MiDashengLM runs it short, and masks.
    pads_last_chunk: bool = False
    # Plain Dasheng attends to every patch of a chunk, also to the last one of a clip that ends within it. Since schema
    # 4 its bundles say so here; before, all of them padded the last chunk.
    masks_last_patch: bool = True

    @model_validator(mode="after")
    def _check_sizes(self) -> FrontEndSpec:
        _check_window(self.n_fft, self.win_length, self.f_min_hz, self.f_max_hz)
        if self.hop_length > self.win_length:
            raise ValueError(f"hop_length is {self.hop_length}, expected at most win_length, {self.win_length}")
        if self.chunk_frames % self.patch_frames:
            raise ValueError(f"chunk_frames is {self.chunk_frames}, expected a multiple of patch_frames")
        if self.chunk_samples < MIN_CHUNK_SAMPLES:
            raise ValueError(
                f"chunk_frames and hop_length give chunks of {self.chunk_samples} samples, expected "
                f"{MIN_CHUNK_SAMPLES} or more"
            )
        if not self.tokens_of(self.min_samples):
            raise ValueError(f"min_samples is {self.min_samples}, which yields no audio token; expected more")
        if self.shortest_samples > self.min_samples or not self.tokens_of(self.shortest_samples):
            raise ValueError(
                f"pads_below is {self.pads_below}, expected a length that yields an audio token, and at most "
                f"min_samples, {self.min_samples}"
            )
        reflected, chunk = max(self.n_fft, self.acoustic.n_fft if self.acoustic else 0) // 2, self.chunk_samples
        if not reflected < self.shortest_samples <= self.min_samples <= chunk:
            raise ValueError(
                f"min_samples is {self.min_samples}, expected at most {chunk}, which is a chunk; it and pads_below "
                f"must be more than {reflected}, half of n_fft"
            )
        return self

    @property
    def chunk_patches(self) -> int:
        """Patches of a full chunk (252)."""
        return self.chunk_frames // self.patch_frames

    @property
    def chunk_samples(self) -> int:
        """Samples that a full chunk advances by (161280)."""
        return self.chunk_frames * self.hop_length

    @property
    def samples_per_token(self) -> int:
        """Samples that one audio token advances by (3200, 0.2 s)."""
        return self.hop_length * self.patch_frames * self.tokens_patches

    def frames_of(self, samples: int) -> int:
        """Log-mel frames of a clip: 1 + floor(samples / hop), since the STFT is centred."""
        return 1 + samples // self.hop_length

    def patches_of(self, samples: int) -> int:
        """Patches of a clip; up to 3 trailing frames are dropped by the patch convolution."""
        return self.frames_of(samples) // self.patch_frames

    def valid_patches_of(self, samples: int) -> int:
        """Patches that may be attended to: floor(samples / (hop * patch_frames)).

        One less than `patches_of` exactly when floor(samples / hop) mod 4 = 3; the last patch is then a
        query but not a key. The published model computes it so, hence so do we.
        """
        return samples // (self.hop_length * self.patch_frames)

    def tokens_of(self, samples: int) -> int:
        """Audio tokens of a clip; 0 for fewer than 3040 samples, which is why such clips are padded."""
        return self.patches_of(samples) // self.tokens_patches

    @property
    def shortest_samples(self) -> int:
        """The shortest clip that is encoded as it is (3040, or 3200 before schema 4)."""
        return self.min_samples if self.pads_below is None else self.pads_below

    @property
    def takes_padding(self) -> bool:
        """Whether the encoder's graph is told how far a chunk is filled up, instead of how much of it is a key."""
        return self.pads_last_chunk or not self.masks_last_patch

    def padded_samples_of(self, samples: int) -> int:
        """Length of a clip after padding, which is for those that are too short for a token."""
        return samples if samples >= self.shortest_samples else self.min_samples

    def samples_for_tokens(self, tokens: int) -> int:
        """The longest clip, in samples, that yields at most this many audio tokens (see `tokens_of`)."""
        frames = (tokens + 1) * self.tokens_patches * self.patch_frames - 1
        return frames * self.hop_length - 1

    def chunks_of(self, patches: int) -> list[tuple[int, int]]:
        """Half-open patch ranges of the chunks, e.g. 255 -> [(0, 252), (252, 255)]."""
        size = self.chunk_patches
        return [(start, min(start + size, patches)) for start in range(0, patches, size)]


def _check_window(n_fft: int, win_length: int, f_min_hz: float, f_max_hz: float) -> None:
    if n_fft < win_length:
        raise ValueError(f"n_fft is {n_fft}, expected at least win_length, {win_length}")
    if f_min_hz >= f_max_hz:
        raise ValueError(f"f_min_hz is {f_min_hz:g}, expected less than f_max_hz, {f_max_hz:g}")
