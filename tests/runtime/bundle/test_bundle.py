"""Bundles are refused before anything is loaded, and are written whole or not at all."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.runtime import atomic_output
from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END, GOLDEN, MODEL_CARD, Bundle, required_files
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.bundle.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    DecoderFacts,
    EncoderFacts,
    Manifest,
    PromptFacts,
    Provenance,
    Tolerances,
    read_manifest,
)
from dasheng_edge.runtime.bundle.writer import BundleWriter
from dasheng_edge.runtime.errors import (
    BundleFileError,
    BundleKindError,
    BundleManifestError,
    BundleNotFoundError,
    OutputExistsError,
    OutputWriteError,
)

EMPTY = Manifest(
    name="toy",
    variant="midashenglm",
    front_end=FrontEndSpec(),
    encoder=EncoderFacts(embed_dim=4, depth=1, num_heads=1, parameters=1, precision="fp32"),
    decoder=DecoderFacts(
        arch="qwen2", hidden_size=4, layers=1, vocab_size=9, context_length=64, parameters=1, precision="F32"
    ),
    prompt=PromptFacts(prompt="Caption it"),
    tolerances=Tolerances(
        log_mel_db=1e-3, patches_relative=1e-4, embeddings_relative=1e-4, logits_relative=1e-3, token_margin=0.1
    ),
    provenance=Provenance(tool="test", checkpoint="toy", checkpoint_sha256="0" * 64),
    files={},
)
ENCODER_ONLY = EMPTY.model_copy(
    update={
        "variant": "dasheng",
        "decoder": None,
        "prompt": None,
        "tolerances": Tolerances(log_mel_db=1e-3, patches_relative=1e-4),
    }
)
FILES = required_files(EMPTY)


def write_toy(
    out: Path, *, overwrite: bool = False, content: str = "content", manifest: Manifest = EMPTY, extra: str = ""
) -> Bundle:
    with BundleWriter(out, overwrite=overwrite) as writer:
        for name in (*required_files(manifest), *([extra] if extra else [])):
            writer.path(name).write_text(f"{content} of {name}")
        return writer.finish(manifest)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_toy(tmp_path / "toy").folder


def edit(toy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((toy / MANIFEST).read_text())
    change(manifest)
    (toy / MANIFEST).write_text(json.dumps(manifest))


def test_what_is_written_can_be_opened(toy: Path) -> None:
    bundle = Bundle.open(toy)
    assert bundle.manifest == EMPTY.model_copy(update={"files": bundle.manifest.files})
    assert set(bundle.manifest.files) == set(FILES)
    assert bundle.manifest.total_bytes == sum((toy / name).stat().st_size for name in FILES)
    assert bundle.path(DECODER).read_text() == f"content of {DECODER}"
    assert sorted(path.name for path in toy.parent.iterdir()) == ["toy"]


def test_places_without_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="none: nothing of this name exists"):
        Bundle.open(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(BundleNotFoundError, match="file: this is a file"):
        Bundle.open(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json in it"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleNotFoundError, match=r"`dasheng-edge pull some/model`.*`dasheng-edge export model --out"):
        Bundle.open("some/model")
    with pytest.raises(BundleNotFoundError, match=r"https://hub\.test/some/model is an address"):
        Bundle.open("https://hub.test/some/model")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"a"', "\x00", '{"schema_version": "1"}', "{}", "[" * 100_000])
def test_manifests_that_are_none(toy: Path, text: str) -> None:
    (toy / MANIFEST).write_text(text)
    with pytest.raises(BundleManifestError, match="export the bundle again"):
        read_manifest(toy)


def test_a_newer_schema_asks_for_an_upgrade(toy: Path) -> None:
    edit(toy, lambda manifest: manifest.update(schema_version=SCHEMA_VERSION + 1, new_key=1))
    with pytest.raises(BundleManifestError, match="schema version 6, this dasheng-edge reads up to 5; install a newer"):
        Bundle.open(toy)


def test_schema_1_is_still_read(toy: Path) -> None:
    def as_schema_1(manifest: dict[str, Any]) -> None:
        manifest["schema_version"] = 1
        for section, keys in {
            "front_end": ("acoustic", "pads_last_chunk", "pads_below", "masks_last_patch"),
            "tolerances": ("acoustic_nepers",),
            "prompt": ("special_tokens", "notes"),
            "provenance": ("revision",),
        }.items():
            for key in keys:  # which schema 1 did not have
                del manifest[section][key]
        del manifest["projector_parameters"]

    edit(toy, as_schema_1)
    old = Bundle.open(toy).manifest
    assert old.schema_version == 1
    assert old == EMPTY.model_copy(update={"schema_version": 1, "files": old.files})


def test_an_encoder_only_bundle(tmp_path: Path) -> None:
    bundle = Bundle.open(write_toy(tmp_path / "encoder", manifest=ENCODER_ONLY).folder)
    assert set(bundle.manifest.files) == {FRONT_END, ENCODER, GOLDEN}
    with pytest.raises(BundleKindError, match="this bundle holds a Dasheng encoder only; use `dasheng-edge embed`"):
        _ = bundle.decoder_facts
    edit(bundle.folder, lambda manifest: manifest["files"].pop(GOLDEN))
    with pytest.raises(BundleFileError, match=f"does not list {GOLDEN}"):
        Bundle.open(bundle.folder)


def test_a_bundle_with_a_decoder_tells_its_facts(toy: Path) -> None:
    assert Bundle.open(toy).decoder_facts == EMPTY.decoder
    assert Bundle.open(toy).prompt_facts == EMPTY.prompt


def test_a_model_card_may_be_edited(toy: Path, tmp_path: Path) -> None:
    card = write_toy(tmp_path / "card", extra=MODEL_CARD)
    assert MODEL_CARD not in card.manifest.files
    (card.folder / MODEL_CARD).write_text("my notes")

    assert Bundle.open(card.folder).manifest == card.manifest
    write_toy(card.folder, overwrite=True)
    assert not (card.folder / MODEL_CARD).exists()


def test_sizes_are_those_of_what_was_written_so_far(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "out") as writer:
        writer.path(ENCODER).write_bytes(b"12345")
        writer.path(MODEL_CARD).write_text("card")
        assert writer.sizes() == {ENCODER: 5}
    with pytest.raises(RuntimeError, match="outside its `with` block"):
        writer.sizes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(surprise=1), "surprise: Extra inputs"),
        (lambda m: m.pop("name"), "name: Field required"),
        (lambda m: m.pop("prompt"), "the top level: .*states a decoder, but lacks prompt"),
        (lambda m: m.update(decoder=None), "states no decoder, but prompt, tolerances"),
        (lambda m: m["tolerances"].pop("embeddings_relative"), r"lacks tolerances\.embeddings_relative"),
        (lambda m: m["tolerances"].pop("logits_relative"), r"lacks tolerances\.logits_relative"),
        (lambda m: m["tolerances"].pop("token_margin"), r"lacks tolerances\.token_margin"),
        (lambda m: m["tolerances"].update(acoustic_nepers=1.0), "acoustic_nepers go together"),
        (lambda m: m["front_end"].update(acoustic={"n_mels": 8}), "acoustic_nepers go together"),
        (lambda m: m["decoder"].update(arch="llama"), "decoder.arch"),
        (lambda m: m["decoder"].update(layers="many"), "decoder.layers"),
        (lambda m: m["front_end"].update(sample_rate_hz=8000), "front_end.sample_rate_hz"),
        (lambda m: m["front_end"].update(hop_length=0), "front_end.hop_length"),
        (lambda m: m["front_end"].update(chunk_frames=2), "front_end: .*chunk_frames is 2"),
        (lambda m: m["tolerances"].update(log_mel_db=float("inf")), "tolerances.log_mel_db: .*finite"),
        (lambda m: m["tolerances"].update(token_margin=float("nan")), "tolerances.token_margin"),
        (lambda m: m["tolerances"].update(token_margin=-1), "tolerances.token_margin"),
        (lambda m: m["prompt"]["sampling"].update(temperature=-1), "prompt.sampling.temperature"),
        (lambda m: m["files"][DECODER].update(sha256="x"), "files.decoder.gguf.sha256"),
        (lambda m: m["files"].update({"../x": m["files"][DECODER]}), "not a plain file name inside the bundle"),
        (lambda m: m["files"].update({"/etc/passwd": m["files"][DECODER]}), "not a plain file name"),
        (lambda m: m["files"].update({"a\\b": m["files"][DECODER]}), "not a plain file name"),
        (lambda m: m["files"].update({"": m["files"][DECODER]}), "not a plain file name"),
        (lambda m: m["files"].update({MANIFEST: m["files"][DECODER]}), "not a plain file name"),
    ],
)
def test_wrong_manifests_name_the_place(toy: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(toy, change)
    with pytest.raises(BundleManifestError, match=message):
        Bundle.open(toy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(decoder=EMPTY.model_dump()["decoder"]), "a decoder, but lacks prompt, tolerances"),
        (lambda m: m.update(prompt={"prompt": "Caption it"}), "no decoder, but prompt"),
        (lambda m: m.update(projector_parameters=1), "no decoder, but projector_parameters"),
        (lambda m: m["tolerances"].update(token_margin=0.1), r"no decoder, but tolerances\.token_margin"),
    ],
)
def test_an_encoder_only_bundle_states_nothing_about_a_decoder(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    folder = write_toy(tmp_path / "encoder", manifest=ENCODER_ONLY).folder
    edit(folder, change)
    with pytest.raises(BundleManifestError, match=f"states {message}"):
        Bundle.open(folder)


def test_facts_decide_and_not_the_name_of_a_variant(tmp_path: Path) -> None:
    later = EMPTY.model_copy(update={"variant": "one that a later exporter knows"})
    bundle = Bundle.open(write_toy(tmp_path / "later", manifest=later).folder)

    assert required_files(bundle.manifest) == FILES


def test_files_that_are_not_what_the_manifest_says(toy: Path) -> None:
    path = toy / DECODER
    content = path.read_text()
    path.write_text(content[:-1])
    with pytest.raises(BundleFileError, match="truncated or replaced"):
        Bundle.open(toy)
    path.write_text(content[:-1] + "X")
    with pytest.raises(BundleFileError, match="was altered: SHA-256"):
        Bundle.open(toy)
    assert Bundle.open(toy, check_sha256=False).folder == toy
    path.unlink()
    with pytest.raises(BundleFileError, match="is missing, the manifest lists it"):
        Bundle.open(toy)
    edit(toy, lambda manifest: manifest["files"].pop(DECODER))
    with pytest.raises(BundleFileError, match=f"does not list {DECODER}"):
        Bundle.open(toy)


def test_nothing_is_overwritten_unless_asked(toy: Path) -> None:
    with pytest.raises(OutputExistsError, match="pass --overwrite"):
        write_toy(toy, content="new")
    assert (toy / DECODER).read_text() == f"content of {DECODER}"
    write_toy(toy, overwrite=True, content="new")
    assert (toy / DECODER).read_text() == f"new of {DECODER}"
    assert sorted(path.name for path in toy.parent.iterdir()) == ["toy"]


def test_only_bundles_and_empty_folders_are_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").touch()
    with pytest.raises(OutputExistsError, match="is not a bundle"):
        write_toy(out, overwrite=True)
    (out / "thesis.txt").unlink()
    assert write_toy(out, overwrite=True).folder == out
    (tmp_path / "file").touch()
    with pytest.raises(OutputExistsError, match="is not a bundle"):
        write_toy(tmp_path / "file", overwrite=True)


@pytest.mark.parametrize("manifest", ["", "[]", '{"manifest_version": 3}', '{"schema_version": 1, "files": []}'])
def test_other_folders_with_a_manifest_are_not_overwritten(tmp_path: Path, manifest: str) -> None:
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(OutputExistsError, match=r"is not a bundle \(.*manifest\.json"):
        write_toy(tmp_path, overwrite=True)


@pytest.mark.parametrize(("name", "make"), [("notes.txt", Path.touch), ("src", Path.mkdir)])
def test_a_bundle_with_something_beside_it_is_not_overwritten(
    toy: Path, name: str, make: Callable[[Path], None]
) -> None:
    edit(toy, lambda manifest: manifest["files"].update(src={}))  # which does not make a folder a file
    make(toy / name)
    with pytest.raises(OutputExistsError, match=rf"\({name} is not a file of that bundle\)"):
        write_toy(toy, overwrite=True)
    assert (toy / name).exists()


def test_a_bundle_of_another_schema_is_overwritten(toy: Path) -> None:
    edit(toy, lambda manifest: manifest.update(schema_version=SCHEMA_VERSION + 1, new_key=1))
    assert Bundle.open(write_toy(toy, overwrite=True).folder).manifest.schema_version == SCHEMA_VERSION


def test_what_an_earlier_run_left_does_not_matter(toy: Path) -> None:
    (toy.parent / ".toy.old").mkdir()
    (toy.parent / ".toy.old" / "file").touch()
    write_toy(toy, overwrite=True, content="new")
    assert (toy / DECODER).read_text() == f"new of {DECODER}"


def test_a_link_to_a_bundle_stays(toy: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(toy)
    write_toy(link, overwrite=True, content="new")
    assert link.is_symlink()
    assert (toy / DECODER).read_text() == f"new of {DECODER}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "toy"]


def test_a_bundle_that_cannot_be_replaced_stays(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename
    monkeypatch.setattr(atomic_output, "_exchange", lambda *_: False)

    def fail(self: Path, target: Path) -> Path:
        if ".partial-" in self.name and not self.name.endswith(".old"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputWriteError, match="Input/output error"):
        write_toy(toy, overwrite=True, content="new")
    assert (toy / DECODER).read_text() == f"content of {DECODER}"
    assert sorted(path.name for path in toy.parent.iterdir()) == ["toy"]


@pytest.mark.parametrize("error", [RuntimeError("a step failed"), KeyboardInterrupt()])
def test_a_failed_export_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def write_half() -> None:
        with BundleWriter(tmp_path / "out") as writer:
            writer.path(DECODER).write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def write_half() -> None:
        with BundleWriter(tmp_path / "out") as writer:
            writer.path(DECODER).write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputWriteError, match="No space left on device; nothing was left behind"):
        write_half()
    assert not list(tmp_path.iterdir())


def test_a_bundle_needs_all_its_files(tmp_path: Path) -> None:
    def write_half() -> None:
        with BundleWriter(tmp_path / "out") as writer:
            writer.path(DECODER).write_text("half")
            writer.finish(EMPTY)

    with pytest.raises(BundleFileError, match="does not list"):
        write_half()
    assert not list(tmp_path.iterdir())


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputWriteError, match="cannot write"), BundleWriter(tmp_path / "file" / "out"):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="these places are Linux's")
@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("/proc/toy", "no file can be made in /proc;"),
        ("/proc/1/toy", "no file can be made in /proc/1;"),
        ("/dev/full/toy", "/dev/full is not a folder;"),
        ("/dev/full/a/toy", "/dev/full is not a folder;"),
    ],
)
def test_places_that_hold_no_files_are_named(out: str, why: str) -> None:
    with pytest.raises(OutputWriteError, match=f"cannot write {out}: {why} .*choose another --out"), BundleWriter(out):
        pass


def test_a_writer_is_used_in_its_block(tmp_path: Path) -> None:
    writer = BundleWriter(tmp_path / "out")
    with pytest.raises(RuntimeError, match="outside its `with` block"):
        writer.path(DECODER)
    with pytest.raises(RuntimeError, match="outside its `with` block"):
        writer.finish(EMPTY)
    with writer, pytest.raises(ValueError, match="not a plain file name"):
        writer.path("../x")
