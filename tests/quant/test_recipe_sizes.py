"""What the planner says of a recipe's size, against llama.cpp's own dry run; and that it knows the same recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dasheng_edge.quant.decoder.llama_quantize import FILE_TYPES
from dasheng_edge.quant.encoder.precisions import PRECISIONS
from dasheng_edge.quant.recipes import RECIPES
from dasheng_edge.runtime.planning.recipes import RECIPE_SIZES, decoder_bytes
from dasheng_edge.runtime.planning.synthetic import DecoderSpec, write_decoder

_DRY = """
import ctypes, json, os, re, sys
from llama_cpp import llama_cpp as llama
said = []
callback = llama.llama_log_callback(lambda _, text, __: said.append(text.decode()))
llama.llama_log_set(callback, ctypes.c_void_p())
sizes = {}
for number in map(int, sys.argv[2:]):
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype, parameters.dry_run = number, True
    entries = (llama.llama_model_imatrix_data * 2)()
    entries[0].name = b"x"
    parameters.imatrix = entries
    said.clear()
    assert not llama.llama_model_quantize(os.fsencode(sys.argv[1]), b"nowhere.gguf", ctypes.pointer(parameters))
    sizes[number] = float(re.search(r"quant size *= *([0-9.]+) MiB", "".join(said))[1])
print(json.dumps(sizes))
"""


def test_the_recipes_are_the_same() -> None:
    assert RECIPE_SIZES.keys() == RECIPES.keys()
    for name, recipe in RECIPES.items():
        sizes = RECIPE_SIZES[name]
        assert (sizes.encoder, sizes.kv_type) == (recipe.encoder, recipe.kv_type)
        if recipe.encoder in PRECISIONS:
            assert sizes.value_bytes == PRECISIONS[recipe.encoder].value_bytes  # type: ignore[index]
        assert sum(sizes.body.values()) == pytest.approx(1)


def test_decoders_are_as_large_as_llama_cpp_plans(tmp_path: Path) -> None:
    path, spec = tmp_path / "decoder.gguf", DecoderSpec(1, 1024, 24, 32_000)
    write_decoder(path, spec)
    numbers = {name: int(FILE_TYPES[recipe.decoder]) for name, recipe in RECIPES.items() if recipe.decoder}
    asked = [sys.executable, "-c", _DRY, str(path), *map(str, numbers.values())]
    told = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    for name, number in numbers.items():
        got = decoder_bytes(RECIPE_SIZES[name], sum(inner * columns for inner, columns in spec.matrices), 1024 * 32_000)
        assert got == pytest.approx(told[str(number)] * 2**20, rel=0.02), name
