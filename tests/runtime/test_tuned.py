"""What was tuned is found again on the same machine for the same bundle, and nowhere else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.runtime import tuned as tuned_module
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import MANIFEST
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.embedder import Embedder
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings
from dasheng_edge.runtime.errors import OutputExistsError, OutputWriteError
from dasheng_edge.runtime.tuned import Machine, forget_tuned, store_tuned, this_machine, tuned_for

CHOICE = EngineSettings(kv_type="q8_0", weights="repacked")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DASHENG_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle, check_sha256=False)


def test_what_is_stored_is_found_again(bundle: Bundle, cache: Path) -> None:
    assert tuned_for(bundle) is None
    path = store_tuned(bundle, CHOICE)
    assert path.parent == cache / "tuned"
    assert list(path.parent.iterdir()) == [path]  # no lock and nothing half-written beside it
    found = tuned_for(bundle)
    assert found is not None
    assert found.settings == CHOICE
    assert found.bundle == bundle.manifest.name
    assert found.machine == this_machine()


def test_a_file_of_an_earlier_version_is_honoured(bundle: Bundle) -> None:
    path = store_tuned(bundle, CHOICE)
    written = {
        "encoder_threads": 1, "prefill_threads": 1, "decode_threads": 1, "kv_type": "q8_0", "repack": True,
        "schema_version": 1, "bundle": "tiny", "manifest_sha256": json.loads(path.read_text())["manifest_sha256"],
        "machine": this_machine().model_dump(),
    }  # fmt: skip
    path.write_text(json.dumps(written))  # version 0.1 knew no huge pages
    found = tuned_for(bundle)
    assert found is not None
    assert found.settings == CHOICE


def test_a_later_choice_replaces_an_earlier_one(bundle: Bundle) -> None:
    store_tuned(bundle, CHOICE)
    store_tuned(bundle, replace(CHOICE, kv_type="f16"))
    found = tuned_for(bundle)
    assert found is not None
    assert found.kv_type == "f16"


def test_forget(bundle: Bundle) -> None:
    assert not forget_tuned(bundle)
    store_tuned(bundle, CHOICE)
    assert forget_tuned(bundle)
    assert tuned_for(bundle) is None


def test_another_bundle_has_nothing(bundle: Bundle, bundle_copy: Path) -> None:
    store_tuned(bundle, CHOICE)
    assert tuned_for(Bundle.open(bundle_copy, check_sha256=False)) is not None  # the same one in another place
    manifest = json.loads((bundle_copy / MANIFEST).read_text())
    (bundle_copy / MANIFEST).write_text(json.dumps(manifest | {"name": "another"}))
    assert tuned_for(Bundle.open(bundle_copy, check_sha256=False)) is None
    (bundle_copy / MANIFEST).unlink()
    assert tuned_for(Bundle(bundle_copy, bundle.manifest)) is None


@pytest.mark.parametrize(
    "update", [{"cpu": "another"}, {"cpu_flags": ("x",)}, {"cores": 77}, {"engines": {"llama-cpp-python": "99"}}]
)
def test_another_machine_has_nothing(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, update: dict[str, object]
) -> None:
    store_tuned(bundle, CHOICE)
    other = this_machine().model_copy(update=update)
    monkeypatch.setattr(tuned_module, "this_machine", lambda: other)
    assert tuned_for(bundle) is None


def edited(**update: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | update))

    return edit


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:99])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        half,
        folder,
        edited(surprise=1),
        edited(schema_version=2),
        edited(kv_type="q2"),
        edited(decode_threads=0),
        edited(prefill_threads=100_000),
        edited(manifest_sha256="0" * 64),
    ],
)
def test_a_file_that_cannot_be_used_is_none(bundle: Bundle, damage: Callable[[Path], None]) -> None:
    damage(store_tuned(bundle, CHOICE))
    assert tuned_for(bundle) is None


def test_by_default_it_is_where_caches_are(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASHENG_EDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store_tuned(bundle, CHOICE).parent == tmp_path / "xdg" / "dasheng-edge" / "tuned"


def test_without_caches_nothing_is_found_and_nothing_stored(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHENG_EDGE_CACHE", "off")
    assert tuned_for(bundle) is None
    with pytest.raises(OutputWriteError, match=r"no place for what was tuned: .*set DASHENG_EDGE_CACHE to a folder"):
        store_tuned(bundle, CHOICE)


def test_what_is_in_the_way_is_left_alone(bundle: Bundle) -> None:
    folder(store_tuned(bundle, CHOICE))
    with pytest.raises(OutputExistsError, match=r"is not a choice of `dasheng-edge tune` .*another DASHENG_EDGE_CACHE"):
        store_tuned(bundle, CHOICE)
    with pytest.raises(OutputWriteError, match=r"cannot remove .*json: .*; remove it by hand"):
        forget_tuned(bundle)


def test_a_cache_that_cannot_be_written(bundle: Bundle, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(OutputWriteError, match=r"cannot write .*DASHENG_EDGE_CACHE"):
        store_tuned(bundle, CHOICE)


def test_the_machine_is_the_same_twice_and_says_what_decides() -> None:
    machine: Any = this_machine()
    assert machine == this_machine() == Machine.model_validate_json(machine.model_dump_json())
    assert {"onnxruntime", "llama-cpp-python"} <= set(machine.engines)
    assert machine.cores <= machine.hardware_threads


def test_a_captioner_takes_what_was_chosen(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHENG_EDGE_CACHE", str(tmp_path))
    most = os.cpu_count() or 1
    store_tuned(Bundle.open(tiny_bundle), replace(CHOICE, prefill_threads=most))
    with Captioner.open(tiny_bundle) as captioner:
        assert captioner.parts.decoder.settings == replace(CHOICE, prefill_threads=most)
    with Captioner.open(tiny_bundle, few=True) as captioner:
        assert captioner.parts.decoder.settings == replace(CHOICE, prefill_threads=most, weights="mapped", packed=False)
    with Captioner.open(tiny_bundle, threads=1) as captioner:
        assert captioner.parts.decoder.settings == EngineSettings()


def test_an_embedder_takes_the_encoders_threads(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_tuned(Bundle.open(tiny_bundle), CHOICE)
    asked: list[int | None] = []
    opened = AudioParts.open

    def noted(bundle: Bundle, options: EngineOptions) -> AudioParts:
        asked.append(options.encoder_threads)
        return opened(bundle, options)

    monkeypatch.setattr(AudioParts, "open", noted)
    Embedder.open(tiny_bundle).close()
    Embedder.open(tiny_bundle, threads=2 if (os.cpu_count() or 1) > 1 else 1).close()
    assert asked[0] == CHOICE.encoder_threads
    assert asked[1] != asked[0] or os.cpu_count() == 1
