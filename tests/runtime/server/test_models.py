"""Models: by their names, opened when they are asked for, let go of where memory is short."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.runtime.errors import BundleError, BundleNotFoundError, MemoryShortError
from dasheng_edge.runtime.server.answers import Refusal
from dasheng_edge.runtime.server.models import Models

from .conftest import opened_models


@pytest.fixture(scope="module")
def bundles(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [Path(shutil.copytree(tiny_bundle, folder / name)) for name in ("a", "b", "c")]


def is_open(models: Models) -> str:
    return "".join(model.name for model in models if model.engine is not None)


def test_models_have_the_names_of_their_folders_and_others(bundles: list[Path]) -> None:
    models = opened_models(*bundles, aliases={"whisper-1": "b:caption", "gpt": "a"})
    names = [card["id"] for card in models.cards()]
    assert names == ["a", "a:caption", "b", "b:caption", "c", "c:caption", "whisper-1", "gpt"]
    assert {(name, model.name, task) for name in names for model, task in [models.named(name)]} >= {
        ("a", "a", "transcribe"), ("a:caption", "a", "caption"), ("whisper-1", "b", "caption")
    }  # fmt: skip
    for name in ("d", "a:transcribe", ":caption", "", "x" * 10_000):
        with pytest.raises(Refusal) as refused:
            models.named(name)
        assert (refused.value.status, refused.value.code) == (404, "model_not_found")
        assert len(refused.value.body()["error"]["message"]) < 1100


@pytest.mark.parametrize("aliases", [{"x": "d"}, {"a": "b"}])
def test_an_alias_is_another_name_of_a_model(aliases: dict[str, str], bundles: list[Path]) -> None:
    with pytest.raises(BundleError, match="names no model"):
        opened_models(*bundles, aliases=aliases)


def test_what_cannot_be_served_is_told_before_anything_is_opened(bundles: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        opened_models(tmp_path / "nothing")
    with pytest.raises(BundleError, match="two bundles are called 'a'"):
        opened_models(bundles[0], Path(shutil.copytree(bundles[0], tmp_path / "a")))


def test_models_are_opened_when_they_are_asked_for_and_let_go_of_when_memory_is_short(
    bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = opened_models(*bundles)
    open_now = models._opened

    def short(model: Any) -> None:
        if len(is_open(models)) == 2:
            raise MemoryShortError("no room for three")
        open_now(model)

    monkeypatch.setattr(models, "_opened", short)

    async def main() -> None:
        a, b, c = models
        for model, opened in ((a, "a"), (b, "ab"), (a, "ab"), (c, "ac")):  # b was not used for longest
            async with models.use(model):
                assert is_open(models) == opened
        async with models.use(a), models.use(c):
            with pytest.raises(MemoryShortError):  # none is idle
                async with models.use(b):
                    pass
        assert [model.users for model in models] == [0, 0, 0]
        await models.close()
        assert is_open(models) == ""

    asyncio.run(main())


def test_a_model_is_opened_once_for_all_who_ask(bundles: list[Path]) -> None:
    models, opened = opened_models(bundles[0]), list[str]()
    open_now = models._opened

    def noted(model: Any) -> None:
        opened.append(model.name)
        open_now(model)

    models._opened = noted

    async def ask() -> None:
        async with models.use(models.default):
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(ask() for _ in range(5)))
        await models.close()

    asyncio.run(main())
    assert opened == ["a"]
