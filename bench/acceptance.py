"""Acceptance length of drafting methods without the system: a real target's answers, replayed step by step.

The greedy text of each prompt is recorded once.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import click

from bench.drafting import UnfitError, UnknownMethodError, made
from bench.recording import Recording, Target, questions
from bench.replay import Answers, Tally, simulate
from bench.states import States, Treatment
from drafter_svc.config import DrafterSettings


def _recordings(
    cache: Path | None, target: Callable[[], Target], asked: list[tuple[str, str]], tokens: int
) -> list[Recording]:
    """Recordings of the questions, kept in `cache` when one is given."""
    if cache is not None and cache.exists():
        with cache.open("rb") as file:
            wanted, recordings = pickle.load(file)
        if wanted == (asked, tokens):
            return list(recordings)
    recordings = target().record(asked, tokens)
    if cache is not None:
        with cache.open("wb") as file:
            pickle.dump(((asked, tokens), recordings), file)
    return recordings


def _row(name: str, tally: Tally) -> str:
    tasks = "  ".join(f"{task} {tally.length(task):.2f}" for task in tally.steps)
    draft, slow = (
        sorted(tally.draft_seconds)[int(share * len(tally.draft_seconds))] for share in (0.5, 0.95)
    )
    learn = sorted(tally.learn_seconds)[len(tally.learn_seconds) // 2]
    times = f"draft {draft * 1e3:.2f} ms (p95 {slow * 1e3:.2f})  learn {learn * 1e3:.2f} ms"
    return f"{name:20} {tally.length():.3f}  {tasks}  {times}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of the model.",
)
@click.option(
    "--dataset",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Spec-Bench questions, one JSON object a line.",
)
@click.option(
    "--method",
    "names",
    multiple=True,
    default=("lookup", "recycling", "lookup+recycling"),
    show_default=True,
    help="Drafting methods joined by +, as `paceline drafter methods` lists them. Repeatable.",
)
@click.option(
    "--heads",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of trained heads, beside those that come with Paceline.",
)
@click.option("--draft-model", default="", help="Folder or Hugging Face id of a draft model.")
@click.option(
    "--states",
    "treatment",
    type=click.Choice([each.value for each in Treatment]),
    default=Treatment.TRUE.value,
    show_default=True,
    help="Hidden states that methods get: the target's, zeros, or those of the question before.",
)
@click.option("--per-task", default=4, show_default=True, help="Questions of each of the six tasks.")
@click.option("--offset", default=0, show_default=True, help="Questions of each task to skip first.")
@click.option("--tokens", default=128, show_default=True, help="Most tokens of a text.")
@click.option("--nodes", default=31, show_default=True, help="Most nodes of a tree.")
@click.option("--depth", default=16, show_default=True, help="Most levels of a tree.")
@click.option(
    "--tenants", default=1, show_default=True, help="Tenants that the questions are dealt to in turn."
)
@click.option("--tables/--no-tables", help="Begin with the tables that come with Paceline.")
@click.option(
    "--cache", type=click.Path(dir_okay=False, path_type=Path), help="Keep the recorded texts in this file."
)
def command(
    model: Path,
    dataset: Path,
    names: tuple[str, ...],
    heads: Path | None,
    draft_model: str,
    treatment: str,
    per_task: int,
    offset: int,
    tokens: int,
    nodes: int,
    depth: int,
    tenants: int,
    tables: bool,
    cache: Path | None,
) -> None:
    """Simulate drafting methods on Spec-Bench questions and print their acceptance lengths."""
    loaded: list[Target] = []

    def target() -> Target:
        if not loaded:
            loaded.append(Target(model))
        return loaded[0]

    asked = list(questions(dataset, per_task, offset))
    answers = Answers(target, _recordings(cache, target, asked, tokens))
    for name in names:
        settings = DrafterSettings.model_validate(
            {"method": name, "model": str(model), "heads": heads, "draft_model": draft_model}
        )
        try:
            drafting = made(
                settings,
                width=target().width,
                vocab_size=target().vocab_size,
                tables=tables,
                tenants=tenants,
            )
        except (UnknownMethodError, UnfitError) as error:
            raise click.UsageError(str(error)) from error
        if drafting.tables_missing:
            raise click.UsageError(f"no tables come with Paceline for the vocabulary of {model}")
        states = States(target(), drafting.layers, Treatment(treatment)) if drafting.layers else None
        tally = simulate(drafting, answers, nodes, depth, tenants=tenants, states=states)
        click.echo(_row(name, tally))


if __name__ == "__main__":
    command()
