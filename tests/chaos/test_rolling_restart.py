"""All services are restarted, one after the other, while clients stream: no client sees an error."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.client import Chunk, GatewayClient, Generation
from tests.pods import Pods

pytestmark = pytest.mark.long(reason="restarts six services, one after the other, under load")

SESSIONS = 6
MAX_TOKENS = 400


@pytest.fixture
def pods(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    # So short that sessions are moved, and streams resumed, in mid-stream.
    grace = ("--grace-seconds", "0.2")
    with Pods(
        tmp_path,
        tiny_model,
        redis_url,
        verifiers=2,
        drafters=2,
        gateways=2,
        verifier_flags=grace,
        gateway_flags=grace,
    ) as made:
        yield made.start()


def asked(number: int) -> Generation:
    temperature = 0.8 * (number % 2)
    return Generation(
        text=f"hello world {number}", max_tokens=MAX_TOKENS, temperature=temperature, seed=number
    )


async def text(client: GatewayClient, number: int) -> str:
    pieces = []
    position: int | None = None
    async for event in client.generate(asked(number), timeout_s=120):
        if isinstance(event, Chunk):
            assert position in (None, event.position)
            position = event.position + len(event.token_ids)
            pieces.append(event.text)
    return "".join(pieces)


async def test_clients_see_no_error_and_the_same_texts(pods: Pods) -> None:
    restarted = asyncio.Event()
    async with GatewayClient(",".join(gateway.grpc for gateway in pods.gateways.values())) as client:
        alone = [await text(client, number) for number in range(SESSIONS)]
        answers = [0] * SESSIONS

        async def ask_on(number: int) -> None:
            while not restarted.is_set():
                assert await text(client, number) == alone[number]
                answers[number] += 1

        def restart_all() -> None:
            for name in (*pods.gateways, *pods.verifiers, *pods.drafters):
                pods.restart(name)

        async with asyncio.TaskGroup() as asking:
            for number in range(SESSIONS):
                asking.create_task(ask_on(number))
            await asyncio.to_thread(restart_all)
            restarted.set()
    assert min(answers) >= 2
    logs = {name: pod.log.read_text() for name, pod in pods.pods.items()}
    assert any("moving the session" in logs[name] for name in pods.gateways)
    assert not [name for name, log in logs.items() if "Traceback" in log]
