"""Sessions in Redis: one hash and one string of packed ids per session, every step one Lua script.

Keys of a session share the hash tag {session_id}, so they live in one slot of a Redis Cluster:
`paceline:{id}:meta` (hash: epoch, model, sampling, reply, prompt, finish) and `paceline:{id}:ids`
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
from redis.exceptions import NoScriptError, RedisError

from paceline.session import FinishReason, SamplingParams, SessionKey
from paceline.store.base import (
    Append,
    BaseMismatch,
    Fenced,
    SessionExists,
    SessionRecord,
    StoreError,
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
        self._restore = _script(self._client, "restore")
        self._claim = _script(self._client, "claim")

    async def create(self, record: SessionRecord) -> None:
        """See `SessionStore.create`."""
        await self._run(self._create, record.key.session_id, *_fields(record))

    async def append(self, appends: Sequence[Append]) -> list[StoreError | None]:
        """See `SessionStore.append`."""
        try:
            replies = await self._append_each(appends)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                await self._client.script_load(self._append.script)
                replies = await self._append_each(appends)
        except (RedisError, OSError) as error:
            return [_unavailable(error)] * len(appends)
        return [
            _unavailable(reply) if isinstance(reply, Exception) else _refusal(append.key.session_id, reply)
            for append, reply in zip(appends, replies, strict=True)
        ]

    async def _append_each(self, appends: Sequence[Append]) -> list[Any]:
        # A pipeline runs registered scripts too, but asks before every run whether they are known.
        async with self._client.pipeline(transaction=False) as pipeline:
            for append in appends:
                pipeline.evalsha(
                    self._append.sha,
                    2,
                    *_keys(append.key.session_id),
                    self._ttl,
                    append.key.epoch,
                    append.base_length,
                    _pack(append.token_ids),
                    str(append.finish or ""),
                )
            return await pipeline.execute(raise_on_error=False)

    async def restore(self, record: SessionRecord) -> None:
        """See `SessionStore.restore`."""
        finish = str(record.finish_reason or "")
        await self._run(self._restore, record.key.session_id, *_fields(record), finish)

    async def claim(self, key: SessionKey) -> SessionRecord:
        """See `SessionStore.claim`."""
        meta, ids = await self._run(self._claim, key.session_id, key.epoch)
        return _record(key.session_id, dict(zip(meta[::2], meta[1::2], strict=True)), ids)

    async def get(self, session_id: str) -> SessionRecord | None:
        """See `SessionStore.get`."""
        meta_key, ids_key = _keys(session_id)
        try:
            async with self._client.pipeline(transaction=True) as pipeline:
                pipeline.hgetall(meta_key)
                pipeline.get(ids_key)
                meta, ids = await pipeline.execute()
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        return _record(session_id, meta, ids or b"") if meta else None

    async def ping(self) -> None:
        """See `SessionStore.ping`."""
        try:
            await self._client.ping()
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    async def close(self) -> None:
        """See `SessionStore.close`."""
        await self._client.aclose()

    async def _run(self, script: AsyncScript, session_id: str, *args: Any) -> Any:
        try:
            reply = await script(keys=_keys(session_id), args=[self._ttl, *args])
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error
        refusal = _refusal(session_id, reply)
        if refusal is not None:
            raise refusal
        return reply


def _unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"the session store does not answer: {error}")


def _refusal(session_id: str, reply: Any) -> StoreError | None:
    """What a script's reply says of why it did nothing."""
    if isinstance(reply, list) or reply == b"OK":
        return None
    word, _, rest = bytes(reply).partition(b" ")
    return _REFUSALS[word](f"session {session_id}: {rest.decode() or word.decode().lower()}")


def _fields(record: SessionRecord) -> tuple[str | int | bytes, ...]:
    """A record's part of a script's arguments, from the epoch on."""
    return (
        record.key.epoch,
        record.model_id,
        _sampling_to_json(record.sampling),
        record.reply,
        _pack(record.prompt_ids),
        _pack(record.committed_ids),
    )


def _record(session_id: str, meta: Mapping[bytes, bytes], ids: bytes) -> SessionRecord:
    reason = meta[b"finish"].decode()
    return SessionRecord(
        key=SessionKey(session_id, int(meta[b"epoch"])),
        model_id=meta[b"model"].decode(),
        prompt_ids=_unpack(meta[b"prompt"]),
        sampling=_sampling_from_json(meta[b"sampling"]),
        committed_ids=_unpack(ids),
        reply=meta[b"reply"].decode(),
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
