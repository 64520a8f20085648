"""`paceline bench drafters`: every row in every arrangement, one after another."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from bench.dataset import Question
from bench.drafters import facts, paced, serve
from bench.drafters.recordings import Job, Recordings, Text, record
from bench.drafters.rows import ROWS, Arrangement, Row, halves
from bench.results import Document, load_average
from bench.system import BenchError, Plan, Progress
from drafter_svc.config import DrafterSettings
from paceline.service.machine import usable_cores

# Nodes of the replayed trees: what a budget verifies with a matrix unit, and the most that a drafter sends.
_SIZES = (14, 31)
# Trees of so many are timed: without a matrix unit a budget verifies about as many as the first.
_TIMED = (6, 14, 31)


class Part(StrEnum):
    """Of the measurement; each can be made alone."""

    ONE_MACHINE = "one-machine"
    SPLIT = "split"
    PACED = "paced"
    REPLAY = "replay"


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be measured."""

    plan: Plan
    rows: Sequence[Row]
    parts: Collection[Part]
    paced: Plan
    draft_model: str | None


async def measure(
    plan: Plan,
    progress: Progress,
    *,
    names: Sequence[str],
    only: Sequence[str],
    sampled_prompts: int,
    temperature: float,
    draft_model: str | None,
    paced_prompts: int,
    paced_tokens: int,
    round_trips: Sequence[float],
) -> Document:
    """All rows. `round_trips` are in milliseconds.

    Raises what `system` raises, and `BenchError` for a row that has no such name or model.
    """
    parts = tuple(map(Part, only)) or tuple(Part)
    shorter = replace(
        plan, questions=plan.questions[:paced_prompts], max_tokens=min(paced_tokens, plan.max_tokens)
    )
    asked = _Asked(plan, _chosen(names, draft_model), parts, shorter, draft_model)
    temperatures = {0.0: len(plan.questions)}
    if sampled_prompts:
        temperatures[temperature] = min(sampled_prompts, len(plan.questions))
    answers: dict[Question, tuple[int, ...]] = {}
    rows = [await _served(asked, row, temperatures, answers, progress) for row in asked.rows]
    document: Document = {"parts": list(parts), "rows": rows}
    if {Part.PACED, Part.REPLAY} & set(parts):
        recordings = await _recorded(asked, answers, progress)
        document["draft_device"] = recordings.device
        for row, figures in zip(asked.rows, rows, strict=True):
            figures |= _replayed(recordings, row, with_lengths=Part.REPLAY in parts)
        if Part.PACED in parts:
            await _paced(asked, recordings, answers, rows, [each / 1e3 for each in round_trips], progress)
    # Imports torch: nothing is measured any more.
    for row, figures in zip(asked.rows, rows, strict=True):
        figures |= facts.of_row(row, plan.model.folder, draft_model)
    target = facts.of_target(plan.model.folder)
    return {**document, "target": target, "date": time.strftime("%Y-%m-%d"), "commit": _commit()}


async def _served(
    asked: _Asked,
    row: Row,
    temperatures: dict[float, int],
    answers: dict[Question, tuple[int, ...]],
    progress: Progress,
) -> dict[str, Any]:
    """A row in the arrangements with its real drafter."""
    figures: dict[str, Any] = {"row": row.name, "method": row.methods, "load": {}}
    for part, arrangement in (
        (Part.ONE_MACHINE, Arrangement.ONE_MACHINE),
        (Part.SPLIT, Arrangement.SPLIT),
    ):
        if part in asked.parts:
            before = load_average()
            figures[arrangement] = await serve.measure(
                asked.plan,
                row,
                arrangement,
                progress,
                temperatures=temperatures,
                draft_model=asked.draft_model,
                answers=answers,
            )
            figures["load"][arrangement] = {"before": before, "after": load_average()}
    return figures


async def _recorded(
    asked: _Asked, answers: dict[Question, tuple[int, ...]], progress: Progress
) -> Recordings:
    """Every method's trees and acceptance lengths on the plain answers; makes those that are missing."""
    whole = Part.REPLAY in asked.parts
    plan = asked.plan if whole else asked.paced
    if missing := [question for question in plan.questions if question not in answers]:
        answers |= await serve.plain_answers(replace(plan, questions=missing), progress)
    progress("recording trees")
    _, rest = halves()
    texts = tuple(
        Text(question.task, question.text, answers[question][: plan.max_tokens])
        for question in plan.questions
    )
    job = Job(
        model=str(plan.model.folder),
        draft_model=asked.draft_model or "",
        methods=tuple(dict.fromkeys(row.methods for row in asked.rows)),
        texts=texts,
        chat=plan.model.can_chat,
        kept=len(asked.paced.questions),
        nodes=DrafterSettings.model_fields["tree_nodes"].default,
        sizes=_SIZES if whole else (),
        timed=_TIMED,
        threads=len(rest) or usable_cores(),
    )
    return await record(job, rest, plan.logs / "recordings")


def _replayed(recordings: Recordings, row: Row, *, with_lengths: bool) -> dict[str, Any]:
    made = recordings.methods[row.methods]
    times = {
        source.name: {
            str(nodes): {"median": round(1e3 * median, 3), "p95": round(1e3 * slow, 3)}
            for nodes, median, slow in source.times
        }
        for source in made.sources
    }
    return {"draft_ms": times, "replay": made.replay} if with_lengths else {"draft_ms": times}


async def _paced(
    asked: _Asked,
    recordings: Recordings,
    answers: dict[Question, tuple[int, ...]],
    rows: Sequence[dict[str, Any]],
    round_trips: Sequence[float],
    progress: Progress,
) -> None:
    """Add figures to `rows`. Those of the same method share them: nothing that is played differs."""
    first = {row.methods: row for row in reversed(asked.rows)}
    made = await paced.measure(
        asked.paced,
        [row for row in asked.rows if first[row.methods] is row],
        recordings,
        [answers[question] for question in asked.paced.questions],
        progress,
        round_trips=round_trips,
        draft_model=asked.draft_model,
    )
    for row, figures in zip(asked.rows, rows, strict=True):
        figures["paced"] = made.get(row.name, {"same_as": first[row.methods].name})


def _chosen(names: Sequence[str], draft_model: str | None) -> list[Row]:
    known = {row.name: row for row in ROWS}
    if unknown := [name for name in names if name not in known]:
        raise BenchError(f"no row {unknown[0]!r}; there are {', '.join(known)}")
    rows = [known[name] for name in names] if names else list(ROWS)
    if draft_model is None:
        if "draft model" in names:
            raise BenchError(
                "the row of a draft model needs --draft-model (`paceline train draft` makes one)"
            )
        rows = [row for row in rows if row.name != "draft model"]
    return rows


def _commit() -> str:
    """Of the source tree; empty where this is none."""
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip()
