"""Which drafting methods are compared, and how a fleet is started with one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

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
    row: Row, arrangement: Arrangement, *, model: Path, draft_model: str | None
) -> Callable[[Service], Service]:
    """What a fleet of this row and arrangement is started with.

    `model`: the target's folder; `draft_model`: of the draft model.
    """
    verifier_half, rest = halves()

    def adjust(service: Service) -> Service:
        kind = service.name.partition("-")[0]
        if kind == "drafter":
            service = replace(service, command=(*service.command, *_drafter_flags(row, model, draft_model)))
        elif kind == "verifier":
            flags: tuple[str, ...] = ("--keep-states", row.keep_states) if row.keep_states else ()
            if arrangement is Arrangement.SPLIT:
                flags += ("--threads", str(len(verifier_half) or usable_cores()))
            service = replace(service, command=(*service.command, *flags))
        if arrangement is Arrangement.SPLIT and kind != "redis":
            service = _pinned(service, verifier_half if kind == "verifier" else rest)
        return service

    return adjust


def _drafter_flags(row: Row, model: Path, draft_model: str | None) -> tuple[str, ...]:
    flags: tuple[str, ...] = ("--method", row.method) if row.method else ()
    if row.method != TEXT:
        flags += ("--model", str(model))
    if draft_model is not None and "draft" in row.method.split("+"):
        flags += ("--draft-model", draft_model)
    return flags


def _pinned(service: Service, cores: Sequence[int]) -> Service:
    if not cores:
        return service
    program = _PINNED.format(cores=set(cores))
    return replace(service, command=(sys.executable, "-c", program, *service.command))
