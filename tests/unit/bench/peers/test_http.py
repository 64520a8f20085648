from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from bench.peers.http import HttpArm
from bench.system import BenchError

EVENTS: list[dict[str, Any]] = [
    {"choices": [{"text": "Hel", "index": 0}], "usage": None},
    {"choices": [{"text": "lo", "index": 0}]},
    {"choices": [{"text": "", "index": 0, "finish_reason": "length"}]},
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 7}},
]

Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url="http://peer")


def streamed(events: list[dict[str, Any]]) -> httpx.Response:
    async def body() -> AsyncIterator[bytes]:
        for event in events:
            yield f"data: {json.dumps(event)}\n\n".encode()
        yield b"data: [DONE]\n\n"

    return httpx.Response(200, content=body())


async def test_sends_ids_and_takes_the_servers_own_count() -> None:
    asked: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return streamed(EVENTS)

    async with client(answer) as peer:
        sample = await HttpArm(peer, "m", {"hi": (1, 2, 3)}).answer("hi", 7)
    assert (sample.text, sample.tokens, sample.token_ids) == ("Hello", 7, ())
    assert 0 < sample.first_s <= sample.seconds
    assert asked[0]["prompt"] == [1, 2, 3]
    assert (asked[0]["temperature"], asked[0]["max_tokens"]) == (0, 7)


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (lambda: httpx.Response(400, text="too long"), "too long"),
        (lambda: streamed(EVENTS[:2]), "without saying how many tokens"),
    ],
)
async def test_says_why_an_answer_is_none(response: Callable[[], httpx.Response], why: str) -> None:
    async with client(lambda request: response()) as peer:
        with pytest.raises(BenchError, match=why):
            await HttpArm(peer, "m", {"hi": (1,)}).answer("hi", 7)


async def test_a_server_that_is_gone_ends_the_run() -> None:
    def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with client(gone) as peer:
        with pytest.raises(BenchError, match="ConnectError: refused"):
            await HttpArm(peer, "m", {"hi": (1,)}).answer("hi", 7)
