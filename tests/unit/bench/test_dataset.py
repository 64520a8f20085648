from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from bench.dataset import TASKS, DatasetError, choose

CATEGORIES = ("writing", "stem", *TASKS[1:])


def dataset(path: Path, *, each: int = 8) -> Path:
    rows = [
        {"question_id": number, "category": category, "turns": [f"{category} {number}", "more"]}
        for category in CATEGORIES
        for number in range(each)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_takes_as_many_of_each_task_in_rounds(tmp_path: Path) -> None:
    chosen = choose(dataset(tmp_path / "d.jsonl"), 24)
    assert [question.task for question in chosen] == list(TASKS) * 4
    assert [question.category for question in chosen if question.task == TASKS[0]] == [
        "writing",
        "writing",
        "stem",
        "stem",
    ]
    assert [question.text for question in chosen if question.task == "qa"] == ["qa 0", "qa 2", "qa 4", "qa 6"]


def test_chooses_the_same_every_time(tmp_path: Path) -> None:
    path = dataset(tmp_path / "d.jsonl")
    assert choose(path, 17) == choose(path, 17)


@pytest.mark.parametrize("count", [1, 5, 6, 7, 23, 48])
def test_gives_exactly_the_count_without_repeats(tmp_path: Path, count: int) -> None:
    chosen = choose(dataset(tmp_path / "d.jsonl"), count)
    assert len(set(chosen)) == count
    shares = Counter(question.task for question in chosen).values()
    assert max(shares) - min(shares) <= 1


def test_refuses_to_repeat_questions(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds 2 questions of task translation; 3 are needed"):
        choose(dataset(tmp_path / "d.jsonl", each=2), 18)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 1: not a Spec-Bench question"),
        ("[]", "line 1: not a Spec-Bench question"),
        ('{"category": "qa"}', "KeyError: 'turns'"),
        ('{"category": "qa", "turns": []}', "IndexError"),
        ('{"category": "qa", "turns": "x"}', "turns must be a list of texts"),
        ('{"category": "poker", "turns": ["x"]}', "unknown category 'poker'"),
        ('{"category": ["qa"], "turns": ["x"]}', "unknown category"),
    ],
)
def test_names_the_line_it_cannot_use(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(line)
    with pytest.raises(DatasetError, match=why):
        choose(path, 6)


def test_refuses_what_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="cannot read"):
        choose(path, 6)
