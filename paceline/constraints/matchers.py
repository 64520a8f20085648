"""Compiled constraints of one model: made off the event loop, within bounds, and kept for other sessions."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from llguidance import LLMatcher

from paceline.constraints.compiler import compiled
from paceline.constraints.constraint import Constraint, ConstraintError
from paceline.constraints.matcher import GrammarMatcher
from paceline.constraints.trial import Trial
from paceline.constraints.vocabulary import Vocabulary

T = TypeVar("T")

# All compiled constraints together, by what they are taken to hold.
_MOST_BYTES: Final = 256 << 20
# What one is taken to hold: by itself, and for each byte of its text. Schemas of 265 and of 1999 bytes were
# seen to hold 94 kB and 378 kB, with what matching texts adds.
_BYTES_EACH: Final = 64 << 10
_BYTES_PER_BYTE: Final = 512
# States of a lexer are shared by all sessions of a compiled constraint, and are bounded in number. So it is
# compiled anew after so many sessions.
_MOST_SESSIONS: Final = 256


class Matchers:
    """Makes matchers. On the event loop."""

    def __init__(self, vocabulary: Vocabulary | None) -> None:
        """None where the model's tokens are not known as bytes: then every constraint is refused."""
        self._vocabulary = vocabulary
        self._trial = Trial()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="constraints")
        # Each with the sessions that it has had; the one that was used last at the end.
        self._kept: OrderedDict[tuple[str, Constraint], tuple[LLMatcher, int]] = OrderedDict()

    async def matcher(
        self,
        constraint: Constraint,
        stop_ids: frozenset[int],
        committed: Sequence[int] = (),
        *,
        least: int = 0,
    ) -> GrammarMatcher:
        """A matcher for one session, behind its `committed` ids; the other arguments as of `GrammarMatcher`.

        Raises `ConstraintError` if it cannot be compiled, `MatcherError` if the ids do not fit.
        """
        vocabulary = self._vocabulary
        if vocabulary is None:
            raise ConstraintError("this model's tokenizer does not take constraints")
        key = vocabulary.fingerprint, constraint
        start, sessions = self._kept.pop(key, (None, 0))
        if start is None or sessions >= _MOST_SESSIONS:
            await self._trial.run(constraint)
            start, sessions = await self._on_thread(lambda: compiled(constraint, vocabulary)), 0
        self._kept[key] = start, sessions + 1
        self._let_go()
        begin = start

        def behind() -> GrammarMatcher:
            matcher = GrammarMatcher(begin, vocabulary, stop_ids, least=least)
            matcher.commit(committed)
            return matcher

        return await self._on_thread(behind) if committed else behind()

    async def close(self) -> None:
        """End the trial's process, and the thread once it has finished what it does."""
        await self._trial.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _on_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _let_go(self) -> None:
        """Keep no more than there is room for: the one that was not used for longest goes first."""
        while len(self._kept) > 1 and sum(map(_held, self._kept)) > _MOST_BYTES:
            self._kept.popitem(last=False)


def _held(key: tuple[str, Constraint]) -> int:
    return _BYTES_EACH + _BYTES_PER_BYTE * len(key[1].text)
