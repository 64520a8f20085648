"""Drafting methods by name. A method is imported only when asked for."""

from __future__ import annotations

from drafter_svc.methods import tables
from drafter_svc.methods.base import Needs, Source, TeachableMethod

__all__ = ["SOURCES", "UnknownMethodError", "create", "needs", "tables"]

# Log-odds of grades, from a logistic regression on Spec-Bench texts of SmolLM2-135M. They are initial
# values: hit rates measured while serving replace them.
_BIAS = 0.26
_PAIR = (
    -0.1,
    1.7,
    0.3,
    -0.08,
    0.05,
    -0.29,
    -0.46,
    -0.66,
    -0.48,
    1.7,
    0.3,
    -0.08,
    0.05,
    -0.29,
    -0.46,
    -0.66,
    -0.48,
)
_SINGLE = (
    *(-0.73, 1.84, 0.44, 0.06, -0.17, -0.35, -0.42, -0.57, -0.66),
    *(0.76, 0.5, 0.4, 0.1, 0.0, -0.29, -0.46, -0.48),
)
_COMMON = (0.06, 0.2, 0.24, 0.17, -0.14, 0.13, -0.25, -0.28, -0.13)
_BRANCH = (-0.92, 1.07, 0.24, -0.39, 0.3, 0.0, -0.5)

# Most entries of each token recycling table, all tenants together; about 40 MB when full.
_ENTRIES = 1 << 17

SOURCES = ("lookup", "recycling")


class UnknownMethodError(ValueError):
    """No drafting method has this name. The message lists the names."""


def create(name: str, vocab_size: int) -> TeachableMethod:
    """A new method for one target, e.g. "lookup+recycling". Raises `UnknownMethodError`."""
    from drafter_svc.methods.merged import Merged

    return Merged(name, _sources(name), vocab_size, _BIAS)


def needs(name: str) -> Needs:
    """What the method of this name needs. Raises `UnknownMethodError`."""
    return Needs(feedback_top_k=max(source.feedback_top_k for source in _sources(name)))


def _sources(name: str) -> list[Source]:
    parts = name.split("+")
    if len(set(parts)) != len(parts) or not set(parts) <= set(SOURCES):
        raise UnknownMethodError(
            f"no drafting method {name!r}; use {' or '.join(SOURCES)}, or several joined by +"
        )
    return [source for part in parts for source in _sources_of(part)]


def _sources_of(part: str) -> list[Source]:
    if part == "lookup":
        from drafter_svc.methods.lookup import Lookup

        return [Lookup()]
    from drafter_svc.methods.branches import Branches
    from drafter_svc.methods.frequency import Frequency
    from drafter_svc.methods.recycling import Recycling, Room

    return [
        Recycling(2, _PAIR, Room(_ENTRIES)),
        Recycling(1, _SINGLE, Room(_ENTRIES)),
        Frequency(_COMMON),
        Branches(_BRANCH),
    ]
