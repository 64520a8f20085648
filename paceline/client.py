"""Typed clients, async and blocking, of the gateway's gRPC service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc

from paceline.session import FinishReason, Receipt
from paceline.v1 import gateway_pb2, gateway_pb2_grpc
from paceline.wire import finish_reason_from_proto, receipt_from_proto

_FLEET_TIMEOUT_S = 5.0
_OPTIONS = [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000)]


class GatewayError(Exception):
    """The gateway refused or failed a call: `code` is gRPC's, the message is for people."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class GatewayUnreachable(GatewayError):
    """Nothing answers at the gateway's address."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Generation:
    """What to generate. Give exactly one of `text` (taken as it is), `chat` and `ids`.

    What is None takes the gateway's default (see `GenerateRequest` in gateway.proto for all bounds);
    the gateway checks, not this class.
    """

    text: str | None = None
    chat: Sequence[ChatMessage] = ()
    ids: Sequence[int] = ()
    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    speculation: bool = True

    @classmethod
    def ask(cls, question: str, *, max_tokens: int | None = None, temperature: float | None = None) -> Self:
        """A chat of one user message."""
        chat = (ChatMessage("user", question),)
        return cls(chat=chat, max_tokens=max_tokens, temperature=temperature)

    def to_proto(self) -> gateway_pb2.GenerateRequest:
        """The request as it goes over the wire."""
        request = gateway_pb2.GenerateRequest(model=self.model, stop=self.stop, speculation=self.speculation)
        for name in ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed"):
            if (value := getattr(self, name)) is not None:
                setattr(request, name, value)
        if self.text is not None:
            request.text = self.text
        elif self.chat:
            request.chat.messages.extend(
                gateway_pb2.ChatMessage(role=message.role, content=message.content) for message in self.chat
            )
        else:
            request.tokens.ids.extend(self.ids)
        return request


@dataclass(frozen=True, slots=True)
class Started:
    """First event: the session's id, and the seed in force."""

    session_id: str
    model: str
    prompt_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Committed tokens and the text that is complete with them; a drafter guessed the first `accepted`."""

    text: str
    position: int
    token_ids: tuple[int, ...]
    accepted: int
    # Whether the session store has them: else they are lost with their verifier, and drawn again, the same.
    durable: bool = True


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event."""

    reason: FinishReason
    receipt: Receipt


Event = Started | Chunk | Finished


class GatewayClient:
    """Async client. All of it raises `GatewayError`. Use as `async with GatewayClient("host:port")`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub = gateway_pb2_grpc.GatewayServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def generate(
        self, generation: Generation, *, timeout_s: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """Stream one generation; closing the iterator early cancels the session everywhere."""
        call = self._stub.Generate(generation.to_proto(), timeout=timeout_s)
        try:
            async for response in call:
                yield _event(response)
        except grpc.aio.AioRpcError as error:
            raise self._refused(error) from error
        finally:
            call.cancel()

    async def fleet(self) -> gateway_pb2.FleetResponse:
        """The fleet as the gateway sees it."""
        try:
            request = gateway_pb2.FleetRequest()
            fleet: gateway_pb2.FleetResponse = await self._stub.Fleet(request, timeout=_FLEET_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._refused(error) from error
        return fleet

    def _refused(self, error: grpc.aio.AioRpcError) -> GatewayError:
        return _error(self.address, error.code(), error.details())


class SyncGatewayClient:
    """Blocking client. All of it raises `GatewayError`. Use as `with SyncGatewayClient("host:port")`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = gateway_pb2_grpc.GatewayServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def generate(
        self, generation: Generation, *, timeout_s: float | None = None
    ) -> Generator[Event, None, None]:
        """Stream one generation; closing the iterator early cancels the session everywhere."""
        call = self._stub.Generate(generation.to_proto(), timeout=timeout_s)
        try:
            for response in call:
                yield _event(response)
        except grpc.RpcError as error:
            raise self._refused(error) from error
        finally:
            call.cancel()

    def fleet(self) -> gateway_pb2.FleetResponse:
        """The fleet as the gateway sees it."""
        try:
            request = gateway_pb2.FleetRequest()
            fleet: gateway_pb2.FleetResponse = self._stub.Fleet(request, timeout=_FLEET_TIMEOUT_S)
        except grpc.RpcError as error:
            raise self._refused(error) from error
        return fleet

    def _refused(self, error: grpc.RpcError) -> GatewayError:
        return _error(self.address, error.code(), error.details())


def _event(response: gateway_pb2.GenerateResponse) -> Event:
    match response.WhichOneof("event"):
        case "started":
            started = response.started
            return Started(started.session_id, started.model, started.prompt_tokens, started.seed)
        case "chunk":
            chunk = response.chunk
            return Chunk(chunk.text, chunk.position, tuple(chunk.token_ids), chunk.accepted, chunk.durable)
        case _:
            finished = response.finished
            return Finished(finish_reason_from_proto(finished.reason), receipt_from_proto(finished.receipt))


# How grpc's core words a failed connection; a gateway's own UNAVAILABLE says something else.
_NOT_CONNECTED = ("failed to connect", "errors resolving")


def _error(address: str, code: grpc.StatusCode, details: str | None) -> GatewayError:
    message = details or code.name
    if code is grpc.StatusCode.UNAVAILABLE and any(words in message.lower() for words in _NOT_CONNECTED):
        return GatewayUnreachable(code, f"no gateway answers at {address}")
    return GatewayError(code, message)
