"""A clone without its large files: each kind of pointer is told in each kind of file of a checkpoint and an adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dasheng_edge.export.adapter.adapter import open_adapter
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.gguf.tokenizer import read_vocabulary
from dasheng_edge.export.prompt.facts import prompt_facts
from dasheng_edge.runtime.errors import AdapterError, CheckpointFileError

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d" * 32 + "\nsize 17628728\n"
KINDS = {
    LFS: "Git LFS.*git lfs pull",
    "\ufeff" + LFS: "Git LFS",
    LFS.replace("git-lfs.github.com", "hawser.github.com"): "Git LFS",
    "# xet version 0\nfilesize = 17628728\nhash = 'ab'\n": "Xet.*dasheng-edge pull",
    "/annex/objects/SHA256E-s17628728--" + "4d" * 32: "git-annex.*git annex get",
}
FILES = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    "preprocessor_config.json", "chat_template.jinja",
)  # fmt: skip


def read(folder: Path) -> None:
    """Whatever an export reads of it but its weights."""
    opened = open_checkpoint(folder)
    read_vocabulary(folder, opened.text_decoder.vocab_size)
    prompt_facts(opened)


@pytest.mark.parametrize(("pointer", "message"), list(KINDS.items()), ids=range(len(KINDS)))
def test_a_pointer_is_told(tiny_checkpoint: Path, tmp_path: Path, pointer: str, message: str) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "cloned")
    for name in FILES:
        whole = (folder / name).read_bytes()
        (folder / name).write_text(pointer, encoding="utf-8")
        with pytest.raises(CheckpointFileError, match=rf"{name} is a pointer of {message}"):
            read(folder)
        (folder / name).write_bytes(whole)
    (tmp_path / "dasheng.pt").write_text(pointer, encoding="utf-8")
    with pytest.raises(CheckpointFileError, match=rf"dasheng\.pt is a pointer of {message}"):
        open_checkpoint(tmp_path / "dasheng.pt")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pointer_of_an_adapter_is_told(tiny_checkpoint: Path, tiny_adapter: Path, tmp_path: Path, name: str) -> None:
    adapter = shutil.copytree(tiny_adapter, tmp_path / "cloned")
    (adapter / name).write_text(LFS)
    with pytest.raises(AdapterError, match=rf"{name} is a pointer of Git LFS"):
        open_adapter(adapter, open_checkpoint(tiny_checkpoint))
