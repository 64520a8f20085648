"""Hidden states read out of the engine's pool for drafters' streams, beside the steps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from paceline.engine.engine import Engine
from paceline.features import FeatureChunk
from paceline.session import SessionKey
from verifier_svc import metrics
from verifier_svc.drafters import DrafterStream
from verifier_svc.features import KeptStates, Run
from verifier_svc.sessions import Session, SessionTable


class FeatureReads:
    """Reads on a thread of its own: neither the event loop nor a step waits for more than one chunk."""

    def __init__(self, engine: Engine, table: SessionTable, *, weights_fingerprint: str) -> None:
        self.kept = KeptStates(
            engine.kept_layers,
            engine.state_width,
            str(engine.dtype).removeprefix("torch."),
            weights_fingerprint,
        )
        self._engine = engine
        self._table = table
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="states")

    async def following(self, stream: DrafterStream) -> list[FeatureChunk]:
        """The states that the stream's next message holds, counted as sent; none while there are none."""
        flow = stream.flow
        runs = flow.following(partial(self._computed, stream.stream_id)) if flow is not None else []
        if flow is None or not runs:
            return []
        reading = partial(self._read, stream.stream_id, flow.grant.layers, runs)
        read = await asyncio.get_running_loop().run_in_executor(self._thread, reading)
        # Meanwhile a session may have ended, or may have been joined anew from another position on.
        sent = [chunk for run, chunk in zip(runs, read, strict=True) if chunk is not None and flow.sent(run)]
        if sent:
            stream.ledger.sent_states(len(sent))
            metrics.STATE_CHUNKS.inc(len(sent))
            metrics.STATE_BYTES.inc(sum(len(chunk.states) for chunk in sent))
        return sent

    def close(self) -> None:
        """End the thread; what it is reading is read to its end."""
        self._thread.shutdown()

    def _read(self, stream_id: int, layers: Sequence[int], runs: Sequence[Run]) -> list[FeatureChunk | None]:
        """The states of each run; None where they are there no more. On the thread."""
        return [self._chunk(stream_id, layers, run) for run in runs]

    def _chunk(self, stream_id: int, layers: Sequence[int], run: Run) -> FeatureChunk | None:
        with self._table.lock:
            session = self._session(stream_id, run.key)
            if session is None or session.num_computed < run.start + run.count:
                return None
            states = self._engine.read_states(session.blocks, run.start, run.count, layers)
            session.states_sent = max(session.states_sent, run.start + run.count)
        data = states.view(torch.uint8).numpy().tobytes()
        return FeatureChunk(run.key, run.start, run.count, data)

    def _computed(self, stream_id: int, key: SessionKey) -> int | None:
        """Up to which position a session's states are there; None where another drafts for it, or nobody.

        This look needs no lock: `_chunk` looks again.
        """
        session = self._session(stream_id, key)
        # A step that ends a session may compute more than it commits.
        return None if session is None else min(session.num_computed, session.length)

    def _session(self, stream_id: int, key: SessionKey) -> Session | None:
        session = self._table.get(key.session_id)
        if session is None or session.key != key or session.drafting.stream_id != stream_id:
            return None
        return session
