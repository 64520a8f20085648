"""What a run of faults came to: for people, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.faults import Kind, Stage, Target
from tests.chaos.world import Outcome


@dataclass(frozen=True, slots=True)
class Report:
    """All outcomes of one run, how many sessions its clients had, and what was wrong at its end."""

    outcomes: Sequence[Outcome]
    sessions: int
    at_end: Sequence[str]

    @property
    def failures(self) -> list[str]:
        """Everything that is wrong; empty when the run is good."""
        return [failure for outcome in self.outcomes for failure in outcome.failures] + list(self.at_end)

    def counts(self) -> dict[str, int]:
        """Failures by what they begin with."""
        kinds = Counter(failure.partition(":")[0] for failure in self.failures)
        return {kind: kinds.pop(kind, 0) for kind in ("lost", "duplicated", "wrong", "stuck")} | dict(kinds)

    def recovery(self, kind: Kind) -> list[float]:
        """Seconds from a session's last token before its verifier was struck to the first one after."""
        return [
            pause
            for outcome in self.outcomes
            if outcome.fault.targets == (Target.VERIFIER,) and outcome.fault.kind is kind
            for pause in outcome.pauses
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "faults": [
                {
                    "targets": outcome.fault.targets,
                    "struck": outcome.struck,
                    "kind": outcome.fault.kind,
                    "stage": outcome.fault.stage,
                    "heal": outcome.fault.heal,
                    "running": outcome.running,
                    "moved": outcome.moved,
                    "pauses": [round(pause, 3) for pause in outcome.pauses],
                    "seconds": round(outcome.seconds, 1),
                    "failures": outcome.failures,
                }
                for outcome in self.outcomes
            ],
            "sessions": self.sessions,
            "failures": self.counts(),
            "at_end": list(self.at_end),
            "recovery_seconds": {kind: _summary(self.recovery(kind)) for kind in Kind},
        }

    def show(self, console: Console) -> None:
        """Print it."""
        table = Table("struck", "how", *Stage, "faults", "sessions running", "moved", "failures")
        by_what: dict[tuple[str, Kind], list[Outcome]] = {}
        for outcome in self.outcomes:
            by_what.setdefault((outcome.fault.what, outcome.fault.kind), []).append(outcome)
        for (what, kind), outcomes in sorted(by_what.items()):
            stages = Counter(outcome.fault.stage for outcome in outcomes)
            table.add_row(what, kind, *_row(stages, outcomes))
        stages = Counter(outcome.fault.stage for outcome in self.outcomes)
        table.add_section()
        table.add_row("all", "", *_row(stages, self.outcomes))
        console.print(table)
        running, moved = Counter[Stage](), Counter[Stage]()
        for outcome in self.outcomes:
            running += outcome.running
            moved += outcome.moved
        for what, stages in (("were running when a fault struck", running), ("moved", moved)):
            console.print(f"sessions that {what}:", ", ".join(f"{stages[stage]} {stage}" for stage in Stage))
        for kind in Kind:
            if pauses := self.recovery(kind):
                words = ", ".join(f"{name} {value:.2f} s" for name, value in _summary(pauses).items())
                console.print(f"recovery, verifier {kind} ({len(pauses)} sessions): {words}")
        counts = ", ".join(f"{number} {kind}" for kind, number in self.counts().items())
        console.print(f"{len(self.outcomes)} faults, {self.sessions} sessions: {counts}")
        for failure in self.failures:
            console.print(failure, style="red", markup=False)


def _row(stages: Counter[Stage], outcomes: Iterable[Outcome]) -> list[str]:
    outcomes = list(outcomes)
    return [
        *(str(stages[stage] or "") for stage in Stage),
        str(len(outcomes)),
        str(sum(outcome.running.total() for outcome in outcomes)),
        str(sum(outcome.moved.total() for outcome in outcomes)),
        str(sum(len(outcome.failures) for outcome in outcomes)),
    ]


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    p95 = quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
    return {"median": round(median(seconds), 3), "p95": round(p95, 3), "max": round(max(seconds), 3)}
