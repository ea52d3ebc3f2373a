"""Folders that transformers 5 saved: it writes other names into the same files, and the same is read from them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from dasheng_edge.export.gguf.tokenizer import Vocabulary, read_vocabulary
from dasheng_edge.export.prompt.facts import golden_prompt, prompt_facts
from dasheng_edge.export.prompt.tokenizer import read_tokenizer
from dasheng_edge.runtime.bundle.manifest import PromptFacts
from dasheng_edge.runtime.errors import CheckpointError, CheckpointFileError, CheckpointVariantError
from tests.fixtures.places import REPOSITORY
from tests.fixtures.tiny_checkpoint import CONTROL_TOKENS

PYTHON = REPOSITORY / "build" / "transformers5" / "bin" / "python"  # `make transformers5`
OLDER = ("added_tokens.json", "special_tokens_map.json", "vocab.json", "merges.txt", "preprocessor_config.json")
AUDIO = {"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
SAVE = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, ProcessorMixin, Wav2Vec2FeatureExtractor
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTextConfig

class Audio(PreTrainedConfig):
    model_type = "midashenglm_dasheng_encoder"

class Config(PreTrainedConfig):
    model_type = "midashenglm"
    sub_configs = {"audio_encoder_config": Audio, "text_config": Qwen2_5OmniTextConfig}
    def __init__(self, audio_encoder_config=None, text_config=None, **fields):
        self.audio_encoder_config = Audio(**(audio_encoder_config or {}))
        self.text_config = Qwen2_5OmniTextConfig(**(text_config or {}))
        super().__init__(**fields)

class Processor(ProcessorMixin):
    def __init__(self, feature_extractor=None, tokenizer=None, chat_template=None):
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

source, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
Config(**json.loads((Path(source) / "config.json").read_text())).save_pretrained(out)
GenerationConfig.from_pretrained(source).save_pretrained(out)
Processor(Wav2Vec2FeatureExtractor.from_pretrained(source), tokenizer, tokenizer.chat_template).save_pretrained(out)
"""


def change(path: Path, **fields: object) -> None:
    """Set fields of a JSON file; None takes one out."""
    stated: dict[str, Any] = {**(json.loads(path.read_text()) if path.is_file() else {}), **fields}
    path.write_text(json.dumps({key: value for key, value in stated.items() if value is not None}))


def read(folder: Path) -> tuple[Checkpoint, Vocabulary, PromptFacts, list[int]]:
    opened = open_checkpoint(folder)
    facts = prompt_facts(opened)
    return opened, read_vocabulary(folder, opened.text_decoder.vocab_size), facts, golden_prompt(folder, facts)


def assert_same(one: Path, other: Path) -> None:
    (first, *text), (second, *same) = read(one), read(other)
    assert text == same
    assert (first.encoder, first.front_end, first.decoder) == (second.encoder, second.front_end, second.decoder)
    ours, theirs = read_tokenizer(one), read_tokenizer(other)
    assert ours.added_tokens_decoder == theirs.added_tokens_decoder
    assert {*ours.all_special_tokens} >= {*theirs.all_special_tokens}
    sentence = "".join(CONTROL_TOKENS) + " Which sounds? 漢字 123"
    assert ours(sentence)["input_ids"] == theirs(sentence)["input_ids"]


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that is rewritten as transformers 5.24 does."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / tiny_checkpoint.parent.name / tiny_checkpoint.name)
    change(
        folder / "tokenizer_config.json", added_tokens_decoder=None, backend="tokenizers", is_local=True,
        extra_special_tokens=list(CONTROL_TOKENS[1:]), model_specific_special_tokens=AUDIO,
    )  # fmt: skip
    stated = json.loads((folder / "config.json").read_text())
    text = stated["text_config"]
    text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
    text["layer_types"] = ["full_attention"] * text["num_hidden_layers"]
    change(folder / "config.json", torch_dtype=None, dtype=stated["torch_dtype"], text_config=text)
    extractor = json.loads((folder / "preprocessor_config.json").read_text())
    change(folder / "processor_config.json", feature_extractor=extractor, processor_class="MiDashengLMProcessor")
    for name in OLDER:
        (folder / name).unlink(missing_ok=True)
    return Path(folder)


def test_the_same_is_read_of_what_transformers_5_writes(tiny_checkpoint: Path, folder: Path) -> None:
    assert_same(folder, tiny_checkpoint)


def test_audio_tokens_are_known_where_only_their_mapping_says_them(tiny_checkpoint: Path, folder: Path) -> None:
    change(folder / "tokenizer_config.json", **dict.fromkeys(AUDIO))
    assert_same(folder, tiny_checkpoint)


def test_the_rotation_may_be_stated_by_layer_type(tiny_checkpoint: Path, folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    sliding = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    change(
        folder / "config.json",
        text_config={**text, "rope_parameters": {"full_attention": text["rope_parameters"], **sliding}},
    )
    assert_same(folder, tiny_checkpoint)
    change(folder / "config.json", text_config={**text, "rope_parameters": sliding})
    with pytest.raises(CheckpointFileError, match=r"rope_parameters is .*, expected the rotation of full_attention"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "rope_scaling 'yarn'"),
        ({"full_attention": {"rope_type": "llama3", "rope_theta": 1e6}}, "rope_scaling 'llama3'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, r"partial_rotary_factor 0\.5"),
    ],
)
def test_another_rotation_is_refused(folder: Path, rope: object, message: str) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change(folder / "config.json", text_config={**text, "rope_parameters": rope})
    with pytest.raises(CheckpointVariantError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 10**400}}, {"max_position_embeddings": 2**31},
        {"max_position_embeddings": True}, {"rms_norm_eps": 1e300}, {"num_hidden_layers": 10**9},
        {"num_attention_heads": -4}, {"rope_parameters": [1]}, {"layer_types": "full_attention"},
    ],
)  # fmt: skip
def test_contradictory_and_absurd_numbers_are_refused(folder: Path, fields: dict[str, object]) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change(folder / "config.json", text_config={**text, **fields})
    with pytest.raises(CheckpointError, match=next(iter(fields)).split("_")[0]):
        open_checkpoint(folder)


def test_a_byte_order_mark_in_any_file_does_not_matter(tiny_checkpoint: Path, folder: Path) -> None:
    for path in (*folder.glob("*.json"), *folder.glob("*.jinja")):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert_same(folder, tiny_checkpoint)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"extra_special_tokens": "<|AUDIO|>"}, "extra_special_tokens"),
        ({"eos_token": 3}, "eos_token"),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "cannot be loaded: invalid literal"),
        ({"added_tokens_decoder": {"1": "a"}}, r"added_tokens_decoder\.1"),
    ],
)
def test_odd_statements_are_refused(folder: Path, fields: dict[str, object], message: str) -> None:
    change(folder / "tokenizer_config.json", **fields)
    with pytest.raises(CheckpointFileError, match=message):
        read_tokenizer(folder)


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.is_file(), reason="no transformers 5 in an environment of its own: make transformers5")
@pytest.mark.parametrize("name", ["tiny", "micro"])
def test_transformers_5_itself_saves_the_same(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    source = tiny_checkpoint if name == "tiny" else REPOSITORY / "benchmarks" / "micro" / "checkpoint"
    out = tmp_path / source.parent.name / source.name
    subprocess.run([PYTHON, "-c", SAVE, source, out], check=True, capture_output=True, text=True)
    stated = json.loads((out / "tokenizer_config.json").read_text())
    assert (stated["backend"], "added_tokens_decoder" in stated) == ("tokenizers", False)
    assert "rope_parameters" in json.loads((out / "config.json").read_text())["text_config"]
    assert not {path.name for path in out.iterdir()} & {*OLDER}
    (out / "model.safetensors").symlink_to(source / "model.safetensors")

    assert_same(out, source)
