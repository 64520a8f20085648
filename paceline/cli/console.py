"""What every command shares: colours, error lines, the environment it reads."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

DRAFTED = "green"
OWN = ""

# Text goes to stdout, everything about it to stderr, so that pipes carry text only.
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

# Control characters of a model's text must not reach the terminal; tab and newline may.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def fail(message: str) -> NoReturn:
    """Say what is wrong in the terms of the user, and exit with 1."""
    err.print(Text.assemble(("error: ", "bold red"), message))
    raise typer.Exit(1)


def stream(text: str, style: str) -> None:
    """Print a piece of a model's text at once, without a newline."""
    if not out.is_terminal:
        out.file.write(text)
    else:
        out.print(Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text), style=style), end="")
    out.file.flush()


def cache_folder() -> Path:
    """Where converted models and logs are kept: PACELINE_CACHE, else ~/.cache/paceline.

    It is there and can be written to: else this ends the command and says what to do.
    """
    try:
        if chosen := os.environ.get("PACELINE_CACHE"):
            folder = Path(chosen).expanduser().absolute()
        else:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            folder = Path(base).absolute() / "paceline"
    except RuntimeError:
        fail("this user has no home directory: set PACELINE_CACHE to a folder for models and logs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        fail(f"cannot make {folder}: {error.strerror}; set PACELINE_CACHE to a folder for models and logs")
    if not writable:
        fail(f"cannot write to {folder}: set PACELINE_CACHE to a folder for models and logs")
    return folder


def api_key() -> str | None:
    """PACELINE_API_KEY, when one is given."""
    return os.environ.get("PACELINE_API_KEY") or None


def redis_url() -> str | None:
    """REDIS_URL, when one is given."""
    return os.environ.get("REDIS_URL") or None
