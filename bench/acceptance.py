"""Acceptance length of drafting methods without the system: a real target's answers, replayed step by step.

The greedy text of each prompt is recorded once. A step then drafts on it, walks the tree along the
recorded text and feeds back the target's top ids of every row, rejected ones too, as a verifier would.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from bench.drafting import DraftingMethods, UnfitError, UnknownMethodError, made
from bench.judged import Judge
from bench.recording import TOP_K, Recording, Target, questions
from bench.states import States, Treatment, hand_over
from drafter_svc.config import DrafterSettings
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.methods.base import Ask
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from paceline.verdict import Feedback, Verdict

Path_ = tuple[int, ...]


@dataclass(slots=True)
class Tally:
    """What one method did: steps and committed tokens by task, seconds of every draft and observation."""

    committed: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    draft_seconds: list[float] = field(default_factory=list)
    learn_seconds: list[float] = field(default_factory=list)

    def length(self, task: str | None = None) -> float:
        """Committed tokens per step, of one task or of all."""
        if task is not None:
            return self.committed[task] / self.steps[task]
        return sum(self.committed.values()) / sum(self.steps.values())


class Answers:
    """The target's top ids after any path of any recording; asked of the model once, then kept."""

    def __init__(self, target: Callable[[], Target], recordings: Sequence[Recording]) -> None:
        self.recordings = recordings
        self._target = target
        self._loaded = -1
        self._known: dict[tuple[int, int, Path_], tuple[int, ...]] = {}

    def rows(self, prompt: int, base: int, tree: TokenTree) -> list[tuple[int, ...]]:
        """Top ids of the root and of every node of a tree on the first `base` ids of the text."""
        recording = self.recordings[prompt]
        at = base - len(recording.prompt)
        paths: list[Path_] = []
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        if any(
            self._recorded(recording, at, path) is None and (prompt, base, path) not in self._known
            for path in paths
        ):
            self._ask(prompt, base, tree, paths)
        return [
            recording.top_ids[at],
            *(self._recorded(recording, at, path) or self._known[prompt, base, path] for path in paths),
        ]

    @staticmethod
    def _recorded(recording: Recording, at: int, path: Path_) -> tuple[int, ...] | None:
        end = at + len(path)
        on_text = end < len(recording.text) and recording.text[at:end] == path
        return recording.top_ids[end] if on_text else None

    def _ask(self, prompt: int, base: int, tree: TokenTree, paths: Sequence[Path_]) -> None:
        target = self._target()
        if self._loaded != prompt:
            target.load(self.recordings[prompt])
            self._loaded = prompt
        rows = target.rows(base, tree.tokens, tree.parents)
        self._known.update(((prompt, base, path), row) for path, row in zip(paths, rows, strict=True))


def simulate(
    drafting: DraftingMethods,
    answers: Answers,
    nodes: int,
    depth: int,
    *,
    tenants: int = 1,
    states: States | None = None,
) -> Tally:
    """Replay every recording in turn, as sessions that follow one another in one drafter process.

    Each method is a source of its own; their trees are merged as a verifier merges them. The sessions are
    dealt to `tenants` tenants in turn. `states` are for methods that draft from the target's.
    """
    tally, judge, methods = Tally(), Judge(), drafting.methods
    for prompt, recording in enumerate(answers.recordings):
        key = SessionKey(str(prompt), 1)
        # The first token comes from the prefill, before a drafter may take part.
        session = Hypothesis(
            key,
            SamplingParams(max_tokens=len(recording.text)),
            recording.prompt + recording.text[:1],
            str(prompt % tenants),
        )
        end = len(recording.prompt) + len(recording.text)
        before = session.base_length
        for method in methods:
            method.attach(session)
        known = None if states is None else states.of(recording)
        while session.base_length < end:
            if known is not None:
                hand_over(methods, session, known)
            _step(drafting, judge, session, answers, prompt, nodes, depth, tally)
            tally.steps[recording.task] = tally.steps.get(recording.task, 0) + 1
        for method in methods:
            method.forget(key.session_id)
        tally.committed[recording.task] = tally.committed.get(recording.task, 0) + end - before
    return tally


def _step(
    drafting: DraftingMethods,
    judge: Judge,
    session: Hypothesis,
    answers: Answers,
    prompt: int,
    nodes: int,
    depth: int,
    tally: Tally,
) -> None:
    base, recording = session.base_length, answers.recordings[prompt]
    rest = recording.text[base - len(recording.prompt) :]
    start = time.perf_counter()
    methods = drafting.methods
    trees = [tree for method in methods for tree in method.draft([Ask(session, base, nodes, depth)])]
    drafted = time.perf_counter()
    tree = judge.choose(trees, nodes)
    path: list[int] = []
    while len(path) < len(rest) - 1:
        child = tree.child(path[-1] if path else -1, rest[len(path)])
        if child is None:
            break
        path.append(child)
    judge.learn(path)
    accepted = len(path)
    feedback = None
    if drafting.feedback_top_k:
        rows = answers.rows(prompt, base, tree)
        top_ids = tuple(token for row in rows for token in row)
        feedback = Feedback.of(session.ids[-1], tree, top_ids, TOP_K)
    verdict = Verdict(session.key, base, rest[: accepted + 1], accepted, len(tree), nodes, feedback)
    told = time.perf_counter()
    lesson = session.learn(verdict)
    for method in methods:
        method.observe(session, lesson)
        while method.settle():
            pass
    tally.draft_seconds.append(drafted - start)
    tally.learn_seconds.append(time.perf_counter() - told)


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
        states = States(target(), drafting.layers, Treatment(treatment)) if drafting.layers else None
        tally = simulate(drafting, answers, nodes, depth, tenants=tenants, states=states)
        click.echo(_row(name, tally))


if __name__ == "__main__":
    command()
