"""Calls a drafting method: on the event loop, or, if it computes, on one thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import ParamSpec, TypeAlias

from drafter_svc.hypothesis import Hypothesis, Lesson
from drafter_svc.load import Load
from drafter_svc.methods.base import Ask, Method
from paceline.service import telemetry
from paceline.tree import TokenTree

P = ParamSpec("P")
# Each ask with its tree; None where the method raised for the session.
Drafts: TypeAlias = list[tuple[Ask, TokenTree | None]]

log = telemetry.logger(__name__)


class Runner:
    """One method, called for the sessions of every verifier that serves its target.

    A call that raises costs its session only: the session's next draft is None. Public methods are called on
    the event loop. A method that computes has one thread, so its calls never overlap and keep their order.
    """

    def __init__(self, method: Method, load: Load | None = None, *, computes: bool = False) -> None:
        """`load`: where the method's time is counted. `computes`: see `MethodFactory`."""
        self._method = method
        self._load = load or Load()
        self._thread = ThreadPoolExecutor(1, f"method {method.name}") if computes else None
        # Session ids whose `observe` raised. Only touched where the method is called.
        self._faulty: set[str] = set()
        self._queue: list[tuple[Callable[[], list[Ask]], asyncio.Future[Drafts]]] = []
        self._batching: asyncio.Task[None] | None = None

    @property
    def computes(self) -> bool:
        """Whether trees come from `draft`, later, and not from `draft_now`."""
        return self._thread is not None

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """See `Method.observe`."""
        self._call(self._observe, session, lesson)

    def settle(self) -> None:
        """See `Method.settle`."""
        self._call(self._guarded, self._method.settle)

    def forget(self, session_id: str) -> None:
        """See `Method.forget`."""
        self._call(self._forget, session_id)

    def draft_now(self, asks: Sequence[Ask]) -> Drafts:
        """Draft on the event loop."""
        return list(zip(asks, self._draft(asks), strict=True)) if asks else []

    async def draft(self, asks: Callable[[], list[Ask]]) -> Drafts:
        """Draft on the method's thread, in one batch with all others that wait for it.

        `asks` is called when the batch begins, so that it asks for each session's latest ids.
        """
        waiting: asyncio.Future[Drafts] = asyncio.get_running_loop().create_future()
        self._queue.append((asks, waiting))
        if self._batching is None:
            self._batching = asyncio.create_task(self._run_batches(), name="draft batches")
        return await waiting

    def close(self) -> None:
        """Make no further calls. A call under way is not waited for."""
        if self._batching is not None:
            self._batching.cancel()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._queue:
                queue, self._queue = self._queue, []
                parts = [(asks(), waiting) for asks, waiting in queue if not waiting.done()]
                batch = [ask for part, _ in parts for ask in part]
                trees = iter(await loop.run_in_executor(self._thread, self._draft, batch))
                for part, waiting in parts:
                    drafts = list(zip(part, islice(trees, len(part)), strict=True))
                    if not waiting.done():
                        waiting.set_result(drafts)
        finally:
            self._batching = None

    def _call(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        if self._thread is None:
            function(*args, **kwargs)
        else:
            self._thread.submit(function, *args, **kwargs)

    # What follows runs where the method is called.

    def _observe(self, session: Hypothesis, lesson: Lesson) -> None:
        if not self._guarded(self._method.observe, session, lesson):
            self._faulty.add(session.key.session_id)

    def _forget(self, session_id: str) -> None:
        self._faulty.discard(session_id)
        self._guarded(self._method.forget, session_id)

    def _guarded(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Whether the call returned; an exception is logged."""
        try:
            with self._load.working():
                function(*args, **kwargs)
        except Exception:
            log.exception("drafting method failed", method=self._method.name)
            return False
        return True

    def _draft(self, asks: Sequence[Ask]) -> list[TokenTree | None]:
        """The tree of each ask; None for sessions that the method raises for."""
        sound = [ask for ask in asks if ask.session.key.session_id not in self._faulty]
        try:
            with self._load.working():
                trees = self._method.draft(sound) if sound else []
            drafted = dict(zip((ask.session.key.session_id for ask in sound), trees, strict=True))
        except Exception:
            if len(sound) > 1:
                # One of them is at fault: draft for each alone, so that the others get their trees.
                return [tree for ask in asks for tree in self._draft([ask])]
            log.exception("drafting method failed", method=self._method.name)
            drafted = {}
        return [drafted.get(ask.session.key.session_id) for ask in asks]
