"""The counting law, and sizes that it cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec

SPEC = FrontEndSpec()


@pytest.mark.parametrize(
    ("samples", "frames", "patches", "tokens"),
    [
        (0, 1, 0, 0),
        (3_039, 19, 4, 0),
        (3_040, 20, 5, 1),
        (16_000, 101, 25, 5),
        (160_000, 1_001, 250, 50),
        (161_280, 1_009, 252, 50),
        (163_200, 1_021, 255, 51),
        (480_000, 3_001, 750, 150),
        (4_800_000, 30_001, 7_500, 1_500),
    ],
)
def test_counting_law(samples: int, frames: int, patches: int, tokens: int) -> None:
    assert (SPEC.frames_of(samples), SPEC.patches_of(samples), SPEC.tokens_of(samples)) == (frames, patches, tokens)


@given(st.integers(0, 40_000))
def test_the_longest_clip_of_so_many_tokens(tokens: int) -> None:
    longest = SPEC.samples_for_tokens(tokens)
    assert SPEC.tokens_of(longest) == tokens
    assert SPEC.tokens_of(longest + 1) == tokens + 1


@given(st.integers(0, 10_000_000))
def test_chunks_cover_all_patches_and_the_last_patch_may_be_no_key(samples: int) -> None:
    patches = SPEC.patches_of(samples)
    chunks = SPEC.chunks_of(patches)
    assert [patch for start, stop in chunks for patch in (start, stop - 1)][:1] == ([0] if patches else [])
    assert sum(stop - start for start, stop in chunks) == patches
    assert all(0 < stop - start <= SPEC.chunk_patches for start, stop in chunks)
    assert patches - SPEC.valid_patches_of(samples) == (1 if samples // 160 % 4 == 3 else 0)


def test_constants_of_the_published_model() -> None:
    assert (SPEC.chunk_patches, SPEC.samples_per_token) == (252, 3_200)
    assert SPEC.padded_samples_of(1) == SPEC.min_samples
    assert SPEC.tokens_of(SPEC.min_samples) == 1


@given(st.integers(0, 10_000), st.sampled_from([(5, 3_200, 3_040), (5, 3_200, None), (1, 640, 480), (2, 1_280, 1_120)]))
def test_only_clips_without_a_token_are_padded(samples: int, sizes: tuple[int, int, int | None]) -> None:
    patches, enough, below = sizes
    spec = FrontEndSpec(tokens_patches=patches, min_samples=enough, pads_below=below)
    padded = spec.padded_samples_of(samples)
    assert spec.tokens_of(padded) >= 1
    if below is None:  # as before schema 4
        assert padded == max(samples, enough)
    else:
        assert padded == (samples if spec.tokens_of(samples) else enough)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hop_length": 0}, "hop_length\n.*greater than 0"),
        ({"tokens_patches": 0}, "tokens_patches\n.*greater than 0"),
        ({"patch_frames": -4}, "patch_frames\n.*greater than 0"),
        ({"top_db": float("inf")}, "top_db\n.*finite"),
        ({"chunk_frames": 2}, "chunk_frames is 2, expected a multiple of patch_frames"),
        ({"chunk_frames": 1009}, "chunk_frames is 1009, expected a multiple of patch_frames"),
        ({"chunk_frames": 24}, "chunks of 3840 samples, expected 4000 or more"),
        ({"n_fft": 400}, "n_fft is 400, expected at least win_length, 512"),
        ({"min_samples": 3_039}, "min_samples is 3039, which yields no audio token"),
        ({"pads_below": 3_039}, "pads_below is 3039, expected a length that yields an audio token"),
        ({"pads_below": 3_201}, "at most min_samples, 3200"),
        ({"pads_below": 0}, "pads_below\n.*greater than 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FrontEndSpec.model_validate(changes)
