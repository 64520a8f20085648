"""Measure the whole system, the engine alone, or drafting methods on this machine."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from bench.measurement import carry_out
from bench.options import concurrency_option, model_options, plot_option, question_options
from bench.peers import ARMS


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
def command() -> None:
    """Tools that measure; each imports what it needs when it runs."""


@command.command()
@question_options(24)
@model_options
def decode(**options: Any) -> None:
    """Decoding speed of the whole system: transformers, Paceline plain, Paceline speculative.

    Starts Redis, a verifier, a drafter and the gateway, and lets all three answer each prompt in turn, one at
    a time. Nothing else should run on the machine meanwhile.
    """
    from bench.decode import measure, table

    carry_out(measure, {}, table=table, **options)


@command.command()
@question_options(24)
@model_options
@concurrency_option(1, 16)
def exact(concurrency: tuple[int, ...], **options: Any) -> None:
    """Whether texts are the same with and without drafters, alone and many at once.

    Greedy, and sampled at temperature 0.8 with a seed; through the whole system. In float32 also
    against transformers. Exits with 1 if any differs.
    """
    from bench.exact import measure, table

    document = carry_out(measure, {"concurrencies": concurrency}, table=table, **options)
    if document["identical"]["identical"] < document["identical"]["of"]:
        raise SystemExit(1)


@command.command()
@question_options(24)
@model_options
@concurrency_option(1, 2, 4, 8, 16, 32)
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
@plot_option
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
    carry_out(measure, settings, table=table, draw=speed_up, **options)


@command.command()
@model_options
@click.option(
    "--rounds", type=click.IntRange(1), default=7, show_default=True, help="Times that each step is timed."
)
@click.option(
    "--keep-states",
    default="",
    metavar="LAYERS",
    help="Time each step also with states kept of these layers, as the verifier's setting names them.",
)
@plot_option
def steps(rounds: int, keep_states: str, **options: Any) -> None:
    """Time of the engine's forward alone: 1 to 256 rows of one session, 1 to 8 rows of up to 32."""
    from bench.plots import step_cost
    from bench.steps import measure, table

    settings = {"rounds": rounds, "keep_states": keep_states}
    carry_out(measure, settings, table=table, draw=step_cost, **options)


@command.command()
@model_options
@click.option(
    "--rounds", type=click.IntRange(1), default=15, show_default=True, help="Times that each draw is timed."
)
def draws(rounds: int, **options: Any) -> None:
    """Time of a row's draw, by the sampling parameters that its session gives."""
    from bench.draws import measure, table

    carry_out(measure, {"rounds": rounds}, table=table, **options)


@command.command()
@question_options(24)
@model_options
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
    carry_out(measure, settings, **options)


@command.command()
@question_options(24)
@model_options
@concurrency_option(1, 8, 16)
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
    carry_out(measure, {"arms": arm, "prompts_at": prompts_at}, table=table, **options)


@command.command()
@question_options(24)
@model_options
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

    carry_out(measure, {"batches": batch, "rounds": rounds}, table=table, **options)


@command.command()
@question_options(24)
@model_options
@concurrency_option(1, 8)
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Turns of each fleet.")
def tracing(concurrency: tuple[int, ...], rounds: int, **options: Any) -> None:
    """What tracing costs: every request traced, none sampled and no tracing, in turns."""
    from bench.tracing import measure, table

    settings = {"concurrencies": concurrency, "rounds": rounds}
    carry_out(measure, settings, table=table, **options)


@command.command()
@question_options(48)
@model_options
@click.option(
    "--row", "names", multiple=True, help="A row of the table, by its name. Repeatable. [default: all]"
)
@click.option(
    "--sampled-prompts",
    type=click.IntRange(0),
    default=24,
    show_default=True,
    help="Answer so many of them at --temperature, too.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0.01),
    default=0.8,
    show_default=True,
    help="Of the sampled answers.",
)
@click.option(
    "--draft-model",
    type=click.Path(exists=True, file_okay=False),
    help="Folder of a draft model (`paceline train draft`).",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["one-machine", "split", "paced", "replay"]),
    help="Make this part only. Repeatable. [default: all]",
)
@click.option(
    "--paced-prompts",
    type=click.IntRange(1),
    default=6,
    show_default=True,
    help="Questions of `paced`, the first of all.",
)
@click.option(
    "--paced-tokens",
    type=click.IntRange(2),
    default=64,
    show_default=True,
    help="Most tokens of their answers.",
)
@click.option(
    "--round-trip",
    "round_trips",
    multiple=True,
    type=click.FloatRange(0),
    default=(0.5, 5.0, 20.0, 60.0),
    show_default=True,
    help="Milliseconds between verifier and drafter in `paced`. Repeatable.",
)
def drafters(
    names: tuple[str, ...],
    only: tuple[str, ...],
    sampled_prompts: int,
    temperature: float,
    draft_model: str | None,
    paced_prompts: int,
    paced_tokens: int,
    round_trips: tuple[float, ...],
    **options: Any,
) -> None:
    """What each drafting method brings and costs: on one machine, on halves of its cores, and farther away.

    `one-machine` and `split` run real drafters. `paced` plays recorded trees at round trips. `replay` counts
    what is accepted of trees of 14 and 31 nodes.
    """
    from bench.drafters.compare import measure
    from bench.drafters.tables import tables

    settings = {
        "names": names,
        "only": only,
        "sampled_prompts": sampled_prompts,
        "temperature": temperature,
        "draft_model": draft_model,
        "paced_prompts": paced_prompts,
        "paced_tokens": paced_tokens,
        "round_trips": round_trips,
    }
    carry_out(measure, settings, table=tables, **options)


@command.command()
@question_options(24)
@model_options
@plot_option
def trace(**options: Any) -> None:
    """The trace of one request: where its time went."""
    from bench.plots import trace as draw
    from bench.trace import measure, table

    carry_out(measure, {}, table=table, draw=draw, **options)


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
