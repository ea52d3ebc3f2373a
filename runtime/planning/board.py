"""Machines as a planner sees them: rates and sizes with where each figure comes from, in a JSON file for each board."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dasheng_edge.runtime.atomic_output import PartialOutput, not_a_file
from dasheng_edge.runtime.errors import BoardError
from dasheng_edge.runtime.machine.identity import identify, installed
from dasheng_edge.runtime.machine.user_folders import FOLDER_VARIABLE, cache_folder
from dasheng_edge.runtime.names import did_you_mean

MAX_BYTES = 1 << 20  # of a board's file
HERE = "here"
Positive: TypeAlias = Annotated[float, Field(ge=1e-6, le=1e9)]  # of less, seconds would be infinite
Share: TypeAlias = Annotated[float, Field(ge=0, le=1e9)]
# Types of matrices that rates are measured for, by llama.cpp's names; others are as fast as that which stands for them.
RatedType: TypeAlias = Literal["F16", "Q8_0", "Q6_K", "Q4_K", "IQ3_XXS"]
STANDS_FOR: Mapping[int, RatedType] = {
    0: "F16", 1: "F16", 30: "F16", 8: "Q8_0", 14: "Q6_K", 13: "Q6_K",
    2: "Q4_K", 3: "Q4_K", 6: "Q4_K", 7: "Q4_K", 12: "Q4_K", 20: "Q4_K", 23: "Q4_K", 10: "Q4_K", 11: "Q4_K",
    16: "IQ3_XXS", 17: "IQ3_XXS", 18: "IQ3_XXS", 21: "IQ3_XXS", 22: "IQ3_XXS",
}  # fmt: skip


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TypeRates(_Model):
    """How fast matrices of a type are: read for one token, and for a prefill, whose rows each are multiplied."""

    decode_gb_per_s: Positive
    start_gb_per_s: Positive
    prefill_gop_per_s: Positive


class Rates(_Model):
    """What so many threads reach."""

    threads: Annotated[int, Field(ge=1, le=4096)]
    int8_gop_per_s: Positive  # products of ONNX Runtime
    fp32_gop_per_s: Positive
    encoder_value_ns: Share  # for each patch, block and number of its width: all that is no product
    encoder_block_us: Share  # for each block: beginning and ending operators
    types: Annotated[dict[RatedType, TypeRates], Field(min_length=1)]
    decoder_value_ns: Share  # as for the encoder, for each row, layer and number of `speed.row_values`
    layer_us: Share  # for each layer, whenever rows are decoded
    position_ns: Share = 0.7  # for each position before a token, layer, and number of its queries
    logit_ns: Share = 8.0  # for each token of the vocabulary, of which one is chosen
    token_us: Share = 100.0  # for each token: Python

    def of(self, kind: int) -> TypeRates:
        """Of matrices of a type, by enum ggml_type; of the nearest that is known."""
        wanted = STANDS_FOR.get(kind, "Q4_K")
        return self.types.get(wanted) or next(iter(self.types.values()))


class Figure(_Model):
    """Where figures come from."""

    what: str
    source: str  # a link, or a command
    guess: bool = False


class Board(_Model):
    """A machine."""

    name: str
    memory_mb: Positive  # that programs can have
    process_mb: Positive = 124.0  # of Python with both engines, just loaded
    rates: Annotated[tuple[Rates, ...], Field(min_length=1)]
    disk_mb_per_s: Positive
    open_mb_per_s: Positive  # of graphs that are read and laid out anew
    vocabulary_us: Share = 2.0  # for each token
    start_s: Share  # until Python and both engines are there
    watts: Positive | None = None  # while it works; None: unknown
    figures: tuple[Figure, ...] = ()
    machine: dict[str, str] = {}  # of `--calibrate`: processor and versions

    @model_validator(mode="after")
    def _check_threads(self) -> Board:
        threads = [one.threads for one in self.rates]
        if sorted(set(threads)) != threads:
            raise ValueError("rates must be for different numbers of threads, the fewest first")
        return self

    @property
    def threads(self) -> int:
        """The most that it is rated for."""
        return self.rates[-1].threads

    @property
    def guesses(self) -> list[str]:
        """What nobody has measured."""
        return [figure.what for figure in self.figures if figure.guess]

    def rated(self, threads: int | None) -> Rates:
        """Rates of so many threads: between two that are known, in proportion; beyond, of the nearest."""
        wanted = threads or self.threads
        below = [one for one in self.rates if one.threads <= wanted] or [self.rates[0]]
        above = [one for one in self.rates if one.threads >= wanted] or [self.rates[-1]]
        low, high = below[-1], above[0]
        if low.threads >= high.threads:
            return low
        share = (wanted - low.threads) / (high.threads - low.threads)
        first, last = low.model_dump(), high.model_dump()
        return Rates.model_validate({**_between(first, last, share), "threads": wanted})


def _between(first: dict[str, object], last: dict[str, object], share: float) -> dict[str, object]:
    """Numbers between those of two dictionaries of one form."""
    made = dict[str, object]()
    for key, value in first.items():
        other = last.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            made[key] = _between(value, other, share)
        elif isinstance(value, int | float) and isinstance(other, int | float):
            made[key] = value + share * (other - value)
    return made


def board_names() -> list[str]:
    """Of the boards that come with the package."""
    names = [entry.name for entry in files(__package__ or "").joinpath("boards").iterdir()]
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def load_board(name: str) -> Board:
    """A board by its name, `here`, or from a file.

    Raises:
        BoardError: there is none of this name, this machine was not measured, or the file is none of a board.
    """
    if name == HERE:
        return _here()
    if name in (names := board_names()):
        return _parsed(files(__package__ or "").joinpath("boards", f"{name}.json").read_bytes(), name)
    path = Path(name)
    try:
        if path.is_file():
            with path.open("rb") as file:
                return _parsed(file.read(MAX_BYTES + 1), name)
    except OSError as error:
        raise BoardError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    hint = did_you_mean(name, [*names, HERE])
    if path.is_dir() or path.suffix or len(path.parts) > 1:
        there = "is a folder" if path.is_dir() else "does not exist"
        raise BoardError(f"the file of a board {path} {there}; name another file, or a board that is known; {hint}")
    raise BoardError(f"no board is called {name!r}, and no file of a board has this name; {hint}")


def _here() -> Board:
    path = calibration_path()
    how = "measure them in a minute with `dasheng-edge plan --calibrate`, or name a board: " + ", ".join(board_names())
    if path is None or not path.is_file():
        raise BoardError(f"this machine's rates are not known; {how}")
    try:
        return _parsed(path.read_bytes(), str(path))
    except (BoardError, OSError) as error:
        raise BoardError(f"this machine's rates cannot be read: {error}; {how}") from error


def is_calibrated() -> bool:
    """Whether this machine was measured."""
    path = calibration_path()
    return path is not None and path.is_file()


def _parsed(content: bytes, name: str) -> Board:
    if len(content) > MAX_BYTES:
        raise BoardError(f"{name} is not a board: it has more than {MAX_BYTES} bytes; see docs/boards.md")
    try:  # PowerShell's > writes UTF-16
        return Board.model_validate(json.loads(content.decode(json.detect_encoding(content))))
    except ValidationError as error:
        raise BoardError(f"{name} is not a board: {_wrong(error)}; see docs/boards.md") from error
    except (ValueError, RecursionError) as error:
        raise BoardError(f"{name} is not a board, since it is no JSON: {error}; see docs/boards.md") from error


def _wrong(error: ValidationError) -> str:
    """Which field is wrong first, what was got and what is expected, in words of JSON."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "[key]") or "the top level"
    got, what = first["input"], first["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    match first["type"]:
        case "missing":
            return f"{where} is missing"
        case "extra_forbidden":
            return f"{where} is no field of it"
        case "model_type" | "dict_type":
            what = "expected an object"
        case "tuple_type":
            what = "expected a list"
        case "too_short":
            what = "expected one at least"
        case _:
            pass
    shown = (
        json.dumps(got)[:60]
        if isinstance(got, str | int | float | None)
        else {dict: "an object"}.get(type(got), "a list")
    )
    return f"{where}: got {shown}, {what.replace('Input should be', 'expected')}"


def this_machine() -> dict[str, str]:
    """What rates depend on, by name; another processor or another version of an engine has rates of its own."""
    identity = identify()
    return {"cpu": identity.cpu, "cores": str(identity.usable_cores), **installed()}


def calibration_path() -> Path | None:
    """Where this machine's rates are stored; None where this user has no caches."""
    folder = cache_folder()
    return None if folder is None else folder / "machine.json"


def store_calibration(board: Board) -> Path:
    """Store this machine's rates, in place of earlier ones; returns the file.

    Raises:
        OutputWriteError: the cache cannot be written.
        BoardError: nothing is stored for this user.
    """
    path = calibration_path()
    if path is None:
        raise BoardError(f"there is no place for rates: {FOLDER_VARIABLE} is off, or there is no home; set it")
    output = PartialOutput(
        path, overwrite=True, what="this machine's rates", why_not=not_a_file, option=FOLDER_VARIABLE
    )
    try:
        output.open(folder=False)
        with output.write_errors():
            output.path.write_text(board.model_dump_json(indent=1) + "\n", "utf-8")
            output.move()
    finally:
        output.discard()
    return path
