"""The export from end to end: what a bundle holds, and that nothing stays behind when it fails."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from dasheng_edge.export import bundle_export
from dasheng_edge.export.bundle_export import ExportReport, export_bundle
from dasheng_edge.export.files.pull_record import PULL_RECORD
from dasheng_edge.export.graphs.session import GraphReport
from dasheng_edge.export.options import ExportOptions
from dasheng_edge.quant.decoder.types import DECODER_TOLERANCES, WORST_MATRIX, PlainType, token_margin
from dasheng_edge.runtime.bundle.bundle import (
    DECODER,
    ENCODER,
    FRONT_END,
    GOLDEN,
    GOLDEN_FLAT,
    MODEL_CARD,
    PROJECTOR,
    Bundle,
    sha256_of,
)
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.deviation import logits_relative_rms
from dasheng_edge.runtime.errors import (
    AdapterError,
    CheckpointError,
    CheckpointNotFoundError,
    ExportError,
    MissingExtraError,
    OutputExistsError,
    OutputWriteError,
)
from dasheng_edge.runtime.progress import StepReport
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.verify import verify_bundle
from tests.fixtures.adapter_files import change_config, state, write_free_head
from tests.fixtures.full_disk import largest_file
from tests.fixtures.tiny_checkpoint import CHAT_TEMPLATE, write_tiny_adapter, write_tiny_checkpoint


class Listener:
    """Notes what the export tells."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int, str]] = []
        self.reached: list[int] = []
        self.ended: list[StepReport] = []

    def begin(self, step: str, total: int, unit: str) -> None:
        self.begun.append((step, total, unit))
        self.reached.append(0)

    def advance(self, amount: int) -> None:
        self.reached[-1] += amount

    def end(self, report: StepReport) -> None:
        self.ended.append(report)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_adapter(tmp_path_factory.mktemp("adapter") / "tiny-adapter")


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportReport, Listener]:
    """A quantized bundle."""
    listener = Listener()
    out = tmp_path_factory.mktemp("exported") / "bundle"
    report = export_bundle(ExportOptions(tiny_checkpoint, out, decoder="Q8_0"), listener)
    return report, listener


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that cost nothing, for tests of what happens around them."""

    def touch(path: Path, *_: object) -> GraphReport:
        path.write_bytes(b"graph")
        return GraphReport(5, 0.0, 1)

    for name in ("export_front_end", "export_encoder", "export_projector"):
        monkeypatch.setattr(bundle_export, name, touch)


def test_a_bundle_is_complete_and_proves_itself(exported: tuple[ExportReport, Listener]) -> None:
    report, _ = exported
    bundle = Bundle.open(report.bundle.folder)

    assert set(bundle.manifest.files) == {FRONT_END, ENCODER, PROJECTOR, DECODER, GOLDEN, GOLDEN_FLAT}
    assert report.bytes == bundle.manifest.total_bytes
    assert [path.name for path in report.bundle.folder.parent.iterdir()] == ["bundle"]
    assert f"{report.bytes:,}" in (report.bundle.folder / MODEL_CARD).read_text().replace("\u202f", ",")
    assert verify_bundle(bundle).ok


def test_the_manifest_says_what_was_exported(exported: tuple[ExportReport, Listener], tiny_checkpoint: Path) -> None:
    manifest = exported[0].bundle.manifest
    assert manifest.decoder is not None
    assert manifest.prompt is not None

    name = tiny_checkpoint.parent.name  # the folder's own says nothing: "checkpoint"
    assert (manifest.name, manifest.provenance.checkpoint) == (name, name)
    assert manifest.provenance.adapters == ()
    assert set(manifest.provenance.versions) >= set(bundle_export.LIBRARIES)
    assert set(manifest.provenance.versions) & set(bundle_export.ONNX_RUNTIMES)
    assert (manifest.encoder.embed_dim, manifest.encoder.depth, manifest.encoder.num_heads) == (64, 2, 2)
    assert (manifest.decoder.precision, manifest.decoder.vocab_size, manifest.decoder.context_length) == (
        "Q8_0", 448, 4096,
    )  # fmt: skip
    assert manifest.prompt.prompt == "Write an audio caption describing the sound"
    assert (manifest.prompt.max_new_tokens, manifest.prompt.sampling) == (32, Sampling())
    assert manifest.tolerances.logits_relative == DECODER_TOLERANCES["Q8_0"].logits


def test_each_step_reports_its_error(exported: tuple[ExportReport, Listener]) -> None:
    report, listener = exported

    assert [step.name for step in report.steps] == [FRONT_END, ENCODER, PROJECTOR, DECODER, GOLDEN]
    assert tuple(listener.ended) == report.steps
    assert all(0 <= step.error <= step.tolerance for step in report.steps)
    assert report.steps[3].error > 1e-3  # Q8_0 costs something


def test_progress_reaches_the_end_of_each_phase(exported: tuple[ExportReport, Listener]) -> None:
    _, listener = exported

    assert listener.begun == [
        (FRONT_END, 1, "graphs"),
        (ENCODER, 1, "graphs"),
        (PROJECTOR, 1, "graphs"),
        (DECODER, 5_645_312, "bytes"),
        ("decoder.gguf: quantizing", 27, "tensors"),
        ("decoder.gguf: measuring", 27, "tensors"),
        (GOLDEN, 16, "passes"),
    ]
    assert listener.reached == [total for _, total, _ in listener.begun]


def installed(*missing: str) -> Callable[[str], str]:
    def version(name: str) -> str:
        if name in missing:
            raise PackageNotFoundError(name)
        return "1.2.3"

    return version


@pytest.mark.parametrize("missing", bundle_export.ONNX_RUNTIMES)
def test_either_onnx_runtime_will_do(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_export, "version", installed(missing))
    (name,) = set(bundle_export.ONNX_RUNTIMES) - {missing}

    assert bundle_export.library_versions() == dict.fromkeys((*bundle_export.LIBRARIES, name), "1.2.3")


@pytest.mark.parametrize("missing", [bundle_export.ONNX_RUNTIMES, ("gguf",)])
def test_a_missing_library_is_found_before_work_begins(
    missing: tuple[str, ...], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_export, "version", installed(*missing))
    listener = Listener()
    with pytest.raises(
        MissingExtraError, match=rf"export needs {' or '.join(missing)}, which is not installed; run pip"
    ):
        export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle"), listener)
    assert not listener.begun
    assert not list(tmp_path.iterdir())


def test_files_hold_no_path_of_this_machine(exported: tuple[ExportReport, Listener], tiny_checkpoint: Path) -> None:
    for path in exported[0].bundle.folder.iterdir():
        content = path.read_bytes()
        for trace in (str(tiny_checkpoint.parent), str(Path.cwd()), sys.prefix):
            assert trace.encode() not in content, path.name


def test_adapters_are_merged_and_named(tiny_checkpoint: Path, adapter: Path, tmp_path: Path, quick: None) -> None:
    report = export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle", (adapter,)))
    weights = adapter / "adapter_model.safetensors"

    assert report.bundle.manifest.provenance.adapters == (f"tiny-adapter {sha256_of(weights)}",)
    assert report.steps[0].name == "adapters"
    assert 0 < report.steps[0].error <= 1e-6


def test_adapters_say_where_they_are_from_and_what_they_were_trained_on(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, quick: None
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    pulled = Path(shutil.copytree(adapter, tmp_path / "checkpoint-300"))
    state(checkpoint, "config.json", _name_or_path="mispeech/midashenglm-7b-1021-bf16")
    state(pulled, PULL_RECORD, repo="someone/birds", revision="0" * 40)
    change_config(pulled, base_model_name_or_path="mispeech/midashenglm-7b")
    report = export_bundle(ExportOptions(checkpoint, tmp_path / "bundle", (pulled,)))
    card = (tmp_path / "bundle" / MODEL_CARD).read_text()

    (entry,) = report.bundle.manifest.provenance.adapters
    assert entry == f"someone/birds@{'0' * 40} {sha256_of(pulled / 'adapter_model.safetensors')}"
    assert f"- adapter merged in: `{entry}`" in card
    (sentence,) = report.assumptions
    assert "adapter birds is one for mispeech/midashenglm-7b-1021-bf16, although it says that it was" in sentence
    assert f"- {sentence}\n" in card


def test_a_head_that_an_adapter_sets_free_is_counted(tmp_path: Path, quick: None) -> None:
    variant: str = "midashenglm-tokenizer"
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", variant=variant)
    folder = write_free_head(tmp_path / "head", variant)
    report = export_bundle(ExportOptions(checkpoint, tmp_path / "bundle", (folder,)))
    facts = report.bundle.decoder_facts

    tensors = GGUFReader(tmp_path / "bundle" / DECODER).tensors
    assert "output.weight" in [tensor.name for tensor in tensors]
    assert facts.parameters == sum(int(tensor.n_elements) for tensor in tensors)
    assert f"{facts.parameters:,}" in (tmp_path / "bundle" / MODEL_CARD).read_text()


def test_adapters_that_are_not_finite_leave_nothing(tiny_checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "birds"))
    tensors: dict[str, Any] = load_file(copy / "adapter_model.safetensors")
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, copy / "adapter_model.safetensors")

    with pytest.raises(AdapterError, match="adapter birds holds NaN or infinity"):
        export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "out" / "bundle", (copy,)))
    assert not list(tmp_path.glob("out/*"))


def with_template(tiny_checkpoint: Path, folder: Path, edit: Callable[[str], str]) -> Path:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, folder))
    (checkpoint / "chat_template.jinja").write_text(edit(CHAT_TEMPLATE))
    return checkpoint


def test_a_template_that_the_runtime_renders_differently_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, quick: None
) -> None:
    # The runtime renders with a placeholder for the user's text, which has another length.
    checkpoint = with_template(
        tiny_checkpoint, tmp_path / "tiny", lambda text: text + "{{ messages[-1].content[1].text | length }}"
    )
    wanted = (
        r"the chat template of tiny renders differently in the runtime than in transformers: .*assistant\\n3' .* "
        r"instead of '<\|im_start\|>user\\n<\|audio_bos\|>{audio}<\|audio_eos\|>Write .*assistant\\n43' \[\d"
    )
    with pytest.raises(ExportError, match=wanted):
        export_bundle(ExportOptions(checkpoint, tmp_path / "out" / "bundle"))
    assert not list(tmp_path.glob("out/*"))


def test_a_template_that_the_runtime_cannot_render_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, quick: None
) -> None:
    checkpoint = with_template(
        tiny_checkpoint,
        tmp_path / "model",
        lambda text: text + "{% if messages[-1].content[1].text[0] != 'W' %}{{ raise_exception('no') }}{% endif %}",
    )
    with pytest.raises(ExportError, match=r"renders differently .*: fails \(.*no\) instead of giving '<\|im_start"):
        export_bundle(ExportOptions(checkpoint, tmp_path / "out" / "bundle"))
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("kind", get_args(PlainType))
def test_logits_of_no_use_fail_the_gate_of_every_type(kind: PlainType, tiny_bundle: Path) -> None:
    with np.load(tiny_bundle / GOLDEN, allow_pickle=False) as file:
        wanted = [file[f"logits_{i}"] for i in range(3)]
    limit = DECODER_TOLERANCES[kind].logits
    for want in wanted:
        permuted = want[np.random.default_rng(0).permutation(len(want))]
        assert logits_relative_rms(np.zeros_like(want), want) > 1.2 * limit
        assert logits_relative_rms(permuted, want) > 1.2 * limit
        assert 0 < token_margin(float(want.std()), kind) <= 2.001 * want.std()
    assert WORST_MATRIX * DECODER_TOLERANCES[kind].weights < 0.7  # a matrix of zeros costs 1


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_decoder_that_says_nothing_fails_the_export(
    value: float, tiny_checkpoint: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "logits", lambda self: np.full(self.n_vocab, value, np.float32))
    with pytest.raises(ExportError, match=r"golden\.npz differs from its source by (1|nan) relative RMS"):
        export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle", decoder="Q2_K"))
    assert not list(tmp_path.iterdir())


def test_the_same_export_gives_the_same_files(exported: tuple[ExportReport, Listener], tiny_bundle: Path) -> None:
    first, second = Bundle.open(tiny_bundle).manifest.files, exported[0].bundle.manifest.files

    assert [name for name in first if first[name] != second[name]] == [DECODER]  # F32 and Q8_0


def test_an_existing_bundle_is_replaced_only_on_request(
    tiny_checkpoint: Path, bundle_copy: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputExistsError, match="--overwrite"):
        export_bundle(ExportOptions(tiny_checkpoint, bundle_copy))
    report = export_bundle(ExportOptions(tiny_checkpoint, bundle_copy, overwrite=True))

    assert report.bundle.decoder_facts.precision == "F16"
    assert (bundle_copy / ENCODER).read_bytes() == b"graph"


def no_checkpoint(checkpoint: Path, _: Path) -> None:
    shutil.rmtree(checkpoint)


def no_tokenizer(checkpoint: Path, _: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()


def no_adapter(_: Path, adapter: Path) -> None:
    shutil.rmtree(adapter)


@pytest.mark.parametrize(
    ("damage", "error"),
    [(no_checkpoint, CheckpointNotFoundError), (no_tokenizer, CheckpointError), (no_adapter, AdapterError)],
)
def test_bad_input_is_found_before_work_begins(
    damage: Callable[[Path, Path], None], error: type[Exception], tiny_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    damage(checkpoint, copy)
    listener = Listener()

    with pytest.raises(error):
        export_bundle(ExportOptions(checkpoint, tmp_path / "out" / "bundle", (copy,)), listener)
    assert not (tmp_path / "out").exists()
    assert not listener.begun


def test_a_full_disk_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for size in (100_000, 300_000):  # in the front end, in the encoder
        with largest_file(size), pytest.raises(OutputWriteError, match="nothing was left behind"):
            export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle"))
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("decoder", "size"), [("F16", 600_000), ("Q8_0", 600_000), ("Q2_K", 600_000)], ids=["F16", "Q8_0", "golden"]
)
def test_a_full_disk_in_the_decoder_leaves_nothing(
    decoder: Any, size: int, tiny_checkpoint: Path, tmp_path: Path, quick: None
) -> None:
    with largest_file(size), pytest.raises(OutputWriteError):
        export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle", decoder=decoder))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputWriteError),
        (OSError("1024 requested and 512 written"), OutputWriteError),
        (OSError(errno.EIO, "Input/output error"), OutputWriteError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError("something else"), OSError),
    ],
)
def test_whatever_happens_nothing_is_left(
    raised: BaseException, expected: type[BaseException], tiny_checkpoint: Path, tmp_path: Path, quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(bundle_export, "write_golden", fail)
    with pytest.raises(expected) as caught:
        export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle"))
    assert isinstance(caught.value, OutputWriteError) == (expected is OutputWriteError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_a_step_out_of_tolerance_fails_the_export(
    error: float, tiny_checkpoint: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_export, "export_encoder", lambda path, merged: GraphReport(0, error, 9))
    with pytest.raises(ExportError, match=r"encoder\.onnx differs from its source by .* at most 0\.0001"):
        export_bundle(ExportOptions(tiny_checkpoint, tmp_path / "bundle"))
    assert not list(tmp_path.iterdir())
