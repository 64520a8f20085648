"""A drafter that does not read what it is told costs the verifier a bounded amount of memory."""

from __future__ import annotations

import asyncio

import pytest

from paceline.features import FeatureGrant
from paceline.session import SessionKey
from paceline.v1 import verifier_pb2
from paceline.verdict import Verdict
from verifier_svc.drafters import MAX_VERDICTS, DrafterStream, DrafterStreams
from verifier_svc.features import StateFlow
from verifier_svc.ledger import Ledger


@pytest.fixture
def stream() -> DrafterStream:
    return DrafterStream(1, "peer", "test", 0, Ledger(max_sessions=1, opened=lambda: 0, clock=lambda: 0.0))


def verdict(session_id: str, base_length: int = 2) -> Verdict:
    return Verdict(key=SessionKey(session_id, 1), base_length=base_length, committed=(5,))


def test_too_many_unread_verdicts_are_dropped_and_the_stream_is_over(stream: DrafterStream) -> None:
    stream.send([verdict("a")] * MAX_VERDICTS)
    assert not stream.overrun
    stream.send([verdict("a")])
    assert stream.overrun
    assert stream.take() == ([], [])


def test_a_join_is_answered_once_however_often_it_is_said(stream: DrafterStream) -> None:
    stream.send([verdict("a", 3), verdict("b", 3)])
    for _ in range(3):
        stream.welcome(verdict("a", 2))
    assert stream.take() == ([verdict("b", 3), verdict("a", 2)], [])


async def test_who_does_not_read_errors_is_not_heard(stream: DrafterStream) -> None:
    await stream.room()
    for _ in range(1000):
        stream.refuse(verifier_pb2.SessionError(session_id="a"))
    waiting = asyncio.create_task(stream.room())
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not done
    stream.take()
    await asyncio.wait_for(waiting, 5)


def test_only_streams_with_sessions_whose_states_are_wanted_look_for_them() -> None:
    streams = DrafterStreams()
    book = Ledger(max_sessions=1, opened=lambda: 0)
    flow = StateFlow(FeatureGrant((1,), 8, "float32"), 1 << 16)
    plain, granted = streams.open("a", "a", 0, book), streams.open("b", "b", 0, book, flow=flow)
    streams.stepped()
    assert not granted.wake.is_set()
    flow.join(SessionKey("a", 1), 0)
    streams.stepped()
    assert granted.wake.is_set()
    assert not plain.wake.is_set()


def test_the_text_goes_ahead_of_its_states() -> None:
    flow = StateFlow(FeatureGrant((1,), 8, "float32"), 1 << 16)
    stream = DrafterStreams().open("a", "a", 0, Ledger(max_sessions=1, opened=lambda: 0), flow=flow)
    flow.join(SessionKey("a", 1), 0)
    stream.send([verdict("a", 5)])
    assert flow.following(lambda key: 9) == []
    stream.take()
    (run,) = flow.following(lambda key: 9)
    assert (run.start, run.count) == (0, 5)
