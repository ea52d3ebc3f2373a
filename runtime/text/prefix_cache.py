"""Keys and values of the beginnings of prompts, in memory and on disk, so that each is computed once.

A file holds the state of a sequence as llama.cpp writes it, behind a SHA-256 of it and of what it depends on. It is
only a cache: a file that is damaged or of another model is removed, a folder that cannot be written is ignored, and the
prompt is computed. A decoder is named by the SHA-256 in the bundle's manifest, so a bundle whose files were not held
against that must be given no folder: it would leave its states to the one whose name it bears.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from time import time

import numpy as np

from dasheng_edge.runtime.atomic_output import remove_left, replacing
from dasheng_edge.runtime.bundle.bundle import DECODER, Bundle
from dasheng_edge.runtime.engine_options import EngineSettings

from .context import LOW_MEMORY_ROWS, Context
from .llama import llama_cpp_library
from .model import Tokens

MIN_TOKENS = 4  # fewer are computed as fast as they are read
MAX_IN_MEMORY = 8
MAX_BYTES_ON_DISK = 256_000_000  # 100 prompts of 20 tokens; those least recently used are removed
_MAGIC = b"dasheng-edge prefix 2\n"  # states of version 1 may be those of bundles that were not checked
_STALE_S = 3600  # since a temporary file of an earlier version was written to; none took a second
_DIGEST_BYTES = 32


def prefix_model(bundle: Bundle, settings: EngineSettings) -> str:
    """What a state depends on beside the tokens: the decoder's file, the type of keys and values, and the engine.

    The layout of the weights is among them, since other kernels round in another order: the same command gives the same
    caption, whatever ran before.
    """
    exact = "" if settings.exact is None else f" exact={settings.exact}"
    low = "" if settings.memory == "normal" else f" {LOW_MEMORY_ROWS} rows"
    kept = f"{settings.kv_type}{exact} {settings.text_device} {settings.weights}{low}"
    llama = llama_cpp_library()
    build = llama.llama_print_system_info().decode("utf-8", "replace")
    return f"{bundle.manifest.files[DECODER].sha256} {kept} {version('llama-cpp-python')} {build}"


class PrefixCache:
    """States by the tokens that they are of; `model` names everything else that they depend on."""

    def __init__(self, folder: Path | None, model: str) -> None:
        self._folder = folder / "prefixes" if folder is not None else None
        self._model = model
        self._memory: OrderedDict[Tokens, bytes] = OrderedDict()

    def put(self, context: Context, sequence: int, tokens: Tokens, *, store: bool = True) -> int:
        """Have the rows of these tokens in an empty sequence, and how many were computed: none if they are stored.

        Without `store`, they are not stored now: what comes once is not worth it, and on disk it is nobody's business.

        Raises:
            DecoderError: llama.cpp failed.
        """
        state = self.load(tokens)
        if state is not None and context.restore(sequence, state, len(tokens)):
            return 0
        if state is not None:
            self.drop(tokens)
        context.extend(np.array(tokens, np.int32), sequence=sequence, past=0, outputs=0)
        if store and len(tokens) >= MIN_TOKENS:
            self.store(tokens, context.state(sequence))
        return len(tokens)

    def load(self, tokens: Tokens) -> bytes | None:
        """The state after these tokens; None if it is not stored."""
        state = self._memory.get(tokens)
        if state is None:
            state = self._read(tokens)
        if state is not None:
            self._keep(tokens, state)
        return state

    def store(self, tokens: Tokens, state: bytes) -> None:
        """Keep a state."""
        self._keep(tokens, state)
        path = self._path(tokens)
        if path is None:
            return
        with suppress(OSError):  # read-only, full, not ours
            with replacing(path) as part:
                part.write_bytes(_MAGIC + self._digest(tokens, state) + state)
            self._shrink(path.parent)

    def drop(self, tokens: Tokens) -> None:
        """Forget a state that is not what it should be."""
        self._memory.pop(tokens, None)
        path = self._path(tokens)
        if path is not None:
            with suppress(OSError):
                path.unlink()

    def _keep(self, tokens: Tokens, state: bytes) -> None:
        self._memory[tokens] = state
        self._memory.move_to_end(tokens)
        while len(self._memory) > MAX_IN_MEMORY:
            self._memory.popitem(last=False)

    def _read(self, tokens: Tokens) -> bytes | None:
        path = self._path(tokens)
        if path is None:
            return None
        try:
            content = path.read_bytes()
            path.touch()  # used now
        except OSError:
            return None
        start = len(_MAGIC) + _DIGEST_BYTES
        state = content[start:]
        if content[:start] == _MAGIC + self._digest(tokens, state):
            return state
        self.drop(tokens)
        return None

    def _digest(self, tokens: Tokens, state: bytes) -> bytes:
        """Of a state and of what it is the state of, so that no file can take the place of another."""
        return hashlib.sha256(f"{self._key(tokens)}\n".encode() + state).digest()

    def _key(self, tokens: Tokens) -> str:
        return f"{self._model}\n{' '.join(map(str, tokens))}"

    def _path(self, tokens: Tokens) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.sha256(self._key(tokens).encode()).hexdigest()
        return self._folder / f"{name[:32]}.kv"

    @staticmethod
    def _shrink(folder: Path) -> None:
        """Remove the states that were used least recently, and what killed writers left."""
        remove_left(folder, "*.kv")
        for path in folder.glob(".*.kv.????????"):  # as an earlier version named them
            if time() - path.stat().st_mtime > _STALE_S:
                path.unlink(missing_ok=True)
        files = sorted(folder.glob("*.kv"), key=lambda path: path.stat().st_mtime, reverse=True)
        size = 0
        for path in files:
            size += path.stat().st_size
            if size > MAX_BYTES_ON_DISK:
                path.unlink(missing_ok=True)
