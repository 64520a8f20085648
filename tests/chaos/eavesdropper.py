"""A drafter beside the fleet's that takes hidden states of running sessions while things fail around it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

import grpc
import numpy as np
from numpy.typing import NDArray

from paceline.client import Generation
from paceline.features import MAX_WINDOW_BYTES, MIN_WINDOW_BYTES
from paceline.store import RedisStore, SessionRecord, StoreError
from tests.chaos.load import Load, Session
from tests.state_taker import StateTaker, taking

# Of the tiny model; verifiers keep them all.
LAYERS = (0, 1, 2)
_SESSIONS_A_STREAM = 4
# A stall lasts longer than a drafter's patience.
_STREAM_SECONDS = 5.0
_POSITIONS = 40


class Eavesdropper:
    """Joins one session after the other, at whichever verifier it is, and compares what it is sent.

    A text is always the same, and so are its states: by whom, when and from where on they were computed.
    """

    def __init__(self, verifiers: Sequence[str], store: RedisStore, load: Load, seed: int) -> None:
        self.failures: list[str] = []
        # Positions that were compared with what another stream was sent.
        self.compared = 0
        self._verifiers = verifiers
        self._store = store
        self._load = load
        self._random = Random(seed)
        # By what was asked for; of positions that nobody was sent, not a number.
        self._known: dict[Generation, NDArray[np.float32]] = {}

    async def run(self) -> None:
        """Never returns."""
        while True:
            try:
                async with asyncio.timeout(_STREAM_SECONDS):
                    await self._listen(self._random.choice(self._verifiers))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, StoreError, TimeoutError):
                pass
            except AssertionError as error:
                self.failures.append(f"wrong: {error}")
            await asyncio.sleep(0.1)

    async def _listen(self, address: str) -> None:
        window = self._random.choice([MIN_WINDOW_BYTES, MAX_WINDOW_BYTES])
        async with taking(address, LAYERS, window=window) as taker:
            for _ in range(_SESSIONS_A_STREAM):
                await self._take(taker)

    async def _take(self, taker: StateTaker) -> None:
        """Some states of a session that runs here, if it does."""
        running = [session for session in self._load.running if session.started is not None]
        if not running:
            return
        session = self._random.choice(running)
        record = await self._record(session)
        if record is None or record.key.session_id in taker.sessions:
            return
        ids = [*record.prompt_ids, *record.committed_ids]
        taken = await taker.join(record.key, len(ids), self._random.randrange(len(ids)))
        errors = len(taker.errors)
        while session.ended_at is None and len(taker.errors) == errors and taker.code is None:
            if taken.count >= _POSITIONS:
                break
            await asyncio.sleep(0.01)
        if taken.count:
            self._compare(session.asked, taken.start, taker.states(record.key))
        if self._random.random() < 0.5:
            await taker.leave(record.key)

    async def _record(self, session: Session) -> SessionRecord | None:
        return await self._store.get(session.started.session_id) if session.started is not None else None

    def _compare(self, asked: Generation, start: int, states: NDArray[np.float32]) -> None:
        known = self._known.get(asked, np.empty((0, *states.shape[1:]), np.float32))
        missing = start + len(states) - len(known)
        if missing > 0:
            known = np.concatenate([known, np.full((missing, *states.shape[1:]), np.nan, np.float32)])
        there = known[start : start + len(states)]
        both = ~np.isnan(there[:, 0, 0])
        self.compared += int(both.sum())
        off = np.abs(there[both] - states[both]).max(axis=(1, 2), initial=0.0)
        if (off > 1e-4).any():
            at = start + np.flatnonzero(both)[off > 1e-4]
            self.failures.append(f"wrong: states of positions {at.tolist()} of seed {asked.seed}")
        known[start : start + len(states)] = states
        self._known[asked] = known
