"""How often an engine that is not exact commits another token than plain decoding would have.

Where a token's logits depend, in their last bits, on what else is in the batch, both tokens follow the
target's law, but the text is no longer a function of the request alone. Of some steps that accepted drafts
the rows are computed again as plain decoding does, one at a time with nothing beside them, and the tokens
compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.constraints.matcher import GrammarMatcher
from paceline.engine.engine import Engine, SessionRows, StepInput
from paceline.engine.logits.history import History
from paceline.engine.logits.session import SessionLogits
from paceline.engine.rows import Segment
from paceline.sampling import SamplingParams
from paceline.service import telemetry
from verifier_svc import metrics
from verifier_svc.sessions import Session

log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step to check: which tokens of a text it committed, and where the text's KV is."""

    session_id: str
    token_ids: Sequence[int]
    prompt_length: int
    base: int
    blocks: Sequence[int]
    sampling: SamplingParams
    # Where the step began.
    matcher: GrammarMatcher | None


class DivergenceCheck:
    """Checks one in so many steps that accepted drafts."""

    def __init__(self, engine: Engine, *, interval: int) -> None:
        """`interval` 0 checks none; nothing is checked of an exact engine either."""
        self._engine = engine
        self._interval = 0 if engine.exact else interval
        self._since = 0
        self._chosen: _Step | None = None

    def stepped(self, session: Session, base: int, accepted: int) -> None:
        """Note a step that committed what `session` has from length `base` on; call with the lock held."""
        if not self._interval or not accepted or not session.blocks:
            return
        self._since += 1
        if self._since >= self._interval:
            self._since = 0
            # Its blocks may be released before the check, but given to nobody: the same thread does that.
            self._chosen = _Step(
                session.key.session_id,
                tuple(session.token_ids),
                session.prompt_length,
                base,
                tuple(session.blocks),
                session.sampling,
                session.matcher and session.matcher.before(session.length - base),
            )

    def run(self) -> None:
        """Draw the chosen step's tokens again, on the engine's thread; their KV becomes plain decoding's."""
        step, self._chosen = self._chosen, None
        if step is None:
            return
        # Of its own: the session's has counted beyond.
        logits = SessionLogits(step.sampling, History(step.token_ids, step.prompt_length))
        for length in range(step.base, len(step.token_ids)):
            segment = Segment([step.token_ids[length - 1]], length - 1, step.blocks)
            rows = SessionRows(segment, step.sampling, matcher=step.matcher, logits=logits)
            (decision,) = self._engine.step(StepInput([rows])).decisions
            metrics.DIVERGENCE_CHECKS.inc()
            if decision.bonus != step.token_ids[length]:
                metrics.DIVERGENCES.inc()
                log.info("diverged", session=step.session_id, position=length)
                return
            if step.matcher is not None:
                step.matcher.commit([decision.bonus])
