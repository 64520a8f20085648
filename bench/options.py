"""Options that several subcommands of `paceline bench` have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
OUT_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
_F = TypeVar("_F", bound=Callable[..., Any])


def _options(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """Several options as one decorator, in this order."""

    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


model_options = _options(
    click.option("--json", "out_path", type=OUT_FILE, help="Write everything measured into this file."),
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


def question_options(prompts: int) -> Callable[[_F], _F]:
    """Which questions are asked; `prompts` of them where nothing else is said."""
    return _options(
        click.option(
            "--dataset", type=FILE, required=True, help="Spec-Bench questions, one JSON object a line."
        ),
        click.option(
            "--prompts",
            type=click.IntRange(1),
            default=prompts,
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


plot_option = click.option("--plot", type=OUT_FILE, help="Draw it as a PNG file (needs matplotlib).")


def concurrency_option(*default: int) -> Callable[[_F], _F]:
    return click.option(
        "--concurrency",
        multiple=True,
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="Sessions at once. Repeatable.",
    )
