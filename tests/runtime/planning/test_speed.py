"""Laws of what is foretold: memory and seconds grow with what is asked, and shrink with what a machine can do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.errors import BoardError
from dasheng_edge.runtime.planning.board import Board, load_board
from dasheng_edge.runtime.planning.memory import CONTEXT_STEP, Use, account, positions
from dasheng_edge.runtime.planning.plan import choose
from dasheng_edge.runtime.planning.recipes import RECIPE_SIZES, fitting, made
from dasheng_edge.runtime.planning.shape import DecoderShape, ModelShape
from dasheng_edge.runtime.planning.speed import predict


@pytest.fixture(scope="module")
def shape(tiny_bundle: Path) -> ModelShape:
    return ModelShape.of(Bundle.open(tiny_bundle, check_sha256=False))


@pytest.fixture
def board() -> Board:
    return load_board("pi5")


def test_a_shape_is_what_the_files_are(shape: ModelShape, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    decoder = shape.decoder
    assert decoder is not None
    assert decoder.bytes == (tiny_bundle / "decoder.gguf").stat().st_size
    assert shape.total_bytes == bundle.manifest.total_bytes
    stored = sum(part.values for part in (*decoder.body, decoder.table, *(() if decoder.tied else (decoder.head,))))
    assert 0.95 * bundle.decoder_facts.parameters < stored <= bundle.decoder_facts.parameters  # the rest are vectors
    assert sum(shape.chunks(30.0)) == 5 * shape.audio_rows(30.0)
    assert max(shape.chunks(30.0)) == shape.spec.chunk_patches


def test_memory_hangs_on_the_manifest_alone_where_it_says_enough(tiny_bundle: Path, tmp_path: Path) -> None:
    from dasheng_edge.runtime.program import upgrade_bundle

    upgrade_bundle(tiny_bundle, tmp_path / "new", overwrite=False)
    bundle = Bundle.open(tmp_path / "new", check_sha256=False)
    use = Use()
    assert account(ModelShape.of(bundle, types=False), use) == account(ModelShape.of(bundle), use)
    assert DecoderShape.stated(bundle).body == ()


@pytest.mark.parametrize(
    "more", [{"clip_s": 60.0}, {"tokens": 2000}, {"threads": 2}], ids=lambda more: next(iter(more))
)
def test_more_takes_more(more: dict[str, Any], shape: ModelShape, board: Board) -> None:
    less, use = predict(shape, board, Use()), replace(Use(), **more)
    got = predict(shape, board, use)
    assert got.account.phases["opening"] == less.account.phases["opening"]
    for want, one in zip((less, less.low), (got, got.low), strict=True):
        assert want
        assert one
        assert one.account.phases.keys() == want.account.phases.keys()
        for phase in one.account.phases.keys() - {"opening"}:
            grown = sum(one.account.phases[phase].values()) - sum(want.account.phases[phase].values())
            assert grown > 0 or (phase, "clip_s" in more) in {("hearing", False), ("answering", False)}
    if "threads" not in more:
        assert got.times.caption_s > less.times.caption_s


def test_apart_takes_no_more_than_together(shape: ModelShape) -> None:
    for clip_s in (1.0, 10.0, 100.0):
        use = Use(clip_s)
        assert account(shape, replace(use, low=True)).peak < account(shape, use).peak


def test_smaller_keys_take_less(shape: ModelShape) -> None:
    kept = [
        account(shape, Use(kv_type=kind)).phases["captioning"]["keys and values"] for kind in ("f16", "q8_0", "q4_0")
    ]
    assert sorted(kept, reverse=True) == kept
    low = account(shape, Use(low=True)).phases["answering"]["keys and values"]
    assert low == kept[1] < kept[0]


def test_positions_hold_the_clip_and_the_answer(shape: ModelShape) -> None:
    for clip_s in (1.0, 10.0, 100.0):
        for tokens in (1, 100, 1000):
            got = positions(shape, Use(clip_s, tokens))
            assert got % CONTEXT_STEP == 0
            assert got >= shape.audio_rows(clip_s) + tokens


def test_a_machine_twice_as_fast_takes_half_the_time(shape: ModelShape, board: Board) -> None:
    fields = board.model_dump()
    for rates in fields["rates"]:
        for key, value in rates.items():
            if key.endswith("_per_s"):
                rates[key] = 2 * value
            elif key.endswith(("_us", "_ns")):
                rates[key] = value / 2
        for kind in rates["types"].values():
            kind.update({key: 2 * value for key, value in kind.items()})
    twice = predict(shape, Board.model_validate(fields), Use()).times
    once = predict(shape, board, Use()).times
    for name in ("front_end_s", "encoder_s", "prefill_s", "token_s", "decode_s", "caption_s"):
        assert getattr(twice, name) == pytest.approx(getattr(once, name) / 2), name
    assert twice.load_s == once.load_s


def test_an_encoder_alone_decodes_nothing(shape: ModelShape, board: Board) -> None:
    got = predict(replace(shape, decoder=None), board, Use())
    assert got.times.decode_s == got.times.prefill_s == got.times.token_s == 0
    assert not {"decoder", "vocabulary"} & got.account.parts.keys()


def test_recipes_are_smaller_the_further_they_go(shape: ModelShape) -> None:
    sizes = [made(shape, recipe) for recipe in RECIPE_SIZES]
    assert [one.name for one in sizes] == [*RECIPE_SIZES]
    totals = [one.total_bytes for one in sizes]
    assert totals == sorted(totals, reverse=True)
    assert all(0 < one.graph_bytes <= shape.graph_bytes for one in sizes)
    with pytest.raises(BoardError, match="quantized already"):
        made(sizes[-1], "small")
    with pytest.raises(BoardError, match="expected one of reference"):
        made(shape, "huge")


def test_low_memory_or_the_finest_recipe_is_what_would_fit(shape: ModelShape) -> None:
    use = Use()
    low = account(shape, use.with_low_memory).taken()
    assert fitting(shape, low, use).startswith("take --low-memory")
    assert "--low-memory" not in fitting(shape, low - 1, use)
    assert "--low-memory" not in fitting(shape, low, use.with_low_memory)
    taken = {recipe: account(made(shape, recipe), use.with_low_memory).taken() for recipe in RECIPE_SIZES}
    for recipe, size in taken.items():
        if made(shape, recipe).total_bytes < shape.total_bytes:
            finest = next(name for name, one in taken.items() if one <= size)
            assert fitting(shape, size, use.with_low_memory).startswith(f"quantize it to {finest},")
    small = made(shape, "small")
    assert fitting(small, taken["tiny"], use.with_low_memory).startswith("quantize the bundle that it was made of to")
    assert fitting(shape, min(taken.values()) - 1, use) == ""


def test_what_to_take(shape: ModelShape, board: Board) -> None:
    recipes = [made(shape, name) for name in ("reference", "small")]
    large, small = (predict(one, board, Use()) for one in recipes)
    assert choose([small, large])[0] is large
    slow = replace(large, times=replace(large.times, encoder_s=100.0))
    assert choose([slow, small])[0] is small
    both = replace(small, times=replace(small.times, encoder_s=20.0))
    best, why = choose([slow, both])
    assert best is both
    assert "times as long" in why
    assert choose([replace(large, memory_bytes=1), small])[0] is small
    short = [replace(one, memory_bytes=1) for one in (large, small)]
    best, why = choose(short)
    assert best is small.low or best is large.low
    assert "--low-memory" in why
    none, why = choose([replace(one, low=one.low and replace(one.low, memory_bytes=1)) for one in short])
    assert none is None
    assert "small" in why


def _with_all_rates(value: Any, rate: float) -> Any:
    if isinstance(value, dict):
        return {key: one if key == "threads" else _with_all_rates(one, rate) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_all_rates(one, rate) for one in value]
    return rate if isinstance(value, float) else value


@pytest.mark.parametrize("rate", [1e-6, 1e9])
def test_every_board_that_is_accepted_foretells_finite_seconds(rate: float, shape: ModelShape, board: Board) -> None:
    extreme = Board.model_validate(_with_all_rates(board.model_dump(mode="json"), rate))
    one = predict(shape, extreme, Use(clip_s=3600.0, tokens=4096), None)
    seconds = (one.times.load_s, one.times.prefill_s, one.times.token_s, one.times.caption_s, one.joules or 0.0)
    assert all(0 < each < math.inf for each in seconds)
