"""Routing against random and least-loaded on a recorded mix of chats, shared documents and single prompts."""

from __future__ import annotations

import pytest

from tests.routing.simulation import Outcome, Policy, Simulation, at_random, least_loaded, predicted, read_mix

VERIFIERS, KV_BLOCKS = 4, 400


def _run(policy: Policy, speed: float) -> Outcome:
    return Simulation(read_mix(), policy, verifiers=VERIFIERS, kv_blocks=KV_BLOCKS, speed=speed).run()


@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_it_is_ahead_in_time_to_first_token_and_in_hits(speed: float) -> None:
    ours = _run(predicted, speed)
    for other in (_run(at_random(1), speed), _run(at_random(2), speed), _run(least_loaded, speed)):
        assert ours.mean < other.mean
        assert ours.p95 < other.p95
        assert ours.hits > other.hits


def test_it_is_not_behind_under_overload() -> None:
    ours = _run(predicted, 20.0)
    for other in (_run(at_random(1), 20.0), _run(least_loaded, 20.0)):
        assert ours.mean < other.mean
        assert ours.p95 < other.p95


def test_it_comes_out_the_same_each_time() -> None:
    assert _run(predicted, 1.0) == _run(predicted, 1.0)
