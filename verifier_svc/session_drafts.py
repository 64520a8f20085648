"""What drafters say of single sessions (joins, trees, leaves): checked, and carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paceline import tree
from paceline.features import NO_FEATURES
from paceline.net import wire
from paceline.service import telemetry
from paceline.session import SessionKey
from paceline.tree import TokenTree
from paceline.v1 import tree_pb2, verifier_pb2
from paceline.verdict import Verdict
from verifier_svc import metrics, sources
from verifier_svc.control import DraftControl
from verifier_svc.drafters import DrafterStream, DrafterStreams
from verifier_svc.ledger import Ledger
from verifier_svc.sessions import Session, SessionTable
from verifier_svc.standing import Standings

log = telemetry.logger(__name__)

# About the event loop's time that one refused or needless thing takes, in seconds.
ITEM_SECONDS = 50e-6
# Trees of a session and source that are taken in for one step without counting as work that nobody asked for:
# after a hold-up those of several verdicts come at once, and a verdict may have two.
_TREES_PER_STEP = 8


class DraftRejectedError(Exception):
    """What a drafter said about one session cannot be taken; `code` is a SessionErrorCode."""

    def __init__(self, code: verifier_pb2.SessionErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class TreeBounds:
    """What a tree must keep to."""

    vocab_size: int
    max_nodes: int
    max_depth: int


class SessionDrafts:
    """Which drafter drafts for which session.

    Each method takes one thing that a stream's drafter said and returns the seconds of the event loop's time
    that nobody had asked for. It raises `DraftRejectedError`, `TreeError` or `WireError`.
    """

    def __init__(
        self,
        table: SessionTable,
        control: DraftControl,
        streams: DrafterStreams,
        standings: Standings,
        bounds: TreeBounds,
        *,
        on_aside: Callable[[SessionKey, float], None],
    ) -> None:
        """`on_aside` is called with a session whose drafter is put aside, and for how many seconds."""
        self.bounds = bounds
        self._table = table
        self._control = control
        self._streams = streams
        self._standings = standings
        self._on_aside = on_aside

    def ledger(self, *, sources: int = 1) -> Ledger:
        """The ledger of a new stream, whose nodes come from so many sources."""
        table = self._table
        return Ledger(max_sessions=table.max_sessions, opened=lambda: table.opened, sources=sources)

    def unasked(self, stream: DrafterStream, what: str) -> None:
        """Count a thing that nothing the drafter was told can have caused."""
        metrics.UNASKED.labels(what=what).inc()
        self._standings.unasked(stream.peer)

    def join(self, join: verifier_pb2.Join, stream: DrafterStream) -> float:
        """The stream's drafter drafts for a session from now on, in the place of any other."""
        key = wire.key_from_proto(join.key)
        with self._table.lock:
            there = self._table.get(key.session_id)
            again = there is not None and there.drafting.stream_id == stream.stream_id
            if not stream.ledger.join(again=again):
                self.unasked(stream, "join")
                raise DraftRejectedError(
                    verifier_pb2.SESSION_ERROR_CODE_UNASKED, "more joins than sessions were opened here"
                )
            session = self._open_session(key)
            known = join.known_length
            _check_base(session, known, "known_length")
            _check_features_from(session, join.features_from, stream)
            if session.drafting.stream_id != stream.stream_id:
                before = self._streams.get(session.drafting.stream_id)
                if before is not None:
                    before.dismiss(key, session.length)
            session.drafting.join(stream.stream_id, session.length, stream.sources)
            _want_states(session, join.features_from, stream)
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

    def tree(self, message: tree_pb2.TokenTree, stream: DrafterStream) -> float:
        """A tree came for a session; it waits for the next step."""
        key, base = wire.key_from_proto(message.key), message.base_length
        asked = stream.ledger.tree()
        if not asked:
            self.unasked(stream, "tree")
        # This look needs no lock. It saves the decoding where there is no session.
        self._joined_session(key, base, stream)
        if not asked:
            raise DraftRejectedError(
                verifier_pb2.SESSION_ERROR_CODE_UNASKED, "more trees than verdicts and joins ask for"
            )
        nodes = max(len(message.token), len(message.parent), len(message.log_prob), len(message.source))
        if nodes > self.bounds.max_nodes:
            raise tree.too_many_nodes(nodes, self.bounds.max_nodes)
        _, _, drafted = wire.tree_from_proto(message)
        tree.check(
            drafted,
            vocab_size=self.bounds.vocab_size,
            max_nodes=self.bounds.max_nodes,
            max_depth=self.bounds.max_depth,
            num_sources=len(stream.sources),
        )
        self._standings.tree(stream.peer, sound=True)
        with self._table.lock:
            session = self._joined_session(key, base, stream)
            session.drafting.tree_bytes += message.ByteSize()
            self._came(session, base, drafted, stream)
            few = _TREES_PER_STEP * len(stream.sources)
            return ITEM_SECONDS if session.drafting.trees_offered > few else 0.0

    def leave(self, session_id: str, stream: DrafterStream) -> float:
        """The stream's drafter drafts for a session no more."""
        if not stream.ledger.leave():
            self.unasked(stream, "leave")
        with self._table.lock:
            session = self._table.get(session_id)
            if session is None or session.drafting.stream_id != stream.stream_id:
                return ITEM_SECONDS
            session.drafting.leave()
        return 0.0

    def end(self, stream: DrafterStream) -> None:
        """The stream is over: let its sessions go on without it. Idempotent."""
        if self._streams.get(stream.stream_id) is None:
            return
        self._streams.close(stream)
        with self._table.lock:
            held = [each for each in self._table.in_order() if each.drafting.stream_id == stream.stream_id]
            for session in held:
                session.drafting.leave()
            self._control.forget(stream.stream_id)
            self._table.lock.notify_all()
        if stream.drafting:
            log.info("drafter disconnected", drafter=stream.drafter_id, peer=stream.peer)
        if seconds := self._standings.seconds_aside(stream.peer):
            for session in held:
                self._on_aside(session.key, seconds)

    def _came(self, session: Session, base: int, drafted: TokenTree, stream: DrafterStream) -> None:
        for answer in self._control.came(session, base, drafted):
            label = sources.LABELS.of(stream.sources[answer.source])
            metrics.SOURCE_REPLY_SECONDS.labels(source=label).observe(answer.seconds)
            metrics.REPLY_SECONDS.inc(answer.longer)

    def _open_session(self, key: SessionKey) -> Session:
        """The open session of that key; it may end as soon as the lock is let go."""
        session = self._table.get(key.session_id)
        if session is None:
            raise DraftRejectedError(
                verifier_pb2.SESSION_ERROR_CODE_NOT_FOUND, "no such session is open here"
            )
        if session.key.epoch != key.epoch:
            raise DraftRejectedError(
                verifier_pb2.SESSION_ERROR_CODE_STALE_EPOCH,
                f"epoch {key.epoch} is not the owner's ({session.key.epoch})",
            )
        return session

    def _joined_session(self, key: SessionKey, base: int, stream: DrafterStream) -> Session:
        """The session that a tree on `base` is for; it may end as soon as the lock is let go."""
        session = self._open_session(key)
        if session.drafting.stream_id != stream.stream_id:
            raise DraftRejectedError(
                verifier_pb2.SESSION_ERROR_CODE_NOT_JOINED, "this stream has not joined the session"
            )
        _check_base(session, base, "base_length")
        return session


def _check_base(session: Session, length: int, name: str) -> None:
    if not session.prompt_length <= length <= session.length:
        raise DraftRejectedError(
            verifier_pb2.SESSION_ERROR_CODE_BAD_BASE,
            f"{name} {length} is not between the prompt's end {session.prompt_length} "
            f"and what is committed {session.length}",
        )


def _check_features_from(session: Session, position: int, stream: DrafterStream) -> None:
    if stream.flow is not None and position > session.length and position != NO_FEATURES:
        raise DraftRejectedError(
            verifier_pb2.SESSION_ERROR_CODE_BAD_BASE,
            f"features_from {position} lies past what is committed {session.length}",
        )


def _want_states(session: Session, position: int, stream: DrafterStream) -> None:
    if stream.flow is None:
        return
    if position == NO_FEATURES:
        stream.flow.leave(session.key.session_id)
    else:
        stream.flow.join(session.key, position, sent_before=session.states_sent)
