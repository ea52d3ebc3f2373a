"""`generation_config.json`: how the checkpoint asks to be sampled, and how long its answers may be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dasheng_edge.export.files.json_files import checked, read_json
from dasheng_edge.export.files.names import GENERATION
from dasheng_edge.runtime.bundle.manifest import Sampling

# An answer's length is reserved in the context before it begins, and files that state 32768 mean "no limit". This is
# what a decoder's first context holds, several minutes of dense speech.
LONGEST = 2048
# What would change the answer and has no counterpart here, with the values that ask for nothing.
_UNUSED: dict[str, tuple[object, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "penalty_alpha": (0, None), "typical_p": (1, None),
    "epsilon_cutoff": (0, None), "eta_cutoff": (0, None),
    "encoder_repetition_penalty": (1, None), "guidance_scale": (1, None), "min_length": (0, None),
    "min_new_tokens": (0, None), "bad_words_ids": (None,), "suppress_tokens": (None,), "sequence_bias": (None,),
    "forced_bos_token_id": (None,), "forced_eos_token_id": (None,), "stop_strings": (None,),
}  # fmt: skip


class GenerationConfig(BaseModel):
    """The fields that are used, with the defaults of transformers' class; null switches a filter off there."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    do_sample: bool | None = None
    temperature: NonNegativeFloat | None = 1.0
    top_k: NonNegativeInt | None = 50
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: PositiveFloat | None = 1.0
    no_repeat_ngram_size: NonNegativeInt | None = 0
    max_new_tokens: PositiveInt | None = None
    max_length: PositiveInt | None = None  # counts the prompt and the audio, too

    def sampling(self, usual: Sampling) -> Sampling:
        """Sampling as stated; `usual` where the file does not say whether to sample."""
        always = {
            "repetition_penalty": self.repetition_penalty or 1.0,
            "no_repeat_ngram_size": self.no_repeat_ngram_size or 0,
        }  # fmt: skip
        if self.do_sample is False or (self.do_sample is None and not usual.temperature):
            return Sampling.model_validate(always)
        off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        stated = {name: getattr(self, name) for name in off if self.do_sample or name in self.model_fields_set}
        chosen = {name: off[name] if value is None else value for name, value in stated.items()}
        return Sampling.model_validate({**usual.model_dump(), **chosen, **always})

    def new_tokens(self, usual: int) -> int:
        """The most tokens of an answer; `usual` where the file does not say."""
        return min(self.max_new_tokens or self.max_length or usual, LONGEST)


def read_generation_config(folder: Path) -> tuple[GenerationConfig, tuple[str, ...]]:
    """The file's statements, and its fields that ask for something that there is not here; all silent without a file.

    Raises:
        CheckpointFileError: it does not parse, or a value is of another type or out of range.
    """
    path = folder / GENERATION
    content = read_json(path, missing_ok=True)
    config = checked(GenerationConfig, str(path), content, "correct it, or leave the field out")
    unused = tuple(name for name, neutral in _UNUSED.items() if name in content and content[name] not in neutral)
    return config, unused
