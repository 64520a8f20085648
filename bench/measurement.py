"""One measurement as a subcommand makes it: planned, measured, written, drawn and printed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bench.results import Document
    from bench.system import Progress

# One-minute load above which a machine is not idle.
_QUIET_LOAD = 0.5


def carry_out(
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
    table: Callable[[Document], RenderableType] | None = None,
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
