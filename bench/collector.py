"""An OTLP collector over gRPC that keeps what it is sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from paceline.local.plan import HOST


@dataclass(frozen=True, slots=True)
class Recorded:
    """A span as it arrived. Ids are hexadecimal, times nanoseconds since 1970."""

    name: str
    # Of its resource.
    service: str
    trace_id: str
    span_id: str
    # Empty for a trace's first span.
    parent_id: str
    began: int
    ended: int
    attributes: Mapping[str, Any]
    # Trace and span ids.
    links: Sequence[tuple[str, str]]
    events: Sequence[str]
    failed: bool

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended - self.began) / 1e9


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Use as `with Collector.running() as collector`."""

    def __init__(self) -> None:
        self.address = ""
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Collector]:
        """Listen on a free port of the loopback interface until the block is left."""
        collector = cls()
        server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
        collector.address = f"{HOST}:{server.add_insecure_port(f'{HOST}:0')}"
        server.start()
        try:
            yield collector
        finally:
            server.stop(None)

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Of OTLP's TraceService."""
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Recorded]:
        """All that came, in order of their beginning."""
        return spans_of(self.requests)

    @property
    def names(self) -> set[str]:
        """Those of the spans."""
        return {span.name for span in self.spans}


def spans_of(requests: Sequence[trace_service_pb2.ExportTraceServiceRequest]) -> list[Recorded]:
    """The spans of some messages, in order of their beginning."""
    found = [
        _recorded(span, str(_values(resource.resource.attributes).get("service.name", "")))
        for request in list(requests)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    return sorted(found, key=lambda span: (span.began, -span.ended))


def _recorded(span: trace_pb2.Span, service: str) -> Recorded:
    return Recorded(
        span.name,
        service,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _values(span.attributes),
        tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        tuple(event.name for event in span.events),
        span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
    )


def _values(attributes: Sequence[common_pb2.KeyValue]) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, kind)
        for each in attributes
        if (kind := each.value.WhichOneof("value")) is not None
    }
