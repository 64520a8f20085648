"""Planned rows as one step of the engine, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paceline.engine.engine import Engine, SessionRows, StepInput, StepOutput
from paceline.engine.rows import Segment
from paceline.sampling import SamplingParams
from verifier_svc.isolation import Drawn
from verifier_svc.scheduler import PlannedRows


class StepCompute:
    """Computes planned rows; may be called again for the same rows.

    The engine has been given their block tasks before (`Engine.do_first`).
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, rows: Sequence[PlannedRows], top_k: Callable[[PlannedRows], int]) -> Drawn:
        """The decision on each of `rows` that wants logits; `top_k` ids per row go to its drafter."""
        output = self._step([_session_rows(row, top_k(row)) for row in rows])
        for row, scores in zip(rows, output.scores, strict=True):
            if scores and row.session.prompt_scores is not None:
                row.session.prompt_scores.take(row.segment.start + row.segment.scored.start, scores)
        drawing = [row for row in rows if row.segment.wants_logits]
        return list(zip(drawing, output.decisions, strict=True))

    def sound(self, block: int) -> bool:
        """Whether a row that belongs to nobody can be computed, in a block that belongs to nobody."""
        try:
            self._step([SessionRows(Segment([0], 0, (block,)), SamplingParams(max_tokens=1))])
        except Exception:
            return False
        return True

    def _step(self, sessions: Sequence[SessionRows]) -> StepOutput:
        return self._engine.step(StepInput(sessions))


def _session_rows(row: PlannedRows, top_k: int) -> SessionRows:
    session, segment = row.session, row.segment
    return SessionRows(
        segment,
        session.sampling,
        top_k,
        session.matcher,
        top_logprobs=session.logprobs.top,
        prompt_top_logprobs=session.logprobs.prompt_top or 0,
        # The token behind a row is the text's next one.
        scored_tokens=[session.token_ids[segment.start + index + 1] for index in segment.scored],
        logits=session.logits,
    )
