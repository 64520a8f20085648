"""Records `mix.jsonl`, the requests that routing is simulated with: sizes and hashes, no text.

    python -m tests.routing.record_mix SPEC_BENCH_FILE MODEL > tests/routing/mix.jsonl

Prompts are real texts in a real tokenizer's ids: Spec-Bench's questions, in its chats of several turns, over
the documents of its retrieval tasks, and alone; chats begin with one of a few long system prompts (pages of
this project's documentation). Answers are other texts of the file, for their sizes; a chat's next prompt
holds them. When sessions come is drawn, by a seed. Each line is one request:

    at      seconds at which it comes; of a later turn, after the answer before it
    after   number of the line of the turn before it; -1 for none
    answer  tokens of the answer
    blocks  the prompt's blocks of 128 tokens, as numbers: equal where the text up to the block's end is. The
            last one may be partly filled
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from paceline.prefix import TextKeys

BLOCK = 128
SEED = 16
CHATS, DOCUMENTS, SINGLES = 60, 8, 80
# Seconds in which all first requests come, and the mean pause before the next turn.
SPAN, PAUSE = 120.0, 5.0
DOCS = Path(__file__).parents[2] / "docs"
SYSTEM_PROMPTS = ("api.md", "models.md", "security.md", "glossary.md")


class Recorder:
    """Lines of the mix."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._numbers: dict[int, int] = {}
        self.lines: list[dict[str, object]] = []

    def add(self, text: str, answer: str, *, at: float, after: int = -1) -> int:
        """Add a request; returns its number."""
        ids = self._ids(text)
        numbers = [self._numbers.setdefault(key, len(self._numbers)) for key in TextKeys(BLOCK).of(ids)]
        if len(ids) % BLOCK:
            # A block that is partly filled is like no other.
            numbers.append(self._numbers.setdefault(-1 - len(self.lines), len(self._numbers)))
        size = max(8, len(self._ids(answer)))
        self.lines.append({"at": round(at, 3), "after": after, "answer": size, "blocks": numbers})
        return len(self.lines) - 1

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text)
        return ids


def main(questions: Path, model: str) -> None:
    """Print the mix."""
    entries = [json.loads(line) for line in questions.read_text("utf-8").splitlines() if line.strip()]
    chance = random.Random(SEED)
    recorder = Recorder(AutoTokenizer.from_pretrained(model))
    turns = [turn for entry in entries for turn in entry["turns"] if len(turn) < 600]
    long = [turn for entry in entries for turn in entry["turns"] if len(turn) >= 1500]
    systems = [(DOCS / name).read_text("utf-8")[:12000] for name in SYSTEM_PROMPTS]
    for _ in range(CHATS):
        # A few applications have most of the users.
        text = chance.choices(systems, (8, 4, 2, 1))[0]
        at, after = chance.uniform(0, SPAN), -1
        for _ in range(chance.randint(1, 8)):
            text += f"\nuser: {chance.choice(turns)}\nassistant: "
            answer = chance.choice(turns)
            after = recorder.add(text, answer, at=at, after=after)
            text += answer
            at = chance.expovariate(1 / PAUSE)
    for document in chance.sample(long, DOCUMENTS):
        text = (document + "\n") * chance.randint(2, 6)
        begin = chance.uniform(0, SPAN)
        for _ in range(chance.randint(4, 20)):
            recorder.add(text + chance.choice(turns), chance.choice(turns), at=begin + chance.uniform(0, 20))
    for _ in range(SINGLES):
        recorder.add(chance.choice([*turns, *long]), chance.choice(turns), at=chance.uniform(0, SPAN))
    for line in recorder.lines:
        print(json.dumps(line, separators=(",", ":")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
