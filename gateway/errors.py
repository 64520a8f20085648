"""Errors that clients are told, for both faces: HTTP and gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of error, with its name at each face."""

    status: int
    type: str
    code: str | None
    grpc: grpc.StatusCode


INVALID = Kind(400, "invalid_request_error", None, grpc.StatusCode.INVALID_ARGUMENT)
UNSUPPORTED = Kind(400, "invalid_request_error", "unsupported_parameter", grpc.StatusCode.INVALID_ARGUMENT)
UNKNOWN_FIELD = Kind(400, "invalid_request_error", "unknown_parameter", grpc.StatusCode.INVALID_ARGUMENT)
CONTEXT_LENGTH = Kind(
    400, "invalid_request_error", "context_length_exceeded", grpc.StatusCode.INVALID_ARGUMENT
)
INVALID_API_KEY = Kind(401, "invalid_request_error", "invalid_api_key", grpc.StatusCode.UNAUTHENTICATED)
FORBIDDEN = Kind(403, "invalid_request_error", "insufficient_permissions", grpc.StatusCode.PERMISSION_DENIED)
UNKNOWN_MODEL = Kind(404, "invalid_request_error", "model_not_found", grpc.StatusCode.NOT_FOUND)
UNKNOWN_SESSION = Kind(404, "invalid_request_error", "session_not_found", grpc.StatusCode.NOT_FOUND)
UNKNOWN_RESPONSE = Kind(404, "invalid_request_error", "response_not_found", grpc.StatusCode.NOT_FOUND)
TAKEN_OVER = Kind(409, "invalid_request_error", "session_taken_over", grpc.StatusCode.ABORTED)
NO_ROUTE = Kind(404, "invalid_request_error", "unknown_url", grpc.StatusCode.UNIMPLEMENTED)
WRONG_METHOD = Kind(405, "invalid_request_error", "method_not_supported", grpc.StatusCode.UNIMPLEMENTED)
SLOW_BODY = Kind(408, "invalid_request_error", "request_timeout", grpc.StatusCode.DEADLINE_EXCEEDED)
SLOW_HEAD = Kind(408, "invalid_request_error", "request_timeout", grpc.StatusCode.DEADLINE_EXCEEDED)
HEAD_TOO_LARGE = Kind(431, "invalid_request_error", "headers_too_large", grpc.StatusCode.INVALID_ARGUMENT)
MEDIA_TYPE = Kind(415, "invalid_request_error", "unsupported_media_type", grpc.StatusCode.INVALID_ARGUMENT)
TOO_LARGE = Kind(413, "invalid_request_error", "request_too_large", grpc.StatusCode.INVALID_ARGUMENT)
RATE_LIMITED = Kind(429, "rate_limit_error", "rate_limit_exceeded", grpc.StatusCode.RESOURCE_EXHAUSTED)
OVERLOADED = Kind(429, "rate_limit_error", "overloaded", grpc.StatusCode.RESOURCE_EXHAUSTED)
UNAVAILABLE = Kind(503, "server_error", "unavailable", grpc.StatusCode.UNAVAILABLE)
STALLED = Kind(408, "invalid_request_error", "client_stalled", grpc.StatusCode.UNAVAILABLE)
TIMEOUT = Kind(504, "server_error", "timeout", grpc.StatusCode.DEADLINE_EXCEEDED)
INTERNAL = Kind(500, "server_error", "internal_error", grpc.StatusCode.INTERNAL)


def invalid(code: str) -> Kind:
    """An invalid request with OpenAI's code."""
    return Kind(400, INVALID.type, code, INVALID.grpc)


class RequestError(Exception):
    """A request that is answered with an error.

    `param` names the field at fault; `retry_after`, in seconds, says when to ask again; `for_room`, whether
    the end of another session may be enough for it.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        param: str | None = None,
        *,
        retry_after: float | None = None,
        for_room: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.for_room = for_room

    def body(self) -> dict[str, Any]:
        """OpenAI's error body."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind.type,
                "param": self.param,
                "code": self.kind.code,
            }
        }
