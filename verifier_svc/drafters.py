"""Connected drafters: one stream each, with a bounded queue of what waits to go down."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from paceline.session import SessionKey
from paceline.v1 import verifier_pb2
from paceline.verdict import Verdict
from verifier_svc import metrics
from verifier_svc.features import StateFlow
from verifier_svc.ledger import Ledger

# Most verdicts that may wait: a drafter that leaves so many unread has no use for them.
MAX_VERDICTS = 4096
# Errors that may wait while more of the drafter's messages are read.
_MAX_ERRORS = 256
# Most names that a status lists; drafters choose their names.
MAX_TOLD = 256


@dataclass(slots=True)
class DrafterStream:
    """One open Draft call. On the event loop, save `feedback_top_k` and `sources`, which never change."""

    stream_id: int
    # The peer name (`paceline.net.peers`), and the name that the drafter gives itself, which proves nothing.
    peer: str
    drafter_id: str
    feedback_top_k: int
    ledger: Ledger
    # Names of what its nodes may come from, by their numbers in trees; one empty name where it gave none.
    sources: tuple[str, ...] = ("",)
    # The hidden states that it is sent; None where none were granted.
    flow: StateFlow | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    errors: list[verifier_pb2.SessionError] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    # Set when too many verdicts were not read: nothing goes up or down any more.
    overrun: bool = False
    # Set with the first session.
    drafting: bool = False
    _taken: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, verdicts: list[Verdict]) -> None:
        """Queue verdicts for the next message down."""
        self.verdicts += verdicts
        self.ledger.told(sum(not verdict.finished for verdict in verdicts))
        if len(self.verdicts) > MAX_VERDICTS:
            self.overrun = True
            self.verdicts = []
        self.wake.set()

    def welcome(self, verdict: Verdict) -> None:
        """Queue the answer to a join; it replaces all that waited for that session."""
        session_id = verdict.key.session_id
        self.verdicts = [each for each in self.verdicts if each.key.session_id != session_id]
        self.send([verdict])

    def dismiss(self, key: SessionKey, length: int) -> None:
        """Tell the drafter that a session, of `length` now, takes no more of its trees."""
        self.send([Verdict(key, length, committed=(), finished=True)])

    def refuse(self, error: verifier_pb2.SessionError) -> None:
        """Queue a per-session error for the next message down."""
        self.errors.append(error)
        self.wake.set()

    def take(self) -> tuple[list[Verdict], list[verifier_pb2.SessionError]]:
        """Everything that waits, for one message down; the queue is empty then."""
        verdicts, self.verdicts = self.verdicts, []
        if self.flow is not None:
            for verdict in verdicts:
                self.flow.told(verdict.key, verdict.base_length + len(verdict.committed))
        errors, self.errors = self.errors, []
        self._taken.set()
        return verdicts, errors

    async def room(self) -> None:
        """Wait until few enough errors are unread: at once, unless the drafter does not read."""
        while len(self.errors) > _MAX_ERRORS and not self.overrun:
            self._taken.clear()
            await self._taken.wait()


class DrafterStreams:
    """Open streams by id. Ids start at 1 and are never reused; 0 means no drafter."""

    def __init__(self) -> None:
        self._streams: dict[int, DrafterStream] = {}
        self._next_id = 1

    def open(
        self,
        peer: str,
        drafter_id: str,
        feedback_top_k: int,
        ledger: Ledger,
        sources: Sequence[str] = (),
        flow: StateFlow | None = None,
    ) -> DrafterStream:
        """Register a new stream. `sources`: as in Hello; `flow`: where hidden states were granted."""
        named = tuple(sources) or ("",)
        stream = DrafterStream(self._next_id, peer, drafter_id, feedback_top_k, ledger, named, flow)
        if flow is not None:
            metrics.STATE_STREAMS.inc()
        self._next_id += 1
        self._streams[stream.stream_id] = stream
        return stream

    def close(self, stream: DrafterStream) -> None:
        """Forget a stream."""
        known = self._streams.pop(stream.stream_id, None)
        if known is not None and known.flow is not None:
            metrics.STATE_STREAMS.dec()

    def get(self, stream_id: int) -> DrafterStream | None:
        """The stream of that id, if it is still open."""
        return self._streams.get(stream_id)

    def feedback_top_k(self, stream_id: int) -> int:
        """Ids per row that the stream's drafter asked for; 0 when it is gone. May be called on any thread."""
        stream = self._streams.get(stream_id)
        return stream.feedback_top_k if stream else 0

    def wake(self, peer: str) -> None:
        """Have all streams of a peer check whether they may go on."""
        for stream in self._streams.values():
            if stream.peer == peer:
                stream.wake.set()

    def stepped(self) -> None:
        """Have the streams that are sent hidden states look for new ones."""
        for stream in self._streams.values():
            if stream.flow is not None and len(stream.flow):
                stream.wake.set()

    def ids(self) -> list[str]:
        """Names of the connected drafters, at most `MAX_TOLD`."""
        return sorted(stream.drafter_id for stream in islice(self._streams.values(), MAX_TOLD))
