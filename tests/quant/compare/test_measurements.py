"""Measurements that are kept: what they are named by, what is measured anew, and what is said about single clips."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.quant.compare.measurements import (
    Answering,
    decoder_id,
    embed_all,
    encoder_id,
    joined,
    sounds_of,
    stored_name,
)
from dasheng_edge.quant.compare.usable_clips import ClipsFailedError, usable_clips
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.clips.clips import Clip, ClipSet
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import AudioTooLongError, ClipsError, DashengEdgeError, DecoderError, PromptError
from dasheng_edge.runtime.parts import TextParts
from tests.runtime.clips.test_clips import write_wave

MICRO = Path(__file__).resolve().parents[3] / "build" / "micro"
pytestmark = pytest.mark.skipif(not MICRO.is_dir(), reason="make build/micro makes it")
LIMIT = 4
Embeddings = NDArray[np.float32]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(MICRO)


def altered(bundle: Bundle, part: str, **update: Any) -> Bundle:
    """The same with other facts in one part of the manifest, and no word of what follows from them."""
    facts = getattr(bundle.manifest, part).model_copy(update=update)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={part: facts, "program": None}))


def embeddings(_: str) -> Embeddings:
    return np.random.default_rng(0).normal(0, 0.1, (6, 256)).astype(np.float32)


def ignore(_: int) -> None:
    pass


@pytest.mark.parametrize("update", [{"prompt": "What?"}, {"system": "Be short."}, {"audio_first": False}])
def test_a_decoder_is_named_by_what_it_is_asked(bundle: Bundle, update: dict[str, Any]) -> None:
    other = altered(bundle, "prompt", **update)
    assert decoder_id(other, 1) != decoder_id(bundle, 1)
    assert encoder_id(other, 1) == encoder_id(bundle, 1)


def test_what_decides_no_answer_is_in_no_name(bundle: Bundle) -> None:
    assert decoder_id(altered(bundle, "prompt", notes=("x",), comfortable_s=1.0), 1) == decoder_id(bundle, 1)


def test_parts_are_named_by_what_decides_their_numbers(bundle: Bundle) -> None:
    assert decoder_id(bundle, 2) != decoder_id(bundle, 1)
    assert encoder_id(bundle, 2) != encoder_id(bundle, 1)
    assert decoder_id(altered(bundle, "decoder", kv_type="q8_0"), 1) != decoder_id(bundle, 1)
    assert encoder_id(altered(bundle, "front_end", top_db=80.0), 1) != encoder_id(bundle, 1)


@pytest.mark.parametrize("library", ["dasheng-edge", "onnxruntime", "llama-cpp-python"])
def test_an_upgrade_measures_anew(bundle: Bundle, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (encoder_id(bundle, 1), decoder_id(bundle, 1))
    known = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99.0" if name == library else known(name))
    after = (encoder_id(bundle, 1), decoder_id(bundle, 1))
    assert not set(before) & set(after)


def test_a_clip_that_leaves_no_room_is_named(bundle: Bundle, tmp_path: Path) -> None:
    write_wave(tmp_path / "short.wav", 0.05)
    write_wave(tmp_path / "long.wav", 3.2)
    clips = [Clip("short", tmp_path / "short.wav"), Clip("long", tmp_path / "long.wav")]
    both = ClipSet("both", tuple(clips))
    text = TextParts.open(bundle, EngineOptions())
    prompt = text.prompts.build(None).text_tokens
    text.decoder.close()
    usable = usable_clips(altered(bundle, "decoder", context_length=prompt + 20), both, LIMIT)
    assert usable.samples == (800, 51_200)  # 1 and 16 tokens
    assert (usable.clips, usable.left_out) == (both, ())
    small = altered(bundle, "decoder", context_length=prompt + 19)
    said = r"clip long has 3\.2 s, which are 16 audio tokens; with 4 new tokens and the prompt at most 15 fit .*cut the"
    without = usable_clips(small, both, LIMIT)
    assert without.clips.clips == (clips[0],)
    assert re.match(said, "".join(without.left_out))
    with pytest.raises(AudioTooLongError, match=said):
        usable_clips(small, ClipSet("long", (clips[1],)), LIMIT)


def test_what_one_clip_does_does_not_end_the_others(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wave(tmp_path / "a.wav", 0.5)
    good, memory = Clip("good", tmp_path / "a.wav"), Clip("memory", tmp_path / "a.wav", 0.1)
    blocks = Clip.blocks

    def hostile(self: Clip, rate: int, *warn: Any) -> Iterator[NDArray[np.float32]]:
        if self is memory:
            raise MemoryError
        return blocks(self, rate, *warn)

    monkeypatch.setattr(Clip, "blocks", hostile)
    wrong = Clip("wrong", tmp_path / "a.wav", prompt="\ud800")
    wordy = Clip("wordy", tmp_path / "a.wav", prompt="word " * bundle.decoder_facts.context_length)
    row = Clip("row", tmp_path, error=ClipsError("clip row: line 3"))
    usable = usable_clips(bundle, ClipSet("all", (wrong, memory, good, wordy, row)), LIMIT)
    assert usable.clips.clips == (good,)
    assert usable.warnings == ()
    for clip, why in zip((wrong, memory, wordy, row), usable.left_out, strict=True):
        assert f"clip {clip.id}" in why
    with pytest.raises(PromptError):  # all clips have it
        usable_clips(altered(bundle, "prompt", prompt="\ud800"), ClipSet("good", (good,)), LIMIT)


@pytest.mark.parametrize(
    ("prompt", "kind", "said"),
    [
        ("rain " * 5000, DecoderError, "clip mine: the request needs .* positions"),
        ("\ud800", PromptError, "clip mine: the text .* is not valid Unicode"),
    ],
)
def test_errors_of_a_clip_name_it(
    bundle: Bundle, tmp_path: Path, prompt: str, kind: type[DashengEdgeError], said: str
) -> None:
    clips = [Clip("mine", tmp_path / "x.wav", prompt=prompt)]
    with Answering(bundle, 1, clips, LIMIT) as answering, pytest.raises(ClipsFailedError, match=said) as failed:
        answering.reference(embeddings, tmp_path / "out", ignore)
    plain = [Clip("mine", tmp_path / "x.wav")]
    with Answering(bundle, 1, plain, LIMIT) as answering:
        reference = answering.reference(embeddings, tmp_path / "plain", ignore)
    with Answering(bundle, 1, clips, LIMIT) as answering, pytest.raises(ClipsFailedError, match=said) as failed_too:
        answering.answers(embeddings, reference, tmp_path / "out2", ignore)
    for error in (failed, failed_too):
        assert {name: type(why) for name, why in error.value.why.items()} == {"mine": kind}


@pytest.mark.parametrize(
    ("start", "samples"), [(0, 800), (700, 900), (799, 2), (2_400, 3_000), (1_999, 7_000), (900_000, 50)]
)
def test_clips_joined_go_round_and_each_that_is_heard_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, samples: int
) -> None:
    lengths = [800, 1_600, 480]
    clips = [Clip(str(n), tmp_path / f"{n}.wav") for n in lengths]
    for clip, length in zip(clips, lengths, strict=True):
        write_wave(clip.path, length / 16_000)
    whole = np.concatenate([clip.read(16_000) for clip in clips])
    places = np.arange(start, start + samples)
    heard = {str(n) for n in np.take(np.repeat(lengths, lengths), places, mode="wrap")}
    read: list[str] = []
    reading = Clip.read

    def noted(clip: Clip, rate_hz: int) -> Embeddings:
        read.append(clip.id)
        return reading(clip, rate_hz)

    monkeypatch.setattr(Clip, "read", noted)
    got = joined(clips, lengths, 16_000, start, samples)
    np.testing.assert_array_equal(got, np.take(whole, places, mode="wrap"))
    assert sorted(read) == sorted(heard)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another(path: Path) -> None:
    path.write_text('{"tokens": []}')


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [empty, half, another, gone])
@pytest.mark.parametrize("name", ["reference/{}.json", "reference/{}.npy", "answers/{}.json"])
def test_a_kept_file_that_cannot_be_read_is_measured_again(
    bundle: Bundle, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    clips = [Clip("mine", tmp_path / "x.wav")]

    def run() -> tuple[object, int]:
        advanced: list[int] = []
        with Answering(bundle, 1, clips, LIMIT) as answering:
            reference = answering.reference(embeddings, tmp_path / "reference", advanced.append)
            answers = answering.answers(embeddings, reference, tmp_path / "answers", advanced.append)
        found = answers[0]
        return (reference, found.text, found.tokens, found.kl), sum(advanced)

    before, count = run()
    assert count == 2
    assert run() == (before, 0)
    damage(tmp_path / name.format(stored_name(*clips)))
    assert run() == (before, 1)


@pytest.mark.parametrize("damage", [empty, half, another, gone])
def test_kept_embeddings_that_cannot_be_read_are_measured_again(
    bundle: Bundle, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    write_wave(tmp_path / "x.wav", 0.5)
    sounds = sounds_of([Clip("x", tmp_path / "x.wav")], [8_000], 16_000)[:2]
    name = sounds[0].key
    before = embed_all(bundle, 1, sounds, tmp_path / "kept", ignore)(name)
    damage(tmp_path / "kept" / f"{name}.npy")
    advanced: list[int] = []
    after = embed_all(bundle, 1, sounds, tmp_path / "kept", advanced.append)(name)
    np.testing.assert_array_equal(after, before)
    assert advanced == [1]
