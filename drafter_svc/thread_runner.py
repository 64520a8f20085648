"""Calls a method that computes: on a thread, in batches of all that waits over sessions and verifiers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from drafter_svc import metrics
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.load import Load
from drafter_svc.methods.base import Ask, MethodFactory, Target, UnfitError, check_fit
from drafter_svc.runner import Drafts, Guard, Runner
from paceline.service import telemetry
from paceline.tree import TokenTree

log = telemetry.logger(__name__)

# Share of the last batch in the average.
_WEIGHT = 0.2


class ThreadRunner(Runner):
    """A method on a thread, so that its calls never overlap and keep their order. Made on the event loop.

    The method is made on the thread, too: until then calls and asks wait. Where it cannot be made, `absent`
    says why, and asks are answered with None.
    """

    computes = True

    def __init__(
        self, factory: MethodFactory, target: Target, thread: ThreadPoolExecutor, load: Load | None = None
    ) -> None:
        """`thread` has one worker, which several runners may share."""
        self.source = factory.name
        self.absent = ""
        self._guard = None
        self._takes_states = bool(factory.needs.features) and target.features is not None
        self._thread = thread
        self._load = load or Load()
        self._loop = asyncio.get_running_loop()
        self._queue: list[tuple[Callable[[], list[Ask]], asyncio.Future[Drafts]]] = []
        self._batching: asyncio.Task[None] | None = None
        # What a batch took, on the average of the last ones.
        self.batch_seconds = 0.0
        metrics.begin_source(self.source)
        self._made = self._loop.run_in_executor(thread, self._make, factory, target)

    @property
    def takes_states(self) -> bool:
        """Whether the method gets hidden states."""
        return self._takes_states and not self.absent

    async def made(self) -> None:
        """Wait until the method is there, or `absent` says why it is not."""
        await asyncio.shield(self._made)

    def lacks_from(self, session: Hypothesis) -> int | None:
        """See `Method.lacks_from`; 0 before the method is there."""
        if not self.takes_states:
            return None
        return 0 if self._guard is None else self._guard.method.lacks_from(session)

    def settle(self) -> bool:
        """See `Method.settle`. The thread does all of it."""

        def settle(guard: Guard) -> None:
            while guard.settle():
                pass

        self._call(settle)
        return False

    def take_states(
        self, session: Hypothesis, position: int, states: memoryview, taken: Callable[[], None] | None
    ) -> None:
        """Hand states to the method. `taken` is called on the event loop when they are no longer needed."""

        def take() -> None:
            if self._guard is not None:
                self._guard.take_states(session, position, states)
            if taken is not None:
                self._loop.call_soon_threadsafe(taken)

        self._thread.submit(take)

    def draft(self, asks: Callable[[], list[Ask]]) -> asyncio.Future[Drafts]:
        """Draft in one batch with all others that wait for it.

        `asks` is called when the batch begins, so that it asks for each session's latest ids.
        """
        waiting: asyncio.Future[Drafts] = self._loop.create_future()
        self._queue.append((asks, waiting))
        if self._batching is None:
            self._batching = asyncio.create_task(self._run_batches(), name=f"{self.source} batches")
        return waiting

    def close(self) -> None:
        """Make no further calls. A call under way is not waited for."""
        if self._batching is not None:
            self._batching.cancel()

    def _call(self, call: Callable[[Guard], None]) -> None:
        def run() -> None:
            # The method is made on this thread, before anything else.
            if self._guard is not None:
                call(self._guard)

        self._thread.submit(run)

    def _make(self, factory: MethodFactory, target: Target) -> None:
        """On the thread."""
        begun = time.monotonic()
        try:
            check_fit(factory.needs, target)
            with self._load.working():
                self._guard = Guard(
                    factory.create(target), self._load, target, takes_states=self._takes_states
                )
        except UnfitError as error:
            self.absent = str(error)
            log.warning(
                "drafting without a method", method=self.source, model=target.model_id, reason=self.absent
            )
        except Exception as error:
            self.absent = f"{type(error).__name__}: {error}"
            log.exception("drafting without a method", method=self.source, model=target.model_id)
        else:
            seconds = round(time.monotonic() - begun, 2)
            log.info("drafting", method=self.source, model=target.model_id, seconds=seconds)

    async def _run_batches(self) -> None:
        try:
            await self.made()
            while self._queue:
                queue, self._queue = self._queue, []
                parts = [(asks(), waiting) for asks, waiting in queue if not waiting.done()]
                batch = [ask for part, _ in parts for ask in part]
                trees = iter(await self._draft(batch))
                for part, waiting in parts:
                    drafts = list(zip(part, islice(trees, len(part)), strict=True))
                    if not waiting.done():
                        waiting.set_result(drafts)
                # Those who got theirs ask again at once, so that the next batch has their sessions, too.
                await asyncio.sleep(0)
        finally:
            self._batching = None

    async def _draft(self, batch: list[Ask]) -> list[TokenTree | None]:
        guard = self._guard
        if guard is None or not batch:
            return [None] * len(batch)
        begun = time.perf_counter()
        trees = await self._loop.run_in_executor(self._thread, guard.draft, batch)
        seconds = time.perf_counter() - begun
        self.batch_seconds += _WEIGHT * (seconds - self.batch_seconds)
        metrics.BATCH_SECONDS.labels(source=self.source).observe(seconds)
        metrics.BATCH_SESSIONS.labels(source=self.source).observe(len(batch))
        return trees
