"""Sessions that live at this verifier: their tokens, their KV, their place in line."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import StrEnum

from paceline.constraints.matcher import GrammarMatcher
from paceline.engine.logits.history import History
from paceline.engine.logits.session import SessionLogits
from paceline.logprobs import NO_LOGPROBS, LogprobsWanted
from paceline.prefix import ROOT
from paceline.sampling import SamplingParams
from paceline.session import (
    NO_COSTS,
    NO_LIMITS,
    DraftCosts,
    FinishReason,
    Receipt,
    SessionKey,
    SourceTokens,
    SpeculationLimits,
)
from verifier_svc.drafting import Drafting
from verifier_svc.prompt_scores import PromptScores
from verifier_svc.session_trace import SessionTrace


class Refusal(StrEnum):
    """Why a session is not taken."""

    EXISTS = "exists"
    STALE_EPOCH = "stale_epoch"
    FULL = "full"
    DRAINING = "draining"


class SessionRefusedError(RuntimeError):
    """`SessionTable.add` did not take a session."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal


@dataclass(slots=True)
class Session:
    """One session as the engine sees it. Guarded by the table's lock."""

    key: SessionKey
    prompt_length: int
    # Prompt, then committed ids.
    token_ids: list[int]
    sampling: SamplingParams
    # Absolute length at which max_tokens are reached.
    length_limit: int
    # Of the texts that it shares KV with: see `paceline.prefix.root_of`.
    text_root: bytes = ROOT
    # Blocks that hold this session's KV, in order of position.
    blocks: list[int] = field(default_factory=list)
    # Positions whose KV is in the pool, from 0 on.
    num_computed: int = 0
    finish_reason: FinishReason | None = None
    drafting: Drafting = field(default_factory=Drafting)
    # Hidden states of earlier positions have gone to some drafter.
    states_sent: int = 0
    # What its client allows its drafts.
    limits: SpeculationLimits = NO_LIMITS
    # Its client asked for plain decoding: no drafter is to be expected.
    plain: bool = False
    # Steps since it was opened, and of these the ones with a tree.
    steps: int = 0
    drafted_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    source_tokens: tuple[SourceTokens, ...] = ()
    accepted_by_depth: tuple[int, ...] = ()
    draft_costs: DraftCosts = NO_COSTS
    # Length when it was opened.
    opened_length: int = 0
    # None unless its trace is recorded.
    trace: SessionTrace | None = None
    # What its rows' logits are processed with; counts the text as it grows.
    logits: SessionLogits = field(init=False)
    # At the last committed token of a text under a constraint. The engine's thread alone calls it.
    matcher: GrammarMatcher | None = None
    logprobs: LogprobsWanted = NO_LOGPROBS
    # None where no log-probabilities of the prompt are wanted.
    prompt_scores: PromptScores | None = None

    def __post_init__(self) -> None:
        self.logits = SessionLogits(self.sampling, History(self.token_ids, self.prompt_length))

    @property
    def length(self) -> int:
        """Length of prompt and committed ids together."""
        return len(self.token_ids)

    @property
    def max_draft_depth(self) -> int:
        """The depth beyond which draft nodes are unwanted or useless: a step's last token is the target's."""
        useful = self.length_limit - self.length - 1
        return min(useful, self.limits.max_depth) if self.limits.max_depth else useful

    @property
    def decoding(self) -> bool:
        """Whether only the last token's row is missing from the KV."""
        return self.num_computed == self.length - 1 and self.length > self.prompt_length

    def receipt(self) -> Receipt:
        """The cost of the session since it was opened."""
        return Receipt(
            steps=self.steps,
            committed_tokens=self.length - self.opened_length,
            drafted_tokens=self.drafted_tokens,
            accepted_tokens=self.accepted_tokens,
            drafted_steps=self.drafted_steps,
            sources=self.source_tokens,
            accepted_by_depth=self.accepted_by_depth,
            drafts=self.draft_costs,
        )


class SessionTable:
    """Sessions by id, in order of arrival.

    Hold `lock` to call a method, and to read or change what belongs to a session. The step loop waits on it:
    notify it when there may be something to compute.
    """

    def __init__(self, max_sessions: int) -> None:
        self.lock = threading.Condition()
        self.max_sessions = max_sessions
        self.draining = False
        # Sessions ever taken.
        self.opened = 0
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def in_order(self) -> list[Session]:
        """All sessions, oldest first."""
        return list(self._sessions.values())

    def running(self) -> list[Session]:
        """Sessions that have not ended, oldest first."""
        return [session for session in self._sessions.values() if session.finish_reason is None]

    def get(self, session_id: str) -> Session | None:
        """The session of that id, if it is open here."""
        return self._sessions.get(session_id)

    def add(self, session: Session) -> None:
        """Take a session. Raises `SessionRefusedError`."""
        held = self._sessions.get(session.key.session_id)
        if held is not None:
            if held.key.epoch > session.key.epoch:
                raise SessionRefusedError(
                    Refusal.STALE_EPOCH, f"epoch {held.key.epoch} of this session is open here"
                )
            raise SessionRefusedError(Refusal.EXISTS, f"already open here at epoch {held.key.epoch}")
        if self.draining:
            raise SessionRefusedError(Refusal.DRAINING, "this verifier is draining; ask another one")
        if len(self._sessions) >= self.max_sessions:
            raise SessionRefusedError(Refusal.FULL, f"all {self.max_sessions} sessions are taken")
        self._sessions[session.key.session_id] = session
        self.opened += 1

    def remove(self, session: Session) -> None:
        """Forget a session. Does nothing if it has been removed or replaced."""
        if self._sessions.get(session.key.session_id) is session:
            del self._sessions[session.key.session_id]
