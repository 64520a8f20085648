"""Clients of both faces that go on at another gateway when theirs fails, as real ones do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx

from paceline import client as grpc_client
from paceline.client import GatewayClient, Generation
from paceline.session import FinishReason
from tests.pods import MODEL

# A stream that says nothing for so long, not even that it waits, is taken for dead.
_SILENCE_SECONDS = 8.0
_RESUME_SECONDS = 30.0
_AGAIN_SECONDS = 0.2


class Face(StrEnum):
    """Which of a gateway's faces a client talks to."""

    GRPC = "grpc"
    HTTP = "http"


class FailedError(Exception):
    """A stream over HTTP that has ended without its session's end."""


@dataclass(frozen=True, slots=True)
class Started:
    """A session that has begun."""

    session_id: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Heard:
    """A piece of text, the position of its first token, and how many they are."""

    text: str
    position: int
    tokens: int
    durable: bool
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a session, and of how many tokens it says that it was."""

    reason: FinishReason
    tokens: int | None = None


Event = Started | Heard | Finished


async def over_grpc(
    addresses: Sequence[str], asked: Generation, timeout_seconds: float
) -> AsyncIterator[Event]:
    """One generation by `paceline.client`. Raises `GatewayError`."""
    async with GatewayClient(",".join(addresses)) as client:
        async for event in client.generate(asked, timeout_s=timeout_seconds):
            if isinstance(event, grpc_client.Started):
                yield Started(event.session_id, event.prompt_tokens)
            elif isinstance(event, grpc_client.Finished):
                yield Finished(event.reason)
            else:
                ids = tuple(event.token_ids)
                yield Heard(event.text, event.position, len(ids), event.durable, ids)


async def over_http(
    addresses: Sequence[str],
    asked: Generation,
    timeout_seconds: float,
    *,
    resume_seconds: float = _RESUME_SECONDS,
) -> AsyncIterator[Event]:
    """One completion by server-sent events, resumed with the last event's id. Raises `FailedError`.

    `resume_seconds`: how long it is tried while nothing is heard.
    """
    stream = _Stream(asked, resume_seconds)
    async with asyncio.timeout(timeout_seconds), httpx.AsyncClient(timeout=_SILENCE_SECONDS) as client:
        for number in range(10_000):
            try:
                async for event in stream.events(client, addresses[number % len(addresses)]):
                    yield event
                return
            except httpx.TransportError as error:
                stream.broke(f"{type(error).__name__}: {error}")
            await asyncio.sleep(_AGAIN_SECONDS)


class _Stream:
    """How far a session has been told, over as many requests as it takes."""

    def __init__(self, asked: Generation, resume_seconds: float) -> None:
        self._asked = asked
        self._resume_seconds = resume_seconds
        self._last_id = ""
        self._position = 0
        self._finish: FinishReason | None = None
        self._broken_at: float | None = None

    def broke(self, why: str) -> None:
        """Note that a request has failed. Raises `FailedError` where that has gone on for too long."""
        now = time.monotonic()
        if self._broken_at is None:
            self._broken_at = now
        if now - self._broken_at > self._resume_seconds:
            raise FailedError(why)

    async def events(self, client: httpx.AsyncClient, address: str) -> AsyncIterator[Event]:
        """What one request tells. Raises `FailedError`, or `TransportError` where another may help."""
        request = self._request(client, address)
        response = await client.send(request, stream=True)
        try:
            if response.status_code in (502, 503, 504):
                raise httpx.ReadError(f"status {response.status_code}: {(await response.aread()).decode()}")
            if response.status_code != 200:
                raise FailedError(f"status {response.status_code}: {(await response.aread()).decode()}")
            mark = ""
            async for line in response.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "id":
                    mark = value
                elif name == "data" and value == "[DONE]":
                    return
                elif name == "data":
                    for event in self._take(json.loads(value), mark):
                        yield event
            raise httpx.ReadError("it ended without its last event")
        finally:
            await response.aclose()

    def _request(self, client: httpx.AsyncClient, address: str) -> httpx.Request:
        if self._last_id:
            session_id = self._last_id.partition(":")[0]
            url = f"{address}/v1/sessions/{session_id}/events"
            return client.build_request("GET", url, headers={"Last-Event-ID": self._last_id})
        asked = self._asked
        body: dict[str, Any] = {
            "model": MODEL,
            "prompt": asked.text,
            "stream": True,
            "stream_options": {"include_usage": True},
            "speculation": {"enabled": asked.speculation},
            "ignore_eos": asked.ignore_eos,
        }
        for name in ("max_tokens", "temperature", "top_k", "top_p", "seed"):
            if getattr(asked, name) is not None:
                body[name] = getattr(asked, name)
        if asked.stop:
            body["stop"] = list(asked.stop)
        url = f"{address}/v1/completions"
        return client.build_request("POST", url, json=body, headers={"Accept": "text/event-stream"})

    def _take(self, body: dict[str, Any], mark: str) -> list[Event]:
        if "error" in body:
            code = body["error"]["code"]
            if code in ("unavailable", "internal_error"):
                raise httpx.ReadError(str(body))
            raise FailedError(str(body))
        events: list[Event] = []
        session_id, position = mark.split(":")[0], int(mark.split(":")[1])
        self._broken_at = None
        for choice in body["choices"]:
            if not self._last_id:
                # How long the prompt is, only the end says; positions count from there.
                self._position = position - 1
                events.append(Started(session_id, self._position))
            tokens, self._position = position - self._position, position
            durable = body.get("paceline", {}).get("durable", True)
            if choice["text"] or tokens:
                events.append(Heard(choice["text"], position - tokens, tokens, durable))
            if choice["finish_reason"]:
                self._finish = FinishReason(choice["finish_reason"])
        self._last_id = mark
        if "usage" in body and self._finish is not None:
            events.append(Finished(self._finish, body["usage"]["completion_tokens"]))
        return events
