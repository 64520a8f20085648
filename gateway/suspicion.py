"""Suspicion of sessions under which verifiers have died, so that no session takes down the whole fleet."""

from __future__ import annotations

import asyncio

# A session that gets this many tokens from a verifier is no longer suspected.
CLEARING_TOKENS = 16
# After this many deaths without as many tokens in between, it runs only while no other suspect does.
_DEATHS = 2


class Suspicion:
    """The suspicion of one session.

    When a verifier dies, all its sessions move at once, the one that killed it among them. A session to which
    this happens twice is a suspect. Suspects run one at a time, until they are cleared. A verifier that dies
    while a suspect runs was killed by it: that session is ended, and the others go on.
    """

    def __init__(self, turns: asyncio.Lock) -> None:
        """`turns`: one lock for all sessions of the gateway."""
        self._turns = turns
        self._deaths = 0
        self._tokens = 0
        self._in_turn = False

    @property
    def suspect(self) -> bool:
        """Whether the session must wait for its turn."""
        return self._deaths >= _DEATHS

    async def turn(self) -> None:
        """Wait until no other suspect runs. Keeps others waiting until `got_on` clears it, or `end`."""
        await self._turns.acquire()
        self._in_turn = True

    def died(self) -> bool:
        """Note that a verifier died under the session; returns whether the session killed it."""
        of_it = self._in_turn
        self._deaths += 1
        self._tokens = 0
        self.end()
        return of_it

    def got_on(self, tokens: int) -> None:
        """Note tokens from a verifier; enough of them clear the session."""
        self._tokens += tokens
        if self._tokens >= CLEARING_TOKENS:
            self._deaths = 0
            self.end()

    def end(self) -> None:
        """End its turn. Idempotent."""
        if self._in_turn:
            self._in_turn = False
            self._turns.release()
