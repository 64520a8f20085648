"""When a gateway moves a session, ends it or waits, against a scripted verifier over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from opentelemetry.trace import INVALID_SPAN

from gateway import session
from gateway.admission import Admission
from gateway.caller import ANYBODY
from gateway.errors import OVERLOADED, RequestError
from gateway.events import Chunk, Done, Event
from gateway.fleet import Fleet
from gateway.generation import Generation
from gateway.limits import Limits, MemoryLedger
from gateway.prompt import Prompts
from gateway.session import Policy
from gateway.sessions import Sessions
from paceline import rpc, wire
from paceline.session import FinishReason, Receipt, SamplingParams
from paceline.store import MemoryStore, SessionStore
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from tests.waiting import wait_until

MODEL = "m"
PROMPT = (5, 6, 7)
STOP_ID = 2
Response = verifier_pb2.OpenResponse
# What one call of Open does: it refuses the session; or admits it and then says responses, keeps silent for
# some seconds, or ends.
Script: TypeAlias = grpc.StatusCode | Sequence[Response | float | grpc.StatusCode]


def tokens(position: int, *ids: int) -> Response:
    return Response(tokens=verifier_pb2.CommittedTokens(position=position, token_ids=ids, durable=True))


ALIVE = Response(alive=verifier_pb2.Alive())
FINISHED = Response(
    finished=verifier_pb2.Finished(
        reason=wire.finish_reason_to_proto(FinishReason.LENGTH), receipt=wire.receipt_to_proto(Receipt())
    )
)
DIES = grpc.StatusCode.UNAVAILABLE


class ScriptedVerifier(verifier_pb2_grpc.VerifierServiceServicer):
    """Plays one script a call; the last one again and again."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = scripts
        self.opened: list[verifier_pb2.OpenRequest] = []
        self.stalled = False

    async def Open(
        self, request: verifier_pb2.OpenRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Response]:
        script = self.scripts[min(len(self.opened), len(self.scripts) - 1)]
        self.opened.append(request)
        if isinstance(script, grpc.StatusCode):
            await context.abort(script, "scripted")
        yield Response(opened=verifier_pb2.Opened())
        for action in script:
            if isinstance(action, Response):
                yield action
            elif isinstance(action, grpc.StatusCode):
                await context.abort(action, "scripted")
            else:
                await asyncio.sleep(action)

    async def Status(
        self, request: verifier_pb2.VerifierStatusRequest, context: grpc.aio.ServicerContext
    ) -> verifier_pb2.VerifierStatusResponse:
        return verifier_pb2.VerifierStatusResponse(
            model_id=MODEL, max_sessions=9, max_context=99, stalled=self.stalled
        )


@asynccontextmanager
async def serving(
    verifier: ScriptedVerifier, *, silence_seconds: float = 9.0, store: SessionStore | None = None
) -> AsyncIterator[Sessions]:
    server = await rpc.start_server(
        lambda grpc_server: verifier_pb2_grpc.add_VerifierServiceServicer_to_server(verifier, grpc_server),
        services=["paceline.v1.VerifierService"],
        host="127.0.0.1",
        port=0,
    )
    fleet = Fleet([server.address], [], 0.05)
    fleet.start()
    try:
        await wait_until(lambda: any(pod.healthy for pod in fleet.verifier_views()), "the verifier is seen")
        policy = Policy(strict=False, silence_seconds=silence_seconds, check_seconds=1)
        admission = Admission(MemoryLedger(), Limits(), queue_seconds=0)
        yield Sessions(fleet, store, policy, admission, model_id=MODEL, max_sessions=9)
    finally:
        await fleet.close()
        await server.stop(0)


Ask = Callable[[Sessions], AsyncIterator[Event]]


@pytest.fixture(scope="module")
def ask(tiny_model: Path) -> Ask:
    prompts = Prompts(str(tiny_model))
    wanted = Generation(MODEL, PROMPT, SamplingParams(max_tokens=6, stop_token_ids=frozenset({STOP_ID})))
    return lambda sessions: sessions.generate(wanted, ANYBODY, prompts.detokenizer(), INVALID_SPAN)


def ids(events: Sequence[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Chunk) for token in event.token_ids]


def reason(events: Sequence[Event]) -> FinishReason:
    last = events[-1]
    assert isinstance(last, Done)
    return last.reason


async def test_a_session_goes_on_behind_what_its_client_has(ask: Ask) -> None:
    verifier = ScriptedVerifier([tokens(3, 10, 11), DIES], [tokens(5, 12), FINISHED])
    async with serving(verifier, store=MemoryStore()) as sessions:
        events = [event async for event in ask(sessions)]
    assert ids(events) == [10, 11, 12]
    assert [list(request.committed_ids) for request in verifier.opened] == [[], [10, 11]]
    assert [request.key.epoch for request in verifier.opened] == [1, 2]


async def test_nothing_follows_a_stop_token_whose_verifier_died_before_it_said_so(ask: Ask) -> None:
    verifier = ScriptedVerifier([tokens(3, 10, STOP_ID), DIES], [tokens(5, 12), FINISHED])
    async with serving(verifier) as sessions:
        events = [event async for event in ask(sessions)]
    assert ids(events) == [10, STOP_ID]
    assert reason(events) is FinishReason.STOP
    assert len(verifier.opened) == 1


async def test_a_silent_verifier_is_left_and_one_that_is_alive_is_not(ask: Ask) -> None:
    lively = [ALIVE, 0.6] * 4
    verifier = ScriptedVerifier([tokens(3, 10), *lively, tokens(4, 11), 30.0], [tokens(5, 12), FINISHED])
    async with serving(verifier, silence_seconds=1.0) as sessions:
        events = [event async for event in ask(sessions)]
    assert ids(events) == [10, 11, 12]
    assert [request.key.epoch for request in verifier.opened] == [1, 2]


async def test_a_verifier_that_was_only_slow_gets_more_time(ask: Ask) -> None:
    verifier = ScriptedVerifier([1.2, tokens(3, 10), FINISHED])
    async with serving(verifier, silence_seconds=0.8) as sessions:
        events = [event async for event in ask(sessions)]
    assert ids(events) == [10]
    assert len(verifier.opened) == 2


async def test_a_session_that_has_begun_waits_for_room(ask: Ask) -> None:
    full = grpc.StatusCode.RESOURCE_EXHAUSTED
    verifier = ScriptedVerifier([tokens(3, 10), DIES], full, full, [tokens(4, 11), FINISHED])
    async with serving(verifier) as sessions:
        events = [event async for event in ask(sessions)]
    assert ids(events) == [10, 11]


async def test_a_new_session_is_turned_away_where_there_is_no_room(ask: Ask) -> None:
    verifier = ScriptedVerifier(grpc.StatusCode.RESOURCE_EXHAUSTED)
    async with serving(verifier) as sessions:
        with pytest.raises(RequestError) as caught:
            [event async for event in ask(sessions)]
    assert caught.value.kind is OVERLOADED


async def test_a_session_that_nobody_gets_on_with_ends(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_PATIENCE_SECONDS", 1.0)
    verifier = ScriptedVerifier([grpc.StatusCode.INTERNAL])
    async with serving(verifier) as sessions:
        with pytest.raises(RequestError, match="no verifier gets on with this session"):
            [event async for event in ask(sessions)]
    assert len(verifier.opened) > 1


async def test_a_verifier_whose_engine_hangs_gets_no_sessions(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_PATIENCE_SECONDS", 0.5)
    verifier = ScriptedVerifier([tokens(3, 10), FINISHED])
    async with serving(verifier) as sessions:
        verifier.stalled = True
        await wait_until(
            lambda: not any(pod.healthy for pod in sessions.fleet.verifier_views()), "it is known"
        )
        with pytest.raises(RequestError, match="no verifier has room"):
            [event async for event in ask(sessions)]
        verifier.stalled = False
        await wait_until(lambda: any(pod.healthy for pod in sessions.fleet.verifier_views()), "it is back")
        assert ids([event async for event in ask(sessions)]) == [10]
