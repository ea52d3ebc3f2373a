"""What `dasheng-edge` alone says: the three things to do first, as far as they are not done."""

from __future__ import annotations

from importlib.util import find_spec

import typer

from dasheng_edge.runtime.config.default_bundle import SMALLEST_MODEL, default_bundle, place_for, stored_bundles
from dasheng_edge.runtime.config.settings import Setting, settings
from dasheng_edge.runtime.errors import BundleNotFoundError, ConfigError
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.names import printable
from dasheng_edge.runtime.progress import typed_path

_EXPORT_NEEDS = ("huggingface_hub", "torch", "transformers", "onnx")


def print_first_steps() -> None:
    """Print them to stdout, as a page of help, for `| less`."""
    steps = [
        _bundle_step(),
        ("Caption a recording, of audio or video:", ["dasheng-edge caption recording.mp3"]),
        ("If something does not work, see what is missing on this machine:", ["dasheng-edge doctor"]),
    ]
    lines = ["dasheng-edge captions audio, transcribes it and answers questions about it, offline.", ""]
    for number, (text, commands) in enumerate(steps, 1):
        lines += [f"{number}. {text}", *(f"     {command}" for command in commands)]
    lines += ["", "All commands: dasheng-edge --help. Your defaults: dasheng-edge config."]
    for line in lines:
        typer.echo(printable(line))


def _bundle_step() -> tuple[str, list[str]]:
    """What is to be done until a bundle need not be named; if nothing, how to look at it."""
    found: dict[str, Setting] = {}
    try:
        found = settings()
        default = default_bundle(found)
    except (ConfigError, BundleNotFoundError) as error:
        if isinstance(error, ConfigError) or "bundle" in found:
            return f"Mend your settings: {error}", ["dasheng-edge config path"]
        if stored := stored_bundles():
            choose = [f"dasheng-edge config set bundle {typed_path(name)}" for name in stored]
            return "Choose one of your bundles (a bundle is a folder that holds a model):", choose
        missing = any(find_spec(name) is None for name in _EXPORT_NEEDS)
        install = [install_line("export", "pull", "cpu").partition("; ")[0]] if missing else []
        pull = f"dasheng-edge pull {SMALLEST_MODEL}"
        export = f"dasheng-edge export {SMALLEST_MODEL.partition('/')[2]} --out {typed_path(place_for(SMALLEST_MODEL))}"
        return "Get a model, and make a bundle of it, a folder that runs anywhere:", [*install, pull, export]
    return f"Your bundle is {default.path} ({default.origin}); look at it:", ["dasheng-edge info"]
