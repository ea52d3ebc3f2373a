"""`dasheng-edge plan`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import JsonOption, bundle_argument, print_json, print_table, say, show

if TYPE_CHECKING:
    from dasheng_edge.runtime.planning.board import Board
    from dasheng_edge.runtime.planning.shape import ModelShape
    from dasheng_edge.runtime.planning.speed import Prediction

_MAX_S, _MAX_TOKENS = 3600.0, 4096


def plan(
    bundles: Annotated[
        list[Path] | None,
        bundle_argument(
            "Bundles, and recipes of `quantize` by name; default: see `dasheng-edge config`.", "BUNDLE|RECIPE"
        ),
    ] = None,
    *,
    recipes: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="What `quantize` would make of the first bundle: recipes with commas between them, or all.",
        ),
    ] = None,
    board: Annotated[
        str,
        typer.Option(metavar="BOARD|FILE", help="A board that is known, a file of one, or here: see docs/boards.md."),
    ] = "here",
    clip: Annotated[float, typer.Option(min=0.1, max=_MAX_S, metavar="S", help="Length of a clip, in seconds.")] = 10.0,
    tokens: Annotated[int, typer.Option(min=1, max=_MAX_TOKENS, metavar="N", help="Length of an answer.")] = 40,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads; default: one for each fast core of the board.")
    ] = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="As if encoder and decoder were never in memory together.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine's rates first, in a minute, and store them.")
    ] = False,
    boards: Annotated[bool, typer.Option("--boards", help="List the boards that are known.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Foretell memory, seconds and energy of bundles and recipes on a board, before it is bought.

    Nothing is loaded, and the bundles need not fit here. Says what fits, and what to take. Rates of this machine
    are those of --calibrate; those of a board say where they come from, and which are guesses.
    """
    from dasheng_edge.runtime.planning.board import load_board, store_calibration

    if boards:
        _list(as_json=as_json)
        return
    if calibrate:
        from dasheng_edge.runtime.planning.calibrate import calibrate as measure

        say(f"stored in {store_calibration(measure(say))}")
        if not bundles and as_json:
            print_json(load_board("here"))
    if calibrate and not bundles:
        return
    from dasheng_edge.runtime.planning.memory import Use
    from dasheng_edge.runtime.planning.speed import predict

    shapes, known = _shapes(bundles or [], recipes), load_board(board)
    use = Use(clip, tokens, threads or known.threads, low=low_memory)
    predictions = [predict(shape, known, use, threads) for shape in shapes]
    _tell(known, predictions, as_json=as_json)


def _tell(board: Board, predictions: list[Prediction], *, as_json: bool) -> None:
    from dasheng_edge.runtime.planning.plan import choose

    use = predictions[0].use
    best, why = choose(predictions)
    if as_json:
        print_json({
            "board": board.name, "guesses": board.guesses, "clip_s": use.clip_s, "tokens": use.tokens,
            "threads": use.threads,
            "predictions": [fields(one) for one in predictions], "take": best and best.shape.name, "why": why,
        })  # fmt: skip
        return
    _print(board, predictions)
    for note in dict.fromkeys(f"{one.shape.name}: {note}" for one in predictions for note in one.shape.notes):
        show(note)
    if (rated := board.rated(use.threads).threads) != use.threads:
        show(f"rates are those of {_threads(rated)}: nobody has measured {_threads(use.threads)}")
    if board.guesses:
        show(f"guessed, not measured: {', '.join(board.guesses)}")
    show(why)


def _shapes(words: list[Path], recipes: str | None) -> list[ModelShape]:
    """Of bundles, and what recipes would make of the first, or of the default one."""
    from dasheng_edge.runtime.bundle.bundle import Bundle
    from dasheng_edge.runtime.config.default_bundle import default_bundle
    from dasheng_edge.runtime.config.settings import settings
    from dasheng_edge.runtime.errors import BoardError
    from dasheng_edge.runtime.names import did_you_mean
    from dasheng_edge.runtime.planning.recipes import ALL, RECIPE_SIZES, made
    from dasheng_edge.runtime.planning.shape import ModelShape

    known = (*RECIPE_SIZES, ALL)
    bundles = [word for word in words if word.exists() or str(word) not in known]
    names = [str(word) for word in words if word not in bundles]
    names += [name.strip() for name in (recipes or "").split(",") if name.strip()]
    for word in bundles:
        if not word.exists() and (hint := did_you_mean(str(word), known)).startswith("did"):
            raise BoardError(f"no bundle and no recipe is called {str(word)!r}; {hint}, or a bundle's folder")
    shapes = [
        ModelShape.of(Bundle.open(path, check_sha256=False)) for path in bundles or [default_bundle(settings()).path]
    ]
    recipe_shapes = [made(shapes[0], name) for name in dict.fromkeys(names) if name != ALL]
    if ALL in names:
        every = [made(shapes[0], name) for name in RECIPE_SIZES]
        recipe_shapes = [one for one in every if one.total_bytes < shapes[0].total_bytes or one in recipe_shapes]
    return [*shapes, *recipe_shapes]


def fields(one: Prediction) -> dict[str, object]:
    """A prediction, for `--json`: bytes, seconds, joules."""
    return {
        "name": one.shape.name, "bundle_bytes": one.shape.total_bytes, "fits": one.fits,
        "peak_bytes": one.account.peak, "memory_bytes": one.memory_bytes, "peak_parts": dict(one.account.parts),
        "low_memory_peak_bytes": one.low and one.low.account.peak, "low_memory_fits": one.low and one.low.fits,
        "low_memory_caption_s": one.low and one.low.times.caption_s,
        **asdict(one.times), "caption_s": one.times.caption_s, "prefill_rows": one.prefill_rows,
        "real_time_factor": one.real_time_factor, "joules": one.joules, "notes": one.shape.notes,
    }  # fmt: skip


def _print(board: Board, predictions: list[Prediction]) -> None:
    """Two tables, each of which fits into 80 columns."""
    from rich.table import Table

    use, memory, seconds = predictions[0].use, Table(""), Table("")
    has_low, answers = any(one.low for one in predictions), any(one.shape.decoder for one in predictions)
    for heading in ("disk", "peak", *(["--low-memory"] if has_low else []), "fits"):
        memory.add_column(heading, justify="right")
    for heading in (
        "load",
        "encoder",
        "prefill",
        "decode",
        "caption",
        "of clip",
        *(["energy"] if board.watts else []),
    ):
        seconds.add_column(heading, justify="right")
    for name, one in zip(_short([one.shape.name for one in predictions]), predictions, strict=True):
        times = one.times
        least = [_mb(one.low.account.peak) if one.low else ""] if has_low else []
        fits = "yes" if one.fits else "--low-memory" if one.low and one.low.fits else "NO"
        memory.add_row(name, _mb(one.shape.total_bytes), _mb(one.account.peak), *least, fits)
        seconds.add_row(
            name, f"{_digits(times.load_s)} s", f"{_digits(times.encoder_s + times.front_end_s)} s",
            f"{_digits(one.prefill_rows / times.prefill_s)}/s" if times.prefill_s else "",
            f"{_digits(1 / times.token_s)}/s" if times.token_s else "", f"{_digits(times.caption_s)} s",
            f"{_digits(100 * one.real_time_factor)} %", *([] if one.joules is None else [f"{_digits(one.joules)} J"]),
        )  # fmt: skip
    low = " with --low-memory" if use.low else ""
    show(f"{board.name}; memory{low}, of which there are {_mb(predictions[0].memory_bytes)}:")
    print_table(memory)
    said = f" and {use.tokens} tokens" if answers else ""
    show(f"A clip of {use.clip_s:g} s{said}, {_threads(use.threads)}{low}:")
    print_table(seconds)


def _mb(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"


def _digits(number: float) -> str:
    """Two of them, or all before the point."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _short(names: list[str]) -> list[str]:
    """As little of the end of paths as tells them apart."""
    paths = [Path(name).parts for name in names]
    for count in range(1, max(map(len, paths)) + 1):
        short = [str(Path(*parts[-count:])) if parts else "." for parts in paths]
        if len(set(short)) == len(set(names)):
            return short
    return names


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _list(*, as_json: bool) -> None:
    from dasheng_edge.runtime.planning.board import board_names, is_calibrated, load_board

    found = {name: load_board(name) for name in board_names()}
    if is_calibrated():
        found["here"] = load_board("here")
    if as_json:
        print_json({name: board.model_dump(mode="json") for name, board in found.items()})
        return
    for name, board in found.items():
        guesses = f" ({len(board.guesses)} guesses)" if board.guesses else ""
        show(f"{name}: {board.name}, {board.memory_mb:,.0f} MB, {board.threads} threads{guesses}")
