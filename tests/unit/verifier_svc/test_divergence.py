"""Divergences are counted where an engine is not exact, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from bench.engine_loop import EngineLoop, Running, loaded
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from verifier_svc.divergence import DivergenceCheck
from verifier_svc.sessions import Session

PROMPT = (5, 6, 7, 8)


def counted() -> tuple[float, float]:
    names = "paceline:divergence_checks_total", "paceline:divergences_total"
    checks, divergences = (REGISTRY.get_sample_value(name) or 0.0 for name in names)
    return checks, divergences


@pytest.mark.parametrize(
    ("backend", "interval", "wrong", "expected"),
    [
        ("cuda", 1, False, (3, 0)),
        ("cuda", 1, True, (2, 1)),
        ("cuda", 0, True, (0, 0)),
        ("cuda", 2, True, (0, 0)),
        ("cpu", 1, True, (0, 0)),
    ],
    ids=["same", "another token", "off", "not its turn", "exact"],
)
def test_counts_tokens_that_plain_decoding_draws_otherwise(
    tiny_model: Path, backend: str, interval: int, wrong: bool, expected: tuple[int, int]
) -> None:
    with loaded(tiny_model, backend=backend) as decoder:
        sampling = SamplingParams(max_tokens=8)
        loop = EngineLoop.of(decoder, 1)
        text = Running(list(PROMPT), len(PROMPT), sampling)
        while len(text.token_ids) < 12:
            loop.step([text], lambda _: TokenTree())
        base = 9
        if wrong:
            text.token_ids[base + 1] ^= 1
        session = Session(
            SessionKey("s", 1), len(PROMPT), text.token_ids, sampling, 12, blocks=list(text.blocks)
        )
        check = DivergenceCheck(loop.engine, interval=interval)
        before = counted()
        check.stepped(session, base, 2)
        check.run()
        check.run()
        after = counted()
    assert (after[0] - before[0], after[1] - before[1]) == expected
