"""Checks API keys of gRPC calls before a call's message is received."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc

from gateway.caller import Caller
from gateway.errors import RequestError
from gateway.keys import ApiKeys, authenticate
from paceline.api_keys import Scope
from paceline.net.rpc import RefusedError, refusing
from paceline.v1 import gateway_pb2

_SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"]
_SCOPES = {
    "Generate": Scope.GENERATE,
    "Resume": Scope.GENERATE,
    "Cancel": Scope.GENERATE,
    "Fleet": Scope.STATUS,
}
# The scope that each method needs; health checks and reflection need no key.
SCOPES = {f"/{_SERVICE.full_name}/{method.name}": _SCOPES[method.name] for method in _SERVICE.methods}

_caller: ContextVar[Caller] = ContextVar("caller")


def calling() -> Caller:
    """The caller of the call that this task serves. Raises `LookupError` without a `KeyCheck`."""
    return _caller.get()


def as_refused(error: RequestError) -> RefusedError:
    """The gRPC status of an error."""
    return RefusedError(error.kind.grpc, error.message, field=error.param, retry_after=error.retry_after)


class KeyCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without a key of their method's scope, and does not read their messages (up to MBs)."""

    def __init__(self, keys: ApiKeys | None) -> None:
        """Without keys everybody may call."""
        self._keys = keys

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The method's handler, or one that refuses."""
        scope = SCOPES.get(handler_call_details.method)
        if scope is not None:
            metadata = dict(handler_call_details.invocation_metadata or ())
            try:
                caller = authenticate(self._keys, str(metadata.get("authorization", "")), scope)
            except RequestError as error:
                return refusing(as_refused(error))
            # gRPC runs the handler in this same task.
            _caller.set(caller)
        return await continuation(handler_call_details)
