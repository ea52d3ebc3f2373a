"""Every number of a manifest has a range, related numbers agree, and messages say field, value and range."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.bundle.bundle import DECODER, Bundle
from dasheng_edge.runtime.bundle.manifest import MANIFEST, read_manifest
from dasheng_edge.runtime.errors import BundleFileError, BundleManifestError, BundleNotFoundError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["front_end"].update(hop_length=513),
            "front_end: .*hop_length is 513, expected at most win_length, 512",
        ),
        (lambda m: m["front_end"].update(min_samples=2**31), "min_samples is 2147483648, expected at most 161280"),
        (lambda m: m["front_end"].update(min_samples=256, tokens_patches=1, hop_length=20), "must be more than 256"),
        (lambda m: m["front_end"].update(n_fft=513), "front_end.n_fft: .*multiple of 2, got 513"),
        (lambda m: m["front_end"].update(n_fft=1 << 40), "front_end.n_fft"),
        (lambda m: m["front_end"].update(f_min_hz=8000), "f_min_hz is 8000, expected less than f_max_hz, 8000"),
        (lambda m: m["front_end"].update(chunk_frames=4 << 40), "front_end.chunk_frames"),
        (lambda m: m["prompt"].update(comfortable_s=1e308), "prompt.comfortable_s: .*86400, got 1e\\+308"),
        (lambda m: m["prompt"].update(max_new_tokens=1 << 31), "prompt.max_new_tokens"),
        (lambda m: m["prompt"].update(prompt=["\ud800"]), "prompt.prompt"),
        (lambda m: m["prompt"].update(prompt="\ud800"), r"prompt.prompt: .*unicode string, got '\\ud800'"),
        (lambda m: m.update({"\ud800\x1b": 1}), "got '.*ud800.*x1b'"),
        (lambda m: m["prompt"].update(max_new_tokens=1 << 17), "prompt.max_new_tokens"),
        *(
            (lambda m, value=value: m.update(schema_version=value), "schema_version")
            for value in (True, 4.0, "4", 0, -1, [4], None)
        ),
        *(
            (lambda m, value=value: m["front_end"].update(n_mels=value), "front_end.n_mels")
            for value in (True, 64.0, "64", [64])
        ),
        (lambda m: m["prompt"].update(audio_first=1), "prompt.audio_first"),
        (lambda m: m["encoder"].update(embed_dim=-1), "encoder.embed_dim: .*greater than 0, got -1"),
        (lambda m: m["encoder"].update(depth=1 << 20), "encoder.depth"),
        (lambda m: m["decoder"].update(context_length=0), "decoder.context_length"),
        (lambda m: m["decoder"].update(vocab_size=10**30), "decoder.vocab_size"),
        (lambda m: m["decoder"].update(hidden_size=1 << 30), "decoder.hidden_size"),
        (lambda m: m["files"].update({f"{n}.bin": m["files"][DECODER] for n in range(99)}), "files: .*at most 64"),
        (lambda m: m["files"].update({"a" * 300: m["files"][DECODER]}), "not a plain file name"),
        (lambda m: m["files"].update({".hidden": m["files"][DECODER]}), "not a plain file name"),
        (lambda m: m["files"].update({"\u202e": m["files"][DECODER]}), "not a plain file name"),
        (lambda m: m["files"][DECODER].update(bytes=1 << 60), "files.decoder.gguf.bytes"),
    ],
)
def test_values_out_of_range_are_named(
    tiny_bundle: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    manifest = json.loads((tiny_bundle / MANIFEST).read_text())
    change(manifest)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleManifestError, match=message):
        read_manifest(tmp_path)


def test_manifests_without_end_are_not_read(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(" " * (5 << 20))
    with pytest.raises(BundleManifestError, match="it has more than 4194304 bytes"):
        read_manifest(tmp_path)


def test_paths_that_cannot_be() -> None:
    with pytest.raises(BundleNotFoundError, match=r"cannot open bundle a+: File name too long; check the path"):
        Bundle.open("a" * 300)
    with pytest.raises(BundleNotFoundError):
        Bundle.open("a\0b")


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["\ud800", 2**63])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value inside a JSON object."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, one in inner for place in places(one, (*path, key))]


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_is_changed_in_a_manifest_it_is_opened_or_refused(tiny_bundle: Path, data: st.DataObject) -> None:
    manifest = json.loads((tiny_bundle / MANIFEST).read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        *way, key = data.draw(st.sampled_from(places(manifest)))
        holder = manifest
        for step in way:
            holder = holder[step]
        kind = data.draw(st.sampled_from(["set", "drop", "add"]))
        if kind == "set":
            holder[key] = data.draw(VALUES)
        elif kind == "drop":
            del holder[key]
        elif isinstance(holder, dict):
            holder[data.draw(st.text(max_size=9))] = data.draw(VALUES)
    with TemporaryDirectory() as folder:
        for name in (tiny_bundle / MANIFEST).parent.iterdir():
            (Path(folder) / name.name).symlink_to(name)
        (Path(folder) / MANIFEST).unlink()
        (Path(folder) / MANIFEST).write_text(json.dumps(manifest))
        try:
            opened = Bundle.open(folder, check_sha256=False).manifest
        except (BundleManifestError, BundleFileError) as error:
            str(error).encode()  # for any terminal
        else:
            opened.model_dump_json()
