"""HTTP headers: the caller and the deadline in requests; allowance and retry time in responses."""

from __future__ import annotations

import math
import time

from fastapi import Request

from gateway.caller import Caller
from gateway.errors import RequestError, invalid
from gateway.events import Allowance, Mark
from gateway.keys import ApiKeys, authenticate
from paceline.api_keys import Scope

_TIMEOUT = "x-request-timeout"
_EVENT_IDS = "x-event-ids"
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


def mark(request: Request) -> Mark | None:
    """The mark of a client that resumes its stream. Raises `RequestError` for an invalid one."""
    last = request.headers.get("last-event-id")
    return Mark.parse(last) if last else None
