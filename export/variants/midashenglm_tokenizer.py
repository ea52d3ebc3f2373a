"""MiDashengLM with a DashengTokenizer (arXiv 2602.23765): a second spectrogram and a branch for how it sounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor, nn

from dasheng_edge.export.files.json_files import StatedFields, checked
from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec
from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointVariantError

from . import midashenglm
from .modules import Chunk, PatchConvolution
from .specs import EncoderSpec
from .stated import FIX, EncoderConfig, Length, Stated, agree, front_end_spec
from .variant import Assumption, Code, Feed, Layout, Read, Renames, StoredTensors, canonical_name

_CONVOLUTION = "patch_embed.weight"  # of the acoustic branch
_CODE = "the code of mispeech/dashengtokenizer does so"


class AcousticBranch(nn.Module):
    """Acoustic mel [batch, n_mels, frames] -> patches [batch, frames // 4, dim], each seen for itself."""

    def __init__(self, dim: int, n_mels: int, patch_frames: int) -> None:
        super().__init__()
        self.patch_embed = PatchConvolution(dim, n_mels, patch_frames)
        self.norm = nn.LayerNorm(dim, eps=1e-5)  # unlike the 1e-6 of the other norms

    def forward(self, acoustic: Tensor) -> Tensor:
        out: Tensor = self.norm(self.patch_embed(acoustic))
        return out


class DashengTokenizerEncoder(midashenglm.MiDashengLMEncoder):
    """A Dasheng encoder for what the sound means, plus one convolution for how it sounds.

    As published for one clip: a patch beyond the first chunk that may not be attended to (the last one, if the
    clip ends within it) has its semantic part zeroed behind the last norm; the same patch of the first chunk
    keeps it. A query without keys attends to nothing, as in the published softmax, whose NaN become 0.
    """

    def __init__(self, spec: EncoderSpec, front_end: FrontEndSpec | None = None) -> None:
        super().__init__(spec, front_end)
        assert self.front_end.acoustic is not None
        self.acoustic = AcousticBranch(spec.embed_dim, self.front_end.acoustic.n_mels, self.front_end.patch_frames)

    def lengths(self, start: int, stop: int, samples: int | None) -> dict[str, int]:
        """Also `kept_patches`: the leading patches that keep their semantic part."""
        lengths = super().lengths(start, stop, samples)
        return {**lengths, "kept_patches": lengths.get("valid_patches", stop - start) if start else stop - start}

    def finish(self, x: Tensor, chunk: Chunk) -> Tensor:
        semantic = super().finish(x, chunk)
        keeps = torch.arange(semantic.shape[1], device=x.device) < chunk["kept_patches"][:, None]
        semantic = semantic * keeps[..., None].to(semantic.dtype)
        out: Tensor = semantic + self.acoustic(chunk["acoustic_mel"])
        return out


def examples(spec: FrontEndSpec) -> list[Feed]:
    """Those of MiDashengLM, with what is kept in a first chunk, and in a later one."""
    cases = midashenglm.examples(spec)
    return [{**case, "kept_patches": _kept(case, spec)} for case in cases]


def _kept(case: Feed, spec: FrontEndSpec) -> Any:
    valid, frames = case["valid_patches"], case["log_mel"].shape[-1]
    return np.where(valid % 2, valid, frames // spec.patch_frames)


def branch(stored: StoredTensors, renames: Renames) -> Mapping[str, str]:
    """The second convolution, and its norm, which may hang elsewhere."""
    acoustic = stored.prefix(_CONVOLUTION)
    rules = {f"{acoustic}patch_embed": "audio_encoder.acoustic.patch_embed"}
    if norm := _acoustic_norm(stored, acoustic, renames):
        rules[norm] = "audio_encoder.acoustic.norm"
    return rules


def _acoustic_norm(stored: StoredTensors, acoustic: str, renames: Renames) -> str | None:
    """The norm that is neither the encoder's nor the decoder's; of several, the one beside the convolution."""
    dim = stored.sources[acoustic + _CONVOLUTION].shape[0]
    norms = [
        name.removesuffix(".weight")
        for name, source in stored.sources.items()
        if name.endswith("norm.weight") and source.shape == (dim,) and canonical_name(renames, name) is None
    ]
    beside = f"{acoustic}norm"
    return beside if beside in norms else norms[0] if len(norms) == 1 else None


def read(stated: Stated, layout: Layout) -> Read:
    """As MiDashengLM's; what it says of windows and bands may be meant for the second spectrogram."""
    section = layout.variant.section
    audio, sizes = stated.section(section), layout.encoder_sizes()
    checked(EncoderConfig, f"{stated.source}: {section}", audio, FIX)
    joined = midashenglm.read_projector(stated, layout)
    acoustic, assumed = _acoustic(stated, layout)
    implied = {key: sizes[key] for key in ("embed_dim", "depth", "mlp_ratio", "target_length")}
    implied |= {"n_mels_patch": acoustic.n_mels, "patch_stride_time": sizes["patch_stride"][1]}
    audio = {key: value for key, value in audio.items() if key not in ("n_fft", "win_length")}
    agree(stated.source, section, audio, {**implied, **layout.variant.required})
    known = checked(EncoderConfig, f"{stated.source}: {section}", audio, FIX)
    return known.num_heads, front_end_spec(stated.source, known, sizes, joined, acoustic), assumed


class AcousticConfig(StatedFields):
    """The fields of `audio_encoder_config` that say how a DashengTokenizer's second spectrogram is made, if any do."""

    n_fft_patch: Length | None = None
    win_length_patch: Length | None = None
    f_min_patch: NonNegativeFloat | None = None
    f_max_patch: Annotated[float, Field(gt=0, le=8000)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> AcousticConfig:
        low, high = self.f_min_patch or 0.0, self.f_max_patch or 8000.0
        if low >= high:
            raise ValueError(f"expected f_min_patch {low:g} < f_max_patch {high:g}")
        return self


def _acoustic(stated: Stated, layout: Layout) -> tuple[AcousticSpec, tuple[str, ...]]:
    """The second spectrogram: bands from the convolution, windows from a stored filterbank or config.json."""
    section = layout.variant.section
    where = f"{stated.source}: {section}"
    known = checked(AcousticConfig, where, stated.section(section), FIX)
    kernel = layout.sources["audio_encoder.acoustic.patch_embed.weight"].shape
    width = layout.sources["audio_encoder.patch_embed.proj.weight"].shape[-1]
    if kernel[-1] != width:
        raise CheckpointVariantError(
            f"{stated.where}: the acoustic patches are {kernel[-1]} frames wide, the semantic ones {width}; "
            "expected the same width, since they are added"
        )
    stored = _stored_windows(layout, kernel[2])
    agree(stated.source, section, known.model_dump(exclude_none=True), stored)
    n_fft, window, assumed = _acoustic_windows(where, stated.section(section), known, stored)
    if known.f_min_patch is None and known.f_max_patch is None:
        assumed = ("acoustic range", *assumed)
    spec = {
        "n_mels": kernel[2], "n_fft": n_fft, "win_length": window,
        "f_min_hz": known.f_min_patch or 0.0, "f_max_hz": known.f_max_patch or 8000.0,
    }  # fmt: skip
    return checked(AcousticSpec, f"{stated.where}: the acoustic spectrogram", spec, FIX), assumed


def _acoustic_windows(
    where: str, audio: Mapping[str, Any], known: AcousticConfig, stored: Mapping[str, int]
) -> tuple[int, int, tuple[str, ...]]:
    """n_fft and window of the acoustic spectrogram, and the keys of the assumptions that they rest on.

    `n_fft` and `win_length` may be meant for either spectrogram, and are a pair.
    """
    common, semantic = checked(EncoderConfig, where, audio, FIX), EncoderConfig()
    n_fft = known.n_fft_patch or stored.get("n_fft_patch")
    window = known.win_length_patch or stored.get("win_length_patch")
    assumed: tuple[str, ...] = ()
    if n_fft is None and common.n_fft != semantic.n_fft:
        n_fft, assumed = common.n_fft, ("n_fft is acoustic",)
        if window is None and "win_length" in common.model_fields_set:
            window = common.win_length
    elif n_fft is None:
        n_fft, assumed = AcousticSpec(n_mels=1).n_fft, ("acoustic n_fft",)
    window = n_fft if window is None else window
    for field, said, either in (
        ("n_fft", common.n_fft, (semantic.n_fft, n_fft)),
        ("win_length", common.win_length, (semantic.win_length, window)),
    ):
        if said not in either:
            raise CheckpointFileError(
                f"{where}: {field} is {said}, expected {either[0]}, which the log-mel has, or {either[1]}, which the "
                f"acoustic mel has (as {field}_patch or a stored filterbank says it); {FIX}"
            )
    return n_fft, window, assumed


def _stored_windows(layout: Layout, mels: int) -> dict[str, int]:
    """Fields of the acoustic spectrogram's windows, where a checkpoint stores its filterbank [bins, mels].

    The semantic one's lies beside the semantic encoder, whose patch convolution is called `proj`.
    """
    semantic = layout.sources["audio_encoder.patch_embed.proj.weight"].name.removesuffix("patch_embed.proj.weight")
    own = [
        source
        for name, source in layout.ignored.items()
        if "front_end" in name.split(".") and not source.name.startswith(f"{semantic}front_end.0.")
    ]
    banks = [source.shape for source in own if len(source.shape) == 2 and source.shape[1] == mels]
    windows = [source.shape for source in own if len(source.shape) == 1 and source.name.endswith("window")]
    if len(banks) != 1:
        return {}
    stored = {"n_fft_patch": 2 * (banks[0][0] - 1)}
    return stored | ({"win_length_patch": windows[0][0]} if len(windows) == 1 else {})


_ASSUMPTIONS = (
    Assumption(
        "tokenizer names", "the encoder's modules are called as in DashengTokenizer's code, under some prefix",
        "all encoder tensors", "every tensor must be matched, by the end of its name and by its shape", always=True,
    ),
    Assumption(
        "tokenizer mask", "patches from floor(samples / 640) on are no keys of the attention, as in the 7B",
        "the last patch of a clip", "the frame mask in the code of mispeech/dashengtokenizer comes to the same",
        always=True,
    ),
    Assumption(
        "tokenizer zeroing", "behind the first chunk, a last patch that is no key has its acoustic part only",
        "the last patch of some clips longer than 10.08 s", _CODE, always=True,
    ),
    Assumption(
        "acoustic mels", "the acoustic branch has as many mel bands as its convolution has rows",
        "the second spectrogram", "the tensor's shape", always=True,
    ),
    Assumption(
        "acoustic spectrum", "the acoustic spectrogram is ln(max(mel of magnitudes, 1e-7)), HTK, not normalised",
        "the second spectrogram", _CODE, always=True,
    ),
    Assumption(
        "acoustic n_fft", "the acoustic spectrogram has n_fft and window 1024",
        "the second spectrogram", f"neither config.json nor a stored filterbank says it; {_CODE}",
    ),
    Assumption(
        "n_fft is acoustic", "n_fft in audio_encoder_config is the acoustic spectrogram's, the other one has 512",
        "both spectrograms", "the 512 of the other is fixed in the code of mispeech/dashengtokenizer",
    ),
    Assumption(
        "acoustic range", "the acoustic mel bands lie between 0 and 8000 Hz",
        "the second spectrogram", "torchaudio's defaults, which the code of mispeech/dashengtokenizer leaves",
    ),
    Assumption(
        "acoustic norm", "the acoustic branch's layer norm has epsilon 1e-5",
        "the acoustic branch", "PyTorch's default, which the code of mispeech/dashengtokenizer leaves", always=True,
    ),
    Assumption(
        "audio ids", "the audio tokens have the ids that tokenizer.json gives their texts",
        "the prompt", "<|AUDIO|>, <|audio_bos|> and <|audio_eos|> are texts of the 7B's tokens", always=True,
    ),
)  # fmt: skip

CODE = Code(DashengTokenizerEncoder, read, examples, branch, _ASSUMPTIONS)
