"""What is shipped: a runtime that needs no PyTorch, and a wheel that works alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dasheng_edge
from dasheng_edge import runtime
from dasheng_edge.runtime.bundle.bundle import sha256_of
from tests.fixtures.hub_server import ENCODER, safetensors, serve_hub

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("export", "quant", "runtime")
BUNDLE = REPOSITORY / "build" / "micro"  # made by `make build/micro`
CLIPS = REPOSITORY / "benchmarks" / "micro" / "clips"

# Everything of the export extra; None in sys.modules makes an import of it fail.
POISON = """
import sys
for name in ("torch", "transformers", "onnx", "onnxscript", "optimum", "peft", "safetensors", "gguf",
             "huggingface_hub", "scipy", "dasheng_edge.export", "dasheng_edge.quant"):
    sys.modules[name] = None
"""


def run(*command: str | Path, cwd: Path = REPOSITORY, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, encoding="utf-8", check=False, timeout=1800
    )  # fmt: skip
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools leaves its intermediate files beside the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        out,
        source,
    )
    (built,) = out.iterdir()
    return built


def installed_path(source: Path) -> PurePosixPath:
    """Where a file of the repository is when it is installed: `runtime/package` is `dasheng_edge` itself."""
    path = PurePosixPath("dasheng_edge") / source.relative_to(REPOSITORY).as_posix()
    root = PurePosixPath("dasheng_edge/runtime/package")
    return "dasheng_edge" / path.relative_to(root) if path.is_relative_to(root) else path


def modules(folder: str) -> list[str]:
    """The names, as they are imported, of all modules in one of the three folders."""
    paths = [installed_path(path) for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]


NO_MODULE = "dasheng_edge.runtime.no_module"  # whose import must be seen to fail
# In one process, since one for each takes a minute: all of ours is forgotten before each import.
IMPORT_EACH = f"""{POISON}
import importlib, json, traceback
failed = {{}}
for module in sys.argv[1:]:
    for name in [name for name, loaded in sys.modules.items() if loaded and name.split(".")[0] == "dasheng_edge"]:
        del sys.modules[name]
    try:
        importlib.import_module(module)
    except BaseException:
        failed[module] = traceback.format_exc()
print(json.dumps(failed))
"""


@pytest.fixture(scope="module")
def broken_imports() -> dict[str, str]:
    """What goes wrong where a module of the runtime is the first of ours to be imported, by module."""
    found: dict[str, str] = json.loads(run(sys.executable, "-c", IMPORT_EACH, *modules("runtime"), NO_MODULE))
    return found


@pytest.mark.parametrize("module", modules("runtime"))
def test_each_runtime_module_imports_without_the_export_extra(module: str, broken_imports: dict[str, str]) -> None:
    assert NO_MODULE in broken_imports
    assert module not in broken_imports, broken_imports[module]


def test_the_list_of_packages_is_that_of_the_folders() -> None:
    pyproject = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    (listed,) = re.findall(r"^\[tool.setuptools\]\npackages = \[(.*?)^\]", pyproject, re.MULTILINE | re.DOTALL)
    inits = [path for name in PACKAGES for path in (REPOSITORY / name).rglob("__init__.py")]
    expected = {".".join(installed_path(path).parent.parts) for path in inits}
    assert set(re.findall(r'"(.*?)"', listed)) == expected


def test_pull_downloads_without_the_export_extra(tmp_path: Path) -> None:
    with serve_hub() as fake:
        fake.repositories["mispeech/dasheng-base"] = {"config.json": b"{}", "model.safetensors": safetensors(*ENCODER)}
        code = f"""{POISON}
for name in ("huggingface_hub", "dasheng_edge.export", "dasheng_edge.quant"):
    del sys.modules[name]
from dasheng_edge.export.hub.client import Hub
from dasheng_edge.export.hub.pull import PullOptions, pull
report = pull(PullOptions("mispeech/dasheng-base"), hub=Hub({fake.endpoint!r}, waits_s=()))
print(*report.files)
"""
        printed = run(sys.executable, "-c", code, cwd=tmp_path, NO_PROXY="127.0.0.1,localhost")
    assert printed.split() == ["config.json", "model.safetensors"]
    assert (tmp_path / "dasheng-base" / "model.safetensors").is_file()


def test_the_poison_works() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{POISON}\nimport dasheng_edge.export.variants.table"],
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0


def test_help_loads_no_engine() -> None:
    script = "import sys, json, dasheng_edge.runtime.cli.app; print(json.dumps([*sys.modules]))"
    loaded = run(sys.executable, "-c", script)
    assert not {"llama_cpp", "onnxruntime", "av", "torch"} & set(json.loads(loaded))


def test_the_folder_that_python_starts_in_hides_nothing() -> None:
    assert not (REPOSITORY / "dasheng_edge").exists()


def test_public_names_are_listed() -> None:
    assert "__version__" in dir(dasheng_edge)
    assert set(runtime.__all__) <= set(dir(runtime))
    with pytest.raises(AttributeError, match="surprise"):
        _ = dasheng_edge.surprise
    with pytest.raises(AttributeError, match="surprise"):
        _ = runtime.surprise


def test_python_m_is_the_program() -> None:
    assert run(sys.executable, "-m", "dasheng_edge", "--version") == f"dasheng-edge {dasheng_edge.__version__}\n"


def test_version_is_the_same_everywhere() -> None:
    pyproject = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    changelog = (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    (version,) = re.findall(r'^version = "(.*)"$', pyproject, re.MULTILINE)
    assert importlib.metadata.version("dasheng-edge") == dasheng_edge.__version__ == version
    assert re.findall(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)[0] == version


def test_every_direct_dependency_is_pinned_once_per_python() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line.split("#")[0]) for line in lines if line.strip() and not line.startswith("#")]
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    here = [canonicalize_name(pin.name) for pin in pins if pin.marker is None or pin.marker.evaluate()]
    assert len(here) == len(set(here))
    wanted = [Requirement(line) for line in importlib.metadata.requires("dasheng-edge") or ()]
    later = {canonicalize_name(one.name) for one in wanted if "python_version" in str(one.marker)} - set(here)
    assert later <= {"tomli"}  # of Python before 3.11
    # onnxruntime-gpu takes the place of onnxruntime and is not part of the tested set.
    assert {canonicalize_name(one.name) for one in wanted} - set(here) - later == {"onnxruntime-gpu"}
    assert not {"torchaudio", "librosa"} & set(here)


@pytest.mark.slow
def test_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = [name for name in names if ".dist-info/" in name]
        entry_points = next(name for name in metadata if name.endswith("entry_points.txt"))
        assert "dasheng-edge = dasheng_edge.__main__:main" in archive.read(entry_points).decode()
        core = next(name for name in metadata if name.endswith("/METADATA"))
        facts = Metadata.from_email(archive.read(core), validate=True)
        assert (facts.name, facts.description_content_type) == ("dasheng-edge", "text/markdown")
        assert facts.description
    assert any(name.endswith("licenses/LICENSE") for name in metadata)
    sources = [path for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py")]
    typed = [REPOSITORY / name / "py.typed" for name in (*PACKAGES, "runtime/package")]
    kinds = {".jinja", ".css", ".json", ".html"}
    data = [path for name in PACKAGES for path in (REPOSITORY / name).rglob("*") if path.suffix in kinds]
    assert {path.suffix for path in data} == kinds
    expected = {str(installed_path(path)) for path in [*sources, *typed, *data]}
    assert names - set(metadata) == expected


def installed_bytes(environment: Path) -> int:
    """What is installed beside NumPy, FFmpeg and pip, without compiled modules and with copies of a file counted once.

    llama-cpp-python's wheel holds each library six times, since wheels know no links.
    """
    (packages,) = environment.glob("lib/python3*/site-packages")
    left_out = re.compile(r"(numpy|av|pip|setuptools|pkg_resources)\b")
    files = [path for path in packages.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    own = [path for path in files if not left_out.match(path.relative_to(packages).parts[0])]
    return sum({sha256_of(path): path.stat().st_size for path in own}.values())


@pytest.mark.slow
def test_wheel_installed_alone_captions_a_clip(wheel: Path, tmp_path: Path) -> None:
    assert (BUNDLE / "manifest.json").is_file(), "there is no build/micro; run `make build/micro`"
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    program, pins = binaries / "dasheng-edge", REPOSITORY / "constraints.txt"
    # llama-cpp-python comes from pip's cache, where the build for this checkout left it.
    run(binaries / "pip", "install", "--quiet", "-c", pins, wheel, cwd=tmp_path)
    assert "caption" in run(program, "--help", cwd=tmp_path)
    assert '"schema_version"' in run(program, "info", BUNDLE, "--json", cwd=tmp_path)
    for words in (["doctor"], ["verify", BUNDLE]):
        done = subprocess.run([program, *words], capture_output=True, encoding="utf-8", check=False, cwd=tmp_path)
        assert done.returncode == 1
        assert "ONNX Runtime is not installed" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr

    run(binaries / "pip", "install", "--quiet", "-c", pins, f"{wheel}[cpu]", cwd=tmp_path)
    assert installed_bytes(tmp_path / "venv") < 120e6
    installed = {row["name"].lower() for row in json.loads(run(binaries / "pip", "list", "--format", "json"))}
    assert not {"torch", "transformers", "onnx", "scipy"} & installed

    clip = next(iter(sorted(CLIPS.glob("*.flac"))))
    printed = run(program, "caption", BUNDLE, clip, cwd=tmp_path)
    assert re.search(r"[a-z]{3}", printed)
