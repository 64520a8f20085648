"""SIGTERM: readiness goes first, what runs ends, and only then does the process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.client import Chunk, Finished, GatewayClient, Generation
from tests.pods import Pods
from tests.waiting import wait_until

ASKED = Generation(text="the quick brown fox", max_tokens=400, temperature=0.8, seed=3)


@pytest.fixture
def pods(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    flags = ("--drain-delay-seconds", "10")
    with Pods(tmp_path, tiny_model, redis_url, drafters=0, gateway_flags=flags) as made:
        yield made.start()


def readiness(pods: Pods) -> tuple[int, int]:
    with grpc.insecure_channel(pods.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return httpx.get(f"{pods.http}/readyz").status_code, health.status


async def test_sessions_are_taken_until_readiness_has_been_seen_to_be_off(pods: Pods) -> None:
    gateway = pods.pods["gateway"]
    assert readiness(pods) == (200, health_pb2.HealthCheckResponse.SERVING)
    async with GatewayClient(pods.grpc, resume_s=0) as client:
        running = client.generate(ASKED)
        await anext(running)
        gateway.terminate()
        await wait_until(
            lambda: readiness(pods) == (503, health_pb2.HealthCheckResponse.NOT_SERVING), "readiness is off"
        )
        late = [event async for event in client.generate(ASKED)]
        early = [event async for event in running]
        assert isinstance(early[-1], Finished)
        ids = [
            [token for event in events if isinstance(event, Chunk) for token in event.token_ids]
            for events in (early, late)
        ]
        assert ids[0] == ids[1]
    await wait_until(lambda: not gateway.running, "it ends")
    assert gateway.exit_code == 0
