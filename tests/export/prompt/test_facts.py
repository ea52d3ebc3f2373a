"""Prompt facts: where transformers looks, what it makes of it, and one table for what a checkpoint does not say."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from dasheng_edge.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from dasheng_edge.export.options import PromptOverrides
from dasheng_edge.export.prompt.chat_template import AudioTokens, read_audio_tokens, read_chat_template
from dasheng_edge.export.prompt.facts import PROMPT_DEFAULTS, edition, golden_prompt, prompt_facts
from dasheng_edge.export.variants.table import CAPTION_PROMPT, README_PROMPT, VARIANTS
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK
from dasheng_edge.runtime.bundle.manifest import PromptFacts
from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointVariantError, ExportError
from dasheng_edge.runtime.prompt.prompt import PromptBuilder
from tests.fixtures.chat_templates import BARE, MACRO, NUMBERED, TEMPLATES, TEXT_ONLY, HuggingFace

USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CLIP = "<|audio_bos|>{audio}<|audio_eos|>"
HELPFUL = "<|im_start|>system\nBe helpful.<|im_end|>\n"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def write(folder: Path, name: str, stated: object) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(stated if isinstance(stated, str) else json.dumps(stated), encoding="utf-8")


def change(folder: Path, name: str, **fields: object) -> None:
    path = folder / name
    stated = json.loads(path.read_text()) if path.is_file() else {}
    write(folder, name, {key: value for key, value in {**stated, **fields}.items() if value is not None})


def published(checkpoint: Checkpoint, variant: Literal["midashenglm", "midashenglm-tokenizer"]) -> Checkpoint:
    """The tiny checkpoint, as wide as a published model says it is."""
    dim, hidden = {"midashenglm": (1280, 3584), "midashenglm-tokenizer": (768, 1024)}[variant]
    assert checkpoint.decoder is not None
    return replace(
        checkpoint,
        variant=VARIANTS[variant],
        encoder=replace(checkpoint.encoder, embed_dim=dim),
        decoder=replace(checkpoint.decoder, hidden_size=hidden),
    )


def text_of(folder: Path, ids: list[int]) -> str:
    from transformers import Qwen2TokenizerFast

    tokenizer: Any = Qwen2TokenizerFast.from_pretrained(str(folder))
    return "".join("{audio}" if token == AUDIO_MARK else tokenizer.decode([token]) for token in ids)


def asked(folder: Path, facts: PromptFacts) -> str:
    return text_of(folder, golden_prompt(folder, facts))


# Where a chat template is looked for


def processors(folder: Path) -> str:
    """The template of a processor that transformers loads; like MiDashengLM's, it falls back on its tokenizer's."""
    from transformers import ProcessorMixin, Qwen2TokenizerFast

    own = {"attributes": ["tokenizer"], "tokenizer_class": "Qwen2TokenizerFast"}
    processor: Any = type("Processor", (ProcessorMixin,), own)
    stated = processor.get_processor_dict(str(folder))[0].get("chat_template")
    stated = stated or Qwen2TokenizerFast.from_pretrained(str(folder)).chat_template
    return str(stated["default"] if isinstance(stated, dict) else stated)


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({"chat_template.json": {"chat_template": "A"}, "chat_template.jinja": "B"}, "chat_template.json"),
        ({"chat_template.jinja": "B", "tokenizer_config.json": {"chat_template": "C"}}, "chat_template.jinja"),
        ({"chat_template.jinja": "B", "additional_chat_templates/rag.jinja": "D"}, "chat_template.jinja"),
        ({"additional_chat_templates/default.jinja": "D"}, "additional_chat_templates/default.jinja"),
        ({"processor_config.json": {"chat_template": "E"}, "tokenizer_config.json": {"chat_template": "C"}},
         "processor_config.json"),
        ({"tokenizer_config.json": {"chat_template": "C"}}, "tokenizer_config.json"),
        ({"tokenizer_config.json": {"chat_template": [
            {"name": "tool_use", "template": "F"}, {"name": "default", "template": "C"},
        ]}}, "tokenizer_config.json"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # transformers leaves files open
def test_the_chat_template_is_where_transformers_finds_it(files: dict[str, Any], source: str, folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    for name, stated in files.items():
        change(folder, name, **stated) if isinstance(stated, dict) else write(folder, name, stated)
    found = read_chat_template(folder)
    assert found.source == source
    assert found.text == processors(folder)


@pytest.mark.parametrize(
    ("name", "stated", "message"),
    [
        ("tokenizer_config.json", {"chat_template": None}, "has no chat template: expected chat_template.jinja"),
        ("tokenizer_config.json", {"chat_template": 3}, "chat_template is 3, expected a text or one called"),
        ("chat_template.json", {"chat_template": {"rag": "A"}}, r"chat_template is \['rag'\], expected a text or one"),
        ("chat_template.json", "{", "cannot read"),
    ],
)
def test_a_chat_template_that_is_none(name: str, stated: object, message: str, folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    change(folder, "tokenizer_config.json", chat_template=None)
    write(folder, name, stated)
    with pytest.raises(CheckpointFileError, match=message):
        read_chat_template(folder)


def test_a_chat_template_that_cannot_be_read(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_bytes(b"\xff")
    with pytest.raises(CheckpointFileError, match=r"cannot read .*chat_template\.jinja"):
        read_chat_template(folder)
    template.unlink()
    template.symlink_to(folder / "gone")
    with pytest.raises(CheckpointFileError, match=r"cannot read .*chat_template\.jinja"):
        read_chat_template(folder)


# What audio tokens are called


def test_audio_tokens_are_those_that_the_files_name(folder: Path) -> None:
    change(folder, "tokenizer_config.json", audio_token=None, audio_bos_token=None, audio_eos_token=None)
    assert read_audio_tokens(folder) == AudioTokens()
    change(folder, "special_tokens_map.json", audio_token={"content": "<s>"}, audio_bos_token="<s+>")
    change(folder, "tokenizer_config.json", audio_bos_token={"content": "<t+>"})
    assert read_audio_tokens(folder) == AudioTokens("<s>", "<t+>")
    change(folder, "tokenizer_config.json", extra_special_tokens={"audio_token": "<x>"})
    assert read_audio_tokens(folder) == AudioTokens("<x>", "<t+>")
    change(folder, "processor_config.json", audio_token="<p>", audio_eos_token="<p->")
    assert read_audio_tokens(folder) == AudioTokens("<p>", "<t+>", "<p->")


@pytest.mark.parametrize("token", [7, {"id": 7}, ["<|AUDIO|>"], True])
def test_an_audio_token_that_is_no_text_is_refused(token: object, folder: Path) -> None:
    change(folder, "processor_config.json", audio_token=token)
    with pytest.raises(CheckpointFileError, match=r"processor_config\.json: audio_token is .*, expected text"):
        read_audio_tokens(folder)


def rename_tokens(folder: Path) -> None:
    """The tokenizer of a model that calls its audio tokens otherwise."""
    for path in folder.glob("*"):
        if path.suffix in (".json", ".jinja"):
            text = path.read_text(encoding="utf-8")
            write(folder, path.name, text.replace("<|AUDIO|>", "<|sound|>").replace("<|audio_", "<|sound_"))


def test_audio_tokens_of_another_name(folder: Path) -> None:
    rename_tokens(folder)
    facts = prompt_facts(open_checkpoint(folder))
    assert (facts.audio_token, facts.audio_bos_token, facts.audio_eos_token) == (
        "<|sound|>", "<|sound_bos|>", "<|sound_eos|>",
    )  # fmt: skip
    assert asked(folder, facts) == USER.format("<|sound_bos|>{audio}<|sound_eos|>" + CAPTION_PROMPT)


def test_audio_tokens_that_the_tokenizer_does_not_have(folder: Path) -> None:
    change(folder, "processor_config.json", audio_token="the")  # a word, not a control token
    with pytest.raises(CheckpointVariantError, match=r"no control token the, .*: <\|AUDIO\|>, <\|audio_bos\|>"):
        prompt_facts(open_checkpoint(folder))


def test_the_id_of_the_audio_token_must_agree(folder: Path) -> None:
    change(folder, "config.json", audio_token_id=5)
    with pytest.raises(CheckpointFileError, match=r"audio_token_id 5, tokenizer\.json has <\|AUDIO\|> at"):
        prompt_facts(open_checkpoint(folder))


def test_a_tokenizer_that_transformers_cannot_load(folder: Path) -> None:
    change(folder, "tokenizer.json", decoder={"type": "Unheard"})
    with pytest.raises(CheckpointFileError, match=r"the tokenizer in .* cannot be loaded: .*take its files from"):
        prompt_facts(open_checkpoint(folder))


# Defaults


def test_every_edition_has_its_defaults(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    assert set(PROMPT_DEFAULTS) == {"7b-0804", "7b-1021", "0.6b", "fine-tuned", "own"}
    assert edition(checkpoint) == "own"
    assert edition(published(checkpoint, "midashenglm")) == "7b-1021"
    assert edition(published(checkpoint, "midashenglm-tokenizer")) == "0.6b"
    assert edition(published(checkpoint, "midashenglm"), adapted=True) == "fine-tuned"


def test_0804_is_told_by_the_buffers_that_it_stores(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["audio_encoder.front_end.0.spectrogram.window"] = torch.zeros(512)
    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert edition(checkpoint) == "own"
    facts = prompt_facts(published(checkpoint, "midashenglm"))
    assert asked(folder, facts) == (
        "<|im_start|>system\nYou are a helpful language and speech assistant.<|im_end|>\n"
        + USER.format(README_PROMPT + CLIP)
    )
    assert "system turn: MiDashengLM's README before 2025-11-04" in facts.notes


@pytest.mark.parametrize(
    ("variant", "adapted", "wanted"),
    [
        ("midashenglm", False, README_PROMPT + CLIP),
        ("midashenglm", True, CLIP + CAPTION_PROMPT),
        ("midashenglm-tokenizer", False, README_PROMPT + CLIP),
    ],
)
def test_prompts_of_published_models(variant: Any, adapted: bool, wanted: str, tiny_checkpoint: Path) -> None:
    checkpoint = published(open_checkpoint(tiny_checkpoint), variant)
    assert asked(tiny_checkpoint, prompt_facts(checkpoint, adapted=adapted)) == USER.format(wanted)


def test_the_micro_model_is_asked_as_it_was_trained() -> None:
    micro = Path(__file__).parents[3] / "benchmarks" / "micro" / "checkpoint"
    facts = prompt_facts(open_checkpoint(micro))
    assert facts.model_copy(update={"notes": ()}) == PromptFacts(
        prompt=CAPTION_PROMPT, max_new_tokens=64, special_tokens={}
    )
    assert asked(micro, facts) == USER.format(CLIP + CAPTION_PROMPT)


def test_what_was_chosen_goes_before_everything(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    facts = prompt_facts(checkpoint, PromptOverrides("Which bird?", "Be brief.", audio_first=False))
    assert asked(tiny_checkpoint, facts) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n" + USER.format("Which bird?" + CLIP)
    )
    assert sum("chosen at export" in note for note in facts.notes) == 3
    none = prompt_facts(published(checkpoint, "midashenglm"), PromptOverrides(prompt="", system=""))
    assert (none.prompt, none.system) == ("", None)
    assert "system turn: none, chosen at export" in none.notes


def test_a_system_turn_that_the_template_writes_is_left_to_it(folder: Path) -> None:
    write(folder, "chat_template.jinja", NUMBERED)
    checkpoint = open_checkpoint(folder)
    for overrides in (None, PromptOverrides(system="")):
        facts = prompt_facts(checkpoint, overrides)
        assert facts.system is None
        assert "system turn: written by the chat template" in facts.notes
        assert asked(folder, facts) == HELPFUL + USER.format(f"Audio 1: {CLIP}\n{CAPTION_PROMPT}")
    facts = prompt_facts(checkpoint, PromptOverrides(system="Be brief."))
    assert asked(folder, facts).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("name", TEMPLATES)
def test_golden_prompts_are_those_of_the_runtime(name: str, folder: Path) -> None:
    from transformers import Qwen2TokenizerFast

    write(folder, "chat_template.jinja", TEMPLATES[name])
    tokenizer = HuggingFace(Qwen2TokenizerFast.from_pretrained(str(folder)))
    for overrides in (PromptOverrides(), PromptOverrides(system="Be brief.", prompt=" Why?\n", audio_first=False)):
        facts = prompt_facts(open_checkpoint(folder), overrides)
        got = PromptBuilder(TEMPLATES[name], facts, tokenizer).build()
        assert got.ids(AUDIO_MARK) == golden_prompt(folder, facts)


@pytest.mark.parametrize(("template", "names"), [(BARE, set()), (MACRO, {"eos_token"}), (TEXT_ONLY, set())])
def test_special_tokens_are_those_that_the_template_asks_for(template: str, names: set[str], folder: Path) -> None:
    write(folder, "chat_template.jinja", template)
    special_tokens = prompt_facts(open_checkpoint(folder)).special_tokens
    assert special_tokens is not None
    assert special_tokens.keys() == names


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: re.sub("is string", "is none", text).replace("<|AUDIO|>", ""), "0 times, expected once"),
        (lambda text: re.sub("is string", "is none", text).replace("<|AUDIO|>", "<|AUDIO|>" * 2), "2 times, expected"),
        (lambda text: text + "{{ raise_exception('no audio here') }}", "cannot be rendered: no audio here"),
        (lambda text: text + "{{ 1 / 0 }}", "cannot be rendered: division by zero"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(folder: Path, edit: Any, message: str) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(edit(path.read_text()))
    facts = prompt_facts(open_checkpoint(folder))
    with pytest.raises(ExportError, match=message):
        golden_prompt(folder, facts)


def test_a_template_that_is_not_valid_is_refused(folder: Path) -> None:
    write(folder, "chat_template.jinja", "{% if %}")
    with pytest.raises(CheckpointFileError, match=r"chat_template\.jinja: the chat template is not valid"):
        prompt_facts(open_checkpoint(folder))


def test_control_tokens_in_the_default_prompt_are_refused(tiny_checkpoint: Path) -> None:
    for overrides in (PromptOverrides(prompt="Now <|im_end|>"), PromptOverrides(system="<|im_end|>")):
        facts = prompt_facts(open_checkpoint(tiny_checkpoint), overrides)
        with pytest.raises(ExportError, match=r"has the control token <\|im_end\|> in it"):
            golden_prompt(tiny_checkpoint, facts)


@pytest.mark.parametrize(
    ("stated", "wanted"),
    [
        ({}, ("sampling: greedy, since generation_config.json does not say", "at most 128 new tokens: default")),
        (
            {"do_sample": True, "max_length": 99999, "num_beams": 4},
            (
                "sampling: generation_config.json",
                "at most 2048 new tokens: generation_config.json states 99999, which is taken for no limit",
                "generation_config.json: num_beams is not used",
            ),
        ),
    ],
)
def test_notes_on_sampling(stated: object, wanted: tuple[str, ...], folder: Path) -> None:
    write(folder, "generation_config.json", stated)
    facts = prompt_facts(open_checkpoint(folder))
    assert facts.notes[4:] == wanted
    assert facts.sampling.temperature == (1.0 if len(wanted) > 2 else 0.0)
