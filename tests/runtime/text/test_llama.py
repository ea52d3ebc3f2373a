"""How the bindings are loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dasheng_edge.runtime.text import llama


@pytest.mark.parametrize("loaded", [0, 1])
def test_code_for_processors_is_loaded_where_llama_cpp_has_it_in_files(loaded: int) -> None:
    asked = list[bytes]()
    ggml = SimpleNamespace(ggml_backend_reg_count=lambda: loaded, ggml_backend_load_all_from_path=asked.append)
    llama._load_processors(SimpleNamespace(_lib=ggml, __file__="/packages/llama_cpp/llama_cpp.py"))
    assert asked == ([] if loaded else [b"/packages/llama_cpp/lib"])
