"""Prints docs/commands.md, every command with its arguments and options: `python -m benchmarks.command_reference`."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from dasheng_edge.runtime.cli.app import build_app


def main() -> None:
    """Print a section for each command, from the command line's own help."""
    group = typer.main.get_group(build_app())
    context = typer.Context(group, info_name="dasheng-edge", **group.context_settings)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        print("\n".join(section(typer.Context(command, info_name=name, parent=context))))


def section(context: typer.Context) -> Iterator[str]:
    """Lines of Markdown: what a command does, how it is called, and a list of what it takes."""
    command = context.command
    usage = command.get_usage(context).removeprefix("Usage: ")
    yield from (f"## {context.info_name}", "", command.help or "", "", "```", " ".join(usage.split()), "```", "")
    for parameter in command.get_params(context):
        if record := parameter.get_help_record(context):  # hidden options have none
            name = record[0].split()[0] if parameter.param_type_name == "argument" else record[0]
            yield f"- `{name}`: {record[1]}"
    yield ""


if __name__ == "__main__":
    main()
