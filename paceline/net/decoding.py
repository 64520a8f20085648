"""Refuse bytes that are not a valid message, as any other bad input, for every method of a server."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from paceline.net.wire import WireError


class UndecodableError(WireError):
    """The bytes that arrived are not a message of the method's type."""

    def __init__(self, reason: str) -> None:
        ValueError.__init__(self, reason)
        self.field = None


class Decoding(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Answers undecodable messages with INVALID_ARGUMENT; gRPC alone answers UNKNOWN and logs a traceback."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Return the method's handler with a decoder whose failures become answers."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        taken = "stream" if handler.request_streaming else "unary"
        given = "stream" if handler.response_streaming else "unary"
        behavior = f"{taken}_{given}"
        return handler._replace(
            request_deserializer=_decoder(handler.request_deserializer),
            **{behavior: _checked(getattr(handler, behavior), streamed=handler.request_streaming)},
        )


def _decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    # gRPC gives a decoder no way to fail with a status, so failures travel as messages.
    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError as error:
            return UndecodableError(str(error))

    return decoded


def _checked(behavior: Callable[[Any, Any], Any], *, streamed: bool) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        try:
            checked = _sound(request) if streamed else _raised(request)
            if not inspect.isasyncgenfunction(behavior):
                return await behavior(checked, context)
            async with aclosing(behavior(checked, context)) as responses:
                async for response in responses:
                    await context.write(response)
        except UndecodableError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    return call


async def _sound(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _raised(request)


def _raised(request: Any) -> Any:
    if isinstance(request, UndecodableError):
        raise request
    return request
