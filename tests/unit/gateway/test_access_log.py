"""Every HTTP request is logged once, and answered with its id."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from gateway.http.access_log import AccessLog

PARTS = (b"one ", b"two")


class Application:
    """Answers in two parts, and notes which task sent them."""

    def __init__(self) -> None:
        self.task: object = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.task = asyncio.current_task()
        await send({"type": "http.response.start", "status": 418, "headers": []})
        for part in PARTS:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _ask(application: AccessLog, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(application), base_url="http://gateway"
    ) as client:
        return await client.get("/a/path", headers=headers)


async def test_a_request_is_logged_once_with_what_became_of_it() -> None:
    with capture_logs() as lines:
        answer = await _ask(AccessLog(Application()))
    [line] = [line for line in lines if line["event"] == "request"]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/a/path", 418)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert answer.content == b"".join(PARTS)


@pytest.mark.parametrize(("given", "answered"), [("mine", "mine"), ("x" * 200, "x" * 128)])
async def test_a_request_keeps_its_id(given: str, answered: str) -> None:
    assert (await _ask(AccessLog(Application()), **{"x-request-id": given})).headers[
        "x-request-id"
    ] == answered


async def test_requests_without_an_id_get_one_each() -> None:
    application = AccessLog(Application())
    first, second = [(await _ask(application)).headers["x-request-id"] for _ in range(2)]
    assert first
    assert first != second


@pytest.mark.parametrize("draining", [False, True])
async def test_connections_end_while_the_gateway_drains(draining: bool) -> None:
    answer = await _ask(AccessLog(Application(), lambda: draining))
    assert answer.headers.get("connection") == ("close" if draining else None)


async def test_what_is_streamed_stays_in_its_task() -> None:
    """Handed to another one, every event would cost a turn of the event loop more."""
    application = Application()
    await _ask(AccessLog(application))
    assert application.task is asyncio.current_task()
