"""One step of the engine: what it decides, where the KV ends up, and what a step that failed leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.engine_loop import EngineLoop, Running, generate, loaded
from paceline.engine.blocks import BlockTask
from paceline.engine.engine import Engine, SessionRows, StepInput
from paceline.engine.model import Decoder
from paceline.engine.rows import Segment
from paceline.sampling import SamplingParams

PROMPT = [1, 5, 9]
GREEDY = SamplingParams(max_tokens=8)
# A seed that is no number: drawing raises.
BAD = SamplingParams(max_tokens=8, temperature=0.5, seed="none")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Iterator[Decoder]:
    with loaded(tiny_model) as made:
        yield made


@pytest.fixture(scope="module")
def text(decoder: Decoder) -> list[int]:
    """The prompt's greedy continuation, token by token."""
    running = Running(list(PROMPT), len(PROMPT), GREEDY)
    return generate(EngineLoop.of(decoder, 1), [running], 6)[0]


def test_a_step_decides_for_sessions_that_want_logits_and_moves_what_it_accepted(
    decoder: Decoder, text: list[int]
) -> None:
    engine = Engine(decoder, 3)
    tasks = [BlockTask(block) for block in range(3)]
    part = Segment(PROMPT[:2], 0, (2,), wants_logits=False)
    # A wrong node before each right one: both right ones have to move.
    wrong = [token ^ 1 for token in text]
    tree = Segment(PROMPT, 0, (0,), [wrong[0], text[0], wrong[1], text[1]], [-1, -1, 1, 1])
    (decision,) = engine.step(
        StepInput([SessionRows(part, GREEDY), SessionRows(tree, GREEDY, feedback_top_k=2)], tasks)
    ).decisions
    assert decision.path == (1, 3)
    assert decision.bonus == text[2]
    assert decision.top_k == 2
    # Of the root's row and of the accepted nodes'.
    assert [decision.top_ids[2 * row] for row in (0, 2, 4)] == text[:3]
    after = Segment([text[2]], len(PROMPT) + 2, (0,))
    (decision,) = engine.step(StepInput([SessionRows(after, GREEDY)])).decisions
    assert decision.bonus == text[3]


@pytest.mark.parametrize("fails", ["in its rows", "in its draws"])
def test_a_step_that_failed_can_be_repeated_without_its_tasks(
    decoder: Decoder, text: list[int], fails: str
) -> None:
    """Another session's text is copied once, whatever fails behind or before the copy."""
    engine = Engine(decoder, 2)
    engine.step(StepInput([SessionRows(Segment(PROMPT, 0, (0,)), GREEDY)], [BlockTask(0)]))
    row = SessionRows(Segment([text[0]], len(PROMPT), (1,)), GREEDY)
    bad = (
        SessionRows(Segment(["one"], 0, (0,)), GREEDY)  # type: ignore[list-item]
        if fails == "in its rows"
        else SessionRows(Segment([7], len(PROMPT), (0,)), BAD)
    )
    with pytest.raises((TypeError, ValueError)):
        engine.step(StepInput([row, bad], [BlockTask(1, source=0)]))
    (decision,) = engine.step(StepInput([row])).decisions
    assert decision.bonus == text[1]


def test_the_forward_alone_gives_the_logits_that_a_step_draws_from(decoder: Decoder, text: list[int]) -> None:
    logits = Engine(decoder, 1).forward([Segment(PROMPT, 0, (0,))], [BlockTask(0)])
    assert int(torch.argmax(logits[0])) == text[0]
