"""The programs as they run on a board, by qemu's emulation of its processor."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boards.architectures import BoardError

from .root import PACKAGES, PYTHON

LIMIT_S = 900  # of CPU, for a run
CORES = 2


@dataclass(frozen=True)
class Processor:
    """One that qemu emulates, and what Linux says of it on a board, which programs choose their code by."""

    board: str
    # Never `max` as it comes: qemu 7.2 computes int8 wrongly with its SME, and llama.cpp with SVE of 512 bits, which no
    # processor has that is in question (128 bits have all of ARMv9 that boards carry).
    qemu: str
    part: str  # MIDR_EL1
    features: str


ARMV8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
ARMV82 = f"{ARMV8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
PI4 = Processor("Raspberry Pi 4", "cortex-a72", "0xd08", ARMV8)
PI5 = Processor("Raspberry Pi 5", "cortex-a76", "0xd0b", ARMV82)
NEWEST = Processor("ARMv9", "max,sme=off,sve-max-vq=1", "0xd41", f"{ARMV82} sve i8mm svei8mm bf16")


@dataclass(frozen=True)
class Run:
    """A row of the table: a program captions all clips, or verifies a bundle, in a precision and on a processor."""

    program: str  # Python or C++
    does: str  # caption or verify
    precision: str
    processor: Processor

    @property
    def name(self) -> str:
        return re.sub(
            r"[^a-z0-9.]+", "-", f"{self.program} {self.does} {self.precision} {self.processor.board}".lower()
        )


FP32, INT8 = "fp32", "int8 and Q4_K_M"
RUNS = tuple(
    Run(program, does, precision, processor)
    for program, precision, processor in (
        ("C++", FP32, PI5),
        ("C++", INT8, PI5),
        ("C++", INT8, PI4),  # has no dot products
        ("C++", INT8, NEWEST),  # has SVE, and products of matrices in int8
        ("Python", FP32, PI5),
        ("Python", INT8, PI5),
    )
    for does in ("caption", "verify")
)


@dataclass(frozen=True)
class Outcome:
    """What a run wrote: texts by clip, or whether each seam is within its tolerance."""

    texts: tuple[str, ...]
    seams: tuple[bool, ...]
    cpu_s: float


def emulator() -> str | None:
    """The program, under either of the names that distributions give it."""
    return shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


def machine(root: Path, processor: Processor) -> Path:
    """Where its view of the root is."""
    return root.with_name("machines") / processor.part


def make_machine(root: Path, processor: Processor) -> None:
    """A view of the root with the processor's own files, which qemu finds before the host's: with those of another
    processor, programs choose instructions that it has not.
    """
    view = machine(root, processor)
    for name in ("bin", "etc", "lib", "opt", "usr"):
        (view / name).parent.mkdir(parents=True, exist_ok=True)
        (view / name).unlink(missing_ok=True)
        (view / name).symlink_to(root / name)
    lines = {"Features": processor.features, "CPU implementer": "0x41", "CPU architecture": "8", "CPU variant": "0x0"}
    lines |= {"CPU part": processor.part, "CPU revision": "0"}
    text = "".join(f"{name}\t: {value}\n" for name, value in lines.items())
    (view / "proc").mkdir(exist_ok=True)
    (view / "proc" / "cpuinfo").write_text("".join(f"processor\t: {core}\n{text}\n" for core in range(CORES)))
    processors = view / "sys" / "devices" / "system" / "cpu"
    processors.mkdir(parents=True, exist_ok=True)
    for name in ("possible", "present"):
        (processors / name).write_text(f"0-{CORES - 1}\n")


def command(one: Run, root: Path, bundle: Path, clips: list[Path]) -> list[str]:
    """All of it: nothing of the caller's environment goes in."""
    qemu = emulator()
    assert qemu
    inside = [qemu, "-L", str(machine(root, one.processor)), "-cpu", one.processor.qemu]
    if one.program == "C++":
        inside += [str(root / "usr" / "bin" / "dasheng-caption"), str(bundle)]
        return [*inside, *(["--verify"] if one.does == "verify" else map(str, clips)), "--json", "--threads", "1"]
    environment = {
        "PYTHONHOME": root / "usr",
        "PYTHONPATH": root / PACKAGES,
        "ORT_DISABLE_TELEMETRY": 1,
        "DASHENG_EDGE_CACHE": "off",
        "DASHENG_EDGE_CONFIG": "off",
        "OMP_NUM_THREADS": 1,
    }
    inside += [word for name, value in environment.items() for word in ("-E", f"{name}={value}")]
    inside += [str(root / "usr" / "bin" / f"python{PYTHON}"), "-m", "dasheng_edge", one.does, str(bundle)]
    return [*inside, *(map(str, clips) if one.does == "caption" else ()), "--json"]


def run(one: Run, root: Path, bundle: Path, clips: list[Path]) -> Outcome:
    """Raises BoardError with what the program wrote if its status is neither 0 nor verify's 1."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command(one, root, bundle, clips), stdout=out, stderr=err, env={})
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
        _, status, usage = os.wait4(process.pid, 0)  # what this very process took: others run beside it
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        written, said = (file.read().decode("utf-8", "replace") for file in (out, err))
    if process.returncode not in ((0, 1) if one.does == "verify" else (0,)):
        raise BoardError(f"{one.name} ended with status {process.returncode}: {said.strip()[-800:]}")
    return Outcome(*read(written), usage.ru_utime + usage.ru_stime)


def read(lines: str) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """Texts and seams of the lines of JSON that either program writes."""
    texts, seams = list[str](), list[bool]()
    for line in lines.splitlines():
        if not line.startswith("{"):
            continue
        found: dict[str, Any] = json.loads(line)
        if "text" in found:
            texts.append(found["text"])
        elif "seams" in found:
            seams += [seam["ok"] for seam in found["seams"]]
        elif "good" in found:
            seams.append(found["good"])
    return tuple(texts), tuple(seams)
