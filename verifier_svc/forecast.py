"""How soon a session that came now would get its first token, as far as the verifier knows."""

from __future__ import annotations

from dataclasses import dataclass

from verifier_svc.budget import DraftBudget
from verifier_svc.scheduler import StepLimits
from verifier_svc.sessions import SessionTable


@dataclass(frozen=True, slots=True)
class Forecast:
    """By the measured costs of steps, with the sessions there are."""

    # Tokens of prompts, and of texts to recompute, that are not in the KV yet. What the prefix cache has of
    # sessions that have not begun counts too.
    waiting_tokens: int
    # Seconds that each token of a prompt takes beside the sessions that decode.
    prompt_token_seconds: float
    # Seconds of a step of those sessions, without prompts; and how much each further session adds.
    step_seconds: float
    session_seconds: float


def forecast(table: SessionTable, budget: DraftBudget, limits: StepLimits) -> Forecast:
    """Call with the table's lock held."""
    sessions = table.running()
    decoding = [session for session in sessions if session.decoding]
    waiting = sum(session.length - session.num_computed for session in sessions if not session.decoding)
    blocks = sum(len(session.blocks) for session in decoding)
    beside = len(decoding)
    rows = budget.prompt_rows(
        beside,
        blocks=blocks,
        prompts=max(1, len(sessions) - beside),
        prompt_blocks=0,
        most=limits.prefill_rows,
    )
    cost = budget.cost
    prompt = cost.prompt_seconds(beside, blocks, prompt_rows=rows, prompt_blocks=0)
    # The mean slope: from one width to the next, costs are a staircase.
    widest = max(table.max_sessions, 2)
    slope = (cost.seconds(widest, 1) - cost.seconds(1, 1)) / (widest - 1)
    return Forecast(waiting, prompt / rows, cost.seconds(max(1, beside), blocks), max(0.0, slope))
