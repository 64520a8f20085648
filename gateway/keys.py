"""API keys: a file of hashes, reloaded when it changes. A request's key gives its `Caller`."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gateway import metrics
from gateway.caller import ANYBODY, Caller
from gateway.errors import FORBIDDEN, INVALID_API_KEY, Kind, RequestError
from gateway.limits.base import UsageLimits
from paceline.api_keys import Scope, api_key_hash
from paceline.service import telemetry

log = telemetry.logger(__name__)

# The file is checked at most this often, so a change takes effect within this time.
_LOOK_SECONDS = 1.0
# No key is longer; longer strings are not even hashed.
_MAX_KEY_CHARACTERS = 512


class KeyFileError(ValueError):
    """A key file is unusable. The message says where and why, and quotes no hash."""


class KeyLimits(BaseModel):
    """One key's limits, over all gateways together; a missing one does not limit."""

    model_config = ConfigDict(extra="forbid")

    concurrent_sessions: int | None = Field(default=None, ge=1)
    queued_requests: int = Field(default=16, ge=0)
    tokens_per_minute: int | None = Field(default=None, ge=1)


class KeyEntry(BaseModel):
    """One key holder. It may have several keys at a time, so that a key can be replaced without a gap."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: list[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]] = Field(min_length=1)
    scopes: frozenset[Scope] = frozenset({Scope.GENERATE})
    expires: AwareDatetime | None = None
    limits: KeyLimits = KeyLimits()


class KeyFile(BaseModel):
    """The whole file, as JSON."""

    model_config = ConfigDict(extra="forbid")

    keys: list[KeyEntry]


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    expires: datetime | None


class ApiKeys:
    """The keys of a file. If the file becomes unreadable, the last good set stays in force."""

    def __init__(
        self,
        path: str | Path,
        *,
        one_tenant: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`one_tenant`: whether all holders are the same tenant. Raises `KeyFileError`."""
        self._path = Path(path)
        self._one_tenant = one_tenant
        self._now = now
        self._seen = self._signature()
        self._by_hash = _read(self._path, one_tenant)
        self._look_at = time.monotonic() + _LOOK_SECONDS

    def __len__(self) -> int:
        return len(self._by_hash)

    def caller(self, key: str) -> Caller | None:
        """The holder of `key`; None if the key is unknown, revoked or expired.

        The look-up is by hash, so its time tells nothing about how close a guess is.
        """
        self._look()
        known = self._by_hash.get(api_key_hash(key)) if len(key) <= _MAX_KEY_CHARACTERS else None
        if known is None or (known.expires is not None and known.expires <= self._now()):
            return None
        return known.caller

    def _look(self) -> None:
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_SECONDS
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._by_hash = _read(self._path, self._one_tenant)
        except KeyFileError as error:
            log.error("the key file cannot be used, the keys read before stay in force", error=str(error))
        else:
            log.info("API keys read anew", keys=len(self._by_hash))

    def _signature(self) -> tuple[int, ...]:
        """Changes when the file changes, or when its path leads to another file."""
        try:
            found = os.stat(self._path)
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path, one_tenant: bool) -> dict[str, _Known]:
    try:
        entries = KeyFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}" for problem in error.errors()
        )
        raise KeyFileError(f"{path}: {'; '.join(problems)}") from None
    by_hash: dict[str, _Known] = {}
    for entry in entries:
        tenant = "" if one_tenant else _tenant(entry)
        caller = Caller(entry.id, entry.scopes, UsageLimits(**entry.limits.model_dump()), tenant)
        for digest in entry.sha256:
            if digest in by_hash:
                raise KeyFileError(f"{path}: {entry.id} has a hash that stands in the file already")
            by_hash[digest] = _Known(caller, entry.expires)
    if len({entry.id for entry in entries}) < len(entries):
        raise KeyFileError(f"{path}: two entries have the same id")
    return by_hash


def _tenant(entry: KeyEntry) -> str:
    """The holder's name at drafters: the same at all gateways of this key file, and not traceable."""
    return hmac.new(bytes.fromhex(entry.sha256[0]), entry.id.encode(), hashlib.sha256).hexdigest()[:32]


def _refused(kind: Kind, message: str) -> RequestError:
    metrics.REFUSED_REQUESTS.labels(reason=kind.code).inc()
    return RequestError(kind, message)


def authenticate(keys: ApiKeys | None, authorization: str, scope: Scope | None) -> Caller:
    """The caller of a request with this `authorization` header. Without keys anybody may do anything.

    Raises `RequestError` for a missing or wrong key, and for a key without `scope`.
    """
    if keys is None:
        return ANYBODY
    scheme, _, key = authorization.strip().partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise _refused(INVALID_API_KEY, "no API key was given; send it as `Authorization: Bearer KEY`")
    caller = keys.caller(key.strip())
    if caller is None:
        raise _refused(INVALID_API_KEY, "incorrect API key provided")
    if scope is not None and scope not in caller.scopes:
        raise _refused(FORBIDDEN, f"this API key has no scope {scope.value!r}")
    return caller
