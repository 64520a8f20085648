"""One generation's stream, over several calls if it breaks."""

from __future__ import annotations

import time
from typing import Any

import grpc

from paceline.client.errors import code_of
from paceline.client.events import Chunk, Event, Started, event_from_proto
from paceline.client.generation import Generation
from paceline.v1 import gateway_pb2, gateway_pb2_grpc

Metadata = tuple[tuple[str, str], ...]

# Statuses of a stream whose gateway, or connection to it, is gone.
_BROKEN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
# A gateway that is back is asked again at most a second later: `rpc.CONNECTION_OPTIONS`, and some jitter.
_NOTICED_S = 1.5
_CANNOT_RESUME = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}


class Stream:
    """What was received of a generation, and the call that gives the rest."""

    def __init__(
        self,
        generation: Generation,
        timeout_s: float | None,
        resume_s: float,
        gateways: int,
        first: int,
        metadata: Metadata,
    ) -> None:
        # Per stream: other streams of the client may use another gateway.
        self.gateway = first
        self._gateways = gateways
        self._metadata = metadata
        self._request = generation.to_proto()
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._resume_s = resume_s
        self._untried = gateways - 1
        self._first_failed_at: float | None = None
        self._started: Started | None = None
        self._position = 0
        self._characters = 0
        self._broken: grpc.RpcError | None = None
        self._broken_at = 0.0

    def call(self, stub: gateway_pb2_grpc.GatewayServiceStub) -> Any:
        """The next call: the generation's first, or one that resumes it."""
        timeout = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if self._started is None:
            return stub.Generate(self._request, timeout=timeout, metadata=self._metadata)
        rest = gateway_pb2.ResumeRequest(
            session_id=self._started.session_id, position=self._position, characters=self._characters
        )
        return stub.Resume(rest, timeout=timeout, metadata=self._metadata)

    def take(self, response: gateway_pb2.GenerateResponse) -> Event | None:
        """The event in a response; None if a resumed stream repeats that it has started."""
        event = event_from_proto(response)
        if isinstance(event, Started):
            again, self._started = self._started is not None, event
            return None if again else event
        self._broken = None
        if isinstance(event, Chunk):
            self._position = event.position + len(event.token_ids)
            self._characters += event.characters
        return event

    def fails_with(self, error: grpc.RpcError) -> grpc.RpcError | None:
        """The error to raise, or None if the next gateway should be tried."""
        self.gateway = (self.gateway + 1) % self._gateways
        now, code = time.monotonic(), code_of(error)
        if self._deadline is not None and now >= self._deadline:
            return error
        if self._started is None:
            # Nothing has been told: it is asked anew, of every gateway once, and of all for a moment: one may
            # be back and not be noticed yet when the one that stood in for it goes.
            self._untried -= 1
            if self._first_failed_at is None:
                self._first_failed_at = now
            a_moment = self._gateways > 1 and now - self._first_failed_at < _NOTICED_S
            return None if (self._untried >= 0 or a_moment) and code in _BROKEN else error
        if self._broken is None:
            self._broken, self._broken_at = error, now
        if code not in _BROKEN:
            # The reason why the stream broke is more useful than that it cannot be resumed here.
            return self._broken if code in _CANNOT_RESUME else error
        return None if now - self._broken_at < self._resume_s else error
