"""What side files of a checkpoint state, checked as it is read: only the fields that are used, others ignored."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (  # fmt: skip
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from dasheng_edge.runtime.errors import CheckpointFileError


class _Stated(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class EncoderConfig(_Stated):
    """`audio_encoder_config`; the defaults are those of the published class, since only differences are stored.

    A Dasheng encoder alone calls two of the fields `win_size` and `hop_size`.
    """

    num_heads: PositiveInt | None = None  # its default differs by class
    n_fft: PositiveInt = 512
    win_length: PositiveInt = Field(default=512, validation_alias=AliasChoices("win_length", "win_size"))
    hop_length: PositiveInt = Field(default=160, validation_alias=AliasChoices("hop_length", "hop_size"))
    f_min: NonNegativeFloat = 0.0
    f_max: Annotated[float, Field(gt=0, le=8000)] = 8000.0  # at most half the sample rate

    @model_validator(mode="after")
    def _fits(self) -> EncoderConfig:
        if self.win_length > self.n_fft:
            raise ValueError(f"expected win_length {self.win_length} <= n_fft {self.n_fft}")
        if self.f_min >= self.f_max:
            raise ValueError(f"expected f_min {self.f_min:g} < f_max {self.f_max:g}")
        return self


class AcousticConfig(_Stated):
    """The fields of `audio_encoder_config` that say how a DashengTokenizer's second spectrogram is made, if any do."""

    n_fft_patch: PositiveInt | None = None
    win_length_patch: PositiveInt | None = None
    f_min_patch: NonNegativeFloat | None = None
    f_max_patch: Annotated[float, Field(gt=0, le=8000)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> AcousticConfig:
        low, high = self.f_min_patch or 0.0, self.f_max_patch or 8000.0
        if low >= high:
            raise ValueError(f"expected f_min_patch {low:g} < f_max_patch {high:g}")
        return self


class Rope(_Stated):
    """`rope_scaling` or, since transformers 5, `rope_parameters`, which holds the base too."""

    rope_type: str | None = None
    type: str | None = None  # what older versions call it
    rope_theta: PositiveFloat | None = None
    partial_rotary_factor: float | None = None


class TextConfig(_Stated):
    """`text_config`; the defaults are those of transformers' classes, where these differ Qwen2.5-Omni's."""

    num_attention_heads: PositiveInt = 28
    rms_norm_eps: PositiveFloat = 1e-6
    max_position_embeddings: PositiveInt = 32768
    rope_theta: PositiveFloat | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    partial_rotary_factor: float | None = None  # of a head, how much is rotated
    layer_types: list[str] | None = None
    tie_word_embeddings: bool | None = None

    @property
    def rotary_base(self) -> float | None:
        """The base of the rotation, wherever it stands."""
        nested = self.rope_parameters.rope_theta if self.rope_parameters else None
        return self.rope_theta or nested


class PullRecord(_Stated):
    """What `dasheng-edge pull` writes beside the files: where they are from."""

    repo: str  # "owner/name"
    revision: str  # a commit


_Rank = Annotated[int, Field(gt=0, lt=1 << 31)]


def _fits_float32(value: float) -> float:
    if abs(value) > 3e38:
        raise ValueError("expected what float32 can hold, at most 3e+38")
    return value


_Float32 = Annotated[float, AfterValidator(_fits_float32)]


class LoraFacts(_Stated):
    """`adapter_config.json`, the fields that decide the merge, and the base; the defaults are peft's."""

    base_model_name_or_path: Any = None  # a name on the hub or a path, if it is a text
    r: _Rank = 8
    lora_alpha: _Float32 = 8
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Float32] | None = None
    target_modules: str | list[str]
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    ensure_weight_tying: bool = False


class Step(_Stated):
    """How one pre-tokenizer cuts text."""

    type: str = ""
    pattern: dict[str, str] = {}


class PreTokenizer(Step):
    """One step, or a sequence of them."""

    pretokenizers: tuple[Step, ...] | None = Field(default=None, strict=False)


class Normalizer(_Stated):
    """How text is normalised."""

    type: str


class AddedToken(_Stated):
    """A token beside the vocabulary."""

    id: NonNegativeInt
    content: str
    special: bool = False


class TokenizerFile(_Stated):
    """`tokenizer.json`; `model` is read as `BpeModel` once it is known to be one."""

    model: dict[str, Any]
    pre_tokenizer: PreTokenizer | None = None
    normalizer: Normalizer | None = None
    added_tokens: list[AddedToken] = []


class BpeModel(_Stated):
    """Tokens by text, and merges, as "a b" or as ["a", "b"]."""

    vocab: dict[str, NonNegativeInt]
    merges: list[str | Annotated[list[str], Field(min_length=2, max_length=2)]]


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """A JSON object from a side file; empty when it may be missing and is."""
    if missing_ok and not path.exists() and not path.is_symlink():
        return {}  # a link to nothing is no absent file: it is what remains of one in the hub's cache
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last where brackets are nested too deep
        raise CheckpointFileError(f"cannot read {path}: {error}; download it again") from error
    if not isinstance(content, dict):
        raise CheckpointFileError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], where: str, stated: object, fix: str) -> Model:
    """What a side file states at `where`, as a model.

    Raises:
        CheckpointFileError: a field is missing or is not what it should be; the first such is named.
    """
    try:
        return model.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        field = ": ".join((where, ".".join(map(str, first["loc"])))) if first["loc"] else where
        if first["type"] == "missing":
            raise CheckpointFileError(f"{field} is missing; {fix}") from error
        expected = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        if first["type"] == "model_type":
            expected = "expected a JSON object"
        raise CheckpointFileError(f"{field} is {reprlib.repr(first['input'])}, {expected}; {fix}") from error
