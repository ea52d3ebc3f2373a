"""Which member of the family a checkpoint is: told by tensors under any names, at true sizes, without any weights."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dasheng_edge.export.checkpoint.checkpoint import ASSUMPTIONS, Checkpoint, open_checkpoint
from dasheng_edge.export.checkpoint.layout import find_layout
from dasheng_edge.export.files.tensor_files import SafetensorsSource
from dasheng_edge.export.variants.midashenglm import MiDashengLMEncoder
from dasheng_edge.export.variants.specs import EncoderSpec
from dasheng_edge.export.variants.table import HEADS_BY_SIZE, VARIANTS
from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointVariantError
from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint
from tests.fixtures.tiny_model import stored_buffers, tiny_shapes

Shapes = dict[str, tuple[int, ...]]
DASHENGS = {"base": (768, 12, 12), "0.6B": (1280, 32, 16), "1.2B": (1536, 40, 24)}  # embed_dim, depth, heads


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A checkpoint with the two-branch encoder and a Qwen3 decoder."""
    return write_tiny_checkpoint(tmp_path / "tokenizer", variant="midashenglm-tokenizer")


def change_tensors(folder: Path, **changed: Any) -> None:
    """Replace tensors by name ("__" for "."); None takes one out."""
    tensors = load_file(folder / "model.safetensors") | {name.replace("__", "."): t for name, t in changed.items()}
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / "model.safetensors")


def change_config(folder: Path, section: str, **values: object) -> None:
    """Replace fields of a section; None takes one out."""
    content = json.loads((folder / "config.json").read_text())
    content[section] = {key: v for key, v in (content[section] | values).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(content))


def write_sparse(folder: Path, shapes: Shapes, config: object, dtype: str) -> Path:
    """A checkpoint whose tensors are holes in the file: the header is true, and no byte of a weight is written."""
    folder.mkdir()
    header, end = {}, 0
    for name, shape in shapes.items():
        kind = "I64" if name.endswith("num_batches_tracked") else dtype
        start, end = end, end + math.prod(shape) * {"I64": 8, "F32": 4, "BF16": 2}[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def encoder_shapes(dim: int, depth: int, heads: int) -> Shapes:
    with torch.device("meta"):
        return {
            name: tuple(t.shape) for name, t in MiDashengLMEncoder(EncoderSpec(dim, depth, heads)).state_dict().items()
        }


def projector_shapes(joined: int, width: int) -> Shapes:
    linears = {"0": (width, joined), "2": (width, width)}
    return {f"net.{i}.weight": shape for i, shape in linears.items()} | {f"net.{i}.bias": (width,) for i in linears}


def decoder_shapes(text_config: Mapping[str, Any]) -> Shapes:
    """What transformers has for a Qwen2 or Qwen3 of these sizes."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    qwen3 = text_config["model_type"] == "qwen3"
    with torch.device("meta"):
        model: Any = Qwen3ForCausalLM(Qwen3Config(**text_config)) if qwen3 else Qwen2ForCausalLM(
            Qwen2Config(**text_config)
        )  # fmt: skip
    tied = text_config["tie_word_embeddings"]
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def wrapped_norm(shapes: Shapes) -> Shapes:
    return {name.replace("init_bn.", "init_bn.1."): shape for name, shape in shapes.items()}


QWEN2_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_06B = {
    "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936,
    "tie_word_embeddings": True, "rope_theta": 1e6, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
}  # fmt: skip


@pytest.mark.parametrize("edition", ["0804", "1021"])
def test_the_7b_at_true_size(tmp_path: Path, edition: str) -> None:
    buffers = edition == "0804"
    shapes = {
        **prefixed("audio_encoder.", encoder_shapes(1280, 32, 16)),
        **(stored_buffers("audio_encoder.") if buffers else {}),
        **prefixed("audio_projector.", projector_shapes(6400, 3584)),
        **prefixed("decoder.", decoder_shapes(QWEN2_7B)),
    }
    config = {
        "model_type": "midashenglm", "subsample_factor": 5, "text_config": QWEN2_7B,
        "audio_encoder_config": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "target_length": 1008},
    }  # fmt: skip
    opened = open_checkpoint(write_sparse(tmp_path / "7b", shapes, config, "F32" if buffers else "BF16"))

    assert len(shapes) == (740 if buffers else 738)
    assert len(opened.sources) + len(opened.ignored) == len(shapes)
    assert len(opened.ignored) == (3 if buffers else 1)  # and the counter of the batch norm
    assert opened.parameters("audio_encoder.") == 630_333_568
    assert opened.parameters("audio_projector.") == 35_789_824
    assert opened.parameters("decoder.") == 7_615_616_512
    assert (opened.variant.name, opened.renames, opened.assumptions) == ("midashenglm", (), ())
    assert opened.encoder == EncoderSpec(1280, 32, 16)
    front_end = opened.front_end
    assert (front_end.tokens_patches, front_end.min_samples, front_end.pads_below) == (5, 3200, 3040)
    assert (front_end.pads_last_chunk, front_end.masks_last_patch) == (False, True)
    decoder = opened.decoder
    assert decoder is not None
    assert (decoder.arch, decoder.heads, decoder.kv_heads, decoder.head_dim) == ("qwen2", 28, 4, 128)
    assert not decoder.tied


def test_the_06b_at_true_size(tmp_path: Path) -> None:
    shapes = {
        **prefixed("audio_encoder.model.", wrapped_norm(encoder_shapes(768, 12, 12))),
        "audio_encoder.patch_embed.weight": (768, 1, 100, 4),
        "audio_encoder.patch_embed.bias": (768,),
        "audio_encoder.norm.weight": (768,),
        "audio_encoder.norm.bias": (768,),
        **prefixed("audio_projector.", projector_shapes(3840, 1024)),
        **prefixed("decoder.", decoder_shapes(QWEN3_06B)),
    }
    config = {"model_type": "midashenglm", "subsample_factor": 5, "text_config": QWEN3_06B, "audio_encoder_config": {}}
    opened = open_checkpoint(write_sparse(tmp_path / "0.6b", shapes, config, "F32"))

    assert opened.variant.name == "midashenglm-tokenizer"
    assert opened.parameters("audio_encoder.acoustic.") == 309_504
    assert opened.parameters("audio_encoder.") == 85_447_808 + 309_504
    assert opened.parameters("audio_projector.") == 4_982_784
    assert opened.parameters("decoder.") == 596_049_920
    assert opened.parameters("") == 686_790_016
    assert opened.encoder == EncoderSpec(768, 12, 12)
    assert opened.front_end.acoustic is not None
    assert (opened.front_end.n_fft, opened.front_end.n_mels) == (512, 64)
    assert (opened.front_end.acoustic.n_mels, opened.front_end.acoustic.n_fft) == (100, 1024)
    decoder = opened.decoder
    assert decoder is not None
    assert (decoder.arch, decoder.head_dim, decoder.heads, decoder.kv_heads) == ("qwen3", 128, 16, 8)
    assert (decoder.tied, decoder.rope_theta, decoder.context_length) == (True, 1e6, 40960)
    assert any("attention heads as the published" in sentence for sentence in opened.assumptions)


@pytest.mark.parametrize("size", DASHENGS)
def test_dasheng_at_true_size(tmp_path: Path, size: str) -> None:
    dim, depth, heads = DASHENGS[size]
    shapes = prefixed("encoder.", wrapped_norm(encoder_shapes(dim, depth, heads)))
    opened = open_checkpoint(write_sparse(tmp_path / size, shapes, {"model_type": "dasheng"}, "F32"))

    # A block has 12 d^2 + 13 d values; patches 256 d + d, positions 253 d, the last norm 2 d, the batch norm 128.
    assert opened.parameters("") == depth * (12 * dim**2 + 13 * dim) + 512 * dim + 128
    assert opened.parameters("audio_encoder.") == {
        "base": 85_447_808, "0.6B": 630_333_568, "1.2B": 1_134_047_360,
    }[size]  # fmt: skip
    assert (opened.variant.name, opened.decoder, opened.encoder.num_heads) == ("dasheng", None, heads)
    front_end = opened.front_end
    assert (front_end.pads_last_chunk, front_end.masks_last_patch) == (False, False)
    assert (front_end.tokens_patches, front_end.min_samples, front_end.pads_below) == (1, 640, 480)
    assert any("dasheng 0.0.8" in sentence for sentence in opened.assumptions)
    assert HEADS_BY_SIZE[dim, depth] == heads


PARTS = {  # of the tiny checkpoint: where its parts are stored
    "audio_encoder.model.": "encoder", "audio_encoder.patch_embed.": "convolution", "audio_encoder.norm.": "norm",
    "audio_projector.": "projector", "decoder.model.": "decoder",
}  # fmt: skip
prefixes = st.lists(st.sampled_from(["a", "encoder", "model", "decoder", "acoustic", "x1"]), max_size=3).map(
    lambda parts: "".join(f"{part}." for part in parts)
)


@given(st.fixed_dictionaries(dict.fromkeys(PARTS.values(), prefixes)), st.randoms(use_true_random=False))
def test_names_are_matched_by_their_ends(places: dict[str, str], shuffle: random.Random) -> None:
    """Wherever the modules hang, and in whatever order they are stored, the same model is found."""
    shapes = tiny_shapes("midashenglm-tokenizer")
    canonical = {source.name: name for name, source in _layout(shapes).sources.items()}
    moved = {}
    for name in shapes:
        if name not in canonical:
            continue
        stored = next(prefix for prefix in PARTS if name.startswith(prefix))
        kept = {"convolution": "patch_embed.", "norm": "norm."}.get(PARTS[stored], "")
        moved[name] = places[PARTS[stored]] + kept + name.removeprefix(stored)
    assume(len(set(moved.values())) == len(moved))  # else two tensors have one name
    order = list(moved)
    shuffle.shuffle(order)
    found = _layout({moved[name]: shapes[name] for name in order})

    assert {source.name: name for name, source in found.sources.items()} == {moved[n]: canonical[n] for n in order}
    assert (found.variant.name, found.arch) == ("midashenglm-tokenizer", "qwen3")


def _layout(shapes: Shapes) -> Any:
    sources = {name: SafetensorsSource(Path("none"), name, "F32", shape, 0) for name, shape in shapes.items()}
    return find_layout("a checkpoint", {}, sources)


def test_what_no_rule_knows_is_listed(tokenizer: Path) -> None:
    change_tensors(tokenizer, audio_encoder__adaptor__weight=torch.zeros(4), audio_encoder__norm__weight=None)
    with pytest.raises(CheckpointVariantError) as refused:
        open_checkpoint(tokenizer)
    assert "audio_encoder.acoustic.norm.weight" in str(refused.value)
    assert "2 are unexpected (audio_encoder.adaptor.weight, audio_encoder.norm.bias)" in str(refused.value)


def test_a_wrong_shape_is_named_as_it_is_stored(tokenizer: Path) -> None:
    change_tensors(tokenizer, audio_encoder__model__blocks__0__norm1__bias=torch.zeros(63))
    with pytest.raises(CheckpointVariantError, match=r"norm1\.bias \(stored as audio_encoder\.model\.blocks\.0\..*63"):
        open_checkpoint(tokenizer)


def test_a_tokenizer_without_a_language_model_is_refused(tokenizer: Path) -> None:
    change_tensors(tokenizer, decoder__model__embed_tokens__weight=None)
    with pytest.raises(CheckpointVariantError, match="a DashengTokenizer without a language model"):
        open_checkpoint(tokenizer)


def test_every_assumption_can_apply(tokenizer: Path, tmp_path: Path) -> None:
    def applying(opened: Checkpoint) -> set[str]:
        return set(opened.assumed)

    seen = applying(open_checkpoint(tokenizer))
    change_tensors(tokenizer, audio_encoder__front_end__mel_spec__mel_scale__fb=None)
    seen |= applying(open_checkpoint(tokenizer))
    change_config(tokenizer, "audio_encoder_config", n_fft=2048)
    change_config(tokenizer, "text_config", tie_word_embeddings=None)
    opened = open_checkpoint(tokenizer)
    seen |= applying(opened)
    sparse = write_sparse(tmp_path / "base", encoder_shapes(768, 12, 12), {}, "F32")
    seen |= applying(open_checkpoint(sparse))

    variants = [VARIANTS[name].code.assumptions for name in ("midashenglm-tokenizer", "dasheng")]
    assert seen == {entry.key for entries in (ASSUMPTIONS, *variants) for entry in entries}
    assert len(opened.assumptions) == len(opened.assumed)
    assert not open_checkpoint(write_tiny_checkpoint(tmp_path / "plain")).assumptions


@pytest.mark.parametrize(
    ("stated", "stored_bins", "n_fft"),
    [
        ({}, 513, 1024), ({}, 1025, 2048), ({}, None, 1024), ({"n_fft": 512}, None, 1024),
        ({"n_fft": 2048}, None, 2048), ({"n_fft": 512}, 257, 512), ({"n_fft_patch": 800}, None, 800),
    ],
)  # fmt: skip
def test_the_acoustic_spectrogram_is_read_where_it_is_stated(
    tokenizer: Path, stated: dict[str, object], stored_bins: int | None, n_fft: int
) -> None:
    change_config(tokenizer, "audio_encoder_config", **stated)
    bank = None if stored_bins is None else torch.zeros(stored_bins, 20)
    window = None if stored_bins is None else torch.zeros(2 * stored_bins - 2)
    change_tensors(
        tokenizer,
        audio_encoder__front_end__mel_spec__mel_scale__fb=bank,
        audio_encoder__front_end__mel_spec__spectrogram__window=window,
    )
    opened = open_checkpoint(tokenizer)
    acoustic = opened.front_end.acoustic

    assert acoustic is not None
    assert (acoustic.n_mels, acoustic.n_fft, acoustic.win_length) == (20, n_fft, n_fft)
    assert (opened.front_end.n_fft, opened.front_end.win_length) == (512, 512)
    assert ("acoustic n_fft" in opened.assumed) == (stored_bins is None and stated in ({}, {"n_fft": 512}))


def test_an_acoustic_branch_that_does_not_fit_is_refused(tokenizer: Path) -> None:
    change_config(tokenizer, "audio_encoder_config", n_mels_patch=100)
    with pytest.raises(CheckpointFileError, match=r"n_mels_patch = 100, but .* have 20"):
        open_checkpoint(tokenizer)
    change_tensors(tokenizer, audio_encoder__patch_embed__weight=torch.zeros(64, 1, 20, 8))
    with pytest.raises(CheckpointVariantError, match="acoustic patches are 8 frames wide, the semantic ones 4"):
        open_checkpoint(tokenizer)


def test_heads_that_nothing_tells_are_asked_for(tokenizer: Path) -> None:
    change_config(tokenizer, "audio_encoder_config", num_heads=None)
    with pytest.raises(CheckpointFileError, match=r"does not say num_heads, and no published encoder has embed_dim 64"):
        open_checkpoint(tokenizer)


@pytest.mark.parametrize(
    ("said", "stored", "tied"),
    [(True, "equal", True), (True, "other", False), (False, "equal", False), (None, "absent", True)],
)
def test_a_head_is_tied_where_it_is_the_embedding(tokenizer: Path, said: bool | None, stored: str, tied: bool) -> None:
    embedding = load_file(tokenizer / "model.safetensors")["decoder.model.embed_tokens.weight"]
    head = {"equal": embedding.clone(), "other": embedding + 1, "absent": None}[stored]
    change_tensors(tokenizer, decoder__lm_head__weight=head)
    change_config(tokenizer, "text_config", tie_word_embeddings=said)
    opened = open_checkpoint(tokenizer)

    assert opened.decoder is not None
    assert opened.decoder.tied == tied
    assert ("decoder.lm_head.weight" in opened.sources) == (not tied)
    assert opened.parameters("decoder.lm_head.") == (0 if tied else embedding.numel())


def test_a_head_that_is_missing_is_refused(tokenizer: Path) -> None:
    change_config(tokenizer, "text_config", tie_word_embeddings=False)
    with pytest.raises(CheckpointVariantError, match=r"no lm_head\.weight, and .* says tie_word_embeddings false"):
        open_checkpoint(tokenizer)


def test_what_transformers_5_writes_is_read(tokenizer: Path) -> None:
    change_config(
        tokenizer, "text_config", rope_theta=None, rope_parameters={"rope_theta": 2e6, "rope_type": "default"},
        dtype="bfloat16", layer_types=["full_attention"] * 2,
    )  # fmt: skip
    content = json.loads((tokenizer / "config.json").read_text())
    content["dtype"] = content.pop("torch_dtype")
    (tokenizer / "config.json").write_text(json.dumps(content))
    opened = open_checkpoint(tokenizer)

    assert opened.decoder is not None
    assert opened.decoder.rope_theta == 2e6
    change_config(tokenizer, "text_config", layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(CheckpointVariantError, match=r"layer_types \['sliding_attention'\]"):
        open_checkpoint(tokenizer)


def test_a_decoder_that_states_other_heads_is_refused(tokenizer: Path) -> None:
    change_config(tokenizer, "text_config", num_attention_heads=16)
    with pytest.raises(CheckpointFileError, match=r"num_attention_heads = 16, but .* have 8"):
        open_checkpoint(tokenizer)
    change_tensors(
        tokenizer,
        **{f"decoder__model__layers__0__self_attn__{name}_norm__weight": torch.ones(48) for name in ("q", "k")},
    )
    with pytest.raises(CheckpointFileError, match=r"10 attention heads of width 48 do not fit q_proj \(512 rows\)"):
        open_checkpoint(tokenizer)
