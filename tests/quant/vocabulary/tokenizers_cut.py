"""Tokenizers as Hugging Face has them and as llama.cpp does, whole and with some of their tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dasheng_edge.export.gguf.tokenizer import read_vocabulary
from dasheng_edge.quant.vocabulary.choice import Merges
from dasheng_edge.quant.vocabulary.cut import always_kept
from dasheng_edge.quant.vocabulary.gguf_cut import new_ids, write_cut_gguf
from dasheng_edge.runtime.gguf.header import Header, read_header
from dasheng_edge.runtime.text.model import TextModel
from tests.fixtures.vocabulary_decoder import vocabulary_decoder, vocabulary_of


@dataclass
class Whole:
    """A tokenizer from a folder, in both ways."""

    hugging_face: Tokenizer
    llama_cpp: TextModel
    header: Header  # of the GGUF, with its arrays
    merges: Merges
    unused: NDArray[np.bool_]
    always: set[int]

    @classmethod
    def read(cls, folder: Path, work: Path) -> Whole:
        hugging_face = Tokenizer.from_file(str(folder / "tokenizer.json"))
        vocabulary = read_vocabulary(folder, hugging_face.get_vocab_size() + 7)
        model = vocabulary_decoder(vocabulary, work / "whole.gguf")
        path = work / "whole.gguf"
        header = read_header(path, read_header(path).values)
        tokens, merges = ([text.encode() for text in texts] for texts in (vocabulary.tokens, vocabulary.merges))
        kinds = np.array([int(kind) for kind in vocabulary.types])
        unused = kinds == gguf.TokenType.UNUSED
        return cls(hugging_face, model, header, Merges.read(tokens, merges), unused, {*always_kept(header, model)})

    def cut(self, kept: NDArray[np.bool_], work: Path) -> Cut:
        """The same with some tokens: as llama.cpp reads it of the file, and the oracle, made by itself."""
        path = work / "cut.gguf"
        write_cut_gguf(path, self.header, kept, 0)
        content, ids = json.loads(self.hugging_face.to_str()), new_ids(kept)
        vocab: dict[str, int] = content["model"]["vocab"]
        names = {name for name, index in vocab.items() if kept[index]}
        content["model"]["vocab"] = {name: int(ids[vocab[name]]) for name in names}
        content["model"]["merges"] = [
            pair for pair in content["model"]["merges"] if names.issuperset(pair) and "".join(pair) in names
        ]
        for added in content["added_tokens"]:
            added["id"] = int(ids[added["id"]])
        return Cut(Tokenizer.from_str(json.dumps(content)), vocabulary_of(path), kept, ids)


@dataclass
class Cut:
    """A tokenizer with some of the tokens."""

    hugging_face: Tokenizer
    llama_cpp: TextModel
    kept: NDArray[np.bool_]
    ids: NDArray[np.int32]

    def mapped(self, tokens: list[int]) -> list[int] | None:
        """New ids of tokens; None if one is not kept."""
        return self.ids[tokens].tolist() if self.kept[tokens].all() else None
