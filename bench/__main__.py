"""Measure the whole system, the engine alone, or drafting methods on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bench.peers import ARMS

if TYPE_CHECKING:
    from rich.table import Table

    from bench.results import Document
    from bench.system import Progress

_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_OUT_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
_F = TypeVar("_F", bound=Callable[..., Any])
# One-minute load above which a machine is not idle.
_QUIET_LOAD = 0.5


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
def command() -> None:
    """Tools that measure; each imports what it needs when it runs."""


def _options(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """Several options as one decorator, in this order."""

    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_model_options = _options(
    click.option("--json", "out_path", type=_OUT_FILE, help="Write everything measured into this file."),
    click.option(
        "--dtype",
        type=click.Choice(["bfloat16", "float16", "float32"]),
        default="bfloat16",
        show_default=True,
        help="Number type, the same in all arms.",
    ),
    click.option(
        "--model", help="A folder, a Hugging Face id or a packaged model; the default when missing."
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        help="CPU threads, the same in all arms. [default: the usable cores]",
    ),
)
_question_options = _options(
    click.option(
        "--dataset", type=_FILE, required=True, help="Spec-Bench questions, one JSON object a line."
    ),
    click.option(
        "--prompts",
        type=click.IntRange(1),
        default=24,
        show_default=True,
        help="How many, spread evenly over the six tasks.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(1),
        default=128,
        show_default=True,
        help="Most tokens of each answer.",
    ),
)
_plot_option = click.option("--plot", type=_OUT_FILE, help="Draw it as a PNG file (needs matplotlib).")


def _concurrency_option(*default: int) -> Callable[[_F], _F]:
    return click.option(
        "--concurrency",
        multiple=True,
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="Sessions at once. Repeatable.",
    )


def _measure(
    measure: Callable[..., Coroutine[Any, Any, Document]],
    settings: Mapping[str, Any],
    *,
    out_path: Path | None,
    dtype: str,
    model: str | None,
    threads: int | None,
    dataset: Path | None = None,
    prompts: int = 0,
    max_tokens: int = 1,
    table: Callable[[Document], Table] | None = None,
    plot: Path | None = None,
    draw: Callable[[Document, Path], None] | None = None,
) -> Document:
    """Plan, `measure(plan, progress, **settings)`, write, draw, print. Returns the document."""
    from bench import plots, results
    from bench.dataset import DatasetError, choose
    from bench.system import BenchError, Plan, run
    from paceline.cli.console import cache_folder, err, out, redis_url
    from paceline.cli.model import resolve
    from paceline.service.machine import usable_cores

    for path in (out_path, plot):
        if path is not None and not os.access(path.parent, os.W_OK):
            raise click.ClickException(f"cannot write into the folder {path.parent}")
    try:
        if plot is not None:
            plots.require()
        questions = choose(dataset, prompts) if dataset else []
    except (BenchError, DatasetError) as error:
        raise click.ClickException(str(error)) from error
    found = resolve(model)
    # Threads that wait for one another collapse when others take their cores, some arms' more than others'.
    load_before = results.load_average()
    if load_before > _QUIET_LOAD:
        err.print(f"warning: load {load_before:.1f}: something else runs here, so the figures mean nothing")
    logs = cache_folder() / "logs" / f"bench-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    threads = threads or usable_cores()
    plan = Plan(found, questions, max_tokens, dtype, threads, redis_url(), logs)
    try:
        with _shown_progress() as progress:
            document = run(measure(plan, progress, **settings), plan)
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    load = {"load_before": load_before, "load_after": results.load_average()}
    document["machine"] = results.machine()
    data = {"dataset": str(dataset)} if dataset else {}
    document["config"] = {**data, **results.config(plan), **settings, **load}
    try:
        if out_path is not None:
            results.write(document, out_path)
        if plot is not None and draw is not None:
            draw(document, plot)
    except OSError as error:
        raise click.ClickException(f"cannot write: {error}") from error
    for path in filter(None, (out_path, plot)):
        err.print(f"written to {path}")
    if table is None:
        out.print_json(data=document)
    else:
        out.print(table(document))
    return document


@contextmanager
def _shown_progress() -> Iterator[Progress]:
    """A bar that is drawn only when it is told of progress: a thread of its own would take time from what is
    measured. Lines, where nobody watches.
    """
    from rich import progress as bars

    from paceline.cli.console import err

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
    )
    with bars.Progress(*columns, console=err, auto_refresh=False) as bar:
        shown = bar.add_task("starting", total=None)

        def progress(what: str, done: int = 0, of: int | None = None) -> None:
            if not err.is_terminal:
                err.print(time.strftime("%H:%M:%S"), what)
            bar.update(shown, description=f"{what:<30}", completed=done, total=of, refresh=True)

        yield progress


@command.command()
@_question_options
@_model_options
def decode(**options: Any) -> None:
    """Decoding speed of the whole system: transformers, Paceline plain, Paceline speculative.

    Starts Redis, a verifier, a drafter and the gateway, and lets all three answer each prompt in turn, one at
    a time. Nothing else should run on the machine meanwhile.
    """
    from bench.decode import measure, table

    _measure(measure, {}, table=table, **options)


@command.command()
@_question_options
@_model_options
@_concurrency_option(1, 16)
def exact(concurrency: tuple[int, ...], **options: Any) -> None:
    """Whether texts are the same with and without drafters, alone and many at once.

    Greedy, and sampled at temperature 0.8 with a seed; through the whole system. In float32 also
    against transformers. Exits with 1 if any differs.
    """
    from bench.exact import measure, table

    document = _measure(measure, {"concurrencies": concurrency}, table=table, **options)
    if document["identical"]["identical"] < document["identical"]["of"]:
        raise SystemExit(1)


@command.command()
@_question_options
@_model_options
@_concurrency_option(1, 2, 4, 8, 16, 32)
@click.option(
    "--arrivals",
    "arrival",
    type=click.Choice(["closed", "poisson"]),
    default="closed",
    show_default=True,
    help="When requests come: as the one before is answered, or at random times.",
)
@click.option(
    "--rate",
    multiple=True,
    type=click.FloatRange(0, min_open=True),
    default=(0.25, 0.5, 1.0),
    show_default=True,
    help="Requests per second, for poisson. Repeatable.",
)
@click.option(
    "--window",
    type=click.FloatRange(1),
    default=20.0,
    show_default=True,
    help="Seconds of each window of an arm.",
)
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True, help="Windows per arm.")
@_plot_option
def load(
    arrival: str,
    concurrency: tuple[int, ...],
    rate: tuple[float, ...],
    window: float,
    rounds: int,
    **options: Any,
) -> None:
    """Throughput and latency of many sessions at once, speculation on against off.

    In closed loop at each --concurrency, or in open loop (--arrivals poisson) at each --rate.
    """
    from bench.load import measure, table
    from bench.plots import speed_up

    points = {"rates": rate} if arrival == "poisson" else {"concurrencies": concurrency}
    settings = {"arrival": arrival, **points, "window_s": window, "rounds": rounds}
    _measure(measure, settings, table=table, draw=speed_up, **options)


@command.command()
@_model_options
@click.option(
    "--rounds", type=click.IntRange(1), default=7, show_default=True, help="Times that each step is timed."
)
@_plot_option
def steps(rounds: int, **options: Any) -> None:
    """Time of the engine's forward alone: 1 to 256 rows of one session, 1 to 8 rows of up to 32."""
    from bench.plots import step_cost
    from bench.steps import measure, table

    _measure(measure, {"rounds": rounds}, table=table, draw=step_cost, **options)


@command.command()
@_question_options
@_model_options
@click.option(
    "--sessions", type=click.IntRange(1), default=8, show_default=True, help="Sessions that decode meanwhile."
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(64),
    default=4000,
    show_default=True,
    help="Length of the long prompt, about.",
)
@click.option("--speculation/--no-speculation", default=True, show_default=True)
def stall(sessions: int, prompt_tokens: int, speculation: bool, **options: Any) -> None:
    """Worst gap between the tokens of decoding sessions while a long prompt arrives, in steps."""
    from bench.stall import measure

    settings = {"sessions": sessions, "prompt_tokens": prompt_tokens, "speculation": speculation}
    options["prompts"] = max(options["prompts"], sessions)
    _measure(measure, settings, **options)


@command.command()
@_question_options
@_model_options
@_concurrency_option(1, 8, 16)
@click.option(
    "--arm",
    multiple=True,
    type=click.Choice(ARMS),
    default=ARMS,
    help="Run this arm only. Repeatable. [default: all]",
)
def peers(concurrency: tuple[int, ...], arm: tuple[str, ...], **options: Any) -> None:
    """Decoding speed of other servers and Paceline, one awake at a time, after `make peers`.

    Prompts are as many as --prompts at each --concurrency, at least one a session, and each is asked at one
    concurrency only. What is not installed is reported as missing.
    """
    from bench.peers.compare import measure, table

    prompts_at = {many: max(many, options["prompts"]) for many in sorted(set(concurrency))}
    options["prompts"] = sum(prompts_at.values())
    _measure(measure, {"arms": arm, "prompts_at": prompts_at}, table=table, **options)


@command.command()
@_question_options
@_model_options
@click.option(
    "--batch",
    multiple=True,
    type=click.IntRange(1),
    default=(2, 4, 8, 12, 16, 20, 24),
    show_default=True,
    help="Sessions at once. Repeatable.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Rounds, each with prompts of its own.",
)
def padding(batch: tuple[int, ...], rounds: int, **options: Any) -> None:
    """Speed of one engine with and without padding of drafts and keys, by batch size."""
    from bench.padding import measure, table

    _measure(measure, {"batches": batch, "rounds": rounds}, table=table, **options)


@command.command()
@_question_options
@_model_options
@_concurrency_option(1, 8)
@click.option(
    "--window",
    type=click.FloatRange(1),
    default=10.0,
    show_default=True,
    help="Seconds of each window of a fleet.",
)
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Windows per fleet.")
def tracing(concurrency: tuple[int, ...], window: float, rounds: int, **options: Any) -> None:
    """Throughput with every request traced, with none sampled and without tracing, in turns."""
    from bench.tracing import measure, table

    settings = {"concurrencies": concurrency, "window_s": window, "rounds": rounds}
    _measure(measure, settings, table=table, **options)


@command.command()
@_question_options
@_model_options
@_plot_option
def trace(**options: Any) -> None:
    """The trace of one request: where its time went."""
    from bench.plots import trace as draw
    from bench.trace import measure, table

    _measure(measure, {}, table=table, draw=draw, **options)


def _hand_on(name: str, help_text: str) -> None:
    """Make a subcommand that is the command of the module of that name, which imports torch."""

    def call(context: click.Context) -> None:
        module = import_module(f"bench.{name}")
        module.command.main(args=context.args, prog_name=context.command_path)

    command.command(
        name,
        help=help_text,
        add_help_option=False,
        context_settings={
            "ignore_unknown_options": True,
            "allow_extra_args": True,
            "help_option_names": [],
        },
    )(click.pass_context(call))


_hand_on("acceptance", "Acceptance lengths of drafting methods on recorded answers, without the system.")
_hand_on("tables", "Write texts with a model and keep what drafters learn from them.")
_hand_on("models", "Which architectures are served as transformers computes them (docs/models.md).")


if __name__ == "__main__":
    command()
