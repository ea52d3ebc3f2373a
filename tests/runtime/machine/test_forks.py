"""Engines in forked children: refused at once, freed by nobody, and open anew where that works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")

PARENT = """
import gc, os, sys, warnings
warnings.simplefilter("ignore")  # Python 3.12 says that forking with threads is no good, which is the point
import numpy as np
from dasheng_edge.runtime import Captioner, Embedder
from dasheng_edge.runtime.errors import CaptionerBusyError, DashengEdgeError
clip = (np.random.default_rng(0).normal(0, 0.1, 16000 * 12), 16000)  # two chunks
bundle, threads = sys.argv[1], int(sys.argv[2])
captioner, embedder = Captioner.open(bundle, threads=threads), Embedder.open(bundle, threads=threads)
captioner.caption(clip, max_new_tokens=2), embedder.embed(clip)
stream = captioner.stream(clip, max_new_tokens=3)
next(stream)

def refused(call, *words):
    try:
        call()
    except CaptionerBusyError as error:
        assert all(word in str(error) for word in ("spawn", "forkserver", str(os.getpid()), *words)), error
        print("refused")
    else:
        print("not refused")

if child := os.fork():
    stream.close()
    _, status = os.waitpid(child, 0)
    captioner.caption(clip, max_new_tokens=2), embedder.embed(clip)
    sys.exit(os.waitstatus_to_exitcode(status))
if sys.argv[3] == "use and close":
    refused(lambda: next(stream), "stream")
    stream.close()
    refused(lambda: captioner.caption(clip), "captioner")
    refused(lambda: captioner.caption_batch([clip]), "captioner")
    refused(lambda: list(captioner.caption_each([clip])), "captioner")
    refused(lambda: embedder.embed(clip), "embedder")
    captioner.close(), embedder.close()
elif sys.argv[3] == "drop":
    del stream, captioner, embedder
    gc.collect()
elif sys.argv[3] == "open":
    refused(lambda: Captioner.open(bundle, threads=threads), "threads=1")
    Captioner.open(bundle, threads=1).caption(clip, max_new_tokens=2)
    Embedder.open(bundle, threads=threads).embed(clip)
print("end")
"""  # and the interpreter ends


@pytest.mark.parametrize(
    ("does", "threads", "said"),
    [
        ("use and close", 2, 5 * "refused\n"),
        ("drop", 2, ""),
        ("open", 2, "refused\n"),
    ],
)
def test_a_child_neither_hangs_nor_crashes(tiny_bundle: Path, does: str, threads: int, said: str) -> None:
    arguments = [sys.executable, "-c", PARENT, str(tiny_bundle), str(threads), does]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a child that hangs, too
    assert (output, process.returncode) == (f"{said}end\n", 0)
