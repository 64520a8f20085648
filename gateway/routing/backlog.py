"""How much one verifier has to compute before a new session's prompt."""

from __future__ import annotations

import time
from collections.abc import Callable


class Backlog:
    """Tokens of prompts that wait at a verifier: by its status, and what this gateway has sent since then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told = 0
        self._token_seconds = 0.0
        self._heard_at = self._asked_at = clock()
        # When this gateway sent prompts, and their tokens that the verifier did not hold.
        self._sent: list[tuple[float, int]] = []

    def asking(self) -> None:
        """The verifier is asked for its status."""
        self._asked_at = self._clock()

    def heard(self, waiting_tokens: int, token_seconds: float) -> None:
        """Its answer, which knows of what was sent before it was asked."""
        self._told, self._token_seconds = waiting_tokens, token_seconds
        self._heard_at = self._clock()
        self._sent = [(at, tokens) for at, tokens in self._sent if at >= self._asked_at]

    def send(self, tokens: int) -> None:
        """A session goes there, with so many tokens to compute."""
        self._sent.append((self._clock(), tokens))

    @property
    def sent_tokens(self) -> int:
        """Those that the last status does not know of."""
        return sum(tokens for _, tokens in self._sent)

    @property
    def tokens(self) -> int:
        """Tokens that wait now: at the pace that the verifier says, some have been computed since."""
        computed = (self._clock() - self._heard_at) / self._token_seconds if self._token_seconds else 0
        return max(0, self._told + self.sent_tokens - int(computed))
