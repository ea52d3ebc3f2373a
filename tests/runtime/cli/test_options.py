"""What the commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_type_hints

import pytest
import typer
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.cli.app import build_app
from dasheng_edge.runtime.cli.options import device_of, engine_options, load, name_option
from dasheng_edge.runtime.errors import MissingExtraError
from dasheng_edge.runtime.machine.installation import install_line

TYPES = ("F16", "Q8_0", "Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_0", "Q6_K", "Q2_K", "IQ4_XS")


def run(*arguments: str) -> Result:
    app = typer.Typer()

    @app.command()
    def show(kind: Annotated[str | None, name_option(TYPES, "TYPE", "Kind")] = None) -> None:
        typer.echo(kind)

    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("name", ["Q4_K_M", "q4_k_m"])
def test_a_name_in_any_case(name: str) -> None:
    assert run("--kind", name).stdout == "Q4_K_M\n"
    assert run().stdout == "\n"


def test_a_name_that_is_not_known() -> None:
    result = run("--kind", "q4km")
    assert result.exit_code == 2
    assert "did you mean Q4_K_M" in " ".join(result.stderr.split())


def test_the_help_lists_the_names() -> None:
    assert all(name in run("--help").stdout for name in TYPES)


def test_a_missing_library_costs_one_line_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise ModuleNotFoundError(name="torch")

    monkeypatch.setattr("dasheng_edge.runtime.cli.options.import_module", absent)
    with pytest.raises(MissingExtraError) as error:
        load("dasheng_edge.export.bundle_export", "export", "export", "cpu")
    line = install_line("export", "cpu")
    assert str(error.value) == f"export needs torch, which is not installed; run {line}"


def test_a_broken_import_of_ours_is_no_missing_library() -> None:
    with pytest.raises(ModuleNotFoundError) as error:
        load("dasheng_edge.nothing", "export", "export")
    assert not isinstance(error.value, MissingExtraError)


def test_no_option_is_named_by_what_stands_for_its_value() -> None:
    """typer 0.27.0 to 0.27.3 call an option by its metavar where that is its name in capitals: `--DEVICE`."""
    from typer.models import OptionInfo

    wrong = []
    for command in build_app().registered_commands:
        hints = get_type_hints(command.callback, include_extras=True) if command.callback else {}
        for name, hint in hints.items():
            options = [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, OptionInfo)]
            unnamed = [one for one in options if not str(one.default).startswith("--") and not one.param_decls]
            wrong += [(hint, name) for one in unnamed if one.metavar == name.upper()]
    assert wrong == []


def test_the_decoder_may_be_elsewhere() -> None:
    options = engine_options(Path("b"), device_of("encoder=cuda,decoder=cpu"), None)
    assert (options.device, options.text_device) == ("cuda", "cpu")
    with pytest.raises(typer.BadParameter, match="encoder=cuda,decoder=cpu"):
        device_of("encoder=cuda,projector=cpu")
