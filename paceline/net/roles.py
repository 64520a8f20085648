"""Which service may call which method: a certificate names a role, a table lists each role's methods."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from enum import StrEnum
from typing import Any

import grpc


class Role(StrEnum):
    """A kind of service, or KEDA as `AUTOSCALER`. Its certificate gives it by a DNS name."""

    GATEWAY = "gateway"
    VERIFIER = "verifier"
    DRAFTER = "drafter"
    AUTOSCALER = "autoscaler"

    @property
    def dns_name(self) -> str:
        """The subject alternative name of this role.

        One label, for which no wildcard stands (those stand for the first label of several), so that a
        certificate gives a role by saying so and in no other way. No public CA issues such names.
        """
        return f"paceline-role-{self}"

    @classmethod
    def of_names(cls, names: Iterable[str]) -> frozenset[Role]:
        """The roles that a certificate with these DNS names gives."""
        given = set(names)
        return frozenset(role for role in cls if role.dns_name in given)


_EVERY_ROLE = frozenset(Role)
_SERVICES = frozenset({Role.GATEWAY, Role.VERIFIER, Role.DRAFTER})
_SCALER = frozenset({Role.AUTOSCALER})
# The whole authorisation between services. Nobody may call a method that is not here.
MAY_CALL = {
    "/paceline.v1.VerifierService/Open": frozenset({Role.GATEWAY}),
    "/paceline.v1.VerifierService/Draft": frozenset({Role.DRAFTER}),
    "/paceline.v1.VerifierService/Status": _SERVICES,
    "/paceline.v1.VerifierService/Prefixes": frozenset({Role.GATEWAY}),
    "/paceline.v1.DrafterService/Attach": frozenset({Role.GATEWAY}),
    "/paceline.v1.DrafterService/Detach": frozenset({Role.GATEWAY}),
    "/paceline.v1.DrafterService/Status": _SERVICES,
    "/externalscaler.ExternalScaler/IsActive": _SCALER,
    "/externalscaler.ExternalScaler/StreamIsActive": _SCALER,
    "/externalscaler.ExternalScaler/GetMetricSpec": _SCALER,
    "/externalscaler.ExternalScaler/GetMetrics": _SCALER,
    "/grpc.health.v1.Health/Check": _EVERY_ROLE,
    "/grpc.health.v1.Health/List": _EVERY_ROLE,
    "/grpc.health.v1.Health/Watch": _EVERY_ROLE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _EVERY_ROLE,
}

# By (request streams, response streams): the handler's attribute, and the function that makes a handler.
_KINDS: dict[tuple[bool, bool], tuple[str, Callable[..., grpc.RpcMethodHandler]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class RoleCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Answers PERMISSION_DENIED unless the caller's certificate gives a role that may call the method.

    For servers that demand a client certificate.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """The method's handler behind the check; None where there is no such method."""
        handler = await continuation(handler_call_details)
        return None if handler is None else _guarded(handler, handler_call_details.method)


def _guarded(handler: grpc.RpcMethodHandler, method: str) -> grpc.RpcMethodHandler:
    name, make = _KINDS[handler.request_streaming, handler.response_streaming]
    behaviour = getattr(handler, name)

    async def guard(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        refusal = _refusal(method, context)
        if refusal:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, refusal)
        if not inspect.isasyncgenfunction(behaviour):
            return await behaviour(request, context)
        async with aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                await context.write(response)
        return None

    return make(guard, handler.request_deserializer, handler.response_serializer)


def _refusal(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Why the caller may not call a method; empty when it may."""
    names = _names(context)
    roles, allowed = Role.of_names(names), MAY_CALL.get(method, frozenset())
    if roles & allowed:
        return ""
    held = f"of role {_listed(roles)}" if roles else f"for {_listed(names)}, which is no role of Paceline,"
    return f"a certificate {held} may not call {method}; allowed: {_listed(allowed)}"


def may_be(role: Role, context: grpc.aio.ServicerContext[Any, Any]) -> bool:
    """Whether the caller has a role; over plaintext anybody may have any."""
    secured = b"ssl" in context.auth_context().get("transport_security_type", ())
    return not secured or role in Role.of_names(_names(context))


def _names(context: grpc.aio.ServicerContext[Any, Any]) -> list[str]:
    return [name.decode() for name in context.auth_context().get("peer_dns", ())]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nobody"
