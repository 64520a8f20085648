"""What a verifier tells gateways of the time to a new session's first token."""

from __future__ import annotations

import pytest

from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from verifier_svc.budget import DraftBudget
from verifier_svc.cost import StepCost
from verifier_svc.forecast import Forecast, forecast
from verifier_svc.scheduler import StepLimits
from verifier_svc.sessions import Session, SessionTable

LIMITS = StepLimits(block_size=128, prefill_rows=256, max_tree_nodes=16)
# 10 ms for one row, 26 ms for 16, 266 ms for 256; nothing for what is read.
COST = {rows: 0.009 + 0.001 * rows + (0.001 if rows > 1 else 0.0) for rows in (1, 16, 64, 256)}


def told(*sessions: tuple[int, int, int], costs: dict[int, float] = COST) -> Forecast:
    """Of sessions with these lengths of prompt and text, and these computed positions."""
    table = SessionTable(16)
    for number, (prompt, length, computed) in enumerate(sessions):
        table.add(
            Session(
                SessionKey(f"s{number}", 1),
                prompt,
                list(range(length)),
                SamplingParams(max_tokens=9),
                length_limit=length + 9,
                blocks=[number],
                num_computed=computed,
            )
        )
    with table.lock:
        return forecast(table, DraftBudget(StepCost(costs, 0.0), draft_rows=64, max_nodes=16), LIMITS)


def test_an_idle_verifier_computes_prompts_at_its_full_width() -> None:
    idle = told()
    assert idle.waiting_tokens == 0
    assert idle.prompt_token_seconds == pytest.approx(COST[256] / 256)
    assert idle.step_seconds == pytest.approx(COST[1])
    assert idle.session_seconds == pytest.approx((COST[16] - COST[1]) / 15)


def test_beside_sessions_that_decode_a_prompts_token_takes_longer() -> None:
    """A step may then be only twice as long as without prompts."""
    decoding = [(10, 12, 11)] * 4
    busy = told(*decoding)
    assert busy.prompt_token_seconds > told().prompt_token_seconds
    assert busy.step_seconds == pytest.approx(COST[16])


def test_what_is_not_computed_waits() -> None:
    assert told((100, 100, 40), (10, 12, 11), (50, 50, 0)).waiting_tokens == 60 + 50
    # A session that was preempted computes its text again.
    assert told((10, 30, 0)).waiting_tokens == 30


def test_costs_that_were_not_measured_yet_do_no_harm() -> None:
    unknown = told(costs={})
    assert unknown.prompt_token_seconds > 0
    assert unknown.session_seconds >= 0
