"""MiDashengLM-micro: tokenizer, batches, model, training loop, evaluation and the committed folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from benchmarks.micro.scenes.spoken_digits import DigitClip
from benchmarks.micro.scenes.synthesise import KINDS, named_kinds, plan_scene, render_scene
from benchmarks.micro.training import (
    adapter_training,
    base_training,
    dataset,
    evaluate,
    features,
    train,
    training_loop,
    writing,
)
from benchmarks.micro.training.features import Clip, Features
from benchmarks.micro.training.micro_model import DecoderSpec, MicroModel, load_checkpoint, save_checkpoint
from benchmarks.micro.training.tokenizer import (
    AUDIO,
    CONTROL_TOKENS,
    IM_END,
    prompt_ids,
    save_tokenizer,
    token_id,
    train_tokenizer,
)
from benchmarks.places import MICRO
from dasheng_edge.export.variants.specs import EncoderSpec

if TYPE_CHECKING:
    from transformers import Qwen2TokenizerFast

CHECKPOINT, ADAPTER = MICRO / "checkpoint", MICRO / "adapter"
TEXTS = ["rain falls while a dog barks", "a dog barks, followed by rain falling", *dataset.PROMPTS] * 4
CLIP = Clip(("a dog barks", "there is a dog barking"), "dog bark", "none", (("dog bark", 0.0, 0.5),), "4 0 7")


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2TokenizerFast:
    return train_tokenizer(TEXTS, 400)


@pytest.fixture
def model(tokenizer: Qwen2TokenizerFast) -> MicroModel:
    torch.manual_seed(0)
    decoder = DecoderSpec(hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=400)
    model = MicroModel(EncoderSpec(embed_dim=16, depth=1, num_heads=2), decoder).eval()
    model.audio_token_id = token_id(tokenizer, AUDIO)
    return model


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads wait for each other on every small product where another program keeps a core busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def some_features(lengths: tuple[int, ...] = (60, 101, 80)) -> Features:
    frames = np.random.default_rng(0).uniform(-60, 0, (sum(lengths), 64)).astype(np.float16)
    return Features((CLIP,) * len(lengths), frames, np.concatenate([[0], np.cumsum(lengths)]))


# Tokenizer


@given(text=st.text(max_size=40))
@settings(max_examples=50, deadline=None)
def test_any_text_survives_the_tokenizer(tokenizer: Qwen2TokenizerFast, text: str) -> None:
    expected = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    plain = tokenizer.encode(text, split_special_tokens=True)
    assert tokenizer.decode(plain, clean_up_tokenization_spaces=False) == expected


def test_control_tokens_follow_the_vocabulary(tokenizer: Qwen2TokenizerFast) -> None:
    ids = tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS))
    assert ids == list(range(len(tokenizer) - len(CONTROL_TOKENS), len(tokenizer)))
    assert tokenizer.tokenize("4 0 7") == ["4", "Ġ", "0", "Ġ", "7"]


def test_saved_tokenizer_is_the_same_for_transformers(tokenizer: Qwen2TokenizerFast, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(str(tmp_path))
    text = "<|im_start|>user\nrain über 中<|AUDIO|><|im_end|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (again.eos_token, again.audio_token) == (IM_END, AUDIO)
    names = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"}
    assert names | {"added_tokens.json", "chat_template.jinja"} <= {path.name for path in tmp_path.iterdir()}


def test_prompt_holds_one_id_per_audio_token(tokenizer: Qwen2TokenizerFast) -> None:
    text = tokenizer.decode(prompt_ids(tokenizer, "What?", 3))
    assert text == (
        "<|im_start|>user\n<|audio_bos|><|AUDIO|><|AUDIO|><|AUDIO|><|audio_eos|>What?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_template_takes_system_turns_and_plain_strings(tokenizer: Qwen2TokenizerFast) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"


# Batches


def test_an_epoch_holds_each_clip_once_within_the_budget() -> None:
    lengths = np.random.default_rng(1).integers(100, 3000, 3000)
    parts = dataset.batches(lengths, 9000, 16, seed=0, epoch=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(3000))
    assert all(len(part) <= 16 and (len(part) == 1 or len(part) * lengths[part].max() <= 9000) for part in parts)
    assert [p.tolist() for p in parts] == [p.tolist() for p in dataset.batches(lengths, 9000, 16, seed=0, epoch=0)]


@pytest.mark.parametrize("frames", [20, 23, 24, 1008, 1009, 1021])
def test_batch_counts_follow_the_front_end(frames: int) -> None:
    audio = dataset.gather(some_features((frames,)), [0], np.random.default_rng(0), None)
    samples = (frames - 1) * 160 + 80
    counts = int(audio.patches[0]), int(audio.valid[0]), int(audio.tokens[0])
    spec = dataset.SPEC
    assert counts == (spec.patches_of(samples), spec.valid_patches_of(samples), spec.tokens_of(samples))


def test_augmentation_keeps_the_floor_and_scales_the_length() -> None:
    audio = dataset.gather(some_features(), [0, 1, 2], np.random.default_rng(3), dataset.FOR_DIGITS)
    assert float(audio.log_mel.min()) >= dataset.FLOOR_DB
    assert torch.isfinite(audio.log_mel).all()
    assert audio.frames.tolist() == [int(n * s) for n, s in zip((60, 101, 80), audio.scale.double(), strict=True)]


def test_only_the_answer_is_a_target(tokenizer: Qwen2TokenizerFast) -> None:
    audio = dataset.gather(some_features(), [0, 1, 2], np.random.default_rng(0), None)
    asked = dataset.questions(tokenizer, audio, [(1, "What?", "rain falls"), (0, "What?", "a dog")])
    said = [tokenizer.decode(row[row != dataset.IGNORED]) for row in asked.targets]
    assert said == ["rain falls<|im_end|>", "a dog<|im_end|>"]
    assert asked.ids[0].tolist().count(token_id(tokenizer, AUDIO)) == 5  # 101 frames
    assert asked.clips == (1, 0)


def test_activity_marks_the_patches_of_an_event() -> None:
    audio = dataset.gather(some_features((100,)), [0], np.random.default_rng(0), None)
    active = dataset.activity([CLIP], audio)
    assert active.shape == (1, 25, len(KINDS))
    assert active[0, :, KINDS.index("dog bark")].sum() == 13  # half a second at 25 Hz, rounded up
    assert active.sum() == 13


# Model


@pytest.mark.parametrize("frames", [20, 23, 1008, 1011, 1021, 2018])
def test_batched_encoding_equals_the_reference(model: MicroModel, frames: int) -> None:
    log_mel = torch.randn(2, 64, 2020)
    with torch.no_grad():
        reference = model.audio_encoder(log_mel[:1, :, :frames], (frames - 1) * 160)
        batched = model.encode(log_mel, torch.tensor([(frames - 1) // 4, 504]))
    torch.testing.assert_close(batched[:1, : frames // 4], reference, atol=1e-5, rtol=1e-4)


def test_checkpoint_round_trip_in_bf16(model: MicroModel, tokenizer: Qwen2TokenizerFast, tmp_path: Path) -> None:
    save_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    again, _ = load_checkpoint(tmp_path / "checkpoint")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.to(torch.bfloat16).to(tensor.dtype)), name
    assert again.audio_token_id == model.audio_token_id
    assert not (tmp_path / "checkpoint.part").exists()


def test_greedy_answer_equals_transformers_generate(model: MicroModel, tokenizer: Qwen2TokenizerFast) -> None:
    log_mel, ids = torch.randn(1, 64, 81), prompt_ids(tokenizer, "What?", 4)
    with torch.no_grad():
        embeddings = model.splice(torch.tensor([ids]), model.audio_projector(model.audio_encoder(log_mel, 12800))[0])
        expected = model.decoder.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=-1,
        )
    assert model.answer(log_mel, 12800, ids, [-1], 8) == expected[0].tolist()


def test_losses_are_finite_and_reach_every_part(model: MicroModel, tokenizer: Qwen2TokenizerFast) -> None:
    trainee = base_training.Trainee(model)
    found = some_features()
    corpus = base_training.Corpus(found, (found,), found, found, None)
    losses = base_training.BaseObjective(trainee, tokenizer, corpus)(0)
    assert all(torch.isfinite(loss) for loss in losses.values())
    without = {name for name, p in trainee.named_parameters() if p.grad is None}
    assert without == set()


def test_copies_are_text_alone_and_train_the_decoder_alone(model: MicroModel, tokenizer: Qwen2TokenizerFast) -> None:
    asked = writing.copies(tokenizer, np.random.default_rng(0), 3)
    for row, targets in zip(asked.ids, asked.targets, strict=True):
        said = tokenizer.decode(targets[targets != dataset.IGNORED])
        assert tokenizer.decode(row).startswith(f"<|im_start|>user\nWrite {said}\n<|im_start|>assistant\n{said}")
    found = some_features()
    model.audio_projector.requires_grad_(requires_grad=False)
    writing.WritingObjective(model, tokenizer, base_training.Corpus(found, (), found, found, None))(0)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"decoder"}


def test_first_norm_takes_the_statistics_of_the_frames(model: MicroModel) -> None:
    found = some_features()
    base_training.normalise(model, found)
    torch.testing.assert_close(
        model.audio_encoder.init_bn.running_mean, torch.from_numpy(found.frames.astype("f4").mean(0))
    )


# Training loop


def test_a_killed_run_ends_where_a_straight_one_does(tmp_path: Path) -> None:
    schedule = training_loop.Schedule(steps=5, warm_up=2, peak=0.1, save_every=2)

    def run(state: Path, die_at: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        optimizer = training_loop.Optimizer(
            [p for p in layer.parameters() if p.ndim == 2], [p for p in layer.parameters() if p.ndim == 1], schedule
        )

        def backward(step: int) -> dict[str, torch.Tensor]:
            if step == die_at:
                raise KeyboardInterrupt
            loss = (layer(torch.full((1, 3), float(step))) - 1).square().sum()
            loss.backward()
            return {"loss": loss.detach()}

        training_loop.train("test", layer, optimizer, backward, state, training_loop.Monitor(5, str))
        return layer.weight.detach()

    straight = run(tmp_path / "straight.pt", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.pt", 3)
    assert torch.equal(run(tmp_path / "killed.pt", None), straight)


def test_schedule_warms_up_and_ends_near_zero() -> None:
    schedule = training_loop.Schedule(steps=100, warm_up=10, peak=1.0)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[10] == 1.0
    assert factors[99] < 0.001


def test_missing_recordings_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(features, "FSDD", Path("nowhere"))
    assert set(train.sets_at_hand()) == {"scenes", "espeak", "held out", "fresh espeak"}
    assert "espeak-ng alone" in capsys.readouterr().out


# Adapter


def test_adapter_has_the_layout_of_mdl_toolkit(model: MicroModel, tmp_path: Path) -> None:
    wrapped = adapter_training.adapted(model)
    adapter_training.save_adapter(wrapped, tmp_path / "adapter")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = {name.rsplit(".lora_", 1)[0].removeprefix("base_model.model.") for name in set(file.keys())}
    blocks = {f"audio_encoder.blocks.0.attn.{part}" for part in ("qkv", "proj")}
    mlp = {f"decoder.model.layers.0.mlp.{part}_proj" for part in ("up", "gate", "down")}
    assert names == blocks | mlp | {"audio_projector.net.0", "audio_projector.net.2"}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (32, 32, "CAUSAL_LM")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


# Evaluation


def test_event_f1_counts_over_all_clips() -> None:
    found = [frozenset({"rain", "wind"}), frozenset({"piano"})]
    assert base_training.event_f1(found, [frozenset({"rain"}), frozenset({"piano"})]) == pytest.approx(0.8)


def test_digit_error_ignores_words_and_counts_edits() -> None:
    clips = [DigitClip(np.zeros(3200, np.float32), "4 0 7", "espeak", "en-gb")] * 2
    answers = iter(["a man speaks English", "4 1 7"])
    assert evaluate.digit_error(lambda waveform, prompt: next(answers), clips) == pytest.approx(4 / 6)


def test_card_is_renewed_between_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, record = tmp_path / "README.md", tmp_path / "scores.json"
    card.write_text(f"before\n{evaluate.BEGIN}\nold\n{evaluate.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(evaluate, "CARD", card)
    monkeypatch.setattr(evaluate, "SCORES", record)
    monkeypatch.setattr(evaluate, "TRAINING", tmp_path / "none.json")
    evaluate.write_card({"PyTorch": evaluate.Scores(0.951, None, 0.9, 0.8, 1.0, 1.0, 1.0)}, 10)
    text = card.read_text(encoding="utf-8")
    assert (text[:7], text[-6:], "old" in text) == ("before\n", "after\n", False)
    assert "| event F1 of the captions | 95.1 % |" in text
    assert "| event F1 of the labels | - |" in text
    assert json.loads(record.read_text(encoding="utf-8"))["scores"]["PyTorch"]["event_f1"] == 0.951


def test_missing_tools_leave_their_clips_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "FSDD", Path("nowhere"))
    monkeypatch.setattr(evaluate, "ESPEAK", "no-such-program")
    clips = evaluate.make_clips(2)
    assert not any((clips.scenes, clips.espeak, clips.held_out, clips.seen))
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert evaluate.score(lambda waveform, prompt: "", clips) == evaluate.Scores(*[None] * 7)


# The committed folders


def test_committed_checkpoint_has_the_published_names_and_fits() -> None:
    from transformers import AutoTokenizer

    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        names = set(file.keys())
        kinds = {str(file.get_slice(name).get_dtype()) for name in names if not name.endswith("num_batches_tracked")}
    generic = {re.sub(r"\.(blocks|layers)\.\d+\.", r".\1.N.", name) for name in names}
    assert len(names) == 6 * 12 + 2 + 2 + 2 + 5 + 4 + 4 * 12 + 3
    assert len(generic) == 12 + 11 + 4 + 12 + 3
    assert kinds == {"BF16"}
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 20_000_000
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["vocab_size"] >= len(AutoTokenizer.from_pretrained(str(CHECKPOINT)))


def test_committed_checkpoint_names_the_sounds_of_unseen_scenes(one_thread: None) -> None:
    model, tokenizer = load_checkpoint(CHECKPOINT)
    ask = evaluate.asks_torch(model, tokenizer)
    plans = [plan_scene(seed, duration_s=5.0) for seed in range(4_000_000, 4_000_040)]
    scenes = [render_scene(plan) for plan in plans if plan.language == "none"][:6]  # speech would need espeak-ng
    events = [frozenset(event.kind for event in scene.events) for scene in scenes]
    captions = [named_kinds(ask(scene.waveform, dataset.CAPTION_PROMPT)) for scene in scenes]
    assert base_training.event_f1(captions, events) >= 0.85
