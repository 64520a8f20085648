"""A source of a drafter that sends random trees and claims to be sure: the real engine, and what it costs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.engine_loop import EngineLoop, Running, generate, loaded
from paceline.engine.model import Decoder
from paceline.sampling import SamplingParams
from paceline.session import Receipt, SessionKey, SourceTokens
from paceline.tree import TokenTree
from tests.unit.verifier_svc.step_loops import LoopUnderTest, running_loop
from tests.waiting import wait_until
from verifier_svc.budget import PROBE_STEPS
from verifier_svc.drafting import Drafting
from verifier_svc.progress import SessionStep
from verifier_svc.sessions import Session

TOKENS = 160
PROMPT = [1, 5, 9]
# Nodes of the source after which it must be known what it is worth.
FOUND_OUT = 60


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Iterator[Decoder]:
    with loaded(tiny_model) as made:
        yield made


@pytest.fixture(scope="module")
def text(decoder: Decoder) -> list[int]:
    running = Running(list(PROMPT), len(PROMPT), SamplingParams(max_tokens=TOKENS))
    return generate(EngineLoop.of(decoder, blocks=16), [running], TOKENS)[0]


async def test_it_takes_no_rows_and_changes_no_text(decoder: Decoder, text: list[int]) -> None:
    """The text's own source drafts one token of each step, and is right."""
    chosen = random.Random(11)
    got: list[int] = []
    told: list[tuple[SourceTokens, ...]] = []
    receipts: list[Receipt] = []

    def on_step(tested: LoopUnderTest, step: SessionStep) -> None:
        got.extend(step.outcome.token_ids)
        told.append(step.outcome.sources)
        if step.outcome.receipt is not None:
            receipts.append(step.outcome.receipt)
        session = tested.loop.table.get("a")
        if session is not None:
            right = text[len(got) : len(got) + 1]
            tested.came(session, TokenTree(tuple(right), (-1,) * len(right), (-0.7,) * len(right)))
            others = [token for token in range(100) if token not in right]
            noise = tuple(chosen.sample(others, 8))
            tested.came(session, TokenTree(noise, (-1,) * 8, (0.0,) * 8, (1,) * 8))

    with running_loop(decoder, on_step, prefix_cache=False) as tested:
        tested.add(
            Session(
                key=SessionKey("a", 1),
                prompt_length=len(PROMPT),
                token_ids=list(PROMPT),
                sampling=SamplingParams(max_tokens=TOKENS),
                length_limit=len(PROMPT) + TOKENS,
                drafting=Drafting(stream_id=1, sources=("text", "noise")),
                opened_length=len(PROMPT),
            )
        )
        await wait_until(lambda: bool(receipts), "it has ended", 60)
    assert got == text
    verified = 0
    for step, sources in enumerate(told):
        rows = sum(each.drafted_tokens for each in sources if each.source == "noise")
        assert rows == 0 or verified < FOUND_OUT or step % PROBE_STEPS == 0
        verified += rows
    assert verified, "nothing was known of it"
    accepted = {each.source: each.accepted_tokens for each in receipts[0].sources}
    assert accepted["noise"] == 0
    assert accepted["text"] > 0.4 * TOKENS
