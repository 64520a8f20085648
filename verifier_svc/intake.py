"""What drafters say on their streams, taken in for each session by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

from paceline import tree
from paceline.net import wire
from paceline.service import telemetry
from paceline.session import SessionKey
from paceline.v1 import tree_pb2, verifier_pb2
from paceline.verdict import Verdict
from verifier_svc import metrics
from verifier_svc.control import DraftControl
from verifier_svc.drafters import DrafterStream, DrafterStreams
from verifier_svc.fairness import WorkBudget
from verifier_svc.ledger import Ledger
from verifier_svc.sessions import Session, SessionTable
from verifier_svc.standing import Standings

log = telemetry.logger(__name__)

# Joins, trees and leaves in one message.
_MAX_NAMED = 4096
# Of these so many are taken in before others have a turn on the event loop.
_SLICE = 64
# About what a message, a thing said in it, and a byte to decode take of the event loop's time.
_MESSAGE_SECONDS, _ITEM_SECONDS, _BYTE_SECONDS = 200e-6, 50e-6, 10e-9
# Trees of a session that are taken in for one step without being counted as work that nobody asked for.
_TREES_A_STEP = 4
# On the wire, at the most: a node (token, parent, log_prob); a session's key, and the frame around it.
_NODE_BYTES, _KEY_BYTES = 16, 256

# Not for what a tree or join is: the first four an honest drafter may be told, because messages cross.
_NO_FAULTS_OF_FORM = {
    verifier_pb2.SESSION_ERROR_CODE_NOT_FOUND,
    verifier_pb2.SESSION_ERROR_CODE_STALE_EPOCH,
    verifier_pb2.SESSION_ERROR_CODE_BAD_BASE,
    verifier_pb2.SESSION_ERROR_CODE_NOT_JOINED,
    verifier_pb2.SESSION_ERROR_CODE_UNASKED,
}

# Takes one thing in; gives the seconds of work that nobody has asked for.
_Item: TypeAlias = Callable[[], float]


class Intake:
    """Joins, leaves and trees. Whatever is wrong with one is answered for its session alone.

    What drafters are asked for is taken in at once: there is no more of it than steps ask for. Anything else
    is done in the time that `work` has for it, of which each peer gets its share.
    """

    def __init__(
        self,
        table: SessionTable,
        control: DraftControl,
        streams: DrafterStreams,
        standings: Standings,
        work: WorkBudget,
        *,
        vocab_size: int,
        max_tree_nodes: int,
        max_tree_depth: int,
    ) -> None:
        self._table = table
        self._control = control
        self._streams = streams
        self._standings = standings
        self._work = work
        self._vocab_size = vocab_size
        self._max_tree_nodes = max_tree_nodes
        self._max_tree_depth = max_tree_depth

    def ledger(self) -> Ledger:
        """That of a new stream."""
        table = self._table
        return Ledger(max_sessions=table.max_sessions, opened=lambda: table.opened)

    async def take(
        self, request: verifier_pb2.DraftRequest, stream: DrafterStream, *, first: bool = False
    ) -> None:
        """Take in one message, and return when the next may be read. The first may say nothing but Hello.

        Raises `WireError` for one that speaks of more sessions than any verifier holds.
        """
        named = len(request.joins) + len(request.trees) + len(request.leaves)
        if named > _MAX_NAMED:
            raise wire.WireError(
                "trees", f"a message takes {_MAX_NAMED} joins, trees and leaves, not {named}"
            )
        unasked = self._unasked_bytes(request, named)
        if not named and not first:
            unasked += _MESSAGE_SECONDS
            self._unasked(stream, "message")
        for number, item in enumerate(self._items(request, stream), 1):
            seconds = item()
            if seconds and not unasked:
                unasked = _MESSAGE_SECONDS
            unasked += seconds
            if number % _SLICE == 0:
                await self._pause(stream, unasked)
                unasked = 0.0
            if not self.hears(stream):
                # It may come back on a new connection. The rest of the message was decoded in vain.
                self._work.owe(stream.peer, unasked + request.ByteSize() * _BYTE_SECONDS)
                return
        if unasked:
            await self._pause(stream, unasked)

    def _items(self, request: verifier_pb2.DraftRequest, stream: DrafterStream) -> Iterator[_Item]:
        for join in request.joins:
            yield partial(self._guard, stream, join.key.session_id, partial(self._join, join, stream))
        for message in request.trees:
            yield partial(self._guard, stream, message.key.session_id, partial(self._offer, message, stream))
        for session_id in request.leaves:
            yield partial(self._leave, session_id, stream)

    def _unasked_bytes(self, request: verifier_pb2.DraftRequest, named: int) -> float:
        """The work of decoding more than a message of so many trees can have."""
        most = named * (self._max_tree_nodes * _NODE_BYTES + _KEY_BYTES) + _KEY_BYTES
        surplus: int = max(0, request.ByteSize() - most)
        return surplus * _BYTE_SECONDS

    async def _pause(self, stream: DrafterStream, unasked: float) -> None:
        """Let others have their turn, and wait for the stream's own where it made work unasked for."""
        if unasked:
            with metrics.DRAFTERS_PAUSED.track_inprogress():
                await self._work.pay(stream.peer, unasked)
        await asyncio.sleep(0)

    def hears(self, stream: DrafterStream) -> bool:
        """Whether a stream is still there, and its drafter not put aside."""
        return self._streams.get(stream.stream_id) is stream and self._standings.fault(stream.peer) is None

    def _guard(self, stream: DrafterStream, session_id: str, action: _Item) -> float:
        try:
            return action()
        except _SessionFault as fault:
            code, message = fault.code, str(fault)
        except tree.TreeError as error:
            code, message = wire.fault_to_code(error.fault), str(error)
        except wire.WireError as error:
            code, message = verifier_pb2.SESSION_ERROR_CODE_MALFORMED, str(error)
        if code not in _NO_FAULTS_OF_FORM:
            self._standings.tree(stream.peer, sound=False)
        metrics.TREES_REFUSED.labels(code=verifier_pb2.SessionErrorCode.Name(code)).inc()
        stream.refuse(verifier_pb2.SessionError(session_id=session_id[:64], code=code, message=message))
        return _ITEM_SECONDS

    def _unasked(self, stream: DrafterStream, what: str) -> None:
        metrics.UNASKED.labels(what=what).inc()
        self._standings.unasked(stream.peer)

    def _held(self, key: SessionKey) -> Session:
        """The open session of that key, until the lock is let go. Raises `_SessionFault`."""
        session = self._table.get(key.session_id)
        if session is None:
            raise _SessionFault(verifier_pb2.SESSION_ERROR_CODE_NOT_FOUND, "no such session is open here")
        if session.key.epoch != key.epoch:
            raise _SessionFault(
                verifier_pb2.SESSION_ERROR_CODE_STALE_EPOCH,
                f"epoch {key.epoch} is not the owner's ({session.key.epoch})",
            )
        return session

    def _join(self, join: verifier_pb2.Join, stream: DrafterStream) -> float:
        key = wire.key_from_proto(join.key)
        with self._table.lock:
            there = self._table.get(key.session_id)
            if not stream.ledger.join(
                again=there is not None and there.drafting.stream_id == stream.stream_id
            ):
                self._unasked(stream, "join")
                raise _SessionFault(
                    verifier_pb2.SESSION_ERROR_CODE_UNASKED, "more joins than sessions were opened here"
                )
            session = self._held(key)
            known = join.known_length
            if not session.prompt_length <= known <= session.length:
                raise _SessionFault(
                    verifier_pb2.SESSION_ERROR_CODE_BAD_BASE,
                    f"known_length {known} is not between the prompt's end {session.prompt_length} "
                    f"and what is committed {session.length}",
                )
            if session.drafting.stream_id != stream.stream_id:
                before = self._streams.get(session.drafting.stream_id)
                if before is not None:
                    before.dismiss(key, session.length)
            session.drafting.join(stream.stream_id, session.length)
            verdict = Verdict(
                key=key,
                base_length=known,
                committed=tuple(session.token_ids[known:]),
                draft_budget=self._control.nodes_for(session),
            )
        if not stream.drafting:
            stream.drafting = True
            log.info("drafter connected", drafter=stream.drafter_id, peer=stream.peer)
        stream.welcome(verdict)
        return 0.0

    def _offer(self, message: tree_pb2.TokenTree, stream: DrafterStream) -> float:
        key, base = wire.key_from_proto(message.key), message.base_length
        asked = stream.ledger.tree()
        if not asked:
            self._unasked(stream, "tree")
        # A look without the lock, before anything of it is decoded, saves the work where there is no session.
        self._hung_on(key, base, stream)
        if not asked:
            raise _SessionFault(
                verifier_pb2.SESSION_ERROR_CODE_UNASKED, "more trees than verdicts and joins ask for"
            )
        nodes = max(len(message.token), len(message.parent), len(message.log_prob))
        if nodes > self._max_tree_nodes:
            raise tree.too_many_nodes(nodes, self._max_tree_nodes)
        _, _, drafted = wire.tree_from_proto(message)
        tree.check(
            drafted,
            vocab_size=self._vocab_size,
            max_nodes=self._max_tree_nodes,
            max_depth=self._max_tree_depth,
        )
        self._standings.tree(stream.peer, sound=True)
        with self._table.lock:
            session = self._hung_on(key, base, stream)
            self._control.came(session, base, drafted)
            return _ITEM_SECONDS if session.drafting.trees_offered > _TREES_A_STEP else 0.0

    def _hung_on(self, key: SessionKey, base: int, stream: DrafterStream) -> Session:
        """The session that a tree on that base is for, until the lock is let go. Raises `_SessionFault`."""
        session = self._held(key)
        if session.drafting.stream_id != stream.stream_id:
            raise _SessionFault(
                verifier_pb2.SESSION_ERROR_CODE_NOT_JOINED, "this stream has not joined the session"
            )
        if not session.prompt_length <= base <= session.length:
            raise _SessionFault(
                verifier_pb2.SESSION_ERROR_CODE_BAD_BASE,
                f"base_length {base} is not between the prompt's end {session.prompt_length} "
                f"and what is committed {session.length}",
            )
        return session

    def _leave(self, session_id: str, stream: DrafterStream) -> float:
        if not stream.ledger.leave():
            self._unasked(stream, "leave")
        with self._table.lock:
            session = self._table.get(session_id)
            if session is None or session.drafting.stream_id != stream.stream_id:
                return _ITEM_SECONDS
            session.drafting.leave()
        return 0.0

    def end(self, stream: DrafterStream) -> list[Session]:
        """Let a stream's sessions go on without it; gives them."""
        with self._table.lock:
            held = [each for each in self._table.in_order() if each.drafting.stream_id == stream.stream_id]
            for session in held:
                session.drafting.leave()
            self._control.forget(stream.stream_id)
            self._table.lock.notify_all()
        return held


class _SessionFault(Exception):
    """What a drafter said about one session cannot be taken; `code` is a SessionErrorCode."""

    def __init__(self, code: verifier_pb2.SessionErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
