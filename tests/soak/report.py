"""What a soak came to: for people, and whether it is good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.console import Console
from rich.table import Table

from tests.soak.watch import WARM_UP, Measures, Sample, Trend, trends

# What may be left of all clients together, once they have gone: connections that pools keep open.
_LEFT = {"file_descriptors": 20, "tasks": 6, "sessions": 0, "keys": 0}


@dataclass(frozen=True)
class Report:
    """All that was seen of a run."""

    minutes: float
    concurrency: int
    # Requests by manner.
    served: Mapping[str, int]
    tokens: int
    # Clients that were served otherwise than they should be.
    wrong: Sequence[str]
    idle_before: Measures
    idle_after: Measures
    samples: Sequence[Sample]

    @cached_property
    def trends(self) -> dict[str, dict[str, Trend]]:
        """By service and measure."""
        return trends(self.samples)

    @property
    def left(self) -> list[str]:
        """What the clients have left behind."""
        return [
            f"{service}: {measure} were {before:.0f} before the clients came, {after:.0f} when they had gone"
            for service, named in self.idle_before.items()
            for measure, before in named.items()
            if (after := self.idle_after[service][measure]) - before > _LEFT.get(measure, float("inf"))
        ]

    @property
    def grown(self) -> list[str]:
        """What was not flat."""
        return [
            f"{service}: {measure} grew by {trend.grown:.1f} (at most {trend.may_grow:.0f})"
            for service, named in self.trends.items()
            for measure, trend in named.items()
            if trend.grown > trend.may_grow
        ]

    def show(self, console: Console) -> None:
        """Print it."""
        served = Table("clients", "requests")
        for name, count in sorted(self.served.items()):
            served.add_row(name, str(count))
        console.print(served)
        table = Table("service", "what", "idle before", "least", "mean", "most", "grown", "idle after")
        for service, named in self.trends.items():
            for measure, trend in named.items():
                table.add_row(
                    service,
                    measure.replace("_", " "),
                    f"{self.idle_before[service][measure]:.0f}",
                    f"{trend.least:.0f}",
                    f"{trend.average:.1f}",
                    f"{trend.most:.0f}",
                    f"{trend.grown:+.1f}",
                    f"{self.idle_after[service][measure]:.0f}",
                )
        console.print(table)
        console.print(
            f"{sum(self.served.values())} requests and {self.tokens} tokens in {self.minutes:g} minutes; "
            f"`grown` is by the line that fits best, after the first {WARM_UP:.0%}"
        )
        for failure in (*self.wrong[:10], *self.left, *self.grown):
            console.print(failure, style="red")
