"""The core that both faces use: prompts, sessions, keys and bounds."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from opentelemetry.trace import Span

from gateway import metrics
from gateway.errors import RequestError
from gateway.events import Event
from gateway.keys import ApiKeys
from gateway.prompt import Prompts
from gateway.readiness import Readiness
from gateway.request_timer import RequestTimer
from gateway.sessions import Sessions
from paceline.service import spans


class Gateway:
    """One gateway's parts and settings."""

    def __init__(
        self,
        prompts: Prompts,
        sessions: Sessions,
        keys: ApiKeys | None,
        *,
        model_name: str,
        max_body_bytes: int,
        request_seconds: float,
        client_stall_seconds: float,
        cors_origins: Sequence[str] = (),
    ) -> None:
        """Without keys everybody is served."""
        self.prompts = prompts
        self.sessions = sessions
        self.keys = keys
        self.model_name = model_name
        self.max_body_bytes = max_body_bytes
        self.request_seconds = request_seconds
        self.client_stall_seconds = client_stall_seconds
        self.cors_origins = cors_origins
        self.started = int(time.time())
        self.readiness = Readiness(sessions)


async def observed(events: AsyncGenerator[Event, None], face: str, span: Span) -> AsyncGenerator[Event, None]:
    """The same events, counted and timed, with the request's span as the exemplar."""
    timer = RequestTimer(exemplar=spans.exemplar(span))
    outcome = "cancelled"
    try:
        async with aclosing(events):
            async for event in events:
                timer.saw(event)
                yield event
        outcome = "done"
    except RequestError as error:
        outcome = error.kind.code or error.kind.type
        raise
    finally:
        metrics.REQUESTS.labels(face=face, outcome=outcome).inc()
