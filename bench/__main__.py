"""Measure decoding speed on this machine, or drafting methods without the system."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from bench.results import Document

_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
# One-minute load above which a machine is not idle.
_QUIET_LOAD = 0.5


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
def command() -> None:
    """Tools that measure; each imports what it needs when it runs."""


def _system_options(function: Callable[..., None]) -> Callable[..., None]:
    """What every bench of the whole system takes."""
    options = (
        click.option(
            "--dataset", type=_FILE, required=True, help="Spec-Bench questions, one JSON object a line."
        ),
        click.option(
            "--json",
            "out_path",
            type=click.Path(dir_okay=False, writable=True, path_type=Path),
            help="Write everything measured here.",
        ),
        click.option(
            "--prompts",
            type=click.IntRange(1),
            default=24,
            show_default=True,
            help="Spread over the six tasks.",
        ),
        click.option(
            "--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Of each answer."
        ),
        click.option(
            "--dtype",
            type=click.Choice(["bfloat16", "float16", "float32"]),
            default="bfloat16",
            show_default=True,
            help="Of all arms.",
        ),
        click.option(
            "--model", help="A folder, a Hugging Face id or a packaged model; the default when missing."
        ),
        click.option(
            "--threads", type=click.IntRange(1, 1024), help="Of all arms. [default: the usable cores]"
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _measure(
    measure: Callable[..., Coroutine[Any, Any, Document]],
    table: Callable[[Document], Table] | None,
    settings: Mapping[str, Any],
    *,
    dataset: Path,
    out_path: Path | None,
    prompts: int,
    max_tokens: int,
    dtype: str,
    model: str | None,
    threads: int | None,
) -> Document:
    """Plan, `measure(plan, progress, **settings)`, write, print; the document with all that it ran under."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from bench import results
    from bench.dataset import DatasetError, choose
    from bench.system import BenchFailed, Plan, run
    from paceline.cli.console import cache_folder, err, out, redis_url
    from paceline.cli.model import resolve

    if out_path is not None and not os.access(out_path.parent, os.W_OK):
        raise click.ClickException(f"cannot write into the folder {out_path.parent}")
    try:
        questions = choose(dataset, prompts)
    except DatasetError as error:
        raise click.ClickException(str(error)) from error
    found = resolve(model)
    # Threads that wait for one another collapse when others take their cores, some arms' more than others'.
    load_before = results.load_average()
    if load_before > _QUIET_LOAD:
        err.print(f"warning: load {load_before:.1f}: something else runs here, so the figures mean nothing")
    logs = cache_folder() / "logs" / f"bench-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    threads = threads or len(os.sched_getaffinity(0))
    plan = Plan(found, questions, max_tokens, dtype, threads, redis_url(), logs)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn between measurements only: its own thread would take time from what is measured.
    with Progress(*columns, console=err, auto_refresh=False) as bar:
        shown = bar.add_task("starting", total=None)

        def progress(what: str, done: int = 0, of: int | None = None) -> None:
            bar.update(shown, description=f"{what:<30}", completed=done, total=of, refresh=True)

        try:
            document = run(measure(plan, progress, **settings), plan)
        except BenchFailed as error:
            raise click.ClickException(str(error)) from error
    load = {"load_before": load_before, "load_after": results.load_average()}
    document["machine"] = results.machine()
    document["config"] = {"dataset": str(dataset), **results.config(plan), **settings, **load}
    if out_path is not None:
        try:
            results.write(document, out_path)
        except OSError as error:
            raise click.ClickException(f"cannot write {out_path}: {error}") from error
        err.print(f"written to {out_path}")
    if table is None:
        out.print_json(data=document)
    else:
        out.print(table(document))
    return document


@command.command()
@_system_options
def decode(**options: Any) -> None:
    """Decoding speed of the whole system: transformers, Paceline plain, Paceline speculative.

    Starts Redis, a verifier, a drafter and the gateway, and lets all three answer each prompt in turn, one at
    a time. Nothing else should run on the machine meanwhile.
    """
    from bench.decode import measure, table

    _measure(measure, table, {}, **options)


@command.command()
@_system_options
@click.option(
    "--concurrency",
    multiple=True,
    type=click.IntRange(1),
    default=(1, 16),
    show_default=True,
    help="Repeatable.",
)
def exact(concurrency: tuple[int, ...], **options: Any) -> None:
    """Whether texts are the same with and without drafters, alone and many at once.

    Greedy, and sampled at temperature 0.8 with a seed; through the whole system. In float32 also
    against transformers. Exits with 1 if any differs.
    """
    from bench.exact import measure, table

    document = _measure(measure, table, {"concurrencies": concurrency}, **options)
    if document["identical"]["identical"] < document["identical"]["of"]:
        raise SystemExit(1)


@command.command()
@_system_options
@click.option(
    "--concurrency",
    multiple=True,
    type=click.IntRange(1),
    default=(1, 2, 4, 8, 16, 32),
    show_default=True,
    help="Repeatable.",
)
@click.option("--window", type=click.FloatRange(1), default=20.0, show_default=True, help="Seconds per arm.")
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True, help="Windows per arm.")
def load(concurrency: tuple[int, ...], window: float, rounds: int, **options: Any) -> None:
    """Throughput and latency of many sessions at once, speculation on against off."""
    from bench.load import measure

    settings = {"concurrencies": concurrency, "window_s": window, "rounds": rounds}
    _measure(measure, None, settings, **options)


@command.command()
@_system_options
@click.option("--sessions", type=click.IntRange(1), default=8, show_default=True, help="Decoding meanwhile.")
@click.option("--prompt-tokens", type=click.IntRange(64), default=4000, show_default=True, help="About.")
@click.option("--speculation/--no-speculation", default=True, show_default=True)
def stall(sessions: int, prompt_tokens: int, speculation: bool, **options: Any) -> None:
    """What a long prompt does to sessions that are decoding: their worst gap between tokens, in steps."""
    from bench.stall import measure

    settings = {"sessions": sessions, "prompt_tokens": prompt_tokens, "speculation": speculation}
    options["prompts"] = max(options["prompts"], sessions)
    _measure(measure, None, settings, **options)


@command.command(
    "acceptance",
    help="Acceptance lengths of drafting methods on recorded answers, without the system.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
@click.pass_context
def acceptance(context: click.Context) -> None:
    """Hand everything on to `bench.acceptance`, which imports torch."""
    from bench.acceptance import command as simulate

    simulate.main(args=context.args, prog_name=context.command_path)


if __name__ == "__main__":
    command()
