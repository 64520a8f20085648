"""Planned rows as one step of the engine, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paceline.engine.engine import Engine, SessionRows, StepInput
from paceline.engine.rows import Segment
from paceline.engine.verify import Decision
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
        sessions = [SessionRows(row.segment, row.session.sampling, top_k(row)) for row in rows]
        decisions = self._step(sessions)
        drawing = [row for row in rows if row.segment.wants_logits]
        return list(zip(drawing, decisions, strict=True))

    def sound(self, block: int) -> bool:
        """Whether a row that belongs to nobody can be computed, in a block that belongs to nobody."""
        try:
            self._step([SessionRows(Segment([0], 0, (block,)), SamplingParams(max_tokens=1))])
        except Exception:
            return False
        return True

    def _step(self, sessions: Sequence[SessionRows]) -> list[Decision]:
        return self._engine.step(StepInput(sessions)).decisions
