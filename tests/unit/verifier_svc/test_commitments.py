"""Sessions between their steps, the store and their clients."""

from __future__ import annotations

import asyncio

from paceline.sampling import SamplingParams
from paceline.session import FinishReason, SessionKey
from paceline.store import Append, BaseMismatchError, SessionRecord, StoreUnavailableError
from verifier_svc import commitments
from verifier_svc.commitments import Commitment, Commitments
from verifier_svc.events import Lost

PROMPT = (1, 2, 3)


def _record(session_id: str = "s") -> SessionRecord:
    return SessionRecord(SessionKey(session_id, 1), "m", PROMPT, SamplingParams(max_tokens=9), (4,))


def _finished(session_id: str) -> Commitment:
    session = Commitment(_record(session_id))
    session.added, session.finish = [5], FinishReason.STOP
    return session


def test_what_the_store_lacks_follows_what_it_has() -> None:
    session = Commitment(_record())
    assert not session.lacking
    session.added += [5, 6]
    assert session.append() == Append(session.record.key, 4, (5, 6), None)
    session.recorded = 1
    assert session.append() == Append(session.record.key, 5, (6,), None)
    assert session.whole().committed_ids == (4, 5, 6)
    session.recorded = 2
    session.finish = FinishReason.STOP
    assert session.lacking, "how it ended is not recorded"


def test_an_append_that_was_taken_is_not_repeated() -> None:
    all_of_them = Commitments()
    session = all_of_them.open(_record())
    session.added += [5, 6]
    append = session.append()
    session.added += [7]
    session.held_since = 1.0
    assert all_of_them.settle(session, append, None)
    assert (session.append().base_length, session.append().token_ids) == (6, (7,))
    assert session.held_since is None


def test_a_store_that_is_away_changes_nothing() -> None:
    all_of_them = Commitments()
    session = all_of_them.open(_record())
    session.added += [5]
    assert all_of_them.settle(session, session.append(), StoreUnavailableError("away"))
    assert all_of_them.lacking() == [session]


def test_a_session_that_is_fenced_out_is_lost() -> None:
    all_of_them = Commitments()
    session = all_of_them.open(_record())
    session.added += [5]
    assert not all_of_them.settle(session, session.append(), BaseMismatchError("another owner's"))
    assert session.events.get_nowait() == Lost("another owner's")
    assert not all_of_them.busy


def test_who_has_ended_is_kept_until_it_is_recorded_within_a_bound() -> None:
    all_of_them = Commitments()
    ended = [_finished(f"s{number}") for number in range(commitments._MAX_ENDED + 2)]
    for session in ended:
        all_of_them.keep(session)
    # The oldest two are let go.
    assert all_of_them.lacking() == ended[2:]
    for session in ended:
        all_of_them.settle(session, session.append(), None)
    assert not all_of_them.busy


async def test_a_batch_has_each_session_once_in_order() -> None:
    all_of_them = Commitments()
    one, two = (all_of_them.open(_record(name)) for name in ("one", "two"))
    for session in (two, one, two):
        all_of_them.queue(session)
    all_of_them.wake()
    assert await asyncio.wait_for(all_of_them.next_batch(), 5) == [two, one]
    all_of_them.wake()
    assert await asyncio.wait_for(all_of_them.next_batch(), 5) == []
