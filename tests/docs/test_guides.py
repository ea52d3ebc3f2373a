"""Tables of the guides that people wrote say what the code says."""

from __future__ import annotations

from dasheng_edge.quant.recipes import RECIPES
from tests.fixtures.places import REPOSITORY


def rows(page: str, head: str) -> dict[str, list[str]]:
    """The cells of a page's table by what the first begins with; `head` begins its first line."""
    text = (REPOSITORY / "docs" / page).read_text("utf-8").split(head)[1].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {row[0].strip("`").split(",")[0]: row[1:] for row in cells}


def test_the_recipes() -> None:
    table = rows("quantization.md", "| recipe |")
    assert list(table) == list(RECIPES)
    for name, recipe in RECIPES.items():
        decoder = f"{recipe.decoder}, importance matrix" if recipe.imatrix else recipe.decoder
        assert table[name] == [recipe.encoder, decoder, recipe.kv_type]


def test_what_a_model_is_asked() -> None:
    from dasheng_edge.export.prompt.facts import PROMPT_DEFAULTS  # which imports torch

    table = rows("adapters.md", "| checkpoint |")
    assert set(table) == set(PROMPT_DEFAULTS)
    for name, defaults in PROMPT_DEFAULTS.items():
        prompt, system, order, sampling = table[name]
        assert (prompt, system) == (defaults.prompt, defaults.system or "")
        assert order.startswith("audio" if defaults.audio_first else "text")
        asked = defaults.sampling
        words = f"temperature {asked.temperature:g}, top_k {asked.top_k}, top_p {asked.top_p:g}"
        assert sampling == (words if asked.temperature else "greedy")
