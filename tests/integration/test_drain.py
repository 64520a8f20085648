"""SIGTERM: readiness goes first, what runs ends, and only then does the process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.client import Chunk, Finished, GatewayClient, GatewayError, Generation
from tests.pods import MODEL, Pods
from tests.waiting import wait_until

ASKED = Generation(text="the quick brown fox", max_tokens=400, temperature=0.8, seed=3)
LONG = Generation(text="the quick brown fox", max_tokens=15_000, temperature=0)


@pytest.fixture
def hurried(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    """Its gateway gives sessions hardly any time to end."""
    with Pods(tmp_path, tiny_model, redis_url, gateway_flags=("--grace-seconds", "0.2")) as made:
        yield made.start()


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
    async with (
        GatewayClient(pods.grpc, resume_s=0) as client,
        httpx.AsyncClient(base_url=pods.http) as http,
    ):
        assert "connection" not in (await http.get("/v1/models")).headers
        running = client.generate(ASKED)
        await anext(running)
        gateway.terminate()
        await wait_until(
            lambda: readiness(pods) == (503, health_pb2.HealthCheckResponse.NOT_SERVING), "readiness is off"
        )
        # The next request of this client goes where a load balancer sends it.
        assert (await http.get("/v1/models")).headers["connection"] == "close"
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


async def test_sessions_that_the_grace_cuts_are_told_everywhere(hurried: Pods) -> None:
    gateway = hurried.pods["gateway"]
    async with (
        GatewayClient(hurried.grpc, resume_s=0) as client,
        httpx.AsyncClient(base_url=hurried.http) as http,
        http.stream(
            "POST",
            "/v1/completions",
            json={
                "model": MODEL,
                "prompt": LONG.text,
                "max_tokens": LONG.max_tokens,
                "temperature": 0,
                "stream": True,
            },
        ) as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
        running = client.generate(LONG)
        await anext(running)
        await wait_until(lambda: hurried.drafter_status().sessions == 2, "both are drafted for")
        gateway.terminate()
        await wait_until(lambda: not gateway.running, "it ends")
        assert hurried.drafter_status().sessions == 0
        assert hurried.verifier_status().sessions == 0
        with pytest.raises(GatewayError) as caught:
            async for _ in running:
                pass
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(httpx.TransportError):
            async for _ in lines:
                pass
    assert gateway.exit_code == 0
    assert "Traceback" not in gateway.log.read_text()
