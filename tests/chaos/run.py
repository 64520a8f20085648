"""Strike a fleet under load with many faults, and say what became of them: `make chaos`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import click
from rich.console import Console

from tests.chaos.faults import PAIRS, Kind, Target, draw
from tests.chaos.network import Packets
from tests.chaos.report import Report
from tests.chaos.world import running
from tests.tiny import make_tiny_model

# Set once we are in a namespace of our own.
_INSIDE = "CHAOS_NAMESPACE"


async def strike(
    folder: Path,
    *,
    faults: int,
    seed: int,
    durability: str,
    append_only: bool,
    drop_packets: bool,
    neural: bool,
    targets: tuple[Target, ...],
    kinds: tuple[Kind, ...],
    console: Console,
) -> Report:
    """Draw faults, try them one after the other, and report."""
    model = make_tiny_model(folder / "model")
    # A session whose record is gone cannot be found by another gateway.
    lethal = set() if append_only else {Target.GATEWAY, Target.REDIS}
    pairs = [pair for pair in PAIRS if set(pair) != lethal]
    outcomes = []
    async with running(
        folder,
        model,
        seed=seed,
        durability=durability,
        append_only=append_only,
        drop_packets=drop_packets,
        neural=neural,
    ) as world:
        for fault in draw(faults, seed, kinds=kinds or world.kinds, targets=targets, pairs=pairs):
            outcome = await world.try_fault(fault)
            outcomes.append(outcome)
            console.print(
                f"{len(outcomes):4} {fault.kind} {', '.join(outcome.struck)} at {fault.stage}, "
                f"healed {fault.heal}: {outcome.moved.total()} of {outcome.running.total()} sessions moved, "
                f"{outcome.seconds:.1f} s, {len(outcome.failures)} failures",
                highlight=False,
            )
            for failure in outcome.failures:
                console.print(f"     {failure}", style="red", markup=False, highlight=False)
        at_end = await world.end()
        return Report(outcomes, len(world.load.ended), at_end)


def _enter_namespace() -> None:
    """Begin again in a network namespace of our own, where no packet but ours can be dropped."""
    if why := Packets.unavailable():
        raise click.ClickException(why)
    if os.environ.get(_INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    os.environ[_INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", "tests.chaos.run", *sys.argv[1:]])


@click.command(help=__doc__)
@click.option("--faults", default=200, show_default=True, help="How many.")
@click.option("--seed", default=0, show_default=True, help="Draws faults, victims and requests.")
@click.option("--durability", type=click.Choice(["relaxed", "strict"]), default="relaxed", show_default=True)
@click.option("--append-only/--no-append-only", default=True, help="Whether Redis keeps a log on disk.")
@click.option("--drop-packets", is_flag=True, help="Drop packets, in place of proxies.")
@click.option("--neural", is_flag=True, help="Drafters have a draft model and a head, too.")
@click.option(
    "--target",
    "targets",
    type=click.Choice([each.value for each in Target]),
    multiple=True,
    help="Only this.",
)
@click.option(
    "--kind", "kinds", type=click.Choice([each.value for each in Kind]), multiple=True, help="Only this."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the results there, too.")
@click.option("--folder", type=click.Path(path_type=Path), help="Takes logs and the model.")
def main(
    faults: int,
    seed: int,
    durability: str,
    append_only: bool,
    drop_packets: bool,
    neural: bool,
    targets: tuple[str, ...],
    kinds: tuple[str, ...],
    json_path: Path | None,
    folder: Path | None,
) -> None:
    console = Console(width=160)
    if drop_packets:
        _enter_namespace()
    folder = folder or Path(mkdtemp(prefix="paceline-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"logs in {folder}")
    report = asyncio.run(
        strike(
            folder,
            faults=faults,
            seed=seed,
            durability=durability,
            append_only=append_only,
            drop_packets=drop_packets,
            neural=neural,
            targets=tuple(map(Target, targets)) or tuple(Target),
            kinds=tuple(map(Kind, kinds)),
            console=console,
        )
    )
    report.show(console)
    if json_path is not None:
        json_path.write_text(json.dumps(report.as_json(), indent=1))
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()
