"""What a session's client is told, and what a step gave a session."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.session import NO_COSTS, DraftCosts, FinishReason, Receipt, SourceTokens


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one step gave one session; `finish` is set with its last tokens.

    `fault` says why a session is ended that cannot be computed, here or elsewhere.
    """

    token_ids: tuple[int, ...]
    accepted: int
    finish: FinishReason | None = None
    receipt: Receipt | None = None
    # Tree nodes verified.
    drafted: int = 0
    # Both by source.
    sources: tuple[SourceTokens, ...] = ()
    fault: Faulty | None = None
    # Packed (`paceline.logprobs`): of the tokens, and with a session's first tokens of its prompt.
    logprobs: bytes = b""
    prompt_logprobs: bytes = b""
    drafts: DraftCosts = NO_COSTS


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens to stream: final, at consecutive positions from `position` on."""

    position: int
    token_ids: tuple[int, ...]
    accepted: int
    durable: bool
    drafted: int = 0
    sources: tuple[SourceTokens, ...] = ()
    logprobs: bytes = b""
    prompt_logprobs: bytes = b""
    drafts: DraftCosts = NO_COSTS


@dataclass(frozen=True, slots=True)
class Finished:
    """The session's last event."""

    reason: FinishReason
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Lost:
    """The session belongs to a later owner or is gone from the store: drop it, emit nothing more."""

    message: str


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """The store has not answered for so long that strict durability gives the session up."""

    message: str


@dataclass(frozen=True, slots=True)
class Faulty:
    """The session cannot be computed, here or elsewhere."""

    message: str
    # What its client asked for cannot be had, as opposed to a fault of ours.
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Alive:
    """There is nothing new, but the engine is getting on."""


@dataclass(frozen=True, slots=True)
class Aside:
    """The session's drafter is not heard for `seconds`: the session needs another one."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Broken:
    """This verifier cannot go on, with any session."""


Event = Tokens | Finished | Lost | Unrecorded | Faulty | Alive | Aside | Broken
