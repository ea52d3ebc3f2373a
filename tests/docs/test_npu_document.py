"""`docs/npu.md`: its programs are run as they stand, on a bundle of the tests, beside the product."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.deviation import relative_rms
from dasheng_edge.runtime.engine_options import EngineSettings
from tests.fixtures.places import REPOSITORY, SMALLEST_BUNDLE

PAGE = (REPOSITORY / "docs" / "npu.md").read_text("utf-8")
BY_GRAPHS, BY_OPTIMUM = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def names_of(code: str, *places: tuple[str, Path]) -> dict[str, Any]:
    """What a program of the page defines, with these folders instead of its own."""
    for own, place in places:
        assert f'"{own}"' in code
        code = code.replace(f'"{own}"', repr(str(place)))
    names: dict[str, Any] = {}
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def parts() -> AudioInputParts:
    return AudioInputParts.open(Bundle.open(SMALLEST_BUNDLE), EngineSettings())


def test_the_three_graphs(tmp_path: Path, parts: AudioInputParts) -> None:
    pytest.importorskip("onnx", reason="graphs are written with onnx")
    from dasheng_edge.quant.bundle_graphs import GraphsOptions, write_graphs

    write_graphs(GraphsOptions(SMALLEST_BUNDLE, tmp_path / "graphs"))
    embeddings = names_of(BY_GRAPHS, ("build/micro-static", tmp_path / "graphs"))["embeddings"]
    for samples in (3200, 50_000, 161_119, 161_120, 161_280):
        clip = np.random.default_rng(samples).uniform(-0.5, 0.5, samples).astype(np.float32)
        assert relative_rms(embeddings(clip), parts.embeddings([clip])) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of transformers
@pytest.mark.skipif(find_spec("optimum") is None, reason="optimum-onnx is not installed")
def test_optimum_as_a_runtime(tmp_path: Path, parts: AudioInputParts) -> None:
    places = ("build/micro", SMALLEST_BUNDLE), ("build/dasheng", tmp_path / "dasheng")
    names = names_of(BY_OPTIMUM, *places)
    assert names["patches"].shape == (1, 252, parts.encoder.width)
    sound = (10 * np.random.default_rng(0).standard_normal((1, 64, 400)) - 40).astype(np.float32)
    (wanted,) = parts.encoder.together([{"log_mel": sound, "valid_patches": np.array([100])}])
    assert relative_rms(names["model"](input_features=sound).last_hidden_state[0], wanted) < 1e-5

    optimum = import_module("optimum.onnxruntime")
    (tmp_path / "dasheng" / "encoder.onnx").write_bytes((SMALLEST_BUNDLE / "encoder.onnx").read_bytes())
    given = {"log_mel": sound, "valid_patches": np.array([100])}
    folder, config = tmp_path / "dasheng", names["PretrainedConfig"]()
    model = optimum.ORTModelForCustomTasks.from_pretrained(folder, file_name="encoder.onnx", config=config)
    assert relative_rms(model(**given)["patches"][0], wanted) < 1e-5
    model = optimum.ORTModelForFeatureExtraction.from_pretrained(folder, file_name="encoder.onnx", config=config)
    with pytest.raises(StopIteration):  # it looks for inputs by the names that it knows
        model(**given)
