"""`dasheng-edge verify`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.bundle.bundle import GOLDEN, Bundle, sha256_of
from dasheng_edge.runtime.bundle.manifest import MANIFEST, FileFacts
from dasheng_edge.runtime.cli import app as cli


def run(*args: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.build_app(), [str(arg) for arg in args], input=stdin, prog_name="dasheng-edge")


def test_verify(tiny_bundle: Path) -> None:
    result = run("verify", tiny_bundle, "--threads", "1")
    assert (result.exit_code, result.stderr) == (0, "")
    for seam in ("log-mel", "patches", "embeddings", "prompt", "first logits", "greedy tokens"):
        assert seam in result.stdout
    machine = json.loads(run("verify", tiny_bundle, "--threads", "1", "--json").stdout)
    assert machine["ok"] is True
    assert {seam["name"] for seam in machine["seams"]} >= {"log-mel", "prompt"}
    assert 0 < machine["attention"]["exact"] < 1e-5 < machine["attention"]["default"]


def test_verify_exact(tiny_bundle: Path) -> None:
    result = run("verify", tiny_bundle, "--threads", "1", "--exact")
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.search(r"decoder, exact .* 1e-05 relative .* yes", result.stdout)
    assert re.search(
        r"error \S+e-\d+ with keys and values in F32 and no flash attention, \S+ as llama.cpp", result.stdout
    )


@pytest.mark.parametrize("value", [9.0, np.nan])
def test_verify_fails(bundle_copy: Path, value: float) -> None:
    bundle = Bundle.open(bundle_copy)
    path = bundle.path(GOLDEN)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["patches_0"][0, 0] += value
    np.savez(path, **arrays)
    facts = FileFacts(bytes=path.stat().st_size, sha256=sha256_of(path))
    manifest = bundle.manifest.model_copy(update={"files": {**bundle.manifest.files, GOLDEN: facts}})
    (bundle_copy / MANIFEST).write_text(manifest.model_dump_json())
    result = run("verify", bundle_copy, "--threads", "1")
    assert result.exit_code == 1
    assert "NO" in result.stdout
    assert result.stderr.startswith("error: 1 of ")
    assert "first patches of" in result.stderr
    machine = run("verify", bundle_copy, "--threads", "1", "--json")
    assert machine.exit_code == 1
    (bad,) = [seam for seam in json.loads(machine.stdout)["seams"] if not seam["ok"]]
    assert (bad["error"] is None) == bool(np.isnan(value))
