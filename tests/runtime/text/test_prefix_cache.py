"""Prompts that were computed before: the same numbers, less work, and never in the way."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.text import prefix_cache
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.model import Tokens
from dasheng_edge.runtime.text.prefix_cache import MAX_IN_MEMORY, PrefixCache

LEAD = (1, 2, 3, 4, 5, 6, 7)


def rows(decoder: Decoder, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (9, decoder.n_embd)).astype(np.float32)


def logits_of(decoder: Decoder, lead: tuple[int, ...] = LEAD) -> np.ndarray:
    decoder.prefill([lead, rows(decoder), (8, 9)])
    return decoder.logits()


def test_a_prefix_from_disk_gives_the_same_bits(decoder: Decoder, tiny_bundle: Path, tmp_path: Path) -> None:
    want = logits_of(decoder)
    decoder.prefixes = PrefixCache(tmp_path, "model")
    logits_of(decoder, (9, *LEAD))  # so that LEAD is no longer in the cache
    np.testing.assert_array_equal(logits_of(decoder), want)
    assert decoder.prefilled == len(LEAD) + 11
    other = Decoder.open(tiny_bundle / DECODER, EngineSettings(), n_ctx=256)
    other.prefixes = PrefixCache(tmp_path, "model")
    np.testing.assert_array_equal(logits_of(other), want)
    assert other.prefilled == 11
    other.close()


def test_prompts_that_take_turns_are_computed_once(decoder: Decoder) -> None:
    decoder.prefixes = PrefixCache(None, "model")
    prefilled = []
    for lead in (LEAD, LEAD[::-1], LEAD, LEAD[::-1]):
        logits_of(decoder, lead)
        prefilled.append(decoder.prefilled)
    assert prefilled == [len(LEAD) + 11, len(LEAD) + 11, 11, 11]


def test_a_context_that_grew_takes_it_from_there(decoder: Decoder) -> None:
    decoder.prefixes = PrefixCache(None, "model")
    want = logits_of(decoder)
    decoder.prefill([LEAD, rows(decoder)], reserve=400)
    assert decoder.prefilled == 9
    np.testing.assert_array_equal(logits_of(decoder), want)


def test_a_prompt_of_text_alone_is_as_before(decoder: Decoder, tmp_path: Path) -> None:
    decoder.prefill([LEAD])
    want = decoder.logits()
    decoder.prefixes = PrefixCache(tmp_path, "model")
    decoder.prefill([LEAD[::-1]])
    decoder.prefill([LEAD])
    np.testing.assert_array_equal(decoder.logits(), want)
    assert list(tmp_path.iterdir()) == []


def test_few_tokens_are_not_kept(decoder: Decoder, tmp_path: Path) -> None:
    decoder.prefixes = PrefixCache(tmp_path, "model")
    logits_of(decoder, (1, 2, 3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_passed_over_and_replaced(decoder: Decoder, tmp_path: Path, damage: str) -> None:
    decoder.prefixes = PrefixCache(tmp_path, "model")
    want = logits_of(decoder)
    (path,) = (tmp_path / "prefixes").iterdir()
    sound = path.read_bytes()
    middle = len(sound) // 2
    path.write_bytes({
        "cut": sound[:middle], "flipped": sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :],
        "empty": b"", "foreign": b"something else entirely",
    }[damage])  # fmt: skip
    decoder.prefixes = PrefixCache(tmp_path, "model")
    logits_of(decoder, LEAD[::-1])
    np.testing.assert_array_equal(logits_of(decoder), want)
    assert decoder.prefilled == len(LEAD) + 11
    assert path.read_bytes() == sound


def test_a_state_that_llama_cpp_refuses_is_dropped(decoder: Decoder, tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path, "model")
    want = logits_of(decoder)
    cache.store(LEAD, b"no state at all")
    decoder.prefixes = cache
    logits_of(decoder, LEAD[::-1])
    np.testing.assert_array_equal(logits_of(decoder), want)
    assert decoder.prefilled == len(LEAD) + 11


def test_a_state_of_other_rows_is_dropped(decoder: Decoder, tmp_path: Path) -> None:
    decoder.prefixes = PrefixCache(tmp_path, "model")
    want = logits_of(decoder)
    logits_of(decoder, (9, 8, 7, 6, 5))
    shorter = decoder.prefixes.load((9, 8, 7, 6, 5))
    assert shorter is not None
    decoder.prefixes.store(LEAD, shorter)
    logits_of(decoder, LEAD[::-1])
    np.testing.assert_array_equal(logits_of(decoder), want)
    assert decoder.prefilled == len(LEAD) + 11


@pytest.mark.parametrize("given", [("b", LEAD), ("a", LEAD[::-1])])
def test_a_file_under_the_name_of_another_is_removed(tmp_path: Path, given: tuple[str, Tokens]) -> None:
    """As when caches of two builds are merged by hand."""
    model, tokens = given
    PrefixCache(tmp_path / "other", model).store(tokens, b"state")
    PrefixCache(tmp_path, "a").store(LEAD, b"mine")
    (name,) = (tmp_path / "prefixes").iterdir()
    (other,) = (tmp_path / "other" / "prefixes").iterdir()
    shutil.copy(other, name)
    assert PrefixCache(tmp_path, "a").load(LEAD) is None
    assert not name.exists()


def test_what_killed_writers_left_goes_with_the_next_state(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    folder.mkdir()
    left, earlier, young = (folder / f".0123.kv.{end}" for end in ("partial-89abcdef", "01234567", "89abcdef"))
    for path in (left, earlier, young):
        path.touch()
    os.utime(earlier, (0, 0))
    PrefixCache(tmp_path, "a").store(LEAD, b"state")
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".kv") == [young.name]


def test_another_model_has_its_own(tmp_path: Path) -> None:
    PrefixCache(tmp_path, "a").store(LEAD, b"state")
    assert PrefixCache(tmp_path, "a").load(LEAD) == b"state"
    assert PrefixCache(tmp_path, "b").load(LEAD) is None
    assert PrefixCache(tmp_path, "a").load(LEAD[1:]) is None


def test_only_the_last_few_stay_in_memory() -> None:
    cache = PrefixCache(None, "a")
    for token in range(MAX_IN_MEMORY + 2):
        cache.store((token,), b"x")
        cache.load((0,))  # used, so it stays
    assert cache.load((0,)) == b"x"
    assert cache.load((1,)) is None


def test_the_disk_holds_so_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "MAX_BYTES_ON_DISK", 1000)
    cache = PrefixCache(tmp_path, "a")
    for token in range(5):
        cache.store((token,), bytes(300))
        for path in (tmp_path / "prefixes").iterdir():
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 10**9))
    sizes = [path.stat().st_size for path in (tmp_path / "prefixes").iterdir()]
    assert len(sizes) == 2
    fresh = PrefixCache(tmp_path, "a")
    assert fresh.load((4,)) == bytes(300)
    assert fresh.load((0,)) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "prefixes").write_text("a file where the folder would be")
    cache = PrefixCache(tmp_path, "a")
    cache.store(LEAD, b"state")
    cache.drop(LEAD[1:])
    assert cache.load(LEAD) == b"state"
    assert PrefixCache(tmp_path, "a").load(LEAD) is None


def test_a_bundle_that_was_not_checked_has_no_part_in_the_cache(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files may be others than its manifest says, whose states would be taken for those of the right ones."""
    monkeypatch.setenv("DASHENG_EDGE_CACHE", str(tmp_path / "cache"))
    altered = Path(shutil.copytree(tiny_bundle, tmp_path / "altered"))
    content = bytearray((altered / DECODER).read_bytes())
    weights = np.frombuffer(content, np.uint8)[len(content) // 2 :]
    weights[: len(weights) // 4 * 4].view(np.uint32)[:] ^= 0x80008000  # every weight's sign, of one or two in each
    (altered / DECODER).write_bytes(content)
    clip = (np.random.default_rng(0).uniform(-0.5, 0.5, 16000).astype(np.float32), 16000)

    def tokens(bundle: Path, *, checked: bool) -> tuple[tuple[int, ...], int]:
        with Captioner.open(bundle, threads=1, check_sha256=checked) as captioner:
            caption = captioner.caption(clip, max_new_tokens=8)
            return caption.tokens, caption.timings.prefill_rows

    tokens(altered, checked=False)
    assert not (tmp_path / "cache").exists()
    right = tokens(tiny_bundle, checked=True)
    assert tokens(altered, checked=False)[1] == right[1]  # nothing was read either
    assert tokens(tiny_bundle, checked=True)[0] == right[0]


def test_captions_are_the_same_and_the_second_process_starts_behind_the_prompt(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASHENG_EDGE_CACHE", str(tmp_path))
    clip = (np.random.default_rng(0).uniform(-0.5, 0.5, 16000).astype(np.float32), 16000)
    found = []
    for _ in range(2):
        with Captioner.open(tiny_bundle, threads=1) as captioner:
            caption = captioner.caption(clip)
            found.append((caption.tokens, caption.timings.prefill_rows))
    assert found[0][0] == found[1][0]
    lead = found[0][1] - found[1][1]
    assert lead > 0
    (path,) = (tmp_path / "prefixes").iterdir()
    assert stat.S_ISREG(path.stat().st_mode)
