"""Pods as routing sees them, at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.routing.benefit import Benefit
from gateway.routing.texts import HeldTexts


@dataclass(frozen=True, slots=True)
class VerifierView:
    """A verifier. Times are by the costs that it has measured itself; 0 where it says none."""

    address: str
    healthy: bool
    draining: bool
    model_id: str
    vocab_size: int
    max_context: int
    sessions: int
    max_sessions: int
    # Why it gets no session of this gateway; empty if it may get some.
    misfit: str = ""
    # KV slots that no session holds.
    kv_free: int = 0
    # Tokens of other sessions' prompts that are computed before a new one's.
    waiting_tokens: int = 0
    # Seconds for each token of a prompt.
    prompt_token_seconds: float = 0.0
    # Seconds of a step with the sessions there are, and what each further session adds.
    step_seconds: float = 0.0
    session_seconds: float = 0.0
    # The texts in its prefix cache; None knows of none.
    texts: HeldTexts | None = None


@dataclass(frozen=True, slots=True)
class DrafterView:
    """A drafter."""

    address: str
    healthy: bool
    draining: bool
    sessions: int
    max_sessions: int
    # What its drafts have brought this gateway's sessions; None before any.
    benefit: Benefit | None = None
