"""What is known of drafters after sessions of theirs."""

from __future__ import annotations

import pytest

from gateway.routing.benefit import Benefits
from gateway.routing.drafters import Reason, choose_drafter
from gateway.routing.views import DrafterView


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_better_drafter_has_the_better_record_whatever_its_verifiers_take() -> None:
    benefits = Benefits(Clock())
    for _ in range(20):
        # One verifier is busy and takes small trees; there the poor drafter has fewer sessions.
        benefits.add("good", "idle", steps=64, accepted=128)
        benefits.add("poor", "idle", steps=64, accepted=64)
        benefits.add("poor", "idle", steps=64, accepted=64)
        benefits.add("good", "busy", steps=64, accepted=32)
        benefits.add("good", "busy", steps=64, accepted=32)
        benefits.add("poor", "busy", steps=64, accepted=16)
    good, poor = benefits.of("good"), benefits.of("poor")
    assert good is not None
    assert poor is not None
    assert good.mean > 0 > poor.mean
    assert good.weight == pytest.approx(60)


def test_short_sessions_say_nothing_and_unknown_drafters_have_no_record() -> None:
    benefits = Benefits(Clock())
    benefits.add("a", "v", steps=5, accepted=5)
    assert benefits.of("a") is None


def test_a_drafter_that_was_bad_is_tried_again_after_a_while() -> None:
    clock = Clock()
    benefits = Benefits(clock)

    def chosen() -> tuple[str, Reason]:
        pods = [
            DrafterView(
                name, healthy=True, draining=False, sessions=0, max_sessions=9, benefit=benefits.of(name)
            )
            for name in ("bad", "good")
        ]
        found = choose_drafter(pods)
        assert found is not None
        return found.drafter.address, found.reason

    for _ in range(10):
        benefits.add("good", "v", steps=32, accepted=64)
        benefits.add("bad", "v", steps=32, accepted=0)
    assert chosen() == ("good", Reason.BENEFIT)
    clock.now = 800.0
    for _ in range(10):
        benefits.add("good", "v", steps=32, accepted=64)
    assert chosen() == ("bad", Reason.TRIAL)


def test_drafters_that_are_long_gone_are_forgotten() -> None:
    clock = Clock()
    benefits = Benefits(clock)
    benefits.add("first", "v", steps=32, accepted=1)
    for number in range(1100):
        clock.now += 1
        benefits.add(f"d{number}", f"v{number}", steps=32, accepted=1)
    assert benefits.of("first") is None
    assert benefits.of("d1099") is not None
