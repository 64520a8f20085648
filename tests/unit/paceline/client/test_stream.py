"""When a stream of which nothing has been told yet is asked for again, and of whom."""

from __future__ import annotations

import time

import grpc
import pytest

from paceline.client import Generation
from paceline.client.stream import Stream

GONE = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
REFUSED = grpc.aio.AioRpcError(grpc.StatusCode.INVALID_ARGUMENT, grpc.aio.Metadata(), grpc.aio.Metadata())


class Clock:
    """Seconds as a test wants them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def stream(gateways: int, timeout_s: float | None = None) -> Stream:
    return Stream(Generation(text="a"), timeout_s, 30.0, gateways, 0, ())


def test_a_gateway_that_is_just_back_is_asked_again_when_the_other_one_goes(clock: Clock) -> None:
    asked = stream(2)
    assert asked.fails_with(GONE) is None
    assert asked.gateway == 1
    clock.now += 0.2
    assert asked.fails_with(GONE) is None
    assert asked.gateway == 0
    clock.now += 1.0
    assert asked.fails_with(GONE) is None
    clock.now += 1.0
    assert asked.fails_with(GONE) is GONE


def test_every_gateway_is_asked_however_long_the_first_takes(clock: Clock) -> None:
    asked = stream(3)
    for _ in range(2):
        assert asked.fails_with(GONE) is None
        clock.now += 8.0
    assert asked.fails_with(GONE) is GONE


def test_a_single_gateway_is_asked_once(clock: Clock) -> None:
    assert stream(1).fails_with(GONE) is GONE


def test_what_a_gateway_refuses_no_other_is_asked(clock: Clock) -> None:
    assert stream(2).fails_with(REFUSED) is REFUSED


def test_no_call_is_made_after_the_deadline(clock: Clock) -> None:
    asked = stream(2, timeout_s=1.0)
    clock.now += 1.0
    assert asked.fails_with(GONE) is GONE
