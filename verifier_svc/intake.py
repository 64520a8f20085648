"""What drafters say on their streams, taken in for each session by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from paceline import telemetry, tree, wire
from paceline.session import SessionKey
from paceline.v1 import tree_pb2, verifier_pb2
from paceline.verdict import Verdict
from verifier_svc.drafters import DrafterStream, DrafterStreams
from verifier_svc.sessions import Session
from verifier_svc.standing import Standings
from verifier_svc.step import StepLoop

# Joins, trees and leaves in one message: none of them may keep the event loop from others for long.
_MAX_NAMED = 4096

# What an honest drafter may be told, because messages cross.
_FAULTS_OF_TIMING = {
    verifier_pb2.SESSION_ERROR_CODE_NOT_FOUND,
    verifier_pb2.SESSION_ERROR_CODE_STALE_EPOCH,
    verifier_pb2.SESSION_ERROR_CODE_BAD_BASE,
    verifier_pb2.SESSION_ERROR_CODE_NOT_JOINED,
}


class Intake:
    """Joins, leaves and trees. Whatever is wrong with one is answered for its session alone."""

    def __init__(
        self,
        loop: StepLoop,
        streams: DrafterStreams,
        standings: Standings,
        *,
        vocab_size: int,
        max_tree_nodes: int,
        max_tree_depth: int,
    ) -> None:
        self._loop = loop
        self._streams = streams
        self._standings = standings
        self._vocab_size = vocab_size
        self._max_tree_nodes = max_tree_nodes
        self._max_tree_depth = max_tree_depth

    def take(self, request: verifier_pb2.DraftRequest, stream: DrafterStream) -> None:
        """Take in one message; whatever is wrong with one session is answered for it alone.

        Raises `WireError` for one that speaks of more sessions than any verifier holds.
        """
        named = len(request.joins) + len(request.trees) + len(request.leaves)
        if named > _MAX_NAMED:
            raise wire.WireError(
                "trees", f"a message takes {_MAX_NAMED} joins, trees and leaves, not {named}"
            )
        for join in request.joins:
            self._guard(stream, join.key.session_id, partial(self._join, join, stream))
        for message in request.trees:
            self._guard(stream, message.key.session_id, partial(self._offer, message, stream))
        with self._loop.lock:
            for session_id in request.leaves:
                session = self._loop.table.get(session_id)
                if session is not None and session.stream_id == stream.stream_id:
                    session.stream_id = 0
                    session.awaited_since = 0.0

    def _guard(self, stream: DrafterStream, session_id: str, action: Callable[[], None]) -> None:
        try:
            action()
        except _SessionFault as fault:
            code, message = fault.code, str(fault)
        except tree.TreeError as error:
            code, message = wire.fault_to_code(error.fault), str(error)
        except wire.WireError as error:
            code, message = verifier_pb2.SESSION_ERROR_CODE_MALFORMED, str(error)
        else:
            return
        if code not in _FAULTS_OF_TIMING:
            self._standings.tree(stream.drafter_id, sound=False)
        telemetry.TREES_REFUSED.labels(code=verifier_pb2.SessionErrorCode.Name(code)).inc()
        stream.refuse(verifier_pb2.SessionError(session_id=session_id[:64], code=code, message=message))

    def _held(self, key: SessionKey) -> Session:
        """The open session of that key; call with the lock held. Raises `_SessionFault`."""
        session = self._loop.table.get(key.session_id)
        if session is None:
            raise _SessionFault(verifier_pb2.SESSION_ERROR_CODE_NOT_FOUND, "no such session is open here")
        if session.key.epoch != key.epoch:
            raise _SessionFault(
                verifier_pb2.SESSION_ERROR_CODE_STALE_EPOCH,
                f"epoch {key.epoch} is not the owner's ({session.key.epoch})",
            )
        return session

    def _join(self, join: verifier_pb2.Join, stream: DrafterStream) -> None:
        key = wire.key_from_proto(join.key)
        with self._loop.lock:
            session = self._held(key)
            known = join.known_length
            if not session.prompt_length <= known <= session.length:
                raise _SessionFault(
                    verifier_pb2.SESSION_ERROR_CODE_BAD_BASE,
                    f"known_length {known} is not between the prompt's end {session.prompt_length} "
                    f"and what is committed {session.length}",
                )
            before = self._streams.get(session.stream_id)
            if before is not None and before is not stream:
                before.dismiss(key, session.length)
            session.stream_id = stream.stream_id
            session.told_length = session.length
            verdict = Verdict(
                key=key,
                base_length=known,
                committed=tuple(session.token_ids[known:]),
                draft_budget=self._loop.draft_budget(session),
            )
        stream.welcome(verdict)

    def _offer(self, message: tree_pb2.TokenTree, stream: DrafterStream) -> None:
        key, base, drafted = wire.tree_from_proto(message)
        tree.check(
            drafted,
            vocab_size=self._vocab_size,
            max_nodes=self._max_tree_nodes,
            max_depth=self._max_tree_depth,
        )
        self._standings.tree(stream.drafter_id, sound=True)
        with self._loop.lock:
            session = self._held(key)
            if session.stream_id != stream.stream_id:
                raise _SessionFault(
                    verifier_pb2.SESSION_ERROR_CODE_NOT_JOINED, "this stream has not joined the session"
                )
            if not session.prompt_length <= base <= session.length:
                raise _SessionFault(
                    verifier_pb2.SESSION_ERROR_CODE_BAD_BASE,
                    f"base_length {base} is not between the prompt's end {session.prompt_length} "
                    f"and what is committed {session.length}",
                )
            self._loop.offer_tree(session, base, drafted)

    def end(self, stream: DrafterStream) -> None:
        """Let a stream's sessions go on without it."""
        with self._loop.lock:
            for session in self._loop.table.in_order():
                if session.stream_id == stream.stream_id:
                    session.stream_id = 0
                    session.awaited_since = 0.0
            self._loop.forget_drafter(stream.stream_id)
            self._loop.lock.notify_all()


class _SessionFault(Exception):
    """What a drafter said about one session cannot be taken; `code` is a SessionErrorCode."""

    def __init__(self, code: verifier_pb2.SessionErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
