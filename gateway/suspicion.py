"""Sessions under which verifiers have died: perhaps it was their doing, and they are not to end the fleet."""

from __future__ import annotations

import asyncio

# A session that gets so many tokens from a verifier is not what verifiers die of.
CLEARING_TOKENS = 16
# After so many deaths without these tokens in between, it is tried again only while no other suspect is.
_DEATHS = 2


class Suspicion:
    """What is held against one session.

    All sessions of a verifier that dies move at once, the one that killed it among them. A session to which
    that happens twice takes its turn: one suspect at a time, until it is cleared. A verifier that dies under
    a session in its turn has died of it: that session goes no further, and those that were near it go on.
    """

    def __init__(self, turns: asyncio.Lock) -> None:
        """`turns`: the gateway's, one for all of its sessions."""
        self._turns = turns
        self._deaths = 0
        self._tokens = 0
        self._in_turn = False

    @property
    def suspect(self) -> bool:
        """Whether the session has to take its turn."""
        return self._deaths >= _DEATHS

    async def turn(self) -> None:
        """Wait until no other suspect is tried, and hold others back until `got_on` clears it, or `end`."""
        await self._turns.acquire()
        self._in_turn = True

    def died(self) -> bool:
        """Note that a verifier has died under the session; whether it has died of it."""
        of_it = self._in_turn
        self._deaths += 1
        self._tokens = 0
        self.end()
        return of_it

    def got_on(self, tokens: int) -> None:
        """Note tokens that a verifier has given it."""
        self._tokens += tokens
        if self._tokens >= CLEARING_TOKENS:
            self._deaths = 0
            self.end()

    def end(self) -> None:
        """Let the next suspect have its turn. Idempotent."""
        if self._in_turn:
            self._in_turn = False
            self._turns.release()
