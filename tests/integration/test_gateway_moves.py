"""When a gateway moves a session, ends it or waits, against a scripted verifier over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN, Span

from gateway import session
from gateway.caller import ANYBODY
from gateway.errors import OVERLOADED, RequestError
from gateway.events import Chunk, Event, Finished, Started
from gateway.fleet import Fleet
from gateway.generation import Generation
from gateway.prompt import Prompts
from gateway.routing.texts import RoutedText
from gateway.sessions import Sessions
from gateway.suspicion import CLEARING_TOKENS
from paceline.sampling import SamplingParams
from paceline.service import spans
from paceline.session import FinishReason
from paceline.store import MemoryStore
from paceline.v1 import verifier_pb2
from tests.scripted_drafter import scripted_drafter
from tests.scripted_verifier import (
    ALIVE,
    BLOCK,
    DIES,
    FINISHED,
    MODEL,
    PROMPT,
    Response,
    ScriptedVerifier,
    serving,
    tokens,
)
from tests.waiting import wait_until

STOP_ID = 2

Ask = Callable[[Sessions], AsyncIterator[Event]]


@pytest.fixture(scope="module")
def prompts(tiny_model: Path) -> Prompts:
    return Prompts(str(tiny_model))


def asked(
    sessions: Sessions, prompts: Prompts, max_tokens: int = 6, *, parent: Span = INVALID_SPAN
) -> AsyncIterator[Event]:
    sampling = SamplingParams(max_tokens=max_tokens, stop_token_ids=frozenset({STOP_ID}))
    wanted = Generation(MODEL, PROMPT, sampling)
    return sessions.generate(wanted, ANYBODY, prompts.detokenizer(), parent)


@pytest.fixture(scope="module")
def ask(prompts: Prompts) -> Ask:
    return lambda sessions: asked(sessions, prompts)


def ids(events: Sequence[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Chunk) for token in event.token_ids]


def reason(events: Sequence[Event]) -> FinishReason:
    last = events[-1]
    assert isinstance(last, Finished)
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
    verifier = ScriptedVerifier(grpc.StatusCode.INTERNAL)
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


@pytest.mark.parametrize("tokens_between", [0, CLEARING_TOKENS - 2])
async def test_a_session_that_verifiers_die_of_goes_no_further(prompts: Prompts, tokens_between: int) -> None:
    """A verifier that dies under it a third time, while no other suspect is tried, has died of it."""
    ids = list(range(10, 10 + tokens_between))
    verifier = ScriptedVerifier([tokens(3, *ids), DIES], [tokens(3 + len(ids), 10), DIES])
    store = MemoryStore()
    async with serving(verifier, store=store) as sessions:
        with pytest.raises(RequestError, match="it goes no further"):
            [event async for event in asked(sessions, prompts, max_tokens=80)]
    assert len(verifier.opened) == 3
    record = await store.get(verifier.opened[0].key.session_id)
    assert record is not None
    assert record.finish_reason is FinishReason.CANCELLED


async def test_a_session_that_gets_on_is_no_suspect(prompts: Prompts) -> None:
    """However often its verifiers die."""
    scripts = [
        [tokens(3 + start, *range(start, start + CLEARING_TOKENS)), DIES]
        for start in range(0, 6 * CLEARING_TOKENS, CLEARING_TOKENS)
    ]
    verifier = ScriptedVerifier(*scripts, [FINISHED])
    async with serving(verifier) as sessions:
        events = [event async for event in asked(sessions, prompts, max_tokens=200)]
    assert ids(events) == list(range(6 * CLEARING_TOKENS))
    assert len(verifier.opened) == 7


async def test_those_that_were_near_it_go_on_one_by_one(prompts: Prompts) -> None:
    """Sessions whose verifier has died twice, as one of others, are served: each in its turn."""
    verifier = ScriptedVerifier(*([[0.1, DIES]] * 8), [0.1, tokens(3, 10), 0.1, tokens(4, 11), FINISHED])
    async with serving(verifier) as sessions:

        async def whole() -> list[int]:
            return ids([event async for event in asked(sessions, prompts)])

        texts = await asyncio.gather(*(whole() for _ in range(4)))
        assert not sessions.fleet.turns.locked()
    assert texts == [[10, 11]] * 4
    assert max(verifier.at_once[:4]) == 4
    assert verifier.at_once[8:] == [1] * 4


async def test_a_session_that_its_verifier_has_ended_is_told_again_as_it_ended(
    prompts: Prompts,
) -> None:
    """Its ids alone do not say that it is over: there is room for more."""
    verifier = ScriptedVerifier([tokens(3, 10, 11), FINISHED])
    async with serving(verifier) as sessions:
        first, *told = [event async for event in asked(sessions, prompts)]
        assert isinstance(first, Started)
        claimed = await sessions.claim(first.session_id, ANYBODY)
        resumed = sessions.resume(claimed, ANYBODY, prompts.detokenizer(), INVALID_SPAN)
        again = [event async for event in resumed]
    assert ids(again) == ids(told) == [10, 11]
    assert reason(again) is reason(told) is FinishReason.LENGTH
    assert len(verifier.opened) == 1


async def test_a_chats_next_turn_finds_all_of_the_last_where_it_was(ask: Ask) -> None:
    fleet = Fleet(0.05)
    verifier = ScriptedVerifier([tokens(3, 10, 11), tokens(5, 12, 13, 14), FINISHED])
    async with serving(verifier, fleet=fleet) as sessions:
        (pod,) = fleet.verifiers.values()
        await wait_until(lambda: pod.texts.block_size == BLOCK, "it says that it keeps texts")
        told = ids([event async for event in ask(sessions)])
        # The verifier has said nothing of them yet.
        assert not pod.texts.told
        assert pod.texts.held_tokens(RoutedText([*PROMPT, *told, 99])) == 2 * BLOCK


async def test_what_steps_accept_is_to_the_credit_of_the_sessions_drafter(ask: Ask) -> None:
    fleet = Fleet(0.05)
    step = Response(tokens=verifier_pb2.CommittedTokens(position=3, accepted=2))
    async with scripted_drafter() as (drafter, address):
        # Its drafter is attached before the first step.
        verifier = ScriptedVerifier([0.5, *[step] * 32, FINISHED])
        async with serving(verifier, drafters=(address,), fleet=fleet) as sessions:
            await wait_until(lambda: bool(fleet.drafter_views()), "the drafter is seen")
            # Another one brings nothing there.
            fleet.benefits.add("other", next(iter(fleet.verifiers)), steps=32, accepted=0)
            assert [event async for event in ask(sessions)]
            assert len(drafter.attached) == 1
            brought = fleet.benefits.of(address)
    assert brought is not None
    assert (brought.mean, round(brought.weight, 2)) == (2, 1)


async def test_a_moved_session_stays_in_its_trace(
    prompts: Prompts, recorded_spans: InMemorySpanExporter
) -> None:
    verifier = ScriptedVerifier([tokens(3, 10, 11), DIES], [tokens(5, 12), FINISHED])
    async with serving(verifier, store=MemoryStore()) as sessions:
        (address,) = sessions.fleet.verifiers
        with spans.span("gateway.request", INVALID_SPAN) as request:
            assert ids([event async for event in asked(sessions, prompts, parent=request)]) == [10, 11, 12]
    session = next(span for span in recorded_spans.get_finished_spans() if span.name == "gateway.session")
    context = session.context
    told = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert verifier.traceparents == [told, told]
    (moved,) = session.events
    assert moved.name == "moved"
    assert dict(moved.attributes or {}) == {
        "paceline.verifier": address,
        "paceline.reason": "UNAVAILABLE",
    }
    stages = [span.name for span in recorded_spans.get_finished_spans() if span.name != "gateway.session"]
    begun = ["gateway.queue", "gateway.route", "gateway.first_token", "gateway.stream"]
    assert stages == [
        "gateway.admission",
        *begun,
        "gateway.move",
        *begun,
        "gateway.finish",
        "gateway.request",
    ]
