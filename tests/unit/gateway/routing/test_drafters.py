"""Tables of which drafter a session gets."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.routing.benefit import Benefit
from gateway.routing.drafters import Reason, choose_drafter
from gateway.routing.views import DrafterView


def drafter(address: str, sessions: int = 0, **changes: Any) -> DrafterView:
    fields: dict[str, Any] = {"healthy": True, "draining": False, "max_sessions": 100}
    return DrafterView(address=address, sessions=sessions, **{**fields, **changes})


GOOD, FAIR, POOR = Benefit(0.5, 30), Benefit(0.45, 30), Benefit(-1.0, 30)


@pytest.mark.parametrize(
    ("pods", "avoid", "chosen", "reason"),
    [
        ([drafter("b"), drafter("a")], (), "a", Reason.ROOM),
        ([drafter("a", 3), drafter("b", 2)], (), "b", Reason.ROOM),
        ([drafter("a", healthy=False), drafter("b", 9)], (), "b", Reason.ONLY),
        ([drafter("a", draining=True), drafter("b", 9)], (), "b", Reason.ONLY),
        ([drafter("a", 100), drafter("b", 9)], (), "b", Reason.ONLY),
        ([drafter("a"), drafter("b", 9)], ("a",), "b", Reason.ONLY),
        ([drafter("a")], ("a",), "a", Reason.ONLY),
        # The better one gets it though it has more sessions; among equals the one with fewer.
        ([drafter("a", 50, benefit=GOOD), drafter("b", benefit=POOR)], (), "a", Reason.BENEFIT),
        ([drafter("a", 50, benefit=GOOD), drafter("b", 20, benefit=FAIR)], (), "b", Reason.BENEFIT),
        # A poor one serves when no other can.
        ([drafter("a", 100, benefit=GOOD), drafter("b", benefit=POOR)], (), "b", Reason.ONLY),
        # A new one is tried with a few sessions.
        ([drafter("a", 50, benefit=GOOD), drafter("b", 1)], (), "b", Reason.TRIAL),
        ([drafter("a", 50, benefit=GOOD), drafter("b", 7)], (), "a", Reason.BENEFIT),
        # Also where sessions come one by one.
        ([drafter("a", benefit=GOOD), drafter("b")], (), "b", Reason.TRIAL),
        # One whose record has become doubtful is tried again.
        ([drafter("a", 50, benefit=GOOD), drafter("b", benefit=Benefit(-1, 2))], (), "b", Reason.TRIAL),
        # A record of few sessions is not held against it.
        ([drafter("a", 50, benefit=GOOD), drafter("b", benefit=Benefit(0.1, 4))], (), "b", Reason.BENEFIT),
    ],
)
def test_a_session_gets_the_drafter_of_most_benefit(
    pods: list[DrafterView], avoid: tuple[str, ...], chosen: str, reason: Reason
) -> None:
    found = choose_drafter(pods, avoid)
    assert found is not None
    assert (found.drafter.address, found.reason) == (chosen, reason)


def test_there_may_be_none() -> None:
    assert choose_drafter([]) is None
    assert choose_drafter([drafter("a", 100), drafter("b", healthy=False)]) is None


def test_a_drafter_that_is_aside_gets_no_session() -> None:
    pods = [drafter("a"), drafter("b", 9)]
    chosen = choose_drafter(pods, aside=["a"])
    assert chosen is not None
    assert chosen.drafter.address == "b"
    assert choose_drafter(pods, aside=["a", "b"]) is None
