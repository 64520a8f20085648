"""`make parity`: the whole matrix with a real model, and its table on standard output."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import typer

from paceline.cli.model import resolve
from paceline.local import redis_server
from tests.parity.matrix import cases
from tests.parity.play import Matrix
from tests.parity.table import heading, table
from tests.pods import Pod, Pods


def main(model: str | None = None) -> None:
    """Exit with 1 where an outcome differs."""
    folder = Path(tempfile.mkdtemp(prefix="paceline-parity-"))
    data = redis_server.data_folder()
    server = redis_server.private_server(redis_server.find_server(), data)
    redis = Pod("redis", server.command, folder)
    try:
        redis.until(lambda: asyncio.run(redis_server.answers(server.url)))
        found = resolve(model)
        flags = ("--dtype", "bfloat16")
        with Pods(folder, found.folder, server.url, verifiers=2, verifier_flags=flags) as pods:
            tally = asyncio.run(Matrix(pods.start()).play(list(cases())))
    finally:
        redis.stop()
        shutil.rmtree(data, ignore_errors=True)
    print(f"{heading(tally, found.name)}\n\n{table(tally)}")
    for case, way, got, expected in tally.differing:
        print(f"\n{case}, {way}:\n  got      {got}\n  expected {expected}")
    raise typer.Exit(bool(tally.differing))


if __name__ == "__main__":
    typer.run(main)
