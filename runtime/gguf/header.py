"""What a GGUF file says before its tensors' data: keys, and each tensor's name, shape, type and place.

The file may come from anybody: every length is held against the file's size before anything of that length is read,
and how much a header may hold is bounded. Nothing but the arrays that are asked for is stored: Qwen's vocabulary has
300,000 texts. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dasheng_edge.runtime.errors import GgufError

VERSION = 3
ALIGNMENT = 32  # of each tensor's data, unless the file states another
MAX_KEYS, MAX_TENSORS = 4096, 1 << 16
MAX_TEXTS = 1 << 21  # in all arrays together; the largest vocabularies have a quarter of a million tokens
MAX_DIMENSIONS = 4
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # enum gguf_type
# Layouts of the numbers, as `struct` names them.
_NUMBERS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
Scalar: TypeAlias = int | float | bool | bytes


@dataclass(frozen=True)
class Value:
    """A key's value: one of type `kind`, or an array of them, which is empty where it was not asked for."""

    kind: int
    is_array: bool
    content: Scalar | list[bytes] | list[int] | list[float]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header describes it."""

    shape: tuple[int, ...]  # as ggml counts: the length of a row first
    kind: int  # enum ggml_type
    offset: int  # into the data


@dataclass(frozen=True)
class Header:
    """The header of one file."""

    path: Path
    size: int  # bytes of the file
    values: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]  # in the order of the file
    data: int  # where the tensors' data begins in the file

    def number(self, key: str, default: int = 0) -> int:
        """A whole number; `default` where the file states none."""
        value = self.values.get(key)
        return value.content if value and isinstance(value.content, int) else default

    def text(self, key: str) -> str:
        """A text; "" where the file states none."""
        value = self.values.get(key)
        return value.content.decode("utf-8", "replace") if value and isinstance(value.content, bytes) else ""

    def array(self, key: str) -> list[Any]:
        """An array that was asked for: texts as bytes, or numbers; empty where the file states none."""
        value = self.values.get(key)
        return value.content if value and isinstance(value.content, list) else []


def read_header(path: Path, arrays: Collection[str] = ()) -> Header:
    """Read the header of a GGUF file, with the contents of the `arrays` named.

    Raises:
        GgufError: it cannot be read, is no GGUF file of version 3, breaks off, or states more than a header may hold.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if file.read(8) != struct.pack("<4sI", b"GGUF", VERSION):
                raise GgufError(f"{path} is not a GGUF file of version {VERSION}; export it again, or name another")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(path, content, size).header(arrays)
    except OSError as error:
        raise GgufError(f"{path} cannot be read: {error.strerror or error}; name a GGUF file") from error
    except (struct.error, ValueError) as error:
        if isinstance(error, GgufError):
            raise
        raise GgufError(f"{path} is truncated or broken ({error}); copy or export it again") from error


class _Reader:
    """A place in a header, which moves on as it is read. What is wrong is a ValueError or struct.error."""

    def __init__(self, path: Path, content: mmap.mmap, size: int) -> None:
        self._path, self._content, self._size = path, content, size
        self._at = 8
        self._walked = 0  # texts in arrays

    def header(self, arrays: Collection[str]) -> Header:
        count, pairs = self._number(_U64), self._number(_U64)
        if count > MAX_TENSORS or pairs > MAX_KEYS:
            raise ValueError(f"{count} tensors and {pairs} keys, expected at most {MAX_TENSORS} and {MAX_KEYS}")
        values: dict[str, Value] = {}
        for _ in range(pairs):
            key = self._name(values)
            values[key] = self._value(wanted=key in arrays)
        tensors: dict[str, TensorInfo] = {}
        for _ in range(count):
            name = self._name(tensors)
            tensors[name] = self._tensor()
        header = Header(self._path, self._size, values, tensors, -(-self._at // ALIGNMENT) * ALIGNMENT)
        if (stated := header.number("general.alignment", ALIGNMENT)) != ALIGNMENT:
            raise ValueError(f"an alignment of {stated} bytes, expected {ALIGNMENT}")
        return header

    def _number(self, layout: struct.Struct) -> int:
        number: int = layout.unpack_from(self._content, self._at)[0]
        self._at += layout.size
        return number

    def _text(self) -> bytes:
        return self._take(self._number(_U64))

    def _take(self, length: int) -> bytes:
        if length > self._size - self._at:
            raise ValueError(f"it breaks off at byte {self._size}, {length} were expected from {self._at} on")
        self._at += length
        return self._content[self._at - length : self._at]

    def _name(self, known: Collection[str]) -> str:
        name = self._text().decode("utf-8")
        if name in known:
            raise ValueError(f"{name!r} is there twice")
        return name

    def _value(self, *, wanted: bool) -> Value:
        kind = self._number(_U32)
        if kind == STRING:
            return Value(kind, is_array=False, content=self._text())
        if kind != ARRAY:
            return Value(kind, is_array=False, content=self._numbers(kind, 1, wanted=True)[0])
        kind, count = self._number(_U32), self._number(_U64)
        items = self._texts(count, wanted=wanted) if kind == STRING else self._numbers(kind, count, wanted=wanted)
        return Value(kind, is_array=True, content=items)

    def _numbers(self, kind: int, count: int, *, wanted: bool) -> list[int]:
        if kind not in _NUMBERS:
            raise ValueError(f"a value of type {kind}")
        layout = f"<{count}{_NUMBERS[kind]}"
        start, width = self._at, struct.calcsize(f"<{_NUMBERS[kind]}")
        if count > (self._size - start) // width:
            raise ValueError(f"it breaks off at byte {self._size}, in an array of {count} numbers")
        self._at += count * width
        return list(struct.unpack_from(layout, self._content, start)) if wanted else []

    def _texts(self, count: int, *, wanted: bool) -> list[bytes]:
        """Walk over an array of texts; in one loop, since the largest have 150,000."""
        self._walked += count
        if self._walked > MAX_TEXTS:
            raise ValueError(f"arrays of {self._walked} texts, expected at most {MAX_TEXTS}")
        content, at, size, length_at = self._content, self._at, self._size, _U64.unpack_from
        texts: list[bytes] = []
        for _ in range(count):
            (length,) = length_at(content, at)
            start, at = at + 8, at + 8 + length
            if at > size:
                raise ValueError(f"it breaks off at byte {size}, in a text of {length} bytes")
            if wanted:
                texts.append(content[start:at])
        self._at = at
        return texts

    def _tensor(self) -> TensorInfo:
        dimensions = self._number(_U32)
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        shape = tuple(self._number(_U64) for _ in range(dimensions))
        if 0 in shape:
            raise ValueError(f"a tensor of shape {shape}")
        return TensorInfo(shape, self._number(_U32), self._number(_U64))
