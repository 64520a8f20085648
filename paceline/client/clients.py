"""The clients: one for asyncio, one blocking."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Generator
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar

import grpc

from paceline.addresses import AddressError, is_loopback, parse_address
from paceline.client.errors import gateway_error
from paceline.client.events import Event
from paceline.client.generation import Generation
from paceline.client.stream import Stream
from paceline.net.rpc import CONNECTION_OPTIONS, proxy_options
from paceline.net.wire import finish_reason_from_proto
from paceline.session import FinishReason
from paceline.v1 import gateway_pb2, gateway_pb2_grpc

_UNARY_TIMEOUT_S = 5.0
# Pause between two calls of one stream.
_AGAIN_S = 0.2


ChannelT = TypeVar("ChannelT", grpc.Channel, grpc.aio.Channel)
Options: TypeAlias = list[tuple[str, int | str]]


class _Client(ABC, Generic[ChannelT]):
    """The base of both clients: a channel to each gateway, and its calls."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None = None,
        *,
        api_key: str | None = None,
        resume_s: float = 30.0,
        use_http_proxy: bool | None = None,
    ) -> None:
        """`address`: host:port; of several gateways, separated by commas, any may serve a call.

        `credentials`: for gateways that speak TLS, such as `grpc.ssl_channel_credentials()`.
        A stream that breaks is resumed where it broke, for `resume_s` seconds; 0 never resumes.
        `use_http_proxy`: whether to go through the proxy that `https_proxy` or `http_proxy` of the
        environment names; None goes through it except to this machine.
        """
        self.address = address
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._resume_s = resume_s
        self._channels = [
            self._connect(each, credentials, _options(each, use_http_proxy))
            for each in map(str.strip, address.split(","))
        ]
        self._stubs = [gateway_pb2_grpc.GatewayServiceStub(channel) for channel in self._channels]
        # The gateway to try first.
        self._gateway = 0

    @staticmethod
    @abstractmethod
    def _connect(address: str, credentials: grpc.ChannelCredentials | None, options: Options) -> ChannelT: ...

    def _stream(self, generation: Generation, timeout_s: float | None) -> Stream:
        return Stream(generation, timeout_s, self._resume_s, len(self._stubs), self._gateway, self._metadata)

    def _cancel(self, session_id: str) -> Any:
        request = gateway_pb2.CancelRequest(session_id=session_id)
        return self._stubs[self._gateway].Cancel(request, timeout=_UNARY_TIMEOUT_S, metadata=self._metadata)

    def _fleet(self) -> Any:
        request = gateway_pb2.FleetRequest()
        return self._stubs[self._gateway].Fleet(request, timeout=_UNARY_TIMEOUT_S, metadata=self._metadata)


class GatewayClient(_Client[grpc.aio.Channel]):
    """Async client. Its methods raise `GatewayError`. Use as `async with GatewayClient("host:port")`."""

    @staticmethod
    def _connect(
        address: str, credentials: grpc.ChannelCredentials | None, options: Options
    ) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, credentials, options=options)

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
        stream = self._stream(generation, timeout_s)
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
        """End a session wherever it runs; returns why it ended."""
        try:
            response = await self._cancel(session_id)
        except grpc.aio.AioRpcError as error:
            raise gateway_error(self.address, error) from error
        return finish_reason_from_proto(response.reason)

    async def fleet(self) -> gateway_pb2.FleetResponse:
        """The fleet as the gateway sees it."""
        try:
            fleet: gateway_pb2.FleetResponse = await self._fleet()
        except grpc.aio.AioRpcError as error:
            raise gateway_error(self.address, error) from error
        return fleet


class SyncGatewayClient(_Client[grpc.Channel]):
    """Blocking client, as `GatewayClient`. Use as `with SyncGatewayClient("host:port")`."""

    @staticmethod
    def _connect(address: str, credentials: grpc.ChannelCredentials | None, options: Options) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, credentials, options=options)

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
        stream = self._stream(generation, timeout_s)
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
        """End a session wherever it runs; returns why it ended."""
        try:
            response = self._cancel(session_id)
        except grpc.RpcError as error:
            raise gateway_error(self.address, error) from error
        return finish_reason_from_proto(response.reason)

    def fleet(self) -> gateway_pb2.FleetResponse:
        """The fleet as the gateway sees it."""
        try:
            fleet: gateway_pb2.FleetResponse = self._fleet()
        except grpc.RpcError as error:
            raise gateway_error(self.address, error) from error
        return fleet


def _options(address: str, use_http_proxy: bool | None) -> Options:
    if use_http_proxy is None:
        try:
            use_http_proxy = not is_loopback(parse_address(address)[0])
        except AddressError:  # of a form that gRPC knows, such as unix:/path
            use_http_proxy = True
    return [*CONNECTION_OPTIONS, *proxy_options(use_http_proxy)]
