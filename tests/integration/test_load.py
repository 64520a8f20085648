"""What verifiers and drafters say of their load while a real fleet serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.client import Generation, SyncGatewayClient
from paceline.v1 import verifier_pb2
from tests.pods import Pods

PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    flags = ("--pool", "gpu-small")
    folder = tmp_path_factory.mktemp("load")
    with Pods(folder, tiny_model, redis_url, verifier_flags=flags, drafter_flags=("--pool", "cpu")) as made:
        yield made.start(drafters=False)


def generate(pods: Pods, *, speculation: bool = True) -> verifier_pb2.VerifierStatusResponse:
    with SyncGatewayClient(pods.grpc) as client:
        list(
            client.generate(Generation(text=PROMPT, max_tokens=200, ignore_eos=True, speculation=speculation))
        )
    return pods.verifier_status()


def test_an_idle_verifier_has_done_nothing(pods: Pods) -> None:
    status = pods.verifier_status()
    assert status.pool == "gpu-small"
    assert status.full_rows >= 1
    assert status.uptime_seconds > 0
    assert (status.busy_seconds, status.steps, status.rows) == (0, 0, 0)
    assert (status.wanted_trees, status.missing_trees, status.waiting) == (0, 0, 0)


def test_every_step_without_a_drafter_misses_its_tree(pods: Pods) -> None:
    before = pods.verifier_status()
    after = generate(pods)
    wanted = after.wanted_trees - before.wanted_trees
    assert wanted > 100
    assert after.missing_trees - before.missing_trees == wanted
    assert 200 <= after.steps - before.steps <= 202
    assert after.rows - before.rows >= 200
    busy = after.busy_seconds - before.busy_seconds
    assert 0 < busy < after.uptime_seconds - before.uptime_seconds


def test_a_session_that_is_to_be_plain_wants_no_tree(pods: Pods) -> None:
    before = pods.verifier_status()
    after = generate(pods, speculation=False)
    assert after.steps > before.steps
    assert after.wanted_trees == before.wanted_trees


def test_a_drafter_brings_trees_and_counts_its_work(pods: Pods) -> None:
    pods.launch_drafter(pods.drafter)
    pods.until_all_are_seen()
    idle = pods.drafter_status()
    assert idle.pool == "cpu"
    before = pods.verifier_status()
    for _ in range(5):
        after = generate(pods)
    wanted = after.wanted_trees - before.wanted_trees
    assert after.missing_trees - before.missing_trees < wanted
    status = pods.drafter_status()
    assert idle.busy_seconds < status.busy_seconds < status.uptime_seconds
