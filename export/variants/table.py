"""The table of the family: all that differs between its members, and the models that are published.

A further member takes a row here, a file beside this one for what it computes and reads, and a test.

Sources of the sizes: MiDashengLM-7B (editions 0804 and 1021), its public loaders in vLLM and SGLang; its parameters add
up to what peft prints for it, 8,281,739,904 without adapters. Dasheng, the Hugging Face conversion of the original
checkpoints. MiDashengLM-0.6B, DashengTokenizer's public code and Qwen3-0.6B.
"""

from __future__ import annotations

from collections.abc import Mapping

from dasheng_edge.runtime.bundle.manifest import Sampling

from .specs import DecoderSpec, EncoderSpec, PromptDefaults, Published
from .variant import Variant

# What a caption is asked for in the published evaluation of MiDashengLM (evaluate/prompt.csv).
CAPTION_PROMPT = "Write an audio caption describing the sound"
README_PROMPT = "Caption the audio."

_REQUIRED = {"qkv_bias": True, "init_values": None, "input_channels": 1, "sample_rate": 16000, "center": True}
_WAVEFORM_REQUIRED = {"sampling_rate": 16000, "do_normalize": False}  # of a feature extractor that takes samples
_QWEN2_7B = DecoderSpec("qwen2", 3584, 18944, 28, 28, 4, 128, 152064, 32768, 1e-6, 1e6)
_QWEN3_600M = DecoderSpec("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, 40960, 1e-6, 1e6, tied=True)
_PARAMETERS_7B = {"encoder": 630_333_568, "projector": 35_789_824, "decoder": 7_615_616_512}

# Order, system turn and prompt of the published models are those of the usage example in their README
# (github.com/xiaomi-research/dasheng-lm): text before audio. A system turn was in it until 2025-11-04, two weeks after
# 1021 came out. Those who trained a model further had the audio first: mdl-toolkit builds its conversations so, and
# without a system turn unless told; ms-swift puts the audio of a question that does not place it before the question.
TRAINED_FURTHER: Mapping[str, PromptDefaults] = {
    "fine-tuned": PromptDefaults(CAPTION_PROMPT, audio_first=True, source="as mdl-toolkit trains adapters"),
    "own": PromptDefaults(CAPTION_PROMPT, audio_first=True, source="as mdl-toolkit trains models"),
}

# The last row of which a checkpoint has a mark is its own; a checkpoint without any is a Dasheng.
_ROWS = (
    Variant(
        "midashenglm",
        marks=(("embed_tokens.weight", None), ("net.0.weight", None)),
        encoder_name="Dasheng",
        module="midashenglm",
        inputs=("log_mel", "valid_patches"),
        required=_REQUIRED,
        extractor_required=_WAVEFORM_REQUIRED,
        published=(
            Published(
                "7b-1021", ("mispeech/midashenglm-7b-1021-bf16", "mispeech/midashenglm-7b-1021-fp32"),
                EncoderSpec(1280, 32, 16), _PARAMETERS_7B, _QWEN2_7B, dtype="bf16",
                prompt=PromptDefaults(
                    README_PROMPT, audio_first=False, source="MiDashengLM's README since 2025-11-04"
                ),
            ),
            Published(
                "7b-0804", ("mispeech/midashenglm-7b-bf16", "mispeech/midashenglm-7b-0804-fp32"),
                EncoderSpec(1280, 32, 16), _PARAMETERS_7B, _QWEN2_7B, dtype="bf16", mel_buffers=True,
                prompt=PromptDefaults(
                    README_PROMPT, audio_first=False, source="MiDashengLM's README before 2025-11-04",
                    system="You are a helpful language and speech assistant.",
                ),
            ),
        ),
    ),
    Variant(
        "midashenglm-tokenizer",
        marks=(("patch_embed.weight", 4),),  # without `.proj`: no other encoder has one
        encoder_name="DashengTokenizer",
        module="midashenglm_tokenizer",
        inputs=("log_mel", "acoustic_mel", "valid_patches", "kept_patches"),
        required=_REQUIRED,
        extractor_required=_WAVEFORM_REQUIRED,
        sizing={"audio_encoder.acoustic.patch_embed.weight": 4},  # [dim, 1, mels, patch frames]
        published=(
            Published(
                "0.6b", ("mispeech/midashenglm-0.6b-fp32",), EncoderSpec(768, 12, 12),
                {"encoder": 85_447_808 + 309_504, "projector": 4_982_784, "decoder": 596_049_920},
                _QWEN3_600M, acoustic_mels=100, mel_buffers=True,
                prompt=PromptDefaults(
                    README_PROMPT, audio_first=False,
                    source="MiDashengLM's README since 2026-04-21 and the card of the 0.6B",
                    # As the example in its card samples; its repetition penalty is not known here.
                    sampling=Sampling(temperature=1.0, top_k=50, top_p=0.8),
                ),
            ),
        ),
    ),
    Variant(
        "dasheng",
        marks=(),
        encoder_name="Dasheng",
        module="dasheng",
        inputs=("log_mel", "padded_patches"),
        decodes=False,
        section="encoder_kwargs",
        required={**_REQUIRED, "top_db": 120},
        extractor_required={**_WAVEFORM_REQUIRED, "center": True, "top_db": 120},
        ignored=("decoder.",),  # what it was trained with, a masked autoencoder's
        published=(
            Published(
                "dasheng-base", ("mispeech/dasheng-base",), EncoderSpec(768, 12, 12), {"encoder": 85_447_808}
            ),
            Published(
                "dasheng-0.6b", ("mispeech/dasheng-0.6B",), EncoderSpec(1280, 32, 16), {"encoder": 630_333_568}
            ),
            Published(
                "dasheng-1.2b", ("mispeech/dasheng-1.2B",), EncoderSpec(1536, 40, 24), {"encoder": 1_134_047_360}
            ),
        ),
    ),
)  # fmt: skip
VARIANTS: Mapping[str, Variant] = {variant.name: variant for variant in _ROWS}
PUBLISHED: Mapping[str, Published] = {model.name: model for variant in _ROWS for model in variant.published}
EXPORTABLE = tuple(name for model in PUBLISHED.values() for name in model.repositories)
# What the published encoders have, by (embed_dim, depth). The original class's default, 8, is none of theirs: its
# loaders pass the heads.
HEADS_BY_SIZE = {
    (model.encoder.embed_dim, model.encoder.depth): model.encoder.num_heads for model in PUBLISHED.values()
}
