"""`paceline`: its own commands, and those that services and tools register under it.

Speed of `--help` is a feature: commands import what they run (gRPC, Redis, models) only when they run, and a
registered command's module is not imported before it is called.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from paceline import __version__
from paceline.cli import generate, health, key, model, status, up
from paceline.cli.doctor import command as doctor
from paceline.service import garbage, interrupts

_OURS = "Use it"
_SERVICES = "One service, as a pod runs it"
_TOOLS = "Tools"

app = typer.Typer(
    name="paceline",
    help="Paceline: distributed speculative decoding. Drafters guess, verifiers decide.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"paceline {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


app.command("up", rich_help_panel=_OURS)(up.up)
app.command("generate", rich_help_panel=_OURS)(generate.generate)
app.command("status", rich_help_panel=_OURS)(status.status)
app.command("health", rich_help_panel=_OURS)(health.health)
app.command("doctor", rich_help_panel=_OURS)(doctor.doctor)
app.add_typer(model.app, name="model", rich_help_panel=_OURS)
app.add_typer(key.app, name="key", rich_help_panel=_OURS)


def _register(entry: EntryPoint) -> None:
    summary = _summary(entry.module)
    if summary is None:  # its package is not installed here (an image holds one service only)
        return
    app.command(
        entry.name,
        help=summary,
        rich_help_panel=_TOOLS if _is_tool(entry) else _SERVICES,
        add_help_option=False,
        # Everything after the name belongs to the command, in the order it was typed.
        context_settings={
            "ignore_unknown_options": True,
            "allow_extra_args": True,
            "allow_interspersed_args": False,
            "help_option_names": [],
        },
    )(_forwarder(entry))


def _forwarder(entry: EntryPoint) -> Callable[[typer.Context], None]:
    def forward(context: typer.Context) -> None:
        # Services clean up nothing before they serve, and then they have a way of their own.
        interrupts.end_quietly()
        garbage.rest()
        command = entry.load()
        garbage.spare()
        if _is_tool(entry):
            interrupts.raise_again()
        command.main(args=context.args, prog_name=f"paceline {entry.name}")

    return forward


def _is_tool(entry: EntryPoint) -> bool:
    return entry.module.startswith(("bench.", "paceline.training."))


def _summary(module: str) -> str | None:
    """First line of a module's docstring, read without importing it; None when there is no such module."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def run() -> None:
    """Run the command that the arguments name."""
    extras = {"up": "all", "model": "all"}
    for entry in sorted(entry_points(group="paceline.commands"), key=lambda found: found.name):
        _register(entry)
        extras[entry.name] = entry.name
    interrupts.raise_again()
    try:
        app()
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        sys.stderr.close()
        sys.exit(1)
    except ModuleNotFoundError as error:
        _name_extra(error, extras)


def _name_extra(error: ModuleNotFoundError, extras: Mapping[str, str]) -> NoReturn:
    """Say which extra brings the package that a command misses; raise `error` where none does."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    missing = (error.name or "").partition(".")[0]
    if command not in extras or not missing or importlib.util.find_spec(missing) is not None:
        raise error
    typer.echo(
        f"error: `paceline {command}` needs packages that are not installed ({missing} is missing): "
        f"pip install 'paceline[{extras[command]}]'",
        err=True,
    )
    sys.exit(1)
