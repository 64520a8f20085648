"""Messages that drafters send on their streams: taken in item by item, in the time that they may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import TypeAlias

from paceline.net import wire
from paceline.service.metrics import begin
from paceline.tree import TreeError
from paceline.v1 import verifier_pb2
from verifier_svc import metrics
from verifier_svc.drafters import DrafterStream, DrafterStreams
from verifier_svc.fairness import WorkBudget
from verifier_svc.session_drafts import ITEM_SECONDS, DraftRejectedError, SessionDrafts
from verifier_svc.standing import Standings

# Joins, trees and leaves in one message, at most.
_MAX_NAMED = 4096
# So many of them are taken in before others have a turn on the event loop.
_SLICE = 64
# About the event loop's time that a message takes, and a byte of it to decode.
_MESSAGE_SECONDS, _BYTE_SECONDS = 200e-6, 10e-9
# Most bytes on the wire of a node (token, parent, log_prob), and of a session's key with its frame.
_NODE_BYTES, _KEY_BYTES = 16, 256

# Codes that say nothing against a tree's or a join's form. An honest drafter may be told the first four,
# because messages cross.
_NO_FAULTS_OF_FORM = {
    verifier_pb2.SESSION_ERROR_CODE_NOT_FOUND,
    verifier_pb2.SESSION_ERROR_CODE_STALE_EPOCH,
    verifier_pb2.SESSION_ERROR_CODE_BAD_BASE,
    verifier_pb2.SESSION_ERROR_CODE_NOT_JOINED,
    verifier_pb2.SESSION_ERROR_CODE_UNASKED,
}
begin(metrics.TREES_REFUSED, verifier_pb2.SessionErrorCode.keys()[1:])

# Takes one item in; returns the seconds of work that nobody has asked for.
_Item: TypeAlias = Callable[[], float]


class Intake:
    """Takes joins, trees and leaves in. Whatever is wrong with one is answered for its session alone.

    What drafters are asked for is taken in at once: there is no more of it than steps ask for. Anything else
    is done in the time that `work` has for it, of which each peer gets its share.
    """

    def __init__(
        self, drafts: SessionDrafts, streams: DrafterStreams, standings: Standings, work: WorkBudget
    ) -> None:
        self._drafts = drafts
        self._streams = streams
        self._standings = standings
        self._work = work

    async def read(
        self,
        first: verifier_pb2.DraftRequest,
        requests: AsyncIterator[verifier_pb2.DraftRequest],
        stream: DrafterStream,
    ) -> None:
        """Take in a stream's messages, until it ends or nobody hears it any more."""
        try:
            await self.take(first, stream, first=True)
            # The next message is neither read nor decoded before the one before it has been taken in.
            async for request in requests:
                await stream.room()
                if stream.overrun or not self._hears(stream):
                    return
                await self.take(request, stream)
        finally:
            stream.wake.set()

    async def take(
        self, request: verifier_pb2.DraftRequest, stream: DrafterStream, *, first: bool = False
    ) -> None:
        """Take in one message, and return when the next may be read. The first may say nothing but Hello.

        Raises `WireError` for one that names more sessions than any verifier holds.
        """
        named = len(request.joins) + len(request.trees) + len(request.leaves)
        if named > _MAX_NAMED:
            raise wire.WireError(
                "trees", f"a message takes {_MAX_NAMED} joins, trees and leaves, not {named}"
            )
        size = request.ByteSize()
        metrics.DRAFT_BYTES_UP.inc(size)
        unasked = self._surplus_seconds(size, named)
        acknowledged = self._take_acknowledgement(request.features_taken, stream)
        if not named and not first and not (acknowledged and stream.ledger.acknowledge()):
            unasked += _MESSAGE_SECONDS
            self._drafts.unasked(stream, "message")
        for number, item in enumerate(self._items(request, stream), 1):
            seconds = item()
            if seconds and not unasked:
                unasked = _MESSAGE_SECONDS
            unasked += seconds
            if number % _SLICE == 0:
                await self._pause(stream, unasked)
                unasked = 0.0
            if not self._hears(stream):
                # It may come back on a new connection. The rest of the message was decoded in vain.
                self._work.owe(stream.peer, unasked + size * _BYTE_SECONDS)
                return
        if unasked:
            await self._pause(stream, unasked)

    def _items(self, request: verifier_pb2.DraftRequest, stream: DrafterStream) -> Iterator[_Item]:
        drafts = self._drafts
        for join in request.joins:
            yield partial(self._guard, stream, join.key.session_id, partial(drafts.join, join, stream))
        for tree in request.trees:
            yield partial(self._guard, stream, tree.key.session_id, partial(drafts.tree, tree, stream))
        for session_id in request.leaves:
            yield partial(drafts.leave, session_id, stream)

    def _surplus_seconds(self, size: int, named: int) -> float:
        """Seconds to decode what is beyond the largest message with `named` trees."""
        most = named * (self._drafts.bounds.max_nodes * _NODE_BYTES + _KEY_BYTES) + _KEY_BYTES
        return max(0, size - most) * _BYTE_SECONDS

    def _take_acknowledgement(self, taken_bytes: int, stream: DrafterStream) -> bool:
        """Whether the drafter says that it took hidden states in, and that can be; more may follow then."""
        if not taken_bytes:
            return False
        if stream.flow is None or not stream.flow.take(taken_bytes):
            metrics.FALSE_ACKNOWLEDGEMENTS.inc()
            return False
        stream.wake.set()
        return True

    async def _pause(self, stream: DrafterStream, unasked: float) -> None:
        """Give others a turn; a stream that made `unasked` seconds of work waits for its own."""
        if unasked:
            with metrics.DRAFTERS_PAUSED.track_inprogress():
                await self._work.pay(stream.peer, unasked)
        await asyncio.sleep(0)

    def _hears(self, stream: DrafterStream) -> bool:
        """Whether a stream is still there, and its drafter not put aside."""
        return (
            self._streams.get(stream.stream_id) is stream
            and self._standings.reason_aside(stream.peer) is None
        )

    def _guard(self, stream: DrafterStream, session_id: str, action: _Item) -> float:
        """Answer with a per-session error what `action` raises of an item."""
        try:
            return action()
        except DraftRejectedError as error:
            code, message = error.code, str(error)
        except TreeError as error:
            code, message = wire.fault_to_code(error.fault), str(error)
        except wire.WireError as error:
            code, message = verifier_pb2.SESSION_ERROR_CODE_MALFORMED, str(error)
        if code not in _NO_FAULTS_OF_FORM:
            self._standings.tree(stream.peer, sound=False)
        metrics.TREES_REFUSED.labels(code=verifier_pb2.SessionErrorCode.Name(code)).inc()
        stream.refuse(verifier_pb2.SessionError(session_id=session_id[:64], code=code, message=message))
        return ITEM_SECONDS
