"""HTTP headers: the caller and the deadline in requests; allowance and retry time in responses."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from urllib.parse import quote

from fastapi import Request

from gateway.caller import Caller
from gateway.errors import RequestError, invalid
from gateway.events import Allowance, Mark
from gateway.keys import ApiKeys, authenticate
from paceline.api_keys import Scope

_TIMEOUT = "x-request-timeout"
_EVENT_IDS = "x-event-ids"
_IGNORED, _SESSION_ID, _SEED = "x-paceline-ignored-fields", "x-paceline-session-id", "x-paceline-seed"
# Of ignored fields: what of a name stays as it is, and how much is told.
_PLAIN = "[]._-"
_LONGEST_NAME, _MOST_NAMES = 128, 32
# Longer than any session: a longer time is no deadline. gRPC's clock overflows at about 292 years.
_LONGEST_SECONDS = 30 * 86400.0
# The retry time for clients where no better one is known.
_RETRY_SECONDS = 1.0


def caller(keys: ApiKeys | None, request: Request, scope: Scope | None = None) -> Caller:
    """The request's caller. Raises `RequestError` if it lacks `scope`."""
    return authenticate(keys, request.headers.get("authorization", ""), scope)


def deadline(request: Request, most_seconds: float) -> float | None:
    """The request's deadline on the monotonic clock, from its header, at most `most_seconds` away.

    0 seconds sets no bound. Raises `RequestError`.
    """
    given = request.headers.get(_TIMEOUT)
    seconds = most_seconds or math.inf
    if given is not None:
        try:
            asked = float(given)
        except ValueError:
            asked = math.nan
        if not asked > 0:
            raise RequestError(invalid("invalid_value"), "must be a number of seconds above 0", _TIMEOUT)
        seconds = min(seconds, asked)
    return None if seconds >= _LONGEST_SECONDS else time.monotonic() + seconds


def wants_event_ids(request: Request) -> bool:
    """Whether events need ids: the client asks for them, is an EventSource, or resumes a stream."""
    asked = request.headers
    return (
        asked.get(_EVENT_IDS, "").lower() in ("1", "true")
        or "text/event-stream" in asked.get("accept", "")
        or "last-event-id" in asked
    )


def of_error(error: RequestError) -> dict[str, str]:
    """Headers of an error's response."""
    if error.kind.status == 401:
        return {"www-authenticate": "Bearer"}
    if error.kind.status in (429, 503):
        return {"retry-after": str(math.ceil(error.retry_after or _RETRY_SECONDS))}
    return {}


def of_allowance(allowance: Allowance | None) -> dict[str, str]:
    """OpenAI's headers of a rate limit."""
    if allowance is None:
        return {}
    return {
        "x-ratelimit-limit-tokens": str(allowance.limit),
        "x-ratelimit-remaining-tokens": str(max(0, allowance.left)),
        "x-ratelimit-reset-tokens": f"{allowance.full_in_seconds:.3f}s",
    }


def of_ignored(names: Sequence[str]) -> dict[str, str]:
    """The header that names the body's fields that were ignored, in percent-encoding, as many as it holds."""
    told = ",".join(quote(name, safe=_PLAIN)[:_LONGEST_NAME] for name in names[:_MOST_NAMES])
    return {_IGNORED: told} if told else {}


def of_sessions(ids: Sequence[str], seed: int | None) -> dict[str, str]:
    """The ids of a reply's sessions in the order of its choices, and the first one's seed, if it is known."""
    told = {_SESSION_ID: ",".join(ids)}
    return told if seed is None else {**told, _SEED: str(seed)}


def mark(request: Request) -> Mark | None:
    """The mark of a client that resumes its stream. Raises `RequestError` for an invalid one."""
    last = request.headers.get("last-event-id")
    return Mark.parse(last) if last else None
