"""The card of a bundle: a header that the hub can read, and no figure that the manifest does not state."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import yaml

from dasheng_edge.export.model_card import model_card
from dasheng_edge.runtime.bundle.bundle import required_files
from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec
from dasheng_edge.runtime.bundle.manifest import (
    DecoderFacts,
    EncoderFacts,
    Manifest,
    PromptFacts,
    Provenance,
    Sampling,
    Tolerances,
)
from dasheng_edge.runtime.progress import StepReport

STEPS = (
    StepReport("front_end.onnx", 1.25e-5, 1e-3, "dB", 0.5, 1_234, "worst of 12 inputs"),
    StepReport("encoder.onnx", 4.5e-7, 1e-4, "relative RMS", 12.0, 2_521_334_272, "worst of 9 inputs"),
)
DECODER = DecoderFacts(
    arch="qwen2", hidden_size=3_584, layers=28, vocab_size=152_064, context_length=32_768, parameters=7_615_616_512,
    precision="Q4_K_M",
)  # fmt: skip


def manifest(variant: str) -> Manifest:
    decodes, acoustic = variant != "dasheng", variant == "midashenglm-tokenizer"
    limits: dict[str, float] = {"embeddings_relative": 2e-4, "logits_relative": 0.5, "token_margin": 1.5}
    return Manifest(
        name="midashenglm-7b",
        variant=variant,
        front_end=FrontEndSpec(acoustic=AcousticSpec(n_mels=100) if acoustic else None),
        encoder=EncoderFacts(embed_dim=1_280, depth=32, num_heads=16, parameters=630_333_568, precision="int8"),
        projector_parameters=35_789_824 if decodes else None,
        decoder=DECODER.model_copy(update={"arch": "qwen3" if acoustic else "qwen2"}) if decodes else None,
        prompt=PromptFacts(prompt="Write a | caption", notes=("sampling: not stated",)) if decodes else None,
        tolerances=Tolerances(
            log_mel_db=1e-3, patches_relative=1e-4, acoustic_nepers=3e-3 if acoustic else None,
            **(limits if decodes else {}),
        ),
        provenance=Provenance(
            tool="dasheng-edge 0.1.0", checkpoint="midashenglm-7b", checkpoint_sha256="ab" * 32, revision="f7b0fdb",
            adapters=("birds " + "cd" * 32,), versions={"torch": "2.13.0", "onnx": "1.19"},
        ),
        files={},
    )  # fmt: skip


def sizes(variant: str) -> dict[str, int]:
    names = (*required_files(manifest(variant)), "encoder.onnx.data")
    return {name: 1_000_003 * (index + 1) for index, name in enumerate(names)}


def card(variant: str = "midashenglm", **given: Any) -> str:
    return model_card(manifest(variant), sizes(variant), STEPS, **given)


def header(text: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n\n# ", text, re.DOTALL)
    assert found is not None
    values: dict[str, Any] = yaml.safe_load(found[1])
    return values


def rows(text: str, section: str) -> list[list[str]]:
    """Cells of all tables of a section, without their heads."""
    body = text.split(f"## {section}\n")[1].split("\n## ", maxsplit=1)[0]
    lines = [line for line in body.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


VARIANTS: tuple[str, ...] = ("midashenglm", "midashenglm-tokenizer", "dasheng")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_hub_can_read_the_header(variant: str) -> None:
    stated = {"license": "apache-2.0", "language": ["en", "zh"], "pipeline_tag": "other", "tags": "x", "widget": 1}
    values = header(card(variant, header=stated, base_model="mispeech/midashenglm-7b"))
    decodes = variant != "dasheng"
    assert values == {
        "license": "apache-2.0",
        "language": ["en", "zh"],
        "base_model": "mispeech/midashenglm-7b",
        "library_name": "dasheng-edge",
        "pipeline_tag": "audio-text-to-text" if decodes else "feature-extraction",
        "tags": ["audio", "dasheng", "onnx", *(["gguf", "midashenglm"] if decodes else [])],
    }


@pytest.mark.parametrize("licence", [None, 3, [], [1], {"a": 1}])
def test_what_is_not_known_is_left_out(licence: object) -> None:
    assert header(card(header={"license": licence})).keys() == {"library_name", "pipeline_tag", "tags"}
    assert header(card()).keys() == {"library_name", "pipeline_tag", "tags"}


def test_texts_that_yaml_would_take_for_something_else() -> None:
    stated = {"license": "no", "license_name": 'a: "b" # c', "license_link": "1"}
    values = header(card(header=stated))
    assert {key: values[key] for key in stated} == stated


@pytest.mark.parametrize("variant", VARIANTS)
def test_files(variant: str) -> None:
    table = rows(card(variant), "Files")
    want = sizes(variant)
    assert {name: int(size.replace(",", "")) for name, *_, size in table[1:-1]} == want
    assert table[-1][-1] == f"{sum(want.values()):,}"
    precision = {name: kind for name, _, kind, _ in table}
    assert precision["encoder.onnx"] == "int8"
    assert precision["encoder.onnx.data"] == "int8"
    assert precision.get("decoder.gguf", "Q4_K_M") == "Q4_K_M"
    assert [cell.strip("`") for cell in table[-2][:2]] == ["encoder.onnx.data", "weights of `encoder.onnx"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters(variant: str) -> None:
    facts = manifest(variant)
    counts = {part: int(count.replace(",", "")) for part, count, _ in rows(card(variant), "Parameters")[1:]}
    assert counts.pop("encoder") == facts.encoder.parameters
    if facts.decoder is None:
        assert counts == {}
        return
    assert counts.pop("projector") == facts.projector_parameters
    assert counts.pop("decoder") == facts.decoder.parameters
    assert counts == {"total": 8_281_739_904}


@pytest.mark.parametrize("variant", VARIANTS)
def test_how_it_was_verified(variant: str) -> None:
    table = rows(card(variant), "How it was verified")
    for step in STEPS:
        assert [step.name, f"{step.error:.2e}", f"{step.tolerance:.1e}", step.unit, step.note] in table
    limits = sorted(manifest(variant).tolerances.model_dump(exclude_none=True).values())
    allowed = table[table.index(["seam", "tolerance", "unit"]) + 1 :]
    assert sorted(float(row[1]) for row in allowed) == limits
    assert ("acoustic mel" in [row[0] for row in allowed]) == (variant == "midashenglm-tokenizer")


def test_prompt_defaults() -> None:
    text = card()
    assert "- prompt: `Write a | caption`\n- system turn: as the chat template has it\n" in text
    assert "\n- order: audio, then text\n" in text
    assert "- at most 128 new tokens, greedy, repetition penalty 1\n\nWhere that comes from:\n\n- sampling" in text
    facts = manifest("midashenglm")
    assert facts.prompt is not None
    sampling = Sampling(temperature=0.7, top_k=50, top_p=0.8, repetition_penalty=1.1)
    prompt = facts.prompt.model_copy(
        update={"sampling": sampling, "system": "You `may`\nlisten", "audio_first": False, "notes": ()}
    )
    text = model_card(facts.model_copy(update={"prompt": prompt}), {}, ())
    assert "new tokens, temperature 0.7, top_k 50, top_p 0.8, min_p 0, repetition penalty 1.1\n" in text
    assert "- system turn: ``You `may`\\nlisten``\n- order: text, then audio\n" in text
    assert "Where that comes from" not in text


def test_a_model_without_a_decoder_is_told_apart() -> None:
    whole, alone = card(), card("dasheng")
    for words in ("## Prompt", "caption", "decoder", "llama"):
        assert words in whole
        assert words not in alone
    for words in ("dasheng-edge verify BUNDLE", "dasheng-edge embed BUNDLE"):
        assert words in whole
        assert words in alone


def test_provenance_and_assumptions() -> None:
    text = card(assumptions=("the head is the embedding\nof the decoder", "heads by size"), base_model="a/b")
    for words in ("ab" * 32, "f7b0fdb", "birds " + "cd" * 32, "onnx 1.19, torch 2.13.0", "https://huggingface.co/a/b"):
        assert words in text
    assert "taken to be so:\n\n- the head is the embedding of the decoder\n- heads by size\n" in text
    assert "## Assumptions" not in card()


def test_the_same_export_writes_the_same_card() -> None:
    assert card() == card()
    slower = tuple(dataclasses.replace(step, seconds=9.9) for step in STEPS)
    assert model_card(manifest("dasheng"), sizes("dasheng"), slower) == card("dasheng")
    shuffled = dict(reversed(sizes("midashenglm").items()))
    assert model_card(manifest("midashenglm"), shuffled, STEPS) == card()
    assert card().isascii()
    assert card().endswith(".\n")
