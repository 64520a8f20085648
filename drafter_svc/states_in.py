"""Hidden states that come on one stream: checked, handed to the methods, counted when they took them in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from drafter_svc import metrics
from drafter_svc.hello import WINDOW_BYTES
from drafter_svc.rounds import Rounds
from drafter_svc.runner import Runner
from drafter_svc.seat import Seat
from drafter_svc.thread_runner import ThreadRunner
from paceline.features import MAX_CHUNK_BYTES, FeatureGrant
from paceline.net import wire
from paceline.v1 import verifier_pb2 as pb


class StatesIn:
    """The states of one stream, from its beginning. On the event loop."""

    def __init__(
        self, grant: FeatureGrant, rounds: Rounds, runners: Sequence[Runner], on_taken: Callable[[], None]
    ) -> None:
        """`on_taken` is called each time that methods have taken states in."""
        self._grant = grant
        self._rounds = rounds
        self._runners = [runner for runner in runners if isinstance(runner, ThreadRunner)]
        self._on_taken = on_taken
        self._came = self._taken = self._told = 0

    @property
    def untold(self) -> int:
        """Bytes that were taken in and of which the verifier was not told."""
        return self._taken - self._told

    def tell(self) -> int:
        """Bytes taken in since the stream began, which the verifier is told now."""
        self._told = self._taken
        return self._taken

    def take(self, message: pb.FeatureChunk) -> None:
        """Hand a chunk to the methods. Raises `WireError` for an ill-formed one, or beyond the window."""
        chunk = wire.chunk_from_proto(message, self._grant)
        size = len(chunk.states)
        self._came += size
        metrics.STATE_BYTES.inc(size)
        if self._came - self._told > WINDOW_BYTES + MAX_CHUNK_BYTES:
            raise wire.WireError("features", f"more than the window of {WINDOW_BYTES} bytes is under way")
        seat = self._rounds.states(chunk.key, chunk.position, chunk.count)
        runners = [runner for runner in self._runners if runner.takes_states]
        if seat is None or not runners:
            self._done(size)
            return
        seat.states.under_way += 1
        states = memoryview(chunk.states)
        for runner in runners:
            # They share a thread: what the last one has taken in, all have.
            taken = partial(self._took, seat, size) if runner is runners[-1] else None
            runner.take_states(seat.hypothesis, chunk.position, states, taken)

    def _took(self, seat: Seat, size: int) -> None:
        seat.states.under_way -= 1
        self._done(size)

    def _done(self, size: int) -> None:
        self._taken += size
        self._on_taken()
