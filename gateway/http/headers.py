"""What HTTP headers say: who asks and how long it waits; and to it, what is left and when to ask again."""

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
# Longer than any session; a deadline beyond is none. gRPC's clock overflows at some 292 years.
_LONGEST_SECONDS = 30 * 86400.0
# What a client is told that may try again where nobody knows when.
_RETRY_SECONDS = 1.0


def caller(keys: ApiKeys | None, request: Request, scope: Scope | None = None) -> Caller:
    """Who sent the request. Raises `RequestError` when nobody with `scope` did."""
    return authenticate(keys, request.headers.get("authorization", ""), scope)


def deadline(request: Request, most_seconds: float) -> float | None:
    """When the request's time is over, on the monotonic clock: its header's seconds, at most `most_seconds`.

    0 is no bound. Raises `RequestError`.
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
    """Whether a stream's events are to have ids: its client says so, or is an EventSource, or comes back."""
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
    """How far a client that lost its stream had come. Raises `RequestError` for what no stream has said."""
    last = request.headers.get("last-event-id")
    return Mark.parse(last) if last else None
