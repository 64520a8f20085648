"""Questions of a Spec-Bench file: the six task groups, spread evenly and always the same way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TASKS = ("multi_turn", "translation", "summarization", "qa", "math_reasoning", "rag")
_MULTI_TURN = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


class DatasetError(Exception):
    """The file cannot be used; the message says which line, and why."""


@dataclass(frozen=True, slots=True)
class Question:
    """The first turn of one question."""

    id: str
    task: str
    category: str
    text: str


def choose(path: Path, count: int) -> list[Question]:
    """`count` questions, the same number of each task, spread over its list; tasks in turn,
    round by round, as mixed traffic would bring them. Raises `DatasetError`.
    """
    groups: dict[str, list[Question]] = {task: [] for task in TASKS}
    for question in _read(path):
        groups[question.task].append(question)
    share, rest = divmod(count, len(TASKS))
    chosen: dict[str, list[Question]] = {}
    for index, (task, group) in enumerate(groups.items()):
        wanted = share + (index < rest)
        if len(group) < wanted:
            raise DatasetError(f"{path} holds {len(group)} questions of task {task}; {wanted} are needed")
        chosen[task] = [group[number * len(group) // wanted] for number in range(wanted)]
    return [
        questions[number]
        for number in range(share + 1)
        for questions in chosen.values()
        if number < len(questions)
    ]


def _read(path: Path) -> Iterator[Question]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _question(json.loads(line), number)
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise DatasetError(
                    f"{path}, line {number}: not a Spec-Bench question "
                    f"(question_id, category, turns): {type(error).__name__}: {error}"
                ) from error


def _question(fields: dict[str, object], number: int) -> Question:
    category, turns = fields["category"], fields["turns"]
    if category in _MULTI_TURN:
        task = TASKS[0]
    elif category in TASKS[1:]:
        task = str(category)
    else:
        raise ValueError(f"unknown category {category!r}")
    if not isinstance(turns, list) or not isinstance(turns[0], str) or not turns[0].strip():
        raise ValueError("turns must be a list of texts")
    return Question(str(fields.get("question_id", number)), task, str(category), turns[0])
