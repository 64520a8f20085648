"""What is too long, too many or one too much is refused before work is done for it; crowds are served."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from paceline.client import ChatMessage, Finished, GatewayError, Generation, SyncGatewayClient
from tests.pods import MODEL, Pods

# A little below --max-body-bytes, in letters: hundreds of thousands of tokens.
HUGE = "the quick brown fox " * 200_000
PLACES = 4
TOO_LONG = "has [0-9]+ tokens or more, the model's context"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    """A fleet of few places with the settings that users have."""
    with Pods(
        tmp_path_factory.mktemp("served"),
        tiny_model,
        redis_url,
        drafters=0,
        verifier_flags=("--max-sessions", str(PLACES)),
        default_settings=True,
    ) as pods:
        yield pods.start()


def posted(served: Pods, route: str, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "max_tokens": 1, **fields}
    return httpx.post(f"{served.http}/v1/{route}", json=body, timeout=60)


@pytest.mark.parametrize(
    ("route", "field", "value"),
    [("completions", "prompt", HUGE), ("chat/completions", "messages", [{"role": "user", "content": HUGE}])],
)
def test_a_prompt_that_cannot_fit_is_refused_untokenised_over_http(
    served: Pods, route: str, field: str, value: object
) -> None:
    answer = posted(served, route, **{field: value})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", field)
    assert "tokens or more" in error["message"]


@pytest.mark.parametrize(
    "asked", [Generation(text=HUGE), Generation(chat=[ChatMessage("user", HUGE)])], ids=["text", "chat"]
)
def test_a_prompt_that_cannot_fit_is_refused_untokenised_over_grpc(served: Pods, asked: Generation) -> None:
    with SyncGatewayClient(served.grpc) as client, pytest.raises(GatewayError, match=TOO_LONG) as caught:
        list(client.generate(asked))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_long_prompt_that_fits_is_served_over_both_faces(served: Pods) -> None:
    text = "the quick brown fox " * 300
    answer = posted(served, "completions", prompt=text, temperature=0).json()
    with SyncGatewayClient(served.grpc) as client:
        events = list(client.generate(Generation(text=text, max_tokens=1, temperature=0)))
    assert isinstance(events[-1], Finished)
    assert answer["usage"]["completion_tokens"] == 1


def test_hundreds_of_thousands_of_messages_are_counted_and_not_touched(served: Pods) -> None:
    asked = Generation(chat=[ChatMessage("user", "")] * 400_000)
    with (
        SyncGatewayClient(served.grpc) as client,
        pytest.raises(GatewayError, match="400000 messages") as caught,
    ):
        list(client.generate(asked))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_ten_thousand_headers_are_refused_while_they_come(served: Pods) -> None:
    with socket.create_connection(_address(served), timeout=20) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\n" + b"x-header: y\r\n" * 10_000)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["error"]["code"] == "headers_too_large"
    assert posted(served, "completions", prompt="and the next?").status_code == 200


async def test_a_body_of_one_kilobyte_a_second_is_served_and_holds_up_nobody(served: Pods) -> None:
    """And a connection that says nothing meanwhile, for longer than uvicorn's own 5 seconds, stays open."""
    body = json.dumps({"model": MODEL, "prompt": "the quick brown fox " * 300, "max_tokens": 1}).encode()
    pieces = [body[at : at + 1024] for at in range(0, len(body), 1024)]
    assert len(pieces) > 5
    quiet = Connection(*await asyncio.open_connection(*_address(served)))
    assert await quiet.get() == 200
    slow = Connection(*await asyncio.open_connection(*_address(served)))
    slow.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
    async with httpx.AsyncClient(timeout=20) as client:
        for piece in pieces:
            slow.write(piece)
            asked = {"model": MODEL, "prompt": "quick", "max_tokens": 1}
            quick = client.post(f"{served.http}/v1/completions", json=asked)
            answer, _ = await asyncio.gather(quick, asyncio.sleep(1))
            assert answer.status_code == 200
    assert await slow.status() == 200
    assert await quiet.get() == 200
    slow.close()
    quiet.close()


class Connection:
    """A client that sends bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.write, self.close = writer.write, writer.close

    async def get(self) -> int:
        """Ask for the models."""
        self.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        return await self.status()

    async def status(self) -> int:
        """The status of the next answer, which is read."""
        async with asyncio.timeout(20):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = head.partition("content-length: ")[2].split()[0]
            await self._reader.readexactly(int(length))
        return int(head.split()[1])


def _address(served: Pods) -> tuple[str, int]:
    host, _, port = served.http.removeprefix("http://").rpartition(":")
    return host, int(port)


def test_a_crowd_of_short_requests_is_served_over_both_faces(served: Pods) -> None:
    def over_http(number: int) -> bool:
        return posted(served, "completions", prompt=f"{number}", seed=number).status_code == 200

    def over_grpc(number: int) -> bool:
        with SyncGatewayClient(served.grpc) as client:
            events = list(client.generate(Generation(text=f"{number}", max_tokens=1, seed=number)))
        return isinstance(events[-1], Finished)

    with ThreadPoolExecutor(32) as pool:
        answers = [pool.submit(over_http if number % 2 else over_grpc, number) for number in range(160)]
        assert all(answer.result() for answer in answers)
