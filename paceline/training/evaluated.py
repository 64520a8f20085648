"""Prompts that drafters are evaluated on: never trained on, but measured while training goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from paceline.sampling import SamplingParams
from paceline.training.card import Checked, sha256
from paceline.training.corpus import Text
from paceline.training.overlap import Prompts
from paceline.training.template import Template
from paceline.training.writing import Job, Scribe, Wanted

_ANSWER_TOKENS: Final = 128


class DatasetError(Exception):
    """The file does not hold prompts; the message says which line."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """All turns of a file's questions, in order."""

    path: Path
    questions: tuple[tuple[str, ...], ...]

    @classmethod
    def read(cls, path: Path) -> Dataset:
        """A file of Spec-Bench's format: JSON objects with `turns`, one a line. Raises `DatasetError`."""
        questions = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                turns = json.loads(line)["turns"]
                if not turns or not all(isinstance(turn, str) for turn in turns):
                    raise ValueError("turns must be a list of texts")
            except (ValueError, KeyError, TypeError) as error:
                raise DatasetError(f"{path}, line {number}: {error}") from error
            questions.append(tuple(turns))
        if not questions:
            raise DatasetError(f"{path} holds no questions")
        return cls(path, tuple(questions))

    def without_shared(self, texts: Sequence[Text], template: Template) -> tuple[list[Text], Checked]:
        """Texts that share no run of words with any turn, and how many do."""
        prompts = Prompts(turn for turns in self.questions for turn in turns)
        kept = [text for text in texts if not prompts.share(template.decode(text.ids))]
        return kept, Checked(self.path.name, sha256(self.path), len(texts) - len(kept))

    def answers(self, template: Template, scribe: Scribe, count: int, longest: int) -> list[Text]:
        """The target's greedy answers to `count` first turns, evenly spread, that leave room for one."""
        step = max(1, len(self.questions) // count)
        asked = [questions[0] for questions in self.questions[::step]][:count]
        jobs = (_answer(template, turn, longest) for turn in asked)
        return [text for texts in scribe.write(jobs, lambda _: None) for text in texts]


def _answer(template: Template, turn: str, longest: int) -> Job[list[Text]]:
    prompt = template.answering([{"role": "user", "content": turn}])
    if len(prompt) + _ANSWER_TOKENS > longest:
        return []
    sampling = SamplingParams(max_tokens=_ANSWER_TOKENS, stop_token_ids=template.stop)
    ids = (yield Wanted(prompt, sampling)).ids
    end = len(prompt) + len(ids)
    return [Text(0, "dataset", (*prompt, *ids), len(ids), ((len(prompt), end),))]
