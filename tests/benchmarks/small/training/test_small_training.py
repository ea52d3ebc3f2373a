"""Training on a model of no size: growth is exact, targets follow events, a killed run goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from benchmarks.micro.scenes.synthesise import Event
from benchmarks.micro.training import dataset
from benchmarks.micro.training.micro_model import DecoderSpec, MicroModel
from benchmarks.micro.training.tokenizer import AUDIO, token_id
from benchmarks.micro.training.training_loop import Schedule
from benchmarks.small.conversion.checkpoint import tokenizer_of
from benchmarks.small.scenes.kinds import KINDS
from benchmarks.small.scenes.sentences import Told
from benchmarks.small.training.encoder_stage import (
    TAGS,
    WORDS,
    activity,
    train_encoder,
    word_embeddings,
    word_loss,
)
from benchmarks.small.training.features import Clip, Features
from benchmarks.small.training.growth import grow
from benchmarks.small.training.language_stage import train_language, write_weights
from dasheng_edge.export.variants.midashenglm import MiDashengLMEncoder
from dasheng_edge.export.variants.specs import EncoderSpec
from tests.benchmarks.small.conversion.test_checkpoint import vocabulary

FRAMES = 120


@pytest.fixture(scope="module")
def clips() -> Features:
    """Eight clips of 1.2 s in which a dog barks, or rain falls and then a woman speaks."""
    rng = np.random.default_rng(0)
    dog = Clip((Event("dog bark", 0.0, 1.2),), (Told("dog bark", overlaps=False),))
    turn = Clip(
        (Event("rain", 0.0, 0.6), Event("speech", 0.64, 1.2)),
        (Told("rain", overlaps=False), Told("speech", overlaps=False, woman=True, language="French")),
    )
    frames = rng.normal(-40, 10, (8 * FRAMES, 64)).astype(np.float16)
    return Features((dog, turn) * 4, frames, np.arange(9) * FRAMES)


def tiny() -> MicroModel:
    torch.manual_seed(0)
    model = MicroModel(
        EncoderSpec(embed_dim=32, depth=1, num_heads=2),
        DecoderSpec(32, 32, 2, 4, 2, 272, tie_word_embeddings=True),
    )
    model.audio_token_id = token_id(tokenizer_of(vocabulary(), 4096), AUDIO)
    return model.eval()


def test_a_grown_encoder_computes_the_same() -> None:
    torch.manual_seed(1)
    old, new = (MiDashengLMEncoder(EncoderSpec(dim, 2, dim // 16)).eval() for dim in (32, 48))
    for parameter in old.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    grow(new, old)
    mel = 20 * torch.randn(2, 64, 400) - 40
    with torch.no_grad():
        wanted, got = old(mel, 64_000), new(mel, 64_000)
    torch.testing.assert_close(got[..., :32], wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="expected the same depth and width of heads"):
        grow(MiDashengLMEncoder(EncoderSpec(48, 3, 3)), old)


def test_targets_follow_events(clips: Features) -> None:
    audio = dataset.gather(clips, [1], np.random.default_rng(0), None)
    tags, words = activity([clips.clips[1]], audio)
    assert tags.shape == (1, 30, len(TAGS))
    rain, speech, french = (tags[0, :, TAGS.index(name)] for name in ("rain", "speech", "French"))
    assert rain[:15].all()
    assert not rain[17:].any()
    assert speech[16:].all()
    assert torch.equal(speech, french)
    assert torch.equal(words[0, :, WORDS.index("woman speaking French")], speech)
    assert not tags[0, :, TAGS.index("dog bark")].any()


def test_words_that_are_right_cost_nothing(clips: Features) -> None:
    model, tokenizer = tiny(), tokenizer_of(vocabulary(), 4096)
    table = word_embeddings(model, tokenizer)
    audio = dataset.gather(clips, [0], np.random.default_rng(0), None)
    _, words = activity([clips.clips[0]], audio)
    right = table[WORDS.index("dog bark")].expand(1, 6, -1)
    assert float(word_loss(right, audio, words, table)) == pytest.approx(0, abs=1e-6)
    assert float(word_loss(torch.zeros_like(right), audio, words, table)) == pytest.approx(1)


def trained(clips: Features, work: Path, steps: tuple[int, ...]) -> tuple[MicroModel, PeftModel]:
    """Both stages; more than one number of steps is a run that was stopped and given a longer schedule."""
    model, tokenizer = tiny(), tokenizer_of(vocabulary(), 4096)
    watched = Features(clips.clips[:1], clips.frames[:FRAMES], clips.offsets[:2])
    for count in steps:
        schedule = Schedule(count, 1, 1e-3, save_every=1)
        train_encoder(model, tokenizer, clips, (watched, watched), schedule, work / "encoder.pt")
    wrapped, _ = train_language(model, tokenizer, clips, (watched, watched), Schedule(2, 1, 1e-3), work / "language.pt")
    return model, wrapped


def test_both_stages_train_what_they_should_and_only_that_is_kept(clips: Features, tmp_path: Path) -> None:
    before = tiny().state_dict()
    model, wrapped = trained(clips, tmp_path, (2,))
    assert torch.load(tmp_path / "encoder.pt", weights_only=True)["step"] == 2
    write_weights(wrapped, tmp_path / "audio.safetensors", tmp_path / "adapter")
    kept = load_file(tmp_path / "audio.safetensors")
    for name in ("audio_encoder.blocks.0.mlp.fc1.weight", "audio_projector.net.0.weight"):
        assert kept[name].dtype == torch.float16
        assert not torch.equal(kept[name].float(), before[name])
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 2 * 7 * 2  # A and B of seven matrices in two layers
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float16}
    frozen = "decoder.model.layers.0.mlp.up_proj.base_layer.weight"
    assert torch.equal(model.state_dict()[frozen].float(), before[frozen.replace(".base_layer", "")].bfloat16().float())


def test_a_stopped_encoder_stage_goes_on(clips: Features, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(clips, tmp_path, (1, 2))
    assert "encoder: resumed at step 1" in capsys.readouterr().out


def test_every_kind_has_a_tag() -> None:
    assert TAGS[: len(KINDS)] == tuple(KINDS)
