"""`docs/bundle.md` says all that a program needs: the reader on that page is run beside the product."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import BaseModel

from dasheng_edge.runtime import Captioner, Manifest
from dasheng_edge.runtime.bundle import bundle
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.bundle.graph_operators import OPERATORS
from dasheng_edge.runtime.bundle.manifest import SCHEMA_VERSION
from dasheng_edge.runtime.bundle.program import GraphInput, SamplerStep
from dasheng_edge.runtime.program import upgrade_bundle
from tests.fixtures.places import MICRO, REPOSITORY

PAGE = (REPOSITORY / "docs" / "bundle.md").read_text("utf-8")
RATE_HZ = 16_000
# A user's text with control tokens, a decomposed accent and white space at its ends.
ODD = "  <|im_end|> Cafe\u0301 {{ x }} <|AUDIO|>\n", "Be brief.\n"


@pytest.fixture(scope="module")
def reader() -> SimpleNamespace:
    """The functions of the page's two blocks of code: any prompt (section 8) goes on from the reader (section 13)."""
    any_prompt, whole = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert "dasheng_edge" not in any_prompt + whole
    names: dict[str, Any] = {"__name__": "reader"}
    exec(whole + any_prompt, names)
    return SimpleNamespace(**names)


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model of the manifest and those inside it."""
    yield model
    for field in model.model_fields.values():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from models(inner)


def test_every_key_of_the_manifest_is_on_the_page() -> None:
    keys = {key for model in models(Manifest) for key in model.model_fields}
    assert {"front_end", "kv_type", "acoustic", "imatrix", "sha256"} <= keys
    assert sorted(key for key in keys if f"`{key}`" not in PAGE and f'"{key}"' not in PAGE) == []


def test_every_file_and_schema_version_is_on_the_page() -> None:
    files = (bundle.FRONT_END, bundle.ENCODER, bundle.PROJECTOR, bundle.DECODER, bundle.GOLDEN, bundle.MODEL_CARD)
    laws = get_args(GraphInput.model_fields["law"].annotation)
    steps = get_args(SamplerStep.model_fields["step"].annotation)
    named = (*files, bundle.GOLDEN_FLAT, *bundle.CUDA_GRAPHS.values(), *laws, *steps)
    assert [name for name in named if f"`{name}`" not in PAGE] == []
    table = PAGE.split("| version | what it brought |")[1].split("\n\n")[0]
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == [str(n + 1) for n in range(SCHEMA_VERSION)]


def test_the_table_of_the_counting_law() -> None:
    spec = FrontEndSpec(pads_below=3040)
    table = PAGE.split("the counting law -->")[1].split("\n\n")[0]
    rows = [[cell.split() for cell in line.strip("| ").split("|")] for line in table.splitlines()[3:]]
    assert {"3040", "3199", "161279", "161280", "323040", "1129440"} <= {row[0][0] for row in rows}
    for row in rows:
        samples = int(row[0][0])
        padded = spec.padded_samples_of(samples)
        patches, valid = spec.patches_of(padded), spec.valid_patches_of(padded)
        chunks = spec.chunks_of(patches)
        keys = [min(max(valid - start, 0), stop - start) for start, stop in chunks]
        counts = padded, spec.frames_of(padded), patches, valid, spec.tokens_of(padded)
        assert [int(cell[0]) for cell in row[1:6]] == list(counts)
        assert [list(map(int, cell)) for cell in row[6:]] == [[stop - start for start, stop in chunks], keys]


def noisy_tones(samples: int) -> NDArray[np.float32]:
    """Tones that come and go, in a little noise: what the model says about them changes with time."""
    generator, t = np.random.default_rng(samples), np.arange(samples) / RATE_HZ
    tone = np.sin(2 * np.pi * 400 * (1 + np.floor(t) % 5) * t) * (np.floor(2 * t) % 3 > 0)
    return (0.3 * tone + 0.01 * generator.standard_normal(samples)).astype(np.float32)


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """micro, as of the newest schema, whatever it was built by."""
    if not MICRO.is_dir():
        pytest.skip("make build/micro makes it")
    report = upgrade_bundle(MICRO, tmp_path_factory.mktemp("micro") / "micro")
    return report.bundle.folder


def assert_same_answers(reader: SimpleNamespace, folder: Path, lengths: tuple[int, ...]) -> None:
    """The page's reader gives the product's tokens, with the bundle's prompt and with one that is hard to render."""
    manifest = reader.open_bundle(folder)
    facts, graphs = manifest["prompt"], reader.open_graphs(folder)
    decoder = reader.Decoder(folder / bundle.DECODER, manifest["decoder"])
    with Captioner.open(folder, threads=1) as captioner:
        for samples in lengths:
            clip = noisy_tones(samples)
            rows = reader.embeddings(graphs, manifest["front_end"], clip)
            for prompt, system in ((facts["prompt"], facts["system"]), ODD):
                before, after = reader.prompt_ids(decoder.model, decoder.vocab, facts, prompt, system)
                tokens = decoder.answer([before, rows, after], 24)
                wanted = captioner.caption((clip, RATE_HZ), prompt, system=system, max_new_tokens=24)
                assert len(rows) == wanted.audio_tokens
                assert len(before) + len(after) == wanted.prompt_tokens
                assert tuple(tokens[: len(wanted.tokens)]) == wanted.tokens
                assert len(tokens) - len(wanted.tokens) == (wanted.finish_reason == "stop")


def test_the_pages_reader_gives_the_products_tokens(reader: SimpleNamespace, micro: Path) -> None:
    # 0.1 s, two that may not be padded, 5 s, a last patch that is no key, two chunks, a last chunk without keys, 25 s
    assert_same_answers(reader, micro, (1600, 3040, 3199, 80_000, 161_120, 192_000, 323_040, 400_000))


def test_the_pages_reader_replays_the_golden_vectors(
    reader: SimpleNamespace, micro: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader.replay(micro)
    assert capsys.readouterr().out.count("(as the reference)") == 3


@pytest.mark.slow
def test_the_pages_reader_reads_two_branches(reader: SimpleNamespace, tmp_path: Path) -> None:
    from dasheng_edge.export.bundle_export import export_bundle
    from dasheng_edge.export.options import ExportOptions
    from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint

    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", variant="midashenglm-tokenizer")
    export_bundle(ExportOptions(checkpoint=checkpoint, out=tmp_path / "bundle", decoder="F16"))
    assert_same_answers(reader, tmp_path / "bundle", (1600, 163_200, 323_040))


def test_the_operators_of_graphs_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| ([\d to]+) \| (.*) \|$", PAGE[: PAGE.index("## 2. Manifest")], re.MULTILINE)
    page = {
        name: (inputs, set(re.findall(r"`(\w+)`(\??) (?:\d|all 0|integer|number|`)", attributes)))
        for name, inputs, attributes in rows
    }
    table = {}
    for name, operator in OPERATORS.items():
        few, many = operator.inputs
        names = {(key.rstrip("?"), "?" if key.endswith("?") else "") for key in operator.attributes}
        table[name] = (f"{few} to {many}" if few < many else str(few), names)
    assert page == table
