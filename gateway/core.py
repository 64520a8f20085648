"""The core that both faces use: prompts, sessions, keys and bounds."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from opentelemetry.trace import Span

from gateway import metrics
from gateway.choices import Told
from gateway.errors import RequestError
from gateway.kept import Kept
from gateway.keys import ApiKeys
from gateway.prompt import Prompts
from gateway.readiness import Readiness
from gateway.request_timer import RequestTimer
from gateway.sessions import Sessions
from gateway.trials import Trials
from paceline.constraints.trial import Trial
from paceline.service import spans


class Gateway:
    """One gateway's parts and settings."""

    def __init__(
        self,
        prompts: Prompts,
        sessions: Sessions,
        keys: ApiKeys | None,
        kept: Kept,
        *,
        model_name: str,
        max_body_bytes: int,
        request_seconds: float,
        client_stall_seconds: float,
        cors_origins: Sequence[str] = (),
        ignores_unknown_fields: bool = False,
    ) -> None:
        """Without keys everybody is served. `ignores_unknown_fields`: of requests over HTTP."""
        self.prompts = prompts
        self.sessions = sessions
        self.keys = keys
        # Responses that later requests may go on from.
        self.kept = kept
        self.model_name = model_name
        self.max_body_bytes = max_body_bytes
        self.request_seconds = request_seconds
        self.client_stall_seconds = client_stall_seconds
        self.cors_origins = cors_origins
        self.ignores_unknown_fields = ignores_unknown_fields
        self.started = int(time.time())
        self.trials = Trials(Trial())
        self.readiness = Readiness(sessions)


async def observed(events: AsyncGenerator[Told, None], face: str, span: Span) -> AsyncGenerator[Told, None]:
    """The same events of one request: it is counted, and each choice timed, with its span as the exemplar."""
    exemplar = spans.exemplar(span)
    came = time.monotonic()
    timers: dict[int, RequestTimer] = {}
    outcome = "cancelled"
    try:
        async with aclosing(events):
            async for told in events:
                timer = timers.get(told.choice)
                if timer is None:
                    timer = timers[told.choice] = RequestTimer(came=came, exemplar=exemplar)
                timer.saw(told.event)
                yield told
        outcome = "done"
    except RequestError as error:
        outcome = error.kind.code or error.kind.type
        raise
    finally:
        metrics.REQUESTS.labels(face=face, outcome=outcome).inc()
