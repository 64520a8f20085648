"""Sessions in Redis: one hash and one string of packed ids per session, every step one Lua script.

Keys of a session share the hash tag {session_id}, so they live in one slot of a Redis Cluster:
`paceline:{id}:meta` (hash: epoch, owner, model, sampling, prompt, finish) and `paceline:{id}:ids`
(string: committed ids, 4 bytes each, little-endian). Both expire `ttl_seconds` after the last write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
import redis.asyncio as aioredis
from redis.asyncio.client import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from paceline.session import FinishReason, SamplingParams, SessionKey
from paceline.store.base import (
    BaseMismatch,
    Fenced,
    SessionExists,
    SessionRecord,
    StoreUnavailable,
    UnknownSession,
)

_ID = np.dtype("<u4")
# First word of the reply of a script that did nothing.
_REFUSALS = {
    b"FENCED": Fenced,
    b"BASE": BaseMismatch,
    b"UNKNOWN": UnknownSession,
    b"EXISTS": SessionExists,
}


def _pack(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype=_ID).tobytes()


def _unpack(packed: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(packed, dtype=_ID).tolist())


def _script(client: Redis, name: str) -> AsyncScript:
    source = resources.files("paceline").joinpath("lua", f"{name}.lua").read_text("utf-8")
    return client.register_script(source)


def _keys(session_id: str) -> list[str]:
    return [f"paceline:{{{session_id}}}:meta", f"paceline:{{{session_id}}}:ids"]


class RedisStore:
    """See `SessionStore`. One connection pool; safe for many tasks of one event loop."""

    def __init__(self, url: str, *, ttl_seconds: int, timeout_seconds: float = 2.0) -> None:
        self._client: Redis = aioredis.from_url(
            url, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds
        )
        self._ttl = ttl_seconds
        self._create = _script(self._client, "create")
        self._append = _script(self._client, "append")
        self._claim = _script(self._client, "claim")
        self._finish = _script(self._client, "finish")

    async def create(self, record: SessionRecord) -> None:
        """See `SessionStore.create`."""
        await self._run(
            self._create,
            record.key.session_id,
            record.key.epoch,
            record.owner,
            record.model_id,
            _sampling_to_json(record.sampling),
            _pack(record.prompt_ids),
            _pack(record.committed_ids),
        )

    async def append(self, key: SessionKey, base_length: int, ids: Sequence[int]) -> None:
        """See `SessionStore.append`. One round trip."""
        await self._run(self._append, key.session_id, key.epoch, base_length, _pack(ids))

    async def claim(self, session_id: str, owner: str) -> SessionRecord:
        """See `SessionStore.claim`."""
        meta, ids = await self._run(self._claim, session_id, owner)
        return _record(session_id, dict(zip(meta[::2], meta[1::2], strict=True)), ids)

    async def finish(self, key: SessionKey, reason: FinishReason) -> None:
        """See `SessionStore.finish`."""
        await self._run(self._finish, key.session_id, key.epoch, str(reason))

    async def get(self, session_id: str) -> SessionRecord | None:
        """See `SessionStore.get`."""
        meta_key, ids_key = _keys(session_id)
        try:
            async with self._client.pipeline(transaction=True) as pipeline:
                pipeline.hgetall(meta_key)
                pipeline.get(ids_key)
                meta, ids = await pipeline.execute()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"the session store does not answer: {error}") from error
        return _record(session_id, meta, ids or b"") if meta else None

    async def ping(self) -> None:
        """See `SessionStore.ping`."""
        try:
            await self._client.ping()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"the session store does not answer: {error}") from error

    async def close(self) -> None:
        """See `SessionStore.close`."""
        await self._client.aclose()

    async def _run(self, script: AsyncScript, session_id: str, *args: Any) -> Any:
        try:
            reply = await script(keys=_keys(session_id), args=[self._ttl, *args])
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"the session store does not answer: {error}") from error
        if isinstance(reply, list) or reply == b"OK":
            return reply
        word, _, rest = bytes(reply).partition(b" ")
        raise _REFUSALS[word](f"session {session_id}: {rest.decode() or word.decode().lower()}")


def _record(session_id: str, meta: Mapping[bytes, bytes], ids: bytes) -> SessionRecord:
    reason = meta[b"finish"].decode()
    return SessionRecord(
        key=SessionKey(session_id, int(meta[b"epoch"])),
        model_id=meta[b"model"].decode(),
        prompt_ids=_unpack(meta[b"prompt"]),
        sampling=_sampling_from_json(meta[b"sampling"]),
        committed_ids=_unpack(ids),
        owner=meta[b"owner"].decode(),
        finish_reason=FinishReason(reason) if reason else None,
    )


def _sampling_to_json(sampling: SamplingParams) -> str:
    return json.dumps(
        {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "seed": sampling.seed,
            "stop_token_ids": sorted(sampling.stop_token_ids),
        }
    )


def _sampling_from_json(text: bytes) -> SamplingParams:
    fields = json.loads(text)
    return SamplingParams(**{**fields, "stop_token_ids": frozenset(fields["stop_token_ids"])})
