"""Responses that are kept for a while, so that later requests may go on from them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from gateway.errors import UNAVAILABLE, RequestError
from paceline.redis.client import Argument, BadValueError, RedisClient, RedisUnavailableError, Script

# Most bytes of one kept response, the conversation before it included.
MAX_BYTES = 8 << 20
_MEMORY_BYTES = 256 << 20
_KEEP, _KEPT, _FORGET = Script.named("keep"), Script.named("kept"), Script.named("forget")


class Kept(Protocol):
    """Texts by unguessable ids. Methods raise `RequestError` if the store does not answer."""

    async def put(self, name: str, text: bytes) -> None:
        """Keep a text from now on for the time that records are kept."""

    async def get(self, name: str) -> bytes | None:
        """The text, or None."""

    async def forget(self, name: str) -> None:
        """Forget the text. Idempotent."""

    async def close(self) -> None:
        """Close connections."""


class RedisKept:
    """In Redis, for all gateways: strings `paceline:{<id>}:response`."""

    def __init__(self, url: str, *, ttl_seconds: int, timeout_seconds: float = 2.0) -> None:
        """`timeout_seconds` bounds each call. Raises `SettingsError` if `url` is no Redis URL."""
        self._client = RedisClient(url, timeout_seconds=timeout_seconds)
        self._ttl = ttl_seconds

    async def put(self, name: str, text: bytes) -> None:
        await self._run(_KEEP, name, self._ttl, text)

    async def get(self, name: str) -> bytes | None:
        return await self._run(_KEPT, name)

    async def forget(self, name: str) -> None:
        await self._run(_FORGET, name)

    async def close(self) -> None:
        await self._client.close()

    async def _run(self, script: Script, name: str, *args: Argument) -> bytes | None:
        try:
            reply = await self._client.run(script, [f"paceline:{{{name}}}:response"], *args)
        except BadValueError:
            return None
        except RedisUnavailableError as error:
            raise RequestError(UNAVAILABLE, "the store of responses does not answer; try again") from error
        return reply if isinstance(reply, bytes) else None


class MemoryKept:
    """In this process's memory. The bytes are bounded: those kept longest go first."""

    def __init__(
        self,
        *,
        ttl_seconds: float,
        max_bytes: int = _MEMORY_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # By id: when it was put, and the text; the oldest first.
        self._texts: dict[str, tuple[float, bytes]] = {}
        self._bytes = 0
        self._ttl = ttl_seconds
        self._max_bytes = max_bytes
        self._clock = clock

    async def put(self, name: str, text: bytes) -> None:
        await self.forget(name)
        self._texts[name] = (self._clock(), text)
        self._bytes += len(text)
        while self._bytes > self._max_bytes:
            await self.forget(next(iter(self._texts)))

    async def get(self, name: str) -> bytes | None:
        while self._texts:
            oldest, (put, _) = next(iter(self._texts.items()))
            if self._clock() - put <= self._ttl:
                break
            await self.forget(oldest)
        return self._texts[name][1] if name in self._texts else None

    async def forget(self, name: str) -> None:
        _, text = self._texts.pop(name, (0.0, b""))
        self._bytes -= len(text)

    async def close(self) -> None:
        """Nothing to close."""
