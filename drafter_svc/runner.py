"""Calls a drafting method on the event loop. What it raises costs the session that it was called for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeAlias

from drafter_svc import metrics
from drafter_svc.hypothesis import Hypothesis, Lesson
from drafter_svc.load import Load
from drafter_svc.methods.base import Ask, Method, Target
from paceline.service import telemetry
from paceline.tree import TokenTree, check

P = ParamSpec("P")
# Each ask with its tree; None where the method drafts no more for the session.
Drafts: TypeAlias = list[tuple[Ask, TokenTree | None]]

log = telemetry.logger(__name__)


class Guard:
    """One method, called where it is.

    A call that raises costs its session only: the session's next draft is None, until it is forgotten.
    """

    def __init__(
        self, method: Method, load: Load, target: Target | None = None, *, takes_states: bool = False
    ) -> None:
        """`load`: where the method's time is counted. `target`: that of a method whose trees are checked.

        `takes_states`: whether it drafts from the target's hidden states, which were granted.
        """
        self.method = method
        self._load = load
        self._target = target
        self._grant = target.features if target is not None and takes_states else None
        # Session ids for which a call raised.
        self._faulty: set[str] = set()

    def attach(self, session: Hypothesis) -> None:
        """See `Method.attach`."""
        self._for(session, self.method.attach, session)

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """See `Method.observe`."""
        self._for(session, self.method.observe, session, lesson)

    def take_states(self, session: Hypothesis, position: int, states: memoryview) -> None:
        """Give the method what it lacks of the states from `position` on; nothing after a gap."""
        lacks = self.method.lacks_from(session)
        if lacks is None or self._grant is None:
            return
        known = (lacks - position) * self._grant.position_bytes
        if 0 <= known < len(states):
            self._for(session, self.method.take_states, session, lacks, states[known:])

    def settle(self) -> bool:
        """See `Method.settle`."""
        try:
            with self._load.working():
                return self.method.settle()
        except Exception:
            log.exception("drafting method failed", method=self.method.name)
            return False

    def forget(self, session_id: str) -> None:
        """See `Method.forget`."""
        self._faulty.discard(session_id)
        self._guarded(self.method.forget, session_id)

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree | None]:
        """The tree of each ask; None for sessions that the method raises for."""
        drafted: dict[str, TokenTree | None] = {}
        sound = []
        for ask in asks:
            session_id = ask.session.key.session_id
            drafted[session_id] = None if session_id in self._faulty else TokenTree()
            if session_id not in self._faulty and self._has_states(ask):
                sound.append(ask)
        try:
            with self._load.working():
                trees = self.method.draft(sound) if sound else []
                for ask, tree in zip(sound, trees, strict=True):
                    self._check(ask, tree)
                    drafted[ask.session.key.session_id] = tree
        except Exception:
            if len(sound) > 1:
                # One of them is at fault: draft for each alone, so that the others get their trees.
                return [tree for ask in asks for tree in self.draft([ask])]
            log.exception("drafting method failed", method=self.method.name)
            for ask in sound:
                self._faulty.add(ask.session.key.session_id)
                drafted[ask.session.key.session_id] = None
        return [drafted[ask.session.key.session_id] for ask in asks]

    def _has_states(self, ask: Ask) -> bool:
        """Whether the method has the states that it would draft from; it may have lost them."""
        if self._grant is None:
            return True
        lacks = self.method.lacks_from(ask.session)
        return lacks is not None and lacks >= ask.length - 1

    def _check(self, ask: Ask, tree: TokenTree) -> None:
        if self._target is not None:
            check(tree, vocab_size=self._target.vocab_size, max_nodes=ask.nodes, max_depth=ask.depth)

    def _for(
        self, session: Hypothesis, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        if not self._guarded(function, *args, **kwargs):
            self._faulty.add(session.key.session_id)

    def _guarded(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Whether the call returned; an exception is logged."""
        try:
            with self._load.working():
                function(*args, **kwargs)
        except Exception:
            log.exception("drafting method failed", method=self.method.name)
            return False
        return True


class Runner:
    """One method for the sessions of every verifier that serves its target. Used on the event loop.

    This one calls the method there; `ThreadRunner` on a thread.
    """

    computes = False

    def __init__(self, method: Method, load: Load | None = None, source: str = "text") -> None:
        """`source`: see `MethodFactory.name`."""
        self.source = source
        # Why there is no method after all; empty while there is one, or will be.
        self.absent = ""
        self._guard: Guard | None = Guard(method, load or Load())
        metrics.begin_source(source)

    @property
    def takes_states(self) -> bool:
        """Whether the method gets hidden states."""
        return False

    def lacks_from(self, session: Hypothesis) -> int | None:
        """See `Method.lacks_from`."""
        return None

    async def made(self) -> None:
        """Wait until the method is there, or `absent` says why it is not."""

    def attach(self, session: Hypothesis) -> None:
        """See `Method.attach`."""
        self._call(lambda guard: guard.attach(session))

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """See `Method.observe`."""
        self._call(lambda guard: guard.observe(session, lesson))

    def settle(self) -> bool:
        """See `Method.settle`."""
        return self._guard is not None and self._guard.settle()

    def forget(self, session_id: str) -> None:
        """See `Method.forget`."""
        self._call(lambda guard: guard.forget(session_id))

    def draft_now(self, asks: Sequence[Ask]) -> Drafts:
        """Draft on the event loop."""
        if self._guard is None or not asks:
            return []
        return list(zip(asks, self._guard.draft(asks), strict=True))

    def close(self) -> None:
        """Make no further calls."""

    def _call(self, call: Callable[[Guard], None]) -> None:
        if self._guard is not None:
            call(self._guard)
