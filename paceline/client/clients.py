"""The clients: one for asyncio, one that blocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from types import TracebackType
from typing import Self

import grpc

from paceline.client.errors import gateway_error
from paceline.client.events import Event
from paceline.client.generation import Generation
from paceline.client.stream import Metadata, Stream
from paceline.rpc import CONNECTION_OPTIONS
from paceline.session import FinishReason
from paceline.v1 import gateway_pb2, gateway_pb2_grpc
from paceline.wire import finish_reason_from_proto

_UNARY_TIMEOUT_S = 5.0
# Between two calls of one stream.
_AGAIN_S = 0.2


class GatewayClient:
    """Async client. All of it raises `GatewayError`. Use as `async with GatewayClient("host:port")`."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None = None,
        *,
        api_key: str | None = None,
        resume_s: float = 30.0,
    ) -> None:
        """`address`: host:port; several gateways, separated by commas, stand in for one another.

        `credentials`: for gateways that speak TLS, such as `grpc.ssl_channel_credentials()`.
        A stream that breaks is resumed behind what it has told, for `resume_s` seconds; 0 never resumes.
        """
        self.address = address
        self._metadata = _metadata(api_key)
        self._resume_s = resume_s
        self._channels = [
            grpc.aio.secure_channel(each, credentials, options=CONNECTION_OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(each, options=CONNECTION_OPTIONS)
            for each in _addresses(address)
        ]
        self._stubs = [gateway_pb2_grpc.GatewayServiceStub(channel) for channel in self._channels]
        # The one to begin with.
        self._gateway = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            await channel.close()

    async def generate(
        self, generation: Generation, *, timeout_s: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """Stream one generation; closing the iterator early stops the session everywhere."""
        stream = Stream(
            generation, timeout_s, self._resume_s, len(self._stubs), self._gateway, self._metadata
        )
        while True:
            call = stream.call(self._stubs[stream.gateway])
            try:
                async for response in call:
                    if (event := stream.take(response)) is not None:
                        yield event
                return
            except grpc.aio.AioRpcError as error:
                if (failure := stream.fails_with(error)) is not None:
                    raise gateway_error(self.address, failure) from failure
                self._gateway = stream.gateway
            finally:
                call.cancel()
            await asyncio.sleep(_AGAIN_S)

    async def cancel(self, session_id: str) -> FinishReason:
        """End a session wherever it runs; gives why it has ended."""
        try:
            request = gateway_pb2.CancelRequest(session_id=session_id)
            response = await self._stubs[self._gateway].Cancel(
                request, timeout=_UNARY_TIMEOUT_S, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise gateway_error(self.address, error) from error
        return finish_reason_from_proto(response.reason)

    async def fleet(self) -> gateway_pb2.FleetResponse:
        """The fleet as the gateway sees it."""
        try:
            request = gateway_pb2.FleetRequest()
            fleet: gateway_pb2.FleetResponse = await self._stubs[self._gateway].Fleet(
                request, timeout=_UNARY_TIMEOUT_S, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise gateway_error(self.address, error) from error
        return fleet


class SyncGatewayClient:
    """Blocking client, as `GatewayClient`. Use as `with SyncGatewayClient("host:port")`."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None = None,
        *,
        api_key: str | None = None,
        resume_s: float = 30.0,
    ) -> None:
        """See `GatewayClient`."""
        self.address = address
        self._metadata = _metadata(api_key)
        self._resume_s = resume_s
        self._channels = [
            grpc.secure_channel(each, credentials, options=CONNECTION_OPTIONS)
            if credentials
            else grpc.insecure_channel(each, options=CONNECTION_OPTIONS)
            for each in _addresses(address)
        ]
        self._stubs = [gateway_pb2_grpc.GatewayServiceStub(channel) for channel in self._channels]
        # The one to begin with.
        self._gateway = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            channel.close()

    def generate(
        self, generation: Generation, *, timeout_s: float | None = None
    ) -> Generator[Event, None, None]:
        """Stream one generation; closing the iterator early stops the session everywhere."""
        stream = Stream(
            generation, timeout_s, self._resume_s, len(self._stubs), self._gateway, self._metadata
        )
        while True:
            call = stream.call(self._stubs[stream.gateway])
            try:
                for response in call:
                    if (event := stream.take(response)) is not None:
                        yield event
                return
            except grpc.RpcError as error:
                if (failure := stream.fails_with(error)) is not None:
                    raise gateway_error(self.address, failure) from failure
                self._gateway = stream.gateway
            finally:
                call.cancel()
            time.sleep(_AGAIN_S)

    def cancel(self, session_id: str) -> FinishReason:
        """End a session wherever it runs; gives why it has ended."""
        try:
            request = gateway_pb2.CancelRequest(session_id=session_id)
            response = self._stubs[self._gateway].Cancel(
                request, timeout=_UNARY_TIMEOUT_S, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise gateway_error(self.address, error) from error
        return finish_reason_from_proto(response.reason)

    def fleet(self) -> gateway_pb2.FleetResponse:
        """The fleet as the gateway sees it."""
        try:
            request = gateway_pb2.FleetRequest()
            fleet: gateway_pb2.FleetResponse = self._stubs[self._gateway].Fleet(
                request, timeout=_UNARY_TIMEOUT_S, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise gateway_error(self.address, error) from error
        return fleet


def _metadata(api_key: str | None) -> Metadata:
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def _addresses(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]
