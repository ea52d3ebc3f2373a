"""An export that is killed leaves nothing that looks like a bundle."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dasheng_edge.runtime.bundle.bundle import ENCODER, GOLDEN, Bundle
from dasheng_edge.runtime.errors import BundleNotFoundError


@pytest.mark.slow
@pytest.mark.parametrize("after", [ENCODER, "decoder.F32.gguf", GOLDEN])
def test_an_export_that_is_killed_leaves_no_bundle(after: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from dasheng_edge.runtime.cli.app import main; main()", "export"]
    with subprocess.Popen(
        [*command, str(tiny_checkpoint), "--out", str(tmp_path / "toy"), "--decoder", "Q8_0"], stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not list(tmp_path.glob(f".toy.partial-*/{after}")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)

    assert process.returncode == -signal.SIGKILL
    for folder in (tmp_path / "toy", *tmp_path.glob(".toy.partial-*")):
        with pytest.raises(BundleNotFoundError):
            Bundle.open(folder)
