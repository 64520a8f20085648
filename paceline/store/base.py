"""The contract of all session stores, their record, and their errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from paceline.logprobs import NO_LOGPROBS, LogprobsWanted
from paceline.sampling import SamplingParams
from paceline.session import FinishReason, SessionKey


class StoreError(Exception):
    """A store call failed."""


class FencedError(StoreError):
    """Another epoch owns the session: the caller must drop it."""


class BaseMismatchError(StoreError):
    """The ids do not continue what is committed."""


class UnknownSessionError(StoreError):
    """The session is not recorded (any more), or only under an earlier epoch, or its record is damaged."""


class SessionExistsError(StoreError):
    """A session of this id is recorded already."""


class StoreUnavailableError(StoreError):
    """The store did not answer; whether the call took effect is not known.

    Retrying is safe: at worst a claim then finds its own epoch.
    """


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One session as any gateway or verifier needs it to go on."""

    key: SessionKey
    model_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    committed_ids: tuple[int, ...] = ()
    # How its client is answered: JSON of the gateway, opaque to all others.
    reply: str = ""
    finish_reason: FinishReason | None = None
    logprobs: LogprobsWanted = NO_LOGPROBS
    # Packed (`paceline.logprobs`), of the committed ids.
    committed_logprobs: bytes = b""


@dataclass(frozen=True, slots=True)
class Append:
    """Ids that `key`'s owner commits at absolute length `base_length`; `finish` if they are the last."""

    key: SessionKey
    base_length: int
    token_ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    # Packed, of the ids, where the session's client wants them; else empty.
    logprobs: bytes = b""


class SessionStore(Protocol):
    """Atomic steps on session records. Methods raise `StoreUnavailableError` if the store does not answer."""

    @property
    def durable(self) -> bool:
        """Whether records outlive this process. If so, other processes share them, verifiers too."""

    async def create(self, record: SessionRecord) -> None:
        """Record a new session. Idempotent. Raises `SessionExistsError` if its id has another record."""

    async def append(self, appends: Sequence[Append]) -> list[StoreError | None]:
        """Commit to many sessions in one round trip, each by itself. Returns each one's error, or None.

        Ids that stand there already are skipped, the rest is added: so it is idempotent, also when the
        owner has drawn more since a reply was lost. Errors are `FencedError` where the key does not own the
        session, `UnknownSessionError`, `StoreUnavailableError`, and `BaseMismatchError` for a gap and for
        other ids than those recorded.
        """

    async def restore(self, record: SessionRecord) -> None:
        """Record a session as its owner knows it, after the store has lost it or never had it.

        Raises `FencedError` when a later owner's record is there.
        """

    async def claim(self, key: SessionKey, finish: FinishReason | None = None) -> SessionRecord:
        """Hand the session over to `key`'s epoch, later than the recorded one: earlier owners are fenced out.

        `finish` ends it in the same step, unless it has ended already: whoever is fenced out finds that.
        Raises `UnknownSessionError`, or `FencedError` when that epoch or a later one is recorded.
        """

    async def get(self, session_id: str) -> SessionRecord | None:
        """The record, or None."""

    async def ping(self) -> None:
        """Raises `StoreUnavailableError` unless the store answers and can write."""

    async def close(self) -> None:
        """Close connections."""
