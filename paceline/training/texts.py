"""Texts that the target itself writes, to learn from.

A chat model that is shown nothing but the beginning of a user's turn writes one (Magpie, arXiv 2406.08464),
and answers it: questions and answers as its traffic might have them, of no data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from paceline.engine.blocks import BlockTask
from paceline.engine.engine import Engine, SessionRows, StepInput
from paceline.engine.model import Decoder
from paceline.engine.rows import Segment
from paceline.sampling import SamplingParams

# Texts that are written at once.
SESSIONS = 64
_MARK = "\u241e"


class TextsError(ValueError):
    """Such texts cannot be written; the message says what to change."""


@dataclass(slots=True)
class Writing:
    """One text and the model's top ids for each of its tokens."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    text: list[int] = field(default_factory=list)
    top_ids: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether it has come to a stop token or to its longest length."""
        stopped = bool(self.text) and self.text[-1] in self.sampling.stop_token_ids
        return stopped or len(self.text) >= self.sampling.max_tokens


class Writer:
    """The model, writing many texts at once."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._decoder = Decoder.load(folder, device=torch.device("cpu"), dtype=torch.bfloat16)

    def write(self, writings: Sequence[Writing], top_k: int) -> None:
        """Write texts to their ends, all at once. Raises `TextsError` for too long ones."""
        longest = max(len(writing.prompt) + writing.sampling.max_tokens for writing in writings)
        if longest > self._decoder.shape.max_context:
            raise TextsError(
                f"texts of up to {longest} tokens do not fit the model's context of "
                f"{self._decoder.shape.max_context}: ask for fewer --question-tokens or --answer-tokens"
            )
        blocks = -(-longest // self._decoder.block_size)
        engine = Engine(self._decoder, len(writings) * blocks)
        tables = [range(number * blocks, (number + 1) * blocks) for number in range(len(writings))]
        for writing, table in zip(writings, tables, strict=True):
            self._step(engine, [(writing, table)], top_k, [BlockTask(block) for block in table])
        while going_on := [
            (writing, table) for writing, table in zip(writings, tables, strict=True) if not writing.ended
        ]:
            self._step(engine, going_on, top_k)

    def _step(
        self,
        engine: Engine,
        going_on: Sequence[tuple[Writing, range]],
        top_k: int,
        block_tasks: Sequence[BlockTask] = (),
    ) -> None:
        rows = []
        for writing, table in going_on:
            ids = [*writing.prompt, *writing.text]
            start = len(ids) - 1 if writing.text else 0
            rows.append(SessionRows(Segment(ids[start:], start, table), writing.sampling, top_k))
        decisions = engine.step(StepInput(rows, block_tasks)).decisions
        for (writing, _), decision in zip(going_on, decisions, strict=True):
            writing.text.append(decision.bonus)
            writing.top_ids.append(decision.top_ids)


def answers(
    writer: Writer, count: int, *, question_tokens: int, answer_tokens: int, top_k: int
) -> Iterator[Writing]:
    """`count` greedy answers to questions that the model made up."""
    tokenizer = writer.tokenizer
    marked = tokenizer.apply_chat_template(
        [{"role": "user", "content": _MARK}], add_generation_prompt=True, tokenize=False
    )
    before, _, after = marked.partition(_MARK)
    opening = tuple(tokenizer.encode(before, add_special_tokens=False))
    stop = frozenset({tokenizer.eos_token_id})
    for first in range(0, count, SESSIONS):
        asked = [
            Writing(
                opening,
                SamplingParams(
                    max_tokens=question_tokens, temperature=1.0, top_p=0.95, seed=seed, stop_token_ids=stop
                ),
            )
            for seed in range(first, min(first + SESSIONS, count))
        ]
        writer.write(asked, 1)
        told = []
        for writing in asked:
            question = tokenizer.decode(writing.text, skip_special_tokens=True)
            prompt = tuple(tokenizer.encode(before + question + after, add_special_tokens=False))
            told.append(Writing(prompt, SamplingParams(max_tokens=answer_tokens, stop_token_ids=stop)))
        writer.write(told, top_k)
        yield from told
