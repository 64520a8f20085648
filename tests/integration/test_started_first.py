"""Whatever fails and when, a session says that it has started before it says anything else: at both faces.

A verifier may have committed tokens of which the gateway has not heard, not even that the session is open:
the gateway was paused, or the way to it was cut. What the store has of them is told next.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway import session
from gateway.http import answers
from gateway.prompt import Prompts
from paceline.client import Chunk, Event, Finished, GatewayClient, Generation, Started
from paceline.session import FinishReason, SessionKey
from paceline.store import Append, MemoryStore
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from tests.faces import Faces, faces
from tests.scripted_verifier import FINISHED, MODEL, Response, ScriptedVerifier, serving, tokens

PROMPT = [5, 6, 7]
# Letters of the tiny model's vocabulary, told one token a message.
LENGTH = 6
SILENCE_SECONDS = 0.3


def truth(position: int) -> int:
    """The token at a position: whichever verifier draws it."""
    return 80 + position


class Fails(Enum):
    """How a verifier fails a session."""

    DIES = grpc.StatusCode.UNAVAILABLE
    BREAKS = grpc.StatusCode.INTERNAL
    UNKNOWN = grpc.StatusCode.UNKNOWN
    SILENT = None


@dataclass(frozen=True)
class Failure:
    """How far one verifier comes with a session, and how it fails it then."""

    # Tokens that it commits, and how many of them it tells: none where it has not even opened the session.
    commits: int
    tells: int
    opens: bool
    how: Fails


@st.composite
def failures(draw: st.DrawFn) -> Failure:
    commits = draw(st.integers(0, 3))
    opens = draw(st.booleans())
    tells = draw(st.integers(0, commits)) if opens else 0
    return Failure(commits, tells, opens, draw(st.sampled_from(Fails)))


class FailingVerifier(verifier_pb2_grpc.VerifierServiceServicer):
    """Fails each session's first calls as it was told, and serves the one behind them to its end."""

    def __init__(self, store: MemoryStore, planned: Sequence[Failure]) -> None:
        self._store = store
        self._planned = planned
        self._calls: Counter[str] = Counter()

    async def Open(
        self, request: verifier_pb2.OpenRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Response]:
        base = len(request.prompt_ids) + len(request.committed_ids)
        end = len(request.prompt_ids) + request.sampling.max_tokens
        call = self._calls[request.key.session_id]
        self._calls[request.key.session_id] += 1
        if call == len(self._planned):
            yield Response(opened=verifier_pb2.Opened())
            for position in range(base, end):
                yield await self._committed(request, position, last=position == end - 1)
            yield FINISHED
            return
        failure = self._planned[call]
        commits = [
            await self._committed(request, position, last=position == end - 1)
            for position in range(base, min(end, base + failure.commits))
        ]
        if failure.opens:
            yield Response(opened=verifier_pb2.Opened())
        for told in commits[: failure.tells]:
            yield told
        if failure.how.value is None:
            await asyncio.sleep(60)
        else:
            await context.abort(failure.how.value, "as its test wants it")

    async def _committed(self, request: verifier_pb2.OpenRequest, position: int, *, last: bool) -> Response:
        key = SessionKey(request.key.session_id, request.key.epoch)
        finish = FinishReason.LENGTH if last else None
        assert await self._store.append([Append(key, position, (truth(position),), finish)]) == [None]
        return tokens(position, truth(position))

    async def Status(
        self, request: verifier_pb2.VerifierStatusRequest, context: grpc.aio.ServicerContext
    ) -> verifier_pb2.VerifierStatusResponse:
        return verifier_pb2.VerifierStatusResponse(
            model_id=MODEL, max_sessions=9, max_context=99, vocab_size=512
        )


async def over_grpc(where: Faces) -> str:
    generation = Generation(ids=PROMPT, max_tokens=LENGTH)
    async with GatewayClient(where.grpc, resume_s=0) as client:
        events: list[Event] = [event async for event in client.generate(generation)]
    started, *chunks, finished = events
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    heard = [chunk for chunk in chunks if isinstance(chunk, Chunk)]
    assert len(heard) == len(chunks)
    assert [token for chunk in heard for token in chunk.token_ids] == [
        truth(at) for at in range(3, 3 + LENGTH)
    ]
    return "".join(chunk.text for chunk in heard)


async def over_http(where: Faces, *, stream: bool) -> str:
    asked = {"model": MODEL, "prompt": PROMPT, "max_tokens": LENGTH, "stream": stream}
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.post(f"{where.http}/v1/completions", json=asked)
    assert answer.status_code == 200, answer.text
    if not stream:
        body = answer.json()
        assert body["id"] != "cmpl-"
        assert body["paceline"]["session_id"]
        assert body["usage"]["completion_tokens"] == LENGTH
        return str(body["choices"][0]["text"])
    events = [event.removeprefix("data: ") for event in answer.text.split("\n\n")]
    assert events[-2:] == ["[DONE]", ""]
    bodies: list[dict[str, Any]] = [json.loads(event) for event in events[:-2]]
    assert len({body["id"] for body in bodies}) == 1
    assert bodies[0]["id"] != "cmpl-"
    return "".join(body["choices"][0]["text"] for body in bodies)


@pytest.fixture(scope="module")
def prompts(tiny_model: Path) -> Prompts:
    return Prompts(str(tiny_model))


# As a gateway sees it that is paused while a request begins.
@example(planned=[Failure(1, 0, False, Fails.SILENT)])
@example(planned=[Failure(3, 0, False, Fails.DIES), Failure(3, 0, False, Fails.BREAKS)])
@settings(max_examples=12)
@given(planned=st.lists(failures(), max_size=2))
def test_started_is_first_whatever_fails(planned: list[Failure], prompts: Prompts) -> None:
    async def law() -> None:
        store = MemoryStore()
        verifier = FailingVerifier(store, planned)
        async with (
            serving(verifier, silence_seconds=SILENCE_SECONDS, store=store) as sessions,
            faces(sessions, prompts) as where,
        ):
            told: Sequence[str] = await asyncio.gather(
                over_http(where, stream=True), over_http(where, stream=False), over_grpc(where)
            )
        assert list(told) == [prompts.detokenizer().push([truth(at) for at in range(3, 3 + LENGTH)])] * 3

    asyncio.run(law())


async def test_a_stream_that_waits_says_so(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """In comments, before its session has begun and later; the text is all there."""
    monkeypatch.setattr(answers, "IDLE_SECONDS", 0.1)
    store = MemoryStore()
    planned = [Failure(0, 0, False, Fails.SILENT), Failure(2, 2, True, Fails.SILENT)]
    async with (
        serving(FailingVerifier(store, planned), silence_seconds=1.0, store=store) as sessions,
        faces(sessions, prompts) as where,
        httpx.AsyncClient(timeout=30) as client,
    ):
        asked = {"model": MODEL, "prompt": PROMPT, "max_tokens": LENGTH, "stream": True}
        answer = await client.post(f"{where.http}/v1/completions", json=asked)
    events = answer.text.split("\n\n")
    assert events[0] == ": waiting"
    first = next(place for place, event in enumerate(events) if event.startswith("data: "))
    assert ": waiting" in events[first:]
    texts = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    whole = prompts.detokenizer().push([truth(at) for at in range(3, 3 + LENGTH)])
    assert "".join(body["choices"][0]["text"] for body in texts) == whole


async def test_a_stream_that_waits_in_vain_says_why(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(session, "_PATIENCE_SECONDS", 0.5)
    verifier = ScriptedVerifier(grpc.StatusCode.UNAVAILABLE)
    async with (
        serving(verifier) as sessions,
        faces(sessions, prompts) as where,
        httpx.AsyncClient(timeout=30) as client,
    ):
        asked = {"model": MODEL, "prompt": PROMPT, "max_tokens": LENGTH, "stream": True}
        answer = await client.post(f"{where.http}/v1/completions", json=asked)
    *waits, last, end = answer.text.split("\n\n")
    assert waits
    assert set(waits) == {": waiting"}
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"
    assert end == ""
