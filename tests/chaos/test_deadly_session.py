"""A session of which verifiers die ends before the fleet does; those that it ran beside lose nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.chaos.clients import Event, Finished, Heard, over_grpc, over_http
from tests.chaos.load import asked
from tests.pods import MODEL, Pods
from tests.waiting import wait_until

# Of the tiny model's vocabulary; no text has it in it.
DEADLY_TOKEN = 511
SECONDS = 120


@pytest.fixture
def pods(tmp_path: Path, tiny_model: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pods]:
    monkeypatch.setenv("DEADLY_TOKEN", str(DEADLY_TOKEN))
    with Pods(tmp_path, tiny_model, redis_url, verifiers=4, default_settings=True) as made:
        made.verifier_module = "tests.mortal_verifier"
        yield made.start()


async def test_one_session_ends_and_not_the_fleet(pods: Pods) -> None:
    generations = [each for each in asked() if each.max_tokens and each.max_tokens > 100][:4]
    clients = [(over_grpc, pods.grpc), (over_http, pods.http)] * 2

    async def texts(*, deadly: bool) -> list[str]:
        heard: list[list[Event]] = [[] for _ in generations]

        async def read(number: int) -> None:
            client, address = clients[number]
            async for event in client([address], generations[number], SECONDS):
                heard[number].append(event)

        async with asyncio.TaskGroup() as tasks:
            for number in range(len(generations)):
                tasks.create_task(read(number))
            if deadly:
                await wait_until(lambda: all(len(each) > 3 for each in heard), "all of them stream")
                await ask_the_deadly(pods)
        assert all(isinstance(events[-1], Finished) for events in heard)
        return ["".join(each.text for each in events if isinstance(each, Heard)) for events in heard]

    undisturbed = await texts(deadly=False)
    assert await texts(deadly=True) == undisturbed
    assert sum(pods.pods[address].running for address in pods.verifiers) == 1


async def ask_the_deadly(pods: Pods) -> None:
    asked = {"model": MODEL, "prompt": [5, 6, DEADLY_TOKEN], "max_tokens": 9, "stream": True}
    async with httpx.AsyncClient(timeout=SECONDS) as client:
        answer = await client.post(f"{pods.http}/v1/completions", json=asked)
        assert "it goes no further" in answer.text
        assert '"code":"internal_error"' in answer.text
