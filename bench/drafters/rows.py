"""Which drafting methods are compared, and how a fleet is started with one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from drafter_svc.config import DrafterSettings
from paceline.local.process import Service
from paceline.service.machine import usable_cores

TEXT = "lookup+recycling"
# What an arrangement's command does before it becomes the service.
_PINNED = "import os, sys; os.sched_setaffinity(0, {cores}); os.execv(sys.argv[1], sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class Row:
    """One drafting method as users start it."""

    name: str
    # The drafter's --method; empty leaves its default.
    method: str = ""
    # The verifier's --keep-states; empty leaves its default.
    keep_states: str = ""

    @property
    def methods(self) -> str:
        """The drafter's --method, where it is left to its default, too."""
        return self.method or str(DrafterSettings.model_fields["method"].default)


ROWS = (
    Row("text", TEXT),
    Row("draft model", "draft"),
    Row("head", "eagle", "eagle"),
    Row("text + head", f"{TEXT}+eagle", "eagle"),
    Row("default"),
)


class Arrangement(StrEnum):
    """Who has which cores."""

    # All services share all cores, as where users start them on one machine.
    ONE_MACHINE = "one machine"
    # The verifier has one half, everything else the other, with speculation and without.
    SPLIT = "split"


def halves() -> tuple[list[int], list[int]]:
    """The verifier's half of this process's cores, and the rest. Both are empty where there is one core."""
    cores = sorted(os.sched_getaffinity(0))
    middle = len(cores) // 2
    return (cores[:middle], cores[middle:]) if middle else ([], [])


def adjustment(
    row: Row, arrangement: Arrangement, *, model: Path, draft_model: str | None, metrics_port: int
) -> Callable[[Service], Service]:
    """What a fleet of this row and arrangement is started with.

    `model`: the target's folder; `draft_model`: of the draft model. `metrics_port`: the verifier's.
    """
    verifier_half, rest = halves()

    def adjust(service: Service) -> Service:
        kind = service.name.partition("-")[0]
        if kind == "drafter":
            flags = drafter_flags(row, arrangement, model=model, draft_model=draft_model)
            service = replace(service, command=(*service.command, *flags))
        elif kind == "verifier":
            flags = verifier_flags(row.keep_states, arrangement, metrics_port)
            service = replace(service, command=(*service.command, *flags))
        if arrangement is Arrangement.SPLIT and kind != "redis":
            cores = verifier_half if kind == "verifier" else rest
            service = replace(service, command=pinned(service.command, cores))
        return service

    return adjust


def verifier_flags(keep_states: str, arrangement: Arrangement, metrics_port: int) -> tuple[str, ...]:
    """What a verifier is told beside what all are."""
    flags: tuple[str, ...] = ("--metrics-port", str(metrics_port))
    flags += ("--keep-states", keep_states) if keep_states else ()
    if arrangement is Arrangement.SPLIT:
        flags += ("--threads", str(len(halves()[0]) or usable_cores()))
    return flags


def drafter_flags(
    row: Row, arrangement: Arrangement, *, model: Path, draft_model: str | None
) -> tuple[str, ...]:
    """What a row's drafter is told."""
    flags: tuple[str, ...] = ("--method", row.method) if row.method else ()
    if row.method != TEXT:
        flags += ("--model", str(model))
        # As `paceline up` does: the verifier has all cores there.
        flags += ("--threads", "1") if arrangement is Arrangement.ONE_MACHINE else ()
    if draft_model is not None and "draft" in row.method.split("+"):
        flags += ("--draft-model", draft_model)
    return flags


def pinned(command: Sequence[str], cores: Sequence[int]) -> tuple[str, ...]:
    """A command that runs on these cores only; without cores the command itself."""
    if not cores:
        return tuple(command)
    return (sys.executable, "-c", _PINNED.format(cores=set(cores)), *command)
