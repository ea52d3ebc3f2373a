"""How often a corpus uses each token: text files are read in blocks, so that memory does not grow with them.

Text is cut where no token of Qwen2's goes on: before a line's first character that is not blank, else before a single
space between words. Every tenth line is counted apart: it stands for text that is like the corpus and not in it.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.errors import QuantizeError
from dasheng_edge.runtime.progress import Advance

BLOCK_BYTES = 1 << 20
HELD_OUT = 10  # one line of so many
Tokenize = Callable[[str], Sequence[int]]
_LINES = re.compile(r".*\n(?=\S)", re.DOTALL)
_WORDS = re.compile(r".*\S(?= \S)", re.DOTALL)
_STARTS = re.compile(r"(?<=\n)(?=\S)")
_ENDS = re.compile(r" ?\S+(?=[\r\n]|\Z)")  # with the line break, a full stop is another token than in an answer
_SIZE = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class VocabularyOptions:
    """What tokens are chosen by: text files, a number of tokens, or both."""

    corpora: tuple[Path, ...] = ()
    size: int | None = None


def parse_vocabulary(values: Sequence[str]) -> VocabularyOptions | None:
    """What `--vocab` was given: paths, and at most one number; None if nothing was.

    Raises:
        QuantizeError: there are two numbers.
    """
    sizes = [value for value in values if _SIZE.fullmatch(value)]
    if len(sizes) > 1:
        raise QuantizeError(f"--vocab has the numbers {' and '.join(sizes)}; give one, and text files beside it")
    corpora = tuple(Path(value) for value in values if value not in sizes)
    return VocabularyOptions(corpora, int(sizes[0]) if sizes else None) if values else None


@dataclass(frozen=True)
class Counts:
    """Of a corpus: int64 [tokens] each."""

    used: NDArray[np.int64]  # in all lines but those that are held out, and at ends of lines
    held_out: NDArray[np.int64]
    sha256: dict[str, str]  # of the files, by their names

    @property
    def all(self) -> NDArray[np.int64]:
        """In all lines."""
        return self.used + self.held_out


def count_tokens(paths: Sequence[Path], tokenize: Tokenize, tokens: int, advance: Advance) -> Counts:
    """Count the tokens of text files in UTF-8; `advance` is told of bytes.

    Raises:
        QuantizeError: a file cannot be read, is not such text, or all of them hold no word.
    """
    used, held_out = np.zeros(tokens, np.int64), np.zeros(tokens, np.int64)
    digests, line, blank = dict[str, str](), 0, True
    for path in paths:
        digest = hashlib.sha256()
        for text in _blocks(path, digest.update, advance):
            lines = _STARTS.split(unicodedata.normalize("NFC", text))
            first = -(line + 1) % HELD_OUT  # of those that are held out, the first in this block
            apart, line, blank = "".join(lines[first::HELD_OUT]), line + len(lines), blank and text.isspace()
            del lines[first::HELD_OUT]
            rest = "".join(lines)
            ends = " \n".join(sorted(set(_ENDS.findall(rest))))
            used += sum(np.bincount(np.array(tokenize(part), np.int64), minlength=tokens) for part in (rest, ends))
            held_out += np.bincount(np.array(tokenize(apart), np.int64), minlength=tokens)
        name = path.name if path.name not in digests else f"{path.name} ({len(digests)})"
        digests[name] = digest.hexdigest()
    if paths and blank:
        raise QuantizeError(f"--vocab {paths[0]}: there is no text in it; give a text file with what will be said")
    return Counts(used, held_out, digests)


def corpus_bytes(paths: Sequence[Path]) -> int:
    """Bytes of all files; 0 of those that have no size.

    Raises:
        QuantizeError: one is not there, or is a folder.
    """
    return sum(map(_file_bytes, paths))


def _file_bytes(path: Path) -> int:
    try:
        stated = path.stat()
    except (OSError, ValueError) as error:  # the last: a zero byte
        raise _unreadable(path, error) from error
    if S_ISDIR(stated.st_mode):
        raise QuantizeError(f"--vocab {path} is a folder; name its text files, each with a --vocab of its own")
    return stated.st_size


def _blocks(path: Path, digest: Callable[[bytes], object], advance: Advance) -> Iterator[str]:
    """The text of a file in blocks of about `BLOCK_BYTES`."""
    decoder, left, place = codecs.getincrementaldecoder("utf-8-sig")(), "", 0
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest(block)
                text = left + decoder.decode(block)
                if "\0" in text:
                    raise QuantizeError(
                        f"--vocab {path} holds zero bytes, so it is no text in UTF-8; name another file"
                    )
                match = _LINES.match(text) or _WORDS.match(text)
                # A text without blanks is cut anywhere: a few tokens there are not counted as they would be.
                end = match.end() if match else len(text)
                yield text[:end]
                left, place = text[end:], place + len(block)
                advance(len(block))
            if left := left + decoder.decode(b"", final=True):
                yield left
    except UnicodeDecodeError as error:
        raise QuantizeError(
            f"--vocab {path} is no text in UTF-8: {error.reason} near byte {place + error.start}; name a text file, or "
            "convert this one with iconv"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> QuantizeError:
    why = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return QuantizeError(f"--vocab {path} cannot be read: {why}; give a text file, or a number of tokens to keep")
