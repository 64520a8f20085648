"""Gateways hear of one another's queues through a verifier."""

from __future__ import annotations

from verifier_svc.queues import GatewayQueues


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_hears_of_the_others_queues() -> None:
    queues = GatewayQueues(Clock())
    for name, waiting in (("a", 1), ("b", 20), ("c", 300), ("b", 2)):
        queues.heard(name, waiting)
    assert [queues.elsewhere(name) for name in ("a", "b", "c", "another")] == [302, 301, 3, 303]


def test_a_gateway_that_asks_no_more_has_no_queue() -> None:
    clock = Clock()
    queues = GatewayQueues(clock)
    queues.heard("a", 7)
    clock.now = 9.0
    queues.heard("b", 1)
    assert queues.elsewhere("b") == 7
    clock.now = 11.0
    assert (queues.elsewhere("b"), queues.elsewhere("a")) == (0, 1)


def test_what_is_remembered_is_bounded() -> None:
    queues = GatewayQueues(Clock())
    for number in range(300):
        queues.heard(f"g{number}", 1)
    assert queues.elsewhere("") == 256
    queues.heard("g0", 1 << 31)
    assert queues.elsewhere("") == 100_255
