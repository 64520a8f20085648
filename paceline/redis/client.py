"""The one client of Redis: it runs scripts at the server, primary or cluster of a URL, in bounded time.

Only scripts: each is atomic, takes one round trip, and finds its server in a cluster by its keys, which share
one hash tag.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import Any

from redis.asyncio import RedisCluster, SentinelConnectionPool
from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError

from paceline.redis.url import open_url

# Tries of a call. After a failure connections are made anew, and Sentinels or the cluster are asked again.
_ATTEMPTS = 2
# Most calls under way at once, each with a connection of its own; others wait.
_MAX_UNDER_WAY = 32
# How a server says that a script met a value that is not ours. Any other error is the server's own.
_BAD_VALUE = re.compile(r"WRONGTYPE|attempt to |is not an? (integer|valid)|exceeds maximum|out of range")
_FAILURES = (RedisError, RedisClusterException, OSError)

Argument = str | int | float | bytes


class RedisUnavailableError(Exception):
    """No server answered in time, or it cannot work now. Whether the script ran is not known."""


class BadValueError(Exception):
    """A value under a call's keys is not ours: it has a wrong type, or is no number where one must be.

    It concerns that call alone: the server is there, and nothing was changed before the script found it.
    """


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and its SHA-1, by which servers know it."""

    source: str
    sha: str

    @classmethod
    def named(cls, name: str) -> Script:
        """The script `paceline/lua/<name>.lua`."""
        source = resources.files("paceline").joinpath("lua", f"{name}.lua").read_text("utf-8")
        return cls(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class Call:
    """A script's keys, at least one and all of one slot, and its other arguments."""

    keys: Sequence[str]
    args: Sequence[Argument] = ()


_PING = Script.named("ping")


class RedisClient:
    """Runs scripts. Safe for many tasks of one event loop."""

    def __init__(self, url: str, *, timeout_seconds: float = 2.0) -> None:
        """For what `url` names (see `paceline.redis.url`); connects when it is used.

        `timeout_seconds` bounds every call. Raises `SettingsError`.
        """
        self._client = open_url(url, timeout_seconds)
        self._timeout_seconds = timeout_seconds
        self._under_way = asyncio.Semaphore(_MAX_UNDER_WAY)
        # Whether a call failed since the server to use was last looked up.
        self._suspect = False
        # In a cluster: the server that last failed to answer. The others are asked before it.
        self._unanswering: str | None = None

    async def run(self, script: Script, keys: Sequence[str], *args: Argument) -> Any:
        """The script's reply. Raises `RedisUnavailableError` or `BadValueError`.

        A script whose reply is lost runs again, so it must be idempotent or its caller must tolerate that.
        """
        (reply,) = await self.run_each(script, [Call(keys, args)])
        if isinstance(reply, RedisUnavailableError | BadValueError):
            raise reply
        return reply

    async def run_each(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Each call's reply, or the exception that `run` would raise; one round trip a server."""
        replies: list[Any] = [RedisUnavailableError("it took too long")] * len(calls)
        todo = list(range(len(calls)))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_seconds), self._under_way:
                for _ in range(_ATTEMPTS):
                    await self._attempt(script, calls, todo, replies)
                    todo = [place for place in todo if isinstance(replies[place], RedisUnavailableError)]
                    if not todo:
                        return replies
                    self._suspect = True
        self._suspect = True
        return replies

    async def ping(self) -> None:
        """Raise `RedisUnavailableError` unless a script can write; of a cluster's servers one is asked."""
        await self.run(_PING, ["paceline:{ping}"])

    async def close(self) -> None:
        """Let connections go."""
        await self._client.aclose()
        if not isinstance(self._client, RedisCluster):
            pool = self._client.connection_pool
            if isinstance(pool, SentinelConnectionPool):
                await pool.sentinel_manager.aclose()

    async def _attempt(
        self, script: Script, calls: Sequence[Call], todo: Sequence[int], replies: list[Any]
    ) -> None:
        try:
            if self._suspect:
                await self._look_anew()
                self._suspect = False
            shares = await self._shares(calls, todo)
        except _FAILURES as error:
            for place in todo:
                replies[place] = RedisUnavailableError(str(error))
            return
        await asyncio.gather(
            *(self._run_share(script, calls, server, share, replies) for server, share in shares.items())
        )

    async def _look_anew(self) -> None:
        if isinstance(self._client, RedisCluster):
            await self._client.nodes_manager.initialize(last_failed_node_name=self._unanswering)
        else:
            # Also after an error reply: a server that refuses to write may no longer be the primary.
            await self._client.connection_pool.disconnect(inuse_connections=False)

    async def _shares(self, calls: Sequence[Call], todo: Sequence[int]) -> Mapping[str, Sequence[int]]:
        """`todo`, grouped by the server of each call."""
        if not isinstance(self._client, RedisCluster):
            return {"": todo}
        await self._client.initialize()
        shares: dict[str, list[int]] = {}
        for place in todo:
            server = self._client.get_node_from_key(calls[place].keys[0])
            shares.setdefault(server.name if server else "", []).append(place)
        return shares

    async def _run_share(
        self,
        script: Script,
        calls: Sequence[Call],
        server: str,
        places: Sequence[int],
        replies: list[Any],
    ) -> None:
        try:
            answers = await self._pipe("EVALSHA", script.sha, [calls[place] for place in places])
            forgotten = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if forgotten:
                told = await self._pipe("EVAL", script.source, [calls[places[at]] for at in forgotten])
                for at, answer in zip(forgotten, told, strict=True):
                    answers[at] = answer
        except _FAILURES as error:
            self._unanswering = server
            answers = [error] * len(places)
        except asyncio.CancelledError:
            self._unanswering = server
            raise
        for place, answer in zip(places, answers, strict=True):
            replies[place] = _failure(answer) if isinstance(answer, Exception) else answer

    async def _pipe(self, command: str, script: str, calls: Sequence[Call]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for call in calls:
                pipeline.execute_command(command, script, len(call.keys), *call.keys, *call.args)
            return await pipeline.execute(raise_on_error=False)


def _failure(error: Exception) -> RedisUnavailableError | BadValueError:
    """The exception for an error reply: the server's own fault, or that of values under the call's keys."""
    text = str(error)
    of_values = isinstance(error, ResponseError) and _BAD_VALUE.search(text)
    return BadValueError(text) if of_values else RedisUnavailableError(text)
