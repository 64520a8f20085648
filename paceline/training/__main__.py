"""Train drafters: let the target write texts, then train a head or a small model on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_OUT_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
_OUT_FOLDER = click.Path(file_okay=False, writable=True, path_type=Path)


def _options(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_target = _options(
    click.option(
        "--model",
        help="The target: a folder, a Hugging Face id or a packaged model; the default when missing.",
    ),
    click.option(
        "--seed", type=click.IntRange(0), default=17, show_default=True, help="Of all that is drawn."
    ),
    click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads. [default: the usable cores]"),
    click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
    click.option(
        "--longest",
        type=click.IntRange(256),
        default=1280,
        show_default=True,
        help="Most tokens of a text, prompt and answer.",
    ),
)
_training = _options(
    click.option(
        "--texts",
        type=_FILE,
        help="Texts of `paceline train texts`. [default: those in the cache, written where they are missing]",
    ),
    click.option(
        "--write",
        type=click.IntRange(1000),
        default=1_000_000,
        show_default=True,
        help="Distinct tokens to write where there are no --texts.",
    ),
    click.option(
        "--tokens",
        type=click.IntRange(1),
        default=3_000_000,
        show_default=True,
        help="Tokens to see, each time that they are seen.",
    ),
    click.option(
        "--minutes",
        type=click.FloatRange(0, min_open=True),
        default=60.0,
        show_default=True,
        help="Minutes of training; whichever comes first ends it.",
    ),
    click.option(
        "--batch-tokens", type=click.IntRange(64), default=1024, show_default=True, help="Tokens of a step."
    ),
    click.option(
        "--memory",
        "memory_gib",
        type=click.FloatRange(0),
        default=4.0,
        show_default=True,
        help="GiB of the target's states to keep; what is beyond is computed again.",
    ),
    click.option(
        "--dataset",
        type=_FILE,
        help="Spec-Bench questions to measure on. Texts that share 13 words in a row with them are dropped.",
    ),
    click.option(
        "--resume/--no-resume",
        default=True,
        show_default=True,
        help="Go on from the checkpoint beside --out.",
    ),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
def command() -> None:
    """Each imports what it needs when it runs."""


@command.command()
@_target
@click.option("--out", type=_OUT_FILE, help="File to write or to add to. [default: in the cache]")
@click.option(
    "--tokens",
    type=click.IntRange(1),
    default=1_000_000,
    show_default=True,
    help="Tokens that the model writes, none counted twice.",
)
@click.option(
    "--sessions", type=click.IntRange(1), default=64, show_default=True, help="Texts written at once."
)
def texts(out: Path | None, tokens: int, sessions: int, **options: Any) -> None:
    """Let the target write texts to train on, until the file holds as many tokens.

    It may be stopped at any time, and goes on where it was.
    """
    from paceline.training.runs import Target

    target = Target.find(**options)
    _write(target, out or target.texts_file, tokens, sessions)


@command.command()
@_target
@_training
@click.option("--out", type=_OUT_FILE, required=True, help="File of the head (safetensors).")
@click.option(
    "--passes",
    type=click.IntRange(1, 8),
    default=4,
    show_default=True,
    help="Passes that the head is unrolled over.",
)
@click.option(
    "--layers",
    help="Layers whose states the head takes, comma-separated; 0 is the embedding's output. "
    "[default: an early, a middle and a late one]",
)
@click.option(
    "--draft-vocab",
    type=click.IntRange(2),
    default=4096,
    show_default=True,
    help="Tokens that the head knows, the texts' most frequent.",
)
def eagle(out: Path, passes: int, layers: str | None, draft_vocab: int, **options: Any) -> None:
    """Train an EAGLE-3-type head: one layer over the target's own states."""
    from paceline.training.runs import train_eagle

    try:
        chosen = tuple(int(word) for word in layers.split(",")) if layers else None
    except ValueError as error:
        raise click.BadParameter(f"{layers!r} is no list of numbers", param_hint="--layers") from error
    _train(train_eagle, out, {"passes": passes, "layers": chosen, "draft_vocab": draft_vocab}, options)


@command.command()
@_target
@_training
@click.option("--out", type=_OUT_FOLDER, required=True, help="Folder of the model.")
@click.option(
    "--layers", type=click.IntRange(1), default=6, show_default=True, help="Layers to keep of the target's."
)
def draft(out: Path, layers: int, **options: Any) -> None:
    """Cut a small model from the target and distil it: a draft model with the target's vocabulary."""
    from paceline.training.runs import train_draft

    _train(train_draft, out, {"layers": layers}, options)


def _write(target: Any, path: Path, tokens: int, sessions: int) -> None:
    from paceline.training.corpus import CorpusError
    from paceline.training.runs import write_texts

    begun = last = time.monotonic()
    written = 0

    def told(ids: int, texts: int, distinct: int) -> None:
        nonlocal last, written
        written += ids
        now = time.monotonic()
        if now - last > 20:
            last = now
            click.echo(
                f"{distinct} of {tokens} tokens in {texts} texts; {written / (now - begun):.0f} tokens/s",
                err=True,
            )

    try:
        distinct = write_texts(target, path, tokens, sessions, told)
    except CorpusError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{path}: {distinct} tokens")


def _train(
    train: Callable[..., dict[str, Any]], out: Path, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    from paceline.training.corpus import CorpusError
    from paceline.training.evaluated import DatasetError
    from paceline.training.loop import Progress
    from paceline.training.runs import Plan, Target

    target = Target.find(
        **{key: options.pop(key) for key in ("model", "seed", "threads", "device", "longest")}
    )
    write = options.pop("write")
    if options["texts"] is None:
        options["texts"] = target.texts_file
        _write(target, target.texts_file, write, 64)
    last = time.monotonic()
    points = 0

    def told(progress: Progress, loss: float) -> None:
        nonlocal last, points
        if len(progress.curve) > points:
            points = len(progress.curve)
            click.echo(str(progress.curve[-1]), err=True)
        if time.monotonic() - last > 20:
            last = time.monotonic()
            click.echo(f"{progress.seconds / 60:.1f} min, {progress.seen} tokens, loss {loss:.3f}", err=True)

    try:
        card = train(target, Plan(out=out, **options), told, _typed(), **settings)
    except (CorpusError, DatasetError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {card['tokens_seen']} tokens seen in {card['minutes']} minutes")


def _typed() -> list[str]:
    """The command as it was given, files by their names alone."""
    context = click.get_current_context()
    words = ["paceline", "train", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if context.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.COMMANDLINE:
            if isinstance(value, bool):
                words.append((parameter.opts if value else parameter.secondary_opts)[0])
            else:
                words += [parameter.opts[0], value.name if isinstance(value, Path) else str(value)]
    return words


if __name__ == "__main__":
    command()
