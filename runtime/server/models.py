"""The bundles that are served, by name: opened when they are asked for, and let go of where memory is short."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.embedder import Embedder
from dasheng_edge.runtime.engine.engine import Engine
from dasheng_edge.runtime.errors import BundleError, MemoryShortError
from dasheng_edge.runtime.names import did_you_mean

from .answers import Refusal

Task: TypeAlias = Literal["transcribe", "caption"]
CAPTION = ":caption"  # behind the name of a model: what the transcription routes ask it is the bundle's own prompt


@dataclass
class Model:
    """A bundle under its name; `engine` and `embedder` are there while it is open."""

    name: str
    bundle: Bundle
    created: int  # seconds since 1970
    engine: Engine | None = None
    embedder: Embedder | None = None
    users: int = 0
    used_s: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # of opening and closing
    embeds: threading.Lock = field(default_factory=threading.Lock)  # an embedder serves one at a time

    @property
    def captions(self) -> bool:
        """Whether it answers in words."""
        return self.bundle.manifest.decoder is not None

    @property
    def opened(self) -> Engine:
        """The engine.

        Raises:
            BundleKindError: it has none.
        """
        self.bundle.prompt_facts  # noqa: B018  # says why there is none
        assert self.engine is not None
        return self.engine

    def card(self, name: str | None = None) -> dict[str, Any]:
        """As OpenAI lists models."""
        return {"id": name or self.name, "object": "model", "created": self.created, "owned_by": "dasheng-edge"}

    def close(self) -> None:
        """Free what it computes with."""
        if self.engine is not None:
            self.engine.close()
        if self.embedder is not None:
            with self.embeds:
                self.embedder.close()
        self.engine = self.embedder = None


@dataclass(frozen=True)
class Opening:
    """How bundles are opened."""

    engine: Callable[[Path], Engine]
    embedder: Callable[[Path], Embedder]


class Models:
    """All of them. Of one event loop."""

    def __init__(self, bundles: Sequence[Path], opening: Opening, aliases: Mapping[str, str] | None = None) -> None:
        """Read the manifests.

        Raises:
            BundleError: one is none, or two have one name.
        """
        self._opening, self._known, self._aliases = opening, dict[str, Model](), dict(aliases or {})
        for path in bundles:
            bundle = Bundle.open(path, check_sha256=False)
            name = path.resolve().name
            if name in self._known:
                raise BundleError(f"two bundles are called {name!r}, which is their folder's name; rename one of them")
            self._known[name] = Model(name, bundle, int((path / "manifest.json").stat().st_mtime))
        for alias, name in self._aliases.items():
            if self.find(name) is None or alias in self._known:
                raise BundleError(f"{alias}={name} names no model; {did_you_mean(name, [*self._known])}")

    def __iter__(self) -> Iterator[Model]:
        return iter(self._known.values())

    @property
    def default(self) -> Model:
        """The first."""
        return next(iter(self._known.values()))

    def cards(self) -> list[dict[str, Any]]:
        """All names that may be asked for."""
        cards = []
        for model in self._known.values():
            cards += [model.card(), *([model.card(model.name + CAPTION)] if model.captions else [])]
        return cards + [self.named(alias)[0].card(alias) for alias in self._aliases]

    def find(self, name: str) -> tuple[Model, Task] | None:
        """A model, and what the transcription routes ask it."""
        name = self._aliases.get(name, name)
        if (model := self._known.get(name)) is not None:
            return model, "transcribe"
        model = self._known.get(name.removesuffix(CAPTION))
        return (model, "caption") if model is not None and model.captions else None

    def named(self, name: str) -> tuple[Model, Task]:
        """The same.

        Raises:
            Refusal: there is none.
        """
        if (found := self.find(name)) is None:
            names = [card["id"] for card in self.cards()]
            raise Refusal(
                404, f"there is no model {name[:100]!r}; {did_you_mean(name[:100], names)}",
                param="model", code="model_not_found",
            )  # fmt: skip
        return found

    @asynccontextmanager
    async def use(self, model: Model) -> AsyncGenerator[Model]:
        """It is open, and stays so meanwhile.

        Raises what opening a bundle raises.
        """
        model.users += 1
        try:
            async with model.lock:
                if model.engine is None and model.embedder is None:
                    await self._open(model)
            yield model
        finally:
            model.users -= 1
            model.used_s = time.monotonic()

    async def _open(self, model: Model) -> None:
        while True:
            try:
                return await asyncio.to_thread(self._opened, model)
            except MemoryShortError:  # noqa: PERF203  # a round for each model that is let go of
                if not await self._let_go():
                    raise

    def _opened(self, model: Model) -> None:
        path = model.bundle.folder
        if model.captions:
            model.engine = engine = self._opening.engine(path)
            model.embedder = Embedder(engine.bundle, engine.parts.audio)
        else:
            model.embedder = self._opening.embedder(path)

    async def _let_go(self) -> bool:
        """Close the model that was not used for longest; whether there was one."""
        idle = [one for one in self if not one.users and one.embedder is not None]
        if not idle:
            return False
        model = min(idle, key=lambda one: one.used_s)
        async with model.lock:
            if not model.users:
                await asyncio.to_thread(model.close)
        return True

    async def close(self) -> None:
        """Close all."""
        for model in self:
            async with model.lock:
                await asyncio.to_thread(model.close)
