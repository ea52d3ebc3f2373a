"""`dasheng-edge doctor`: what this machine has, and what is missing or wrong; works with any dependency absent."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from dasheng_edge.runtime.errors import MissingExtraError
from dasheng_edge.runtime.machine.gpu import Gpu, find_gpus
from dasheng_edge.runtime.machine.identity import ENGINES, Identity, identify, version_of
from dasheng_edge.runtime.machine.installation import DISTRIBUTION, LLAMA_CUDA, install_line
from dasheng_edge.runtime.machine.placing import ALL, Card, described

from .options import JsonOption, bundle_argument, print_json, print_table

CUDA_WORKS = "works for all parts"
OWN_ENVIRONMENT = "metrics"  # an extra that is installed apart from the others
# "torch>=2.9; extra == 'export'", as the metadata of a distribution has it.
_NAME, _EXTRA = re.compile(r"[A-Za-z0-9._-]+"), re.compile(r"extra\s*==\s*[\"']([a-z]+)[\"']")
_BEFORE = re.compile(r"python_version\s*<\s*[\"']3\.(\d+)[\"']")  # the only other marker that ours have


def doctor(
    bundle: Annotated[Path | None, bundle_argument("Say what its parts take of the GPU's memory, too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Examine this machine and installation.

    The exit code is 1 if captioning will not work, or not on the GPU that is there and that packages are installed for.
    """
    report = examine(bundle)
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        _print_doctor(report)
    if report.problems:
        raise typer.Exit(1)


def _print_doctor(report: DoctorReport) -> None:
    from rich.table import Table

    memory = f"{report.memory_gib:.1f} GiB" if report.memory_gib is not None else "unknown"
    versions = [f"{name} {found or '- not installed'}" for name, found in report.versions.items()]
    table = Table(title="dasheng-edge doctor", show_header=False)
    for key, value in {
        "Python": report.python,
        "system": report.os,
        "CPU": f"{report.cpu}, {report.usable_cores} usable cores",
        "CPU features": " ".join(report.cpu_flags) or "unknown",
        "memory": memory,
        "GPU": "\n".join(map(_card, report.gpus)) or "none",
        "CUDA": report.cuda,
        **({"on the GPU": report.on_gpu, "--device auto": report.auto} if report.auto else {}),
        "packages": "\n".join(versions),
        "ONNX Runtime": ", ".join(report.onnx_providers) or "none",
        "llama.cpp": f"{report.llama_system or 'none'}\nGPU offload: {'yes' if report.llama_gpu_offload else 'no'}",
        "optional": "\n".join(f"{name}: {line}" for name, line in report.missing_extras.items()) or "all there",
        "problems": "\n".join(report.problems) or "none",
    }.items():
        table.add_row(key, value, end_section=True)
    print_table(table)


def _card(card: Gpu) -> str:
    return str(card) if card.free_bytes is None else f"{card}, {card.free_bytes / 1e6:,.0f} MB free"


def dependencies() -> dict[str, frozenset[str]]:
    """Distributions that ours asked for when it was installed -> the extras that bring each; none: the base."""
    table: dict[str, frozenset[str]] = {}
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from its sources
        requirements = []
    for line in requirements:
        name, extras, before = _NAME.match(line), frozenset(_EXTRA.findall(line)), _BEFORE.search(line)
        needed_here = before is None or sys.version_info < (3, int(before[1]))
        if name and needed_here and OWN_ENVIRONMENT not in extras:
            base = not extras or table.get(name[0]) == frozenset()
            table[name[0]] = frozenset() if base else table.get(name[0], frozenset()) | extras
    return table


@dataclass(frozen=True)
class DoctorReport(Identity):
    """The state of the installation; `problems` hold the fix; without any, captioning and embedding will work."""

    versions: dict[str, str | None]  # None: not installed
    onnx_providers: tuple[str, ...]
    llama_system: str
    llama_gpu_offload: bool
    gpus: tuple[Gpu, ...]  # that this process may use
    cuda: str  # what comes of `--device cuda`: that it works, or why not
    missing_extras: dict[str, str]  # extra -> the pip line that installs it
    problems: tuple[str, ...]
    on_gpu: str = ""  # what all parts of a bundle would take of a card's memory
    auto: str = ""  # where `--device auto` places them, and why


def examine(bundle: Path | None = None) -> DoctorReport:
    """Look at everything; raises nothing but what opening a bundle raises."""
    on_gpu, auto = _plan(bundle) if bundle else ("", "")
    extras_of = dependencies()
    versions = {name: version_of(name) for name in dict.fromkeys((DISTRIBUTION, *extras_of, *ENGINES))}
    absent = [name for name, extras in extras_of.items() if not extras and versions[name] is None]
    problems = [f"{name} is not installed; run {install_line()}" for name in absent] + _runtime_problems(versions)
    providers, system, offload = [], "", False
    if versions["onnxruntime"] or versions["onnxruntime-gpu"]:
        with _guarded(problems):
            from dasheng_edge.runtime.audio.onnx_session import load_onnxruntime

            providers = load_onnxruntime().get_available_providers()
    if versions["llama-cpp-python"]:
        with _guarded(problems):
            from dasheng_edge.runtime.text.llama import build_info

            system, offload = build_info()
    gpus = find_gpus().cards
    cuda = _cuda_state(versions, offload=offload)
    if gpus and versions["onnxruntime-gpu"] and cuda != CUDA_WORKS:
        problems.append(f"--device cuda does not work: {cuda}")
    return DoctorReport(
        **vars(identify()),
        versions=versions,
        onnx_providers=tuple(providers),
        llama_system=system,
        llama_gpu_offload=offload,
        gpus=gpus,
        cuda=cuda,
        missing_extras=_missing_extras(extras_of, versions),
        problems=tuple(problems),
        on_gpu=on_gpu,
        auto=auto,
    )


def _plan(folder: Path) -> tuple[str, str]:
    from dasheng_edge.runtime.bundle.bundle import Bundle
    from dasheng_edge.runtime.engine_options import EngineOptions, resolve_here
    from dasheng_edge.runtime.parts import choose_placement, needs_of

    bundle = Bundle.open(folder, check_sha256=False)
    needs, card = needs_of(bundle, resolve_here(EngineOptions(), bundle.manifest.decoder)), Card.first(find_gpus())
    place, why = choose_placement(folder, EngineOptions())
    return described(needs.on(card) if card else needs, ALL), f"{place}: {why}"


def _cuda_state(versions: dict[str, str | None], *, offload: bool) -> str:
    """Whether all parts of a bundle can be on the GPU, found by computing there."""
    if why := find_gpus().problem:
        return why
    whys: list[str] = []
    if versions["onnxruntime"] or versions["onnxruntime-gpu"]:
        with _guarded(whys):
            from dasheng_edge.runtime.audio.onnx_session import why_not_cuda

            whys += filter(None, [why_not_cuda()])
    if not offload:
        whys.append(f"this llama.cpp finds no GPU or is built without support for it; run {LLAMA_CUDA}")
    return "; ".join(whys) or CUDA_WORKS


def _runtime_problems(versions: dict[str, str | None]) -> list[str]:
    """Exactly one of the two distributions of ONNX Runtime must be there."""
    cpu, gpu = versions["onnxruntime"], versions["onnxruntime-gpu"]
    if cpu and gpu:
        fix = f"pip uninstall -y onnxruntime onnxruntime-gpu, then {install_line('cpu')} (or gpu for cpu)"
        return [f"onnxruntime and onnxruntime-gpu are both installed and overwrite each other; run {fix}"]
    if not cpu and not gpu:
        return [f"ONNX Runtime is not installed; run {install_line('cpu')} (or gpu for cpu, never both)"]
    return []


def _missing_extras(extras_of: dict[str, frozenset[str]], versions: dict[str, str | None]) -> dict[str, str]:
    has_runtime = versions["onnxruntime"] or versions["onnxruntime-gpu"]
    lines = {} if has_runtime else {"cpu": install_line("cpu")}
    for extra in sorted(set().union(*extras_of.values()) - {"cpu", "gpu"}):
        if any(extra in extras and versions[name] is None for name, extras in extras_of.items()):
            lines[extra] = install_line(extra, "cpu")
    return lines


@contextmanager
def _guarded(problems: list[str]) -> Generator[None]:
    """A library that is installed but does not load is a problem."""
    try:
        yield
    except (MissingExtraError, ImportError, OSError, RuntimeError, AttributeError) as error:
        problems.append(f"an installed library does not load: {error}; reinstall it")
