"""Tables of which pod a session goes to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.router import DrafterView, VerifierView, choose_drafter, choose_verifier


def verifier(address: str, sessions: int = 0, **changes: Any) -> VerifierView:
    fields: dict[str, Any] = {
        "healthy": True,
        "draining": False,
        "model_id": "m",
        "vocab_size": 512,
        "max_context": 1024,
        "max_sessions": 10,
    }
    return VerifierView(address=address, sessions=sessions, **{**fields, **changes})


def drafter(address: str, sessions: int = 0, **changes: Any) -> DrafterView:
    fields: dict[str, Any] = {"healthy": True, "draining": False, "max_sessions": 10}
    return DrafterView(address=address, sessions=sessions, **{**fields, **changes})


@pytest.mark.parametrize(
    ("pods", "avoid", "chosen"),
    [
        ([], (), None),
        ([verifier("a")], (), "a"),
        ([verifier("b"), verifier("a")], (), "a"),
        ([verifier("a", 3), verifier("b", 2)], (), "b"),
        ([verifier("a", misfit="another vocabulary"), verifier("b", 9)], (), "b"),
        ([verifier("a", misfit="another vocabulary")], (), None),
        ([verifier("a", 3, max_sessions=100), verifier("b", 2)], (), "a"),
        ([verifier("a", healthy=False), verifier("b", 9)], (), "b"),
        ([verifier("a", draining=True), verifier("b", 9)], (), "b"),
        ([verifier("a", model_id="other"), verifier("b", 9)], (), "b"),
        ([verifier("a", 10), verifier("b", 9)], (), "b"),
        ([verifier("a", 10)], (), None),
        ([verifier("a", 12)], (), None),
        ([verifier("a", healthy=False)], (), None),
        ([verifier("a"), verifier("b", 9)], ("a",), "b"),
        ([verifier("a")], ("a",), "a"),
        ([verifier("a", healthy=False)], ("a",), None),
    ],
)
def test_a_session_goes_to_the_verifier_with_most_room(
    pods: list[VerifierView], avoid: tuple[str, ...], chosen: str | None
) -> None:
    found = choose_verifier(pods, "m", avoid)
    assert (found.address if found else None) == chosen


@pytest.mark.parametrize(
    ("pods", "avoid", "chosen"),
    [
        ([], (), None),
        ([drafter("b"), drafter("a")], (), "a"),
        ([drafter("a", 3), drafter("b", 2)], (), "b"),
        ([drafter("a", healthy=False), drafter("b", 9)], (), "b"),
        ([drafter("a", draining=True), drafter("b", 9)], (), "b"),
        ([drafter("a", 10)], (), None),
        ([drafter("a"), drafter("b", 9)], ("a",), "b"),
        ([drafter("a")], ("a",), "a"),
    ],
)
def test_a_session_gets_the_drafter_with_fewest_sessions(
    pods: list[DrafterView], avoid: tuple[str, ...], chosen: str | None
) -> None:
    found = choose_drafter(pods, avoid)
    assert (found.address if found else None) == chosen


PODS = st.lists(
    st.builds(
        verifier, st.sampled_from("abcdef"), st.integers(0, 12), healthy=st.booleans(), draining=st.booleans()
    ),
    unique_by=lambda pod: pod.address,
)


@given(PODS, st.randoms())
def test_the_choice_does_not_depend_on_the_order(pods: list[VerifierView], random: Any) -> None:
    chosen = choose_verifier(pods, "m")
    shuffled = list(pods)
    random.shuffle(shuffled)
    assert choose_verifier(shuffled, "m") == chosen
    assert chosen is None or (
        chosen.healthy and not chosen.draining and chosen.sessions < chosen.max_sessions
    )


def test_a_drafter_that_is_aside_gets_no_session() -> None:
    pods = [drafter("a"), drafter("b", 9)]
    chosen = choose_drafter(pods, aside=["a"])
    assert chosen is not None
    assert chosen.address == "b"
    assert choose_drafter(pods, aside=["a", "b"]) is None
