"""Mutations of bytes, of JSON and of GGUF headers; the generator decides, so that a case can be made again."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np

Rng: TypeAlias = np.random.Generator
Bytes: TypeAlias = Callable[[bytearray, Rng], None]

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 13, 2**31, 2**63, 10**30, 0.5, 1e308, float("inf"), float("nan"), "", "x" * 300,
    "\ud800", "../../x", "\x1b[31m", [], {}, [1], ["a", 2], {"x": 1}, [[[[]]]],
)  # fmt: skip


def mutated(data: bytes, rng: Rng, *, header_bytes: int | None = None) -> bytes:
    """One to four mutations, most of them within the first `header_bytes` where given."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not out:
            break
        operation = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        if header_bytes and len(out) > header_bytes and rng.random() < 0.7:
            head, tail = out[:header_bytes], out[header_bytes:]
            operation(head, rng)
            out = head + tail
        else:
            operation(out, rng)
    return bytes(out)


def _place(out: bytearray, rng: Rng) -> int:
    return int(rng.integers(len(out))) if out else 0


def _length(out: bytearray, rng: Rng) -> int:
    return int(min(len(out), 2 ** rng.uniform(0, 13)))


def _flip(out: bytearray, rng: Rng) -> None:
    for _ in range(int(2 ** rng.uniform(0, 5))):
        if out:
            out[_place(out, rng)] ^= 1 << int(rng.integers(8))


def _overwrite(out: bytearray, rng: Rng) -> None:
    start, length = _place(out, rng), _length(out, rng)
    out[start : start + length] = rng.bytes(len(out[start : start + length]))


def _extreme(out: bytearray, rng: Rng) -> None:
    """A number of 1, 2, 4 or 8 bytes, in either order, becomes an extreme one."""
    size = int(rng.choice([1, 2, 4, 8]))
    value = EXTREMES[int(rng.integers(len(EXTREMES)))] & (256**size - 1)
    start = _place(out, rng)
    if start + size <= len(out):
        out[start : start + size] = value.to_bytes(size, "little" if rng.random() < 0.5 else "big")


def _cut(out: bytearray, rng: Rng) -> None:
    del out[_place(out, rng) :]


def _remove(out: bytearray, rng: Rng) -> None:
    start = _place(out, rng)
    del out[start : start + _length(out, rng)]


def _insert(out: bytearray, rng: Rng) -> None:
    start = _place(out, rng)
    out[start:start] = rng.bytes(_length(out, rng)) if rng.random() < 0.5 else bytes(_length(out, rng))


def _repeat(out: bytearray, rng: Rng) -> None:
    start, target = _place(out, rng), _place(out, rng)
    out[target:target] = out[start : start + _length(out, rng)]


def _swap(out: bytearray, rng: Rng) -> None:
    first, second, length = _place(out, rng), _place(out, rng), _length(out, rng)
    low, high = sorted((first, second))
    length = min(length, high - low, len(out) - high)
    out[low : low + length], out[high : high + length] = out[high : high + length], out[low : low + length]


CHUNKS = (b"data", b"SSND", b"fmt ", b"moov", b"mdat", b"elst", b"OggS", b"ID3", b"pakt", b"GGUF", b'"dtype"')


def _again(out: bytearray, rng: Rng) -> None:
    """A chunk that is there once follows again, with all behind it."""
    there = [place for name in CHUNKS if (place := out.find(name)) >= 0]
    if there:
        out += out[there[int(rng.integers(len(there)))] :][: 1 << 16]


OPERATIONS: tuple[Bytes, ...] = (
    _flip, _flip, _overwrite, _extreme, _extreme, _cut, _remove, _insert, _repeat, _swap, _again,
)  # fmt: skip


def spliced(first: bytes, second: bytes, rng: Rng) -> bytes:
    """The beginning of one and the end of another."""
    return first[: int(rng.integers(len(first) + 1))] + second[int(rng.integers(len(second) + 1)) :]


def mutated_json(text: str, rng: Rng) -> str:
    """One to three values replaced, keys removed, renamed or added; now and then broken syntax."""
    if rng.random() < 0.05:
        return mutated(text.encode(), rng).decode("utf-8", "replace")
    if rng.random() < 0.03:
        return "[" * int(2 ** rng.uniform(4, 17)) + text
    content = copy.deepcopy(json.loads(text))
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(content))
        if not places:
            break
        _change(*places[int(rng.integers(len(places)))], rng)
    return ("\ufeff" if rng.random() < 0.03 else "") + json.dumps(content)


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Each container with a key or place in it; of long lists the first forty."""
    items = (
        content.items() if isinstance(content, dict) else enumerate(content[:40]) if isinstance(content, list) else ()
    )
    for key, value in list(items):
        yield content, key
        yield from _places(value)


def _change(container: Any, key: Any, rng: Rng) -> None:
    how, old = rng.random(), container[key]
    value = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    if how < 0.15:
        del container[key]
    elif how < 0.25 and isinstance(container, dict):
        container[f"{key}{'_' if rng.random() < 0.5 else chr(27)}"] = old
    elif how < 0.45 and isinstance(old, (int, float)) and not isinstance(old, bool):
        container[key] = old * [-1, 2, 1000, 0.5][int(rng.integers(4))] + int(rng.integers(-1, 2))
    elif how < 0.55 and isinstance(old, str):
        container[key] = old + str(value)[:20] if rng.random() < 0.5 else old[: len(old) // 2]
    elif how < 0.6:
        container[key] = [old]
    else:
        container[key] = value


class GgufHeader:
    """A GGUF of version 3 taken apart so far that any part of its header can be changed and written again."""

    _SIZES: ClassVar[Mapping[int, str]] = {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "B",
        10: "Q",
        11: "q",
        12: "d",
    }
    _TEXT, _ARRAY = 8, 9

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self.magic, self.version, tensors, pairs = self._take("4sIQQ")
        self.pairs = [self._pair() for _ in range(pairs)]
        self.tensors = [self._tensor() for _ in range(tensors)]
        self.weights = data[self._at + -self._at % 32 :]

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at += struct.calcsize(f"<{form}")
        return values

    def _string(self) -> bytes:
        (length,) = self._take("Q")
        self._at += length
        return self._data[self._at - length : self._at]

    def _value(self, kind: int) -> Any:
        if kind == self._TEXT:
            return self._string()
        if kind == self._ARRAY:
            inner, count = self._take("IQ")
            return inner, [self._value(inner) for _ in range(count)]
        return self._take(self._SIZES[kind])[0]

    def _pair(self) -> list[Any]:
        name, (kind,) = self._string(), self._take("I")
        return [name, kind, self._value(kind)]

    def _tensor(self) -> list[Any]:
        name, (count,) = self._string(), self._take("I")
        return [name, list(self._take(f"{count}Q")), *self._take("IQ")]

    def mutate(self, rng: Rng) -> str:
        """Changes one part; returns what."""
        if rng.random() < 0.5:
            row = self.pairs[int(rng.integers(len(self.pairs)))]
            return self._change_pair(row, rng)
        row = self.tensors[int(rng.integers(len(self.tensors)))]
        field = int(rng.integers(5))
        if field == 0:
            row[0] = mutated(row[0], rng)[:80]
        elif field == 1:
            row[1] = [int(size * rng.choice([0, 1, 2, 2**40])) for size in row[1]] + [1] * int(rng.integers(0, 3))
        elif field == 2:
            row[2] = int(rng.integers(0, 42))
        elif field == 3:
            row[3] = int(rng.choice([0, row[3] + 1, row[3] + 32, 2**31, 2**62]))
        else:
            self.tensors.remove(row) if rng.random() < 0.5 else self.tensors.append(list(row))
        return f"tensor {row[0]!r}"

    def _change_pair(self, row: list[Any], rng: Rng) -> str:
        name, kind, value = row
        how = rng.random()
        if how < 0.15:
            self.pairs.remove(row)
        elif how < 0.25:
            self.pairs.append([name + b"_", kind, value] if rng.random() < 0.5 else list(row))
        elif kind == self._ARRAY and value[1]:
            inner, items = value
            items = list(items)
            place = int(rng.integers(len(items)))
            if how < 0.5:
                items[place] = items[int(rng.integers(len(items)))]
            elif how < 0.7:
                del items[place:]
            else:
                items[place] = b"\xff\xfe" * 40 if inner == self._TEXT else 10**6 if inner != 6 else float("nan")
            row[2] = (inner, items)
        elif kind == self._TEXT:
            row[2] = [b"", b"none", mutated(value or b"x", rng)[:10_000], b"\x1b[31m\xff", b"x" * 70_000][
                int(rng.integers(5))
            ]
        elif kind in (6, 12):
            row[2] = float(rng.choice([0.0, -1.0, 1e30, np.nan, np.inf]))
        else:
            row[2] = int(rng.choice([0, 1, 2, 3, 255, 768, 10**6, 2**31 - 1]))
        return f"key {name!r}"

    def file(self) -> bytes:
        """The file."""
        out = bytearray(struct.pack("<4sIQQ", self.magic, self.version, len(self.tensors), len(self.pairs)))
        for name, kind, value in self.pairs:
            out += self._text(name) + struct.pack("<I", kind) + self._packed(kind, value)
        for name, sizes, kind, offset in self.tensors:
            out += self._text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
        return bytes(out + bytes(-len(out) % 32)) + self.weights

    @staticmethod
    def _text(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text

    def _packed(self, kind: int, value: Any) -> bytes:
        if kind == self._TEXT:
            return self._text(bytes(value))
        if kind == self._ARRAY:
            inner, items = value
            return struct.pack("<IQ", inner, len(items)) + b"".join(self._packed(inner, item) for item in items)
        form = self._SIZES[kind]
        if form in "fd":
            return struct.pack(f"<{form}", float(value))
        size = struct.calcsize(form)
        return int(value % 256**size).to_bytes(size, "little")
