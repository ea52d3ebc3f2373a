"""`dasheng-edge graphs`: static graphs, static int8 and ONNX Runtime's format, against the bundle's own graphs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from dasheng_edge.quant import bundle_graphs
from dasheng_edge.quant.bundle_graphs import GraphsOptions, write_graphs
from dasheng_edge.quant.encoder import graphs
from dasheng_edge.quant.static import qdq
from dasheng_edge.quant.static.forms import Activations, GraphForm, Method, Opset, StaticOptions
from dasheng_edge.quant.static.ort_format import CONFIG, check_sizes
from dasheng_edge.quant.static.parts import StaticLayout, StaticParts
from dasheng_edge.quant.static.qdq import check_optimum
from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.audio.onnx_session import onnx_session
from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END, PROJECTOR, Bundle
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.cli.app import build_app
from dasheng_edge.runtime.deviation import max_difference, relative_rms
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import MissingExtraError, OutputExistsError, QuantizeError
from tests.fixtures.audio_files import FORMATS, write_audio
from tests.fixtures.bundle_kinds import write_encoder_bundle, write_two_branch_bundle
from tests.fixtures.places import SMALLEST_BUNDLE

GRAPHS = (FRONT_END, ENCODER, PROJECTOR)
has_optimum = pytest.mark.skipif(find_spec("optimum") is None, reason="optimum-onnx is not installed")


def run(*words: object) -> Any:
    return CliRunner().invoke(build_app(), ["graphs", str(SMALLEST_BUNDLE), *map(str, words)])


@pytest.fixture(scope="module", params=[17, pytest.param(19, marks=pytest.mark.slow), 23])
def static(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("static") / "graphs"
    report = write_graphs(GraphsOptions(SMALLEST_BUNDLE, out, opset=request.param))
    assert [step.name for step in report.steps] == [*GRAPHS]
    assert all(step.error <= step.tolerance == 1e-5 for step in report.steps)
    return out


def test_no_value_keeps_a_free_dimension_and_facts_are_those_of_the_graphs(static: Path) -> None:
    facts = json.loads((static / "graphs.json").read_text("utf-8"))
    assert sorted(facts["files"]) == sorted(GRAPHS)
    for name in GRAPHS:
        model = onnx.shape_inference.infer_shapes(onnx.load(static / name), strict_mode=True, data_prop=True)
        assert model.opset_import[0].version == facts["opset"]
        values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
        sizes = {one.name: [axis.dim_value for axis in one.type.tensor_type.shape.dim] for one in values}
        assert all(all(shape) for shape in sizes.values()), sizes
        stated = facts["graphs"][name]["inputs"] | facts["graphs"][name]["outputs"]
        assert {key: one["shape"] for key, one in stated.items()} == {key: sizes[key] for key in stated}
        assert not {"Shape", "Range"} & facts["graphs"][name]["operators"].keys()


def test_whole_clips_by_the_three_graphs_alone(static: Path) -> None:
    """From waveforms to embeddings as a program on a board has it, clips of a chunk at most."""
    bundle = Bundle.open(SMALLEST_BUNDLE)
    layout, own = StaticLayout(bundle.manifest.front_end, 1008), AudioInputParts.open(bundle, EngineSettings())
    front_end = onnx_session(static / FRONT_END, "cpu", 1)
    parts = StaticParts(static, layout, 1, GRAPHS)
    for samples in (1, 3039, 3040, 3200, 100_000, 161_119, 161_279, 161_280):
        clip = np.random.default_rng(samples).uniform(-0.5, 0.5, samples).astype(np.float32)
        features = own.front_end.features([clip])
        padded = np.pad(clip, (0, features.samples - len(clip)))
        (log_mel,) = front_end.run(None, {"waveform": layout.waveform(padded)})
        frames = min(features.log_mel.shape[1], layout.frames)
        assert max_difference(log_mel[0, :, :frames], features.log_mel[:, :frames]) < 1e-3  # dB
        assert relative_rms(parts.outputs(features), own.embeddings([clip])) < 1e-5


@pytest.mark.parametrize("frames", [20, 200])
def test_other_lengths(tmp_path: Path, frames: int) -> None:
    report = write_graphs(GraphsOptions(SMALLEST_BUNDLE, tmp_path / "graphs", frames=frames))
    assert report.facts["graphs"][ENCODER]["inputs"]["log_mel"]["shape"] == [1, 64, frames]
    assert report.facts["graphs"][PROJECTOR]["outputs"]["embeddings"]["shape"][1] == frames // 20


@pytest.mark.parametrize("opset", [17, 23])
def test_full_chunks_need_no_mask(tmp_path: Path, opset: Opset) -> None:
    report = write_graphs(GraphsOptions(SMALLEST_BUNDLE, tmp_path / "graphs", opset=opset, full_chunks=True))
    encoder = report.facts["graphs"][ENCODER]
    assert list(encoder["inputs"]) == ["log_mel"]
    assert not {"Less", "Or", "Not", "Where", "Expand", "Cast"} & encoder["operators"].keys()
    assert {len(node.input) for node in onnx.load(report.out / ENCODER).graph.node if node.op_type == "Attention"} <= {
        3
    }


def test_a_clip_with_frames_that_fill_no_patch_fits() -> None:
    spec = FrontEndSpec()
    layout = StaticLayout(spec, 200)
    for samples, fits in ((32_000, True), (32_479, True), (32_480, False), (400_000, False)):
        frames = spec.frames_of(samples)
        assert layout.fits(Features(np.zeros((64, frames), np.float32), None, samples)) == fits


@pytest.mark.parametrize("kind", [write_encoder_bundle, write_two_branch_bundle])
def test_other_bundles(tmp_path: Path, kind: Callable[[Path, Path], Path]) -> None:
    report = write_graphs(GraphsOptions(kind(SMALLEST_BUNDLE, tmp_path / "bundle"), tmp_path / "graphs", opset=19))
    assert max(report.facts["deviations"].values()) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("form", ["static", pytest.param("qdq", marks=has_optimum)])
@pytest.mark.parametrize("kind", ["midashenglm", "midashenglm-tokenizer", "dasheng, filled up", "dasheng, short"])
@pytest.mark.filterwarnings("default")  # of transformers
def test_every_member_of_the_family(tmp_path: Path, kind: str, form: GraphForm) -> None:
    from dasheng_edge.export.bundle_export import export_bundle
    from dasheng_edge.export.options import ExportOptions
    from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint

    variant, _, pads = kind.partition(", ")
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", variant=variant)
    export_bundle(ExportOptions(checkpoint, tmp_path / "bundle", pad_last_chunk=pads == "filled up" if pads else None))
    clips = tmp_path / "clips"
    clips.mkdir()
    for seconds in (5, 10):
        noise = np.random.default_rng(seconds).uniform(-0.5, 0.5, seconds * 16_128).astype(np.float32)
        write_audio(clips / f"{seconds}.flac", noise, replace(FORMATS[1], rate=16_000))
    options = GraphsOptions(tmp_path / "bundle", tmp_path / "graphs", form, calibrate=clips)
    report = write_graphs(options)
    assert max(error for name, error in report.facts["deviations"].items() if name in GRAPHS) <= 1e-5
    assert "padded_patches" not in report.facts["graphs"][ENCODER]["inputs"]


@pytest.mark.slow  # onnxruntime.tools takes seconds to load
def test_ort_format_computes_the_same_and_names_its_operators(tmp_path: Path) -> None:
    report = write_graphs(GraphsOptions(SMALLEST_BUNDLE, tmp_path / "graphs", "ort"))
    assert [path.name for path in sorted(report.out.iterdir())] == [
        "encoder.ort", "front_end.ort", "graphs.json", "projector.ort", CONFIG
    ]  # fmt: skip
    lines = (report.out / CONFIG).read_text("utf-8")
    assert "Attention" in lines
    assert str(tmp_path) not in lines


def test_too_large_for_the_ort_format(tmp_path: Path) -> None:
    (tmp_path / ENCODER).touch()
    with (tmp_path / f"{ENCODER}.data").open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(QuantizeError, match=r"2\.1 GB.*--encoder int8"):
        check_sizes([tmp_path / ENCODER])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"frames": 1012}, "--frames is 1012, expected a multiple of 4 from 20 to 1008"),
        ({"frames": 202}, "multiple of 4"),
        ({"form": "qdq"}, "--calibrate"),
    ],
)
def test_what_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], why: str
) -> None:
    monkeypatch.setattr(bundle_graphs, "check_optimum", lambda: None)
    with pytest.raises(QuantizeError, match=why):
        write_graphs(GraphsOptions(SMALLEST_BUNDLE, tmp_path / "graphs", **options))
    assert not list(tmp_path.iterdir())


def test_a_quantized_encoder_is_refused(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(SMALLEST_BUNDLE, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["encoder"]["precision"] = "int8"
    (bundle / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(QuantizeError, match="is int8, and --form static starts from fp32"):
        write_graphs(GraphsOptions(bundle, tmp_path / "graphs"))


def test_a_graph_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bundle_graphs._CHECKS, ENCODER, lambda *_: (float("nan"), 1))
    with pytest.raises(QuantizeError, match=r"encoder\.onnx differs from the bundle's graph by nan"):
        write_graphs(GraphsOptions(SMALLEST_BUNDLE, tmp_path / "graphs"))
    assert not list(tmp_path.iterdir())


def test_only_folders_of_graphs_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "graphs"
    options = GraphsOptions(SMALLEST_BUNDLE, out, frames=20, overwrite=True)
    write_graphs(options)
    write_graphs(options)
    (out / "mine.txt").touch()
    with pytest.raises(OutputExistsError, match=r"mine\.txt"):
        write_graphs(options)
    with pytest.raises(OutputExistsError, match="lies in the bundle"):
        write_graphs(GraphsOptions(SMALLEST_BUNDLE, SMALLEST_BUNDLE / "graphs"))


def test_command_line(tmp_path: Path) -> None:
    result = run("--out", tmp_path / "graphs", "--frames", 20, "--opset", 19, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["opset"], facts["frames"], facts["form"]) == (19, 20, "static")
    assert "encoder.onnx" in result.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--form", "ort", "--opset", 17], "--opset has no effect on --form ort"),
        (["--method", "entropy"], "--method has no effect on --form static"),
        (["--opset", 18], "--opset is 18, expected 17, 19, 23"),
    ],
)
def test_usage(tmp_path: Path, words: list[object], why: str) -> None:
    result = run("--out", tmp_path / "graphs", *words)
    assert result.exit_code == 2
    assert why in " ".join(result.stderr.split())


@pytest.mark.skipif(find_spec("optimum") is not None, reason="optimum-onnx is installed")
def test_without_optimum_it_says_what_to_install() -> None:
    with pytest.raises(MissingExtraError, match=r"optimum-onnx.*npu"):
        check_optimum()


@has_optimum
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of transformers
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("activations", get_args(Activations))
@pytest.mark.parametrize("method", get_args(Method))
def test_static_int8(
    tmp_path: Path, method: Method, activations: Activations, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (qdq, graphs) if large else ():
        monkeypatch.setattr(module, "EXTERNAL_BYTES", 1000)  # above which weights are in a file of their own
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 60_000).astype(np.float32)
    clip = write_audio(tmp_path / "noise.flac", noise, FORMATS[1])
    quantized = StaticOptions(method, activations)
    options = GraphsOptions(SMALLEST_BUNDLE, tmp_path / "graphs", "qdq", calibrate=clip, quantized=quantized)
    report = write_graphs(options)
    assert report.facts["output_snr_db"] > (15 if method == "entropy" else 25)
    assert report.facts["graphs"][ENCODER]["operators"]["QuantizeLinear"] > 8
    kinds = {one.data_type for one in onnx.load(report.out / ENCODER).graph.initializer if "zero_point" in one.name}
    unsigned = onnx.TensorProto.UINT8 in kinds
    assert unsigned == (activations == "uint8")
    beside = report.out / f"{ENCODER}.data"
    assert beside.exists() == large
    size = sum(path.stat().st_size for path in (report.out / ENCODER, beside) if path.exists())
    assert size < 0.6 * (SMALLEST_BUNDLE / ENCODER).stat().st_size
    assert {path.name for path in report.out.iterdir()} == {*report.facts["files"], "graphs.json"}
