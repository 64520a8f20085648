"""The errors of calls to a gateway."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2, status_pb2

# How gRPC's core words a failed connection, as opposed to a gateway's own UNAVAILABLE.
_NOT_CONNECTED = ("failed to connect", "errors resolving")
_NOT_TRUSTED = ("handshake failed", "verification check failed")


class GatewayError(Exception):
    """The gateway refused or failed a call: `code` is gRPC's, the message is for people.

    `retry_after_s` says when to call again, where the gateway did.
    """

    def __init__(self, code: grpc.StatusCode, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class GatewayUnreachableError(GatewayError):
    """Nothing answers at the gateway's address."""


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    """The status of an ended call."""
    code: grpc.StatusCode = error.code()
    return code


def _is_unreachable(error: grpc.RpcError) -> bool:
    words = (error.details() or "").lower()
    return code_of(error) is grpc.StatusCode.UNAVAILABLE and any(each in words for each in _NOT_CONNECTED)


def gateway_error(address: str, error: grpc.RpcError) -> GatewayError:
    """What a client raises for a failed call of the gateways at `address`."""
    code = code_of(error)
    details = error.details() or code.name
    if _is_unreachable(error) and any(words in details.lower() for words in _NOT_TRUSTED):
        return GatewayError(code, f"no TLS with {address}, or no trust in its certificate: {details}")
    if _is_unreachable(error):
        return GatewayUnreachableError(code, f"no gateway answers at {address}")
    return GatewayError(code, details, _retry_after(error))


def _retry_after(error: grpc.RpcError) -> float | None:
    """Seconds of google.rpc.RetryInfo in a status's details."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                retry = error_details_pb2.RetryInfo()
                if detail.Unpack(retry):
                    seconds: float = retry.retry_delay.ToTimedelta().total_seconds()
                    return seconds
    return None
