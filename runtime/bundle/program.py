"""`program` of a manifest: what spares a program in any language the template engine, the vocabulary and the header.

All of it follows from other parts of the bundle, and nothing here computes with it. What follows from the manifest is
derived here, and a manifest that says otherwise is refused; `runtime.text.program` does the same for what follows from
the decoder, when that is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from .front_end_spec import FrontEndSpec

TokenId: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 24)]
Ids: TypeAlias = Annotated[tuple[TokenId, ...], Field(max_length=1 << 16)]
UserText: TypeAlias = Literal["prompt", "system"]
Blanks: TypeAlias = Literal["kept", "stripped", "refused"]
PENALTY_WINDOW = 64  # generated tokens that the repetition penalty looks back on, llama.cpp's own default


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=1 << 20)


class GraphInput(_Model):
    """What a graph is fed with: a law by its name, which `docs/bundle.md` defines, and the law's numbers."""

    graph: Literal["front_end", "encoder", "projector"]
    input: str
    law: Literal[
        "clip", "chunk_frames", "all_chunk_frames", "keys", "first_own_then_keys", "own_patches",
        "first_own_then_whole", "whole_tokens",
    ]  # fmt: skip
    numbers: dict[str, int | float]


class SamplerStep(_Model):
    """One step in which a token is chosen; steps that change nothing are not listed."""

    step: Literal["no_repeat_ngram", "repetition_penalty", "greedy", "temperature", "top_k", "top_p", "min_p", "draw"]
    value: int | float | None = None
    last_tokens: int | None = None

    @model_serializer(mode="wrap")
    def _without_what_a_step_has_not(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {key: value for key, value in written(self).items() if value is not None}


class TokenPart(_Model):
    """Tokens that are always the same."""

    ids: Ids


class AudioPart(_Model):
    """The place of the clip."""

    audio: Literal[True]


class TextPart(_Model):
    """A run of text that holds a user's text: prefix, text and suffix are joined, normalised and tokenized in one."""

    prefix: str
    text: UserText
    suffix: str


Parts: TypeAlias = Annotated[tuple[TokenPart | AudioPart | TextPart, ...], Field(max_length=1 << 10)]


class DefaultPrompt(_Model):
    """The default prompt with the default system turn, as token ids around the clip."""

    before: Ids
    after: Ids


class PromptProgram(_Model):
    """What a clip is asked with. A layout is None where the chat template does something that cannot be put so."""

    default: DefaultPrompt | None
    own_prompt: Parts | None  # a user's prompt, with the default system turn
    without_system: Parts | None  # a user's prompt, where the user wants no system turn
    own_system: Parts | None  # prompt and system text are a user's
    prompt_blanks: Blanks  # what becomes of white space at the ends of these texts
    system_blanks: Blanks
    normalization: Literal["NFC"] = "NFC"


class DecoderProgram(_Model):
    """Sizes that a planner of memory and time asks for."""

    kv_width: Annotated[int, Field(gt=0, lt=1 << 31)]  # of a layer's keys for one position, and of its values
    feed_forward_width: Annotated[int, Field(gt=0, lt=1 << 31)]
    tied_head: bool  # whether the embedding table is the output's, too
    embedding_bytes: Annotated[int, Field(gt=0, lt=1 << 50)]


class Program(_Model):
    """See the module's docstring."""

    inputs: tuple[GraphInput, ...]
    sampler: tuple[SamplerStep, ...] | None = None  # these four are None where there is no decoder
    stop_ids: Ids | None = None
    prompts: PromptProgram | None = None
    decoder: DecoderProgram | None = None


def graph_inputs(spec: FrontEndSpec, *, decodes: bool) -> tuple[GraphInput, ...]:
    """The laws of all graphs' inputs, in the order of the graphs' own."""
    frames = {"patch_frames": spec.patch_frames, "chunk_frames": spec.chunk_frames}
    keys = {"patch_samples": spec.hop_length * spec.patch_frames, "chunk_patches": spec.chunk_patches}
    n_fft = max(spec.n_fft, spec.acoustic.n_fft if spec.acoustic else 0)
    clip = {
        "pads_below": spec.shortest_samples, "padded_to": spec.min_samples, "hop_length": spec.hop_length,
        "edge_frames": -(-n_fft // (2 * spec.hop_length)), "top_db": spec.top_db,
    }  # fmt: skip
    whole, two, fills = spec.pads_last_chunk, spec.acoustic is not None, spec.takes_padding
    rows: tuple[tuple[bool, str, str, str, Mapping[str, int | float]], ...] = (
        (True, "front_end", "waveform", "clip", clip),
        (True, "encoder", "log_mel", "all_chunk_frames" if whole else "chunk_frames", frames),
        (two, "encoder", "acoustic_mel", "all_chunk_frames" if whole else "chunk_frames", frames),
        (not fills, "encoder", "valid_patches", "keys", keys),
        (fills, "encoder", "padded_patches", "first_own_then_whole" if whole else "own_patches", keys),
        (two, "encoder", "kept_patches", "first_own_then_keys", keys),
        (decodes, "projector", "patches", "whole_tokens", {"tokens_patches": spec.tokens_patches}),
    )
    return tuple(
        GraphInput.model_validate({"graph": graph, "input": name, "law": law, "numbers": dict(numbers)})
        for there, graph, name, law, numbers in rows
        if there
    )
