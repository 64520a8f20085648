"""The parts of one verifier, put together. Each part is made of those before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Any

from transformers import AutoTokenizer

from paceline.constraints.constraint import ConstraintError
from paceline.constraints.matchers import Matchers
from paceline.constraints.vocabulary import Vocabulary
from paceline.engine.engine import Engine
from paceline.service import telemetry
from paceline.store import SessionStore
from verifier_svc import gauges
from verifier_svc.commit import Committer
from verifier_svc.config import VerifierSettings
from verifier_svc.control import DraftControl
from verifier_svc.delivery import Delivery
from verifier_svc.draft_rpc import DraftRpc
from verifier_svc.drafters import DrafterStreams
from verifier_svc.feature_reads import FeatureReads
from verifier_svc.forecast import forecast
from verifier_svc.identity import ServedModel, describe
from verifier_svc.open_rpc import OpenRpc
from verifier_svc.prefix_rpc import PrefixRpc
from verifier_svc.scheduler import StepLimits
from verifier_svc.server import VerifierServicer
from verifier_svc.session_drafts import SessionDrafts, TreeBounds
from verifier_svc.sessions import SessionTable
from verifier_svc.standing import Standings
from verifier_svc.status_rpc import StatusRpc
from verifier_svc.step import StepLoop

log = telemetry.logger(__name__)


class Verifier:
    """One verifier without its server. Made on the event loop, as its parts expect."""

    def __init__(
        self,
        settings: VerifierSettings,
        store: SessionStore | None,
        engine: Engine,
        thread: Executor,
        *,
        on_failure: Callable[[], None],
    ) -> None:
        """`thread` runs the engine. `on_failure` is called when no session can go on here."""
        tokenizer = AutoTokenizer.from_pretrained(
            settings.model, trust_remote_code=settings.trust_remote_code
        )
        self.served = _described(settings, engine, tokenizer)
        self._matchers = Matchers(_vocabulary(tokenizer, self.served))
        self._store = store
        self.committer = Committer(
            store,
            strict=settings.strict,
            patience_seconds=settings.store_patience_seconds,
            on_failure=on_failure,
        )
        self._table = SessionTable(settings.max_sessions)
        control = _control(settings, self._table)
        streams = DrafterStreams()
        standings = Standings(on_aside=streams.wake)
        drafts = SessionDrafts(
            self._table,
            control,
            streams,
            standings,
            TreeBounds(self.served.vocab_size, settings.max_tree_nodes, settings.max_tree_depth),
            on_aside=self.committer.say_aside,
        )
        self._delivery = Delivery(self.committer, drafts, streams, standings, on_failure=on_failure)
        limits = StepLimits(self.served.block_size, settings.prefill_rows, settings.max_tree_nodes)
        self._steps = StepLoop(
            engine,
            self._table,
            control,
            self._delivery,
            thread,
            prefix_cache=settings.prefix_cache,
            limits=limits,
            divergence_interval=settings.divergence_interval,
            feedback_top_k=streams.feedback_top_k,
        )
        self._features = FeatureReads(
            engine, self._table, weights_fingerprint=self.served.weights_fingerprint
        )
        gauges.export(self._steps)
        self.servicer = VerifierServicer(
            OpenRpc(self.served, self._matchers, self._steps, self.committer, self._delivery),
            DraftRpc(self.served, drafts, streams, standings, self._features),
            StatusRpc(
                self.served,
                self._steps,
                streams,
                standings,
                lambda: forecast(self._table, control.budget, limits),
                pool=settings.pool,
            ),
            PrefixRpc(self._steps),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compute and commit until the block is left. Entered once the kernels are warm."""
        async with self.committer.running():
            await asyncio.to_thread(self._steps.start)
            living = asyncio.create_task(self._delivery.say_alive(self._steps))
            try:
                yield
            finally:
                living.cancel()
                await asyncio.to_thread(self._steps.stop)
                self._features.close()
                await self._matchers.close()
                if self._store is not None:
                    await self._store.close()

    def refuse_sessions(self) -> None:
        """Take no new session from now on."""
        with self._table.lock:
            self._table.draining = True


def _described(settings: VerifierSettings, engine: Engine, tokenizer: Any) -> ServedModel:
    return describe(
        engine,
        tokenizer,
        model=settings.model,
        model_name=settings.model_name,
        port=settings.port,
    )


def _vocabulary(tokenizer: Any, served: ServedModel) -> Vocabulary | None:
    try:
        return Vocabulary.of(tokenizer, served.vocab_fingerprint, served.vocab_size)
    except ConstraintError as error:
        log.warning("texts under constraints are not served", error=str(error))
        return None


def _control(settings: VerifierSettings, table: SessionTable) -> DraftControl:
    return DraftControl(
        table,
        draft_rows=settings.draft_rows,
        max_tree_nodes=settings.max_tree_nodes,
        max_wait_seconds=settings.max_draft_wait_ms / 1000,
    )
