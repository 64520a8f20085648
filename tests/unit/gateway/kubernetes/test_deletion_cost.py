"""How dear a pod is to lose, by its sessions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.discovery import Endpoint, Endpoints
from gateway.fleet import Fleet
from gateway.kubernetes.deletion_cost import ANNOTATION, DeletionCosts, deletion_cost
from paceline.v1 import verifier_pb2
from tests.waiting import wait_until

SESSIONS = st.integers(0, 5000)


@pytest.mark.parametrize(
    ("sessions", "cost"), [(0, 0), (1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8), (1000, 512)]
)
def test_what_is_written_first(sessions: int, cost: int) -> None:
    assert deletion_cost(sessions, None) == cost


@pytest.mark.parametrize(
    ("sessions", "written", "cost"),
    [(3, 4, 4), (7, 4, 4), (2, 4, 2), (8, 4, 8), (0, 1, 0), (1, 0, 1), (0, 0, 0), (1, 1, 1)],
)
def test_what_is_near_enough_stays(sessions: int, written: int, cost: int) -> None:
    assert deletion_cost(sessions, written) == cost


@given(SESSIONS, st.one_of(st.none(), SESSIONS.map(lambda n: deletion_cost(n, None))))
def test_an_idle_pod_is_the_cheapest_and_a_cost_is_within_a_factor_of_two(
    sessions: int, written: int | None
) -> None:
    cost = deletion_cost(sessions, written)
    assert (cost == 0) == (sessions == 0)
    assert sessions == 0 or sessions / 2 < cost < 2 * sessions


@given(st.lists(SESSIONS, min_size=1))
def test_it_is_not_written_again_while_it_holds(path: list[int]) -> None:
    written = None
    for sessions in path:
        written = deletion_cost(sessions, written)
        assert deletion_cost(sessions, written) == written


async def test_only_pods_that_answer_and_stay_are_written() -> None:
    fleet, written = Fleet(1.0), list[tuple[str, str]]()
    at = {"stays": "127.0.0.1:1", "says that it goes": "127.0.0.1:2", "is said to go": "127.0.0.1:3"}
    fleet.update(
        Endpoints(
            (
                *(Endpoint(at[pod], pod=pod, going=pod == "is said to go") for pod in at),
                Endpoint("127.0.0.1:4", pod="has not answered"),
                Endpoint("127.0.0.1:5"),
            )
        )
    )
    for pod, address in at.items():
        fleet.verifiers[address].heard(
            verifier_pb2.VerifierStatusResponse(sessions=5, draining=pod == "says that it goes")
        )

    def annotate(pod: str, annotations: dict[str, str]) -> None:
        assert list(annotations) == [ANNOTATION]
        written.append((pod, annotations[ANNOTATION]))

    async with DeletionCosts(fleet, annotate, 0.01).running():
        await wait_until(lambda: ("stays", "4") in written, "a cost is written")
        # Another round, which begins where the first has ended: all that it would write is written.
        fleet.verifiers[at["stays"]].heard(verifier_pb2.VerifierStatusResponse(sessions=0))
        await wait_until(lambda: ("stays", "0") in written, "the new cost is written")
    assert {pod for pod, _ in written} == {"stays"}
    await fleet.close()
