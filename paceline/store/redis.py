"""Sessions in Redis: a hash and strings of packed ids and log-probabilities. Each step is one Lua script.

Keys of a session share the hash tag {session_id}, so they live in one slot of a Redis Cluster:
`paceline:{id}:meta` (hash: epoch, model, sampling, reply, prompt, finish, logprobs), `paceline:{id}:ids`
(string: committed ids, 4 bytes each, little-endian) and `paceline:{id}:logprobs` (string: the ids' packed
log-probabilities, empty unless a client wants them). All expire `ttl_seconds` after the last write.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from paceline.logprobs import LogprobsWanted
from paceline.redis.client import Argument, BadValueError, Call, RedisClient, RedisUnavailableError, Script
from paceline.sampling import SamplingParams
from paceline.session import FinishReason, SessionKey
from paceline.store.base import (
    Append,
    BaseMismatchError,
    FencedError,
    SessionExistsError,
    SessionRecord,
    StoreError,
    StoreUnavailableError,
    UnknownSessionError,
)

_CREATE, _APPEND, _RESTORE = Script.named("create"), Script.named("append"), Script.named("restore")
_CLAIM, _GET = Script.named("claim"), Script.named("get")
_ID = np.dtype("<u4")
# The first word of a script's reply if it changed nothing.
_REFUSALS = {
    b"FENCED": FencedError,
    b"BASE": BaseMismatchError,
    b"UNKNOWN": UnknownSessionError,
    b"EXISTS": SessionExistsError,
}


def _pack(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype=_ID).tobytes()


def _unpack(packed: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(packed, dtype=_ID).tolist())


def _keys(session_id: str) -> list[str]:
    return [f"paceline:{{{session_id}}}:{part}" for part in ("meta", "ids", "logprobs")]


class RedisStore:
    """See `SessionStore`. Safe for many tasks of one event loop."""

    durable = True

    def __init__(self, url: str, *, ttl_seconds: int, timeout_seconds: float = 2.0) -> None:
        """`timeout_seconds` bounds each call. Raises `SettingsError` if `url` is no Redis URL."""
        self._client = RedisClient(url, timeout_seconds=timeout_seconds)
        self._ttl = ttl_seconds

    async def create(self, record: SessionRecord) -> None:
        try:
            await self._run(_CREATE, record.key.session_id, *_fields(record))
        except SessionExistsError:
            # It may be its own, if the reply to a first try was lost.
            if await self.get(record.key.session_id) != record:
                raise

    async def append(self, appends: Sequence[Append]) -> list[StoreError | None]:
        calls = [
            Call(
                _keys(append.key.session_id),
                (
                    self._ttl,
                    append.key.epoch,
                    append.base_length,
                    _pack(append.token_ids),
                    str(append.finish or ""),
                    append.logprobs,
                ),
            )
            for append in appends
        ]
        replies = await self._client.run_each(_APPEND, calls)
        return [
            _failure(append.key.session_id, reply)
            if isinstance(reply, Exception)
            else _refusal(append.key.session_id, reply)
            for append, reply in zip(appends, replies, strict=True)
        ]

    async def restore(self, record: SessionRecord) -> None:
        finish = str(record.finish_reason or "")
        await self._run(_RESTORE, record.key.session_id, *_fields(record), finish)

    async def claim(self, key: SessionKey, finish: FinishReason | None = None) -> SessionRecord:
        own_word = secrets.token_hex(8)
        reply = await self._run(_CLAIM, key.session_id, key.epoch, own_word, str(finish or ""))
        return _record(key.session_id, reply)

    async def get(self, session_id: str) -> SessionRecord | None:
        try:
            return _record(session_id, await self._run(_GET, session_id))
        except UnknownSessionError:
            return None

    async def ping(self) -> None:
        try:
            await self._client.ping()
        except (RedisUnavailableError, BadValueError) as error:
            raise _unavailable(error) from error

    async def close(self) -> None:
        await self._client.close()

    async def _run(self, script: Script, session_id: str, *args: Argument) -> Any:
        try:
            reply = await self._client.run(script, _keys(session_id), self._ttl, *args)
        except (RedisUnavailableError, BadValueError) as error:
            raise _failure(session_id, error) from error
        refusal = _refusal(session_id, reply)
        if refusal is not None:
            raise refusal
        return reply


def _failure(session_id: str, error: Exception) -> StoreError:
    """The store's error for a failed script. A damaged record counts as lost."""
    if isinstance(error, BadValueError):
        return UnknownSessionError(f"session {session_id}: what is recorded is no session")
    return _unavailable(error)


def _unavailable(error: Exception) -> StoreUnavailableError:
    return StoreUnavailableError(f"the session store does not answer: {error}")


def _refusal(session_id: str, reply: Any) -> StoreError | None:
    """The error in a script's reply; None if it succeeded."""
    if isinstance(reply, list) or reply == b"OK":
        return None
    word, _, rest = bytes(reply).partition(b" ")
    return _REFUSALS[word](f"session {session_id}: {rest.decode() or word.decode().lower()}")


def _fields(record: SessionRecord) -> tuple[Argument, ...]:
    """A record as arguments of a script, from the epoch on."""
    return (
        record.key.epoch,
        record.model_id,
        json.dumps(record.sampling.plain()),
        record.reply,
        _pack(record.prompt_ids),
        _pack(record.committed_ids),
        json.dumps(asdict(record.logprobs)),
        record.committed_logprobs,
    )


def _record(session_id: str, reply: tuple[Sequence[bytes], bytes, bytes]) -> SessionRecord:
    """The record in a script's reply: the hash's names and values in turn, the ids, their log-probabilities.

    Raises `UnknownSessionError`.
    """
    names_and_values, ids, logprobs = reply
    meta = dict(zip(names_and_values[::2], names_and_values[1::2], strict=True))
    try:
        reason = meta[b"finish"].decode()
        # A release before log-probabilities recorded no wish for them.
        wanted = LogprobsWanted(**json.loads(meta.get(b"logprobs", b"{}")))
        if len(logprobs) * _ID.itemsize != len(ids) * wanted.width:
            raise ValueError(f"{len(logprobs)} bytes are no log-probabilities of {len(ids)} bytes of ids")
        return SessionRecord(
            key=SessionKey(session_id, int(meta[b"epoch"])),
            model_id=meta[b"model"].decode(),
            prompt_ids=_unpack(meta[b"prompt"]),
            sampling=SamplingParams.read(json.loads(meta[b"sampling"])),
            committed_ids=_unpack(ids),
            reply=meta[b"reply"].decode(),
            finish_reason=FinishReason(reason) if reason else None,
            logprobs=wanted,
            committed_logprobs=logprobs,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise _failure(session_id, BadValueError()) from error
