"""The `gateway.request` span of an HTTP request, from its arrival to the last byte of its response."""

from __future__ import annotations

import time

from fastapi import Request
from opentelemetry.trace import Span, SpanKind, StatusCode
from starlette.datastructures import Headers
from starlette.types import Scope

from paceline.service import spans

# Of an ASGI scope, where a request's own is found.
_KEY = "paceline.request_span"


class RequestSpan:
    """Begun when the request's caller is known, so that nobody else makes spans; ended by the middleware."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._arrived = time.time_ns()
        self._stages: spans.Stages | None = None
        scope[_KEY] = self

    @property
    def response(self) -> str:
        """The value of `spans.RESPONSE_HEADER`; empty without a trace."""
        return "" if self._stages is None else spans.response(self._stages.parent)

    def begin(self) -> spans.Stages:
        """The span, in the stage in which its body comes."""
        span = spans.tracer().start_span(
            "gateway.request",
            context=spans.extract(Headers(scope=self._scope)),
            kind=SpanKind.SERVER,
            attributes={spans.FACE: "http"},
            start_time=self._arrived,
        )
        spans.name_in_logs(span)
        self._stages = spans.Stages(span)
        self._stages.enter("gateway.receive", self._arrived)
        return self._stages

    def end(self, status: int) -> None:
        """The response, of this status, is over."""
        if self._stages is None or not self._stages.parent.is_recording():
            return
        self._stages.end()
        span: Span = self._stages.parent
        span.set_attribute(spans.STATUS, status)
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()


def begin(request: Request) -> spans.Stages:
    """Begin the request's span; for a caller who may ask."""
    begun: RequestSpan = request.scope[_KEY]
    return begun.begin()
