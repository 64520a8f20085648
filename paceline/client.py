"""Typed clients, async and blocking, of the gateway's gRPC service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from google.rpc import error_details_pb2, status_pb2

from paceline.rpc import CONNECTION_OPTIONS
from paceline.session import FinishReason, Receipt
from paceline.v1 import gateway_pb2, gateway_pb2_grpc
from paceline.wire import finish_reason_from_proto, receipt_from_proto

_UNARY_TIMEOUT_S = 5.0
# Between two calls of one stream.
_AGAIN_S = 0.2
# How a stream ends whose gateway, or the way to it, is gone.
_BROKEN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
_CANNOT_RESUME = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}


class GatewayError(Exception):
    """The gateway refused or failed a call: `code` is gRPC's, the message is for people.

    `retry_after_s` says when to call again, where the gateway did.
    """

    def __init__(self, code: grpc.StatusCode, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


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


class _Stream:
    """How far a generation has been told, and the call that tells the rest."""

    def __init__(
        self,
        generation: Generation,
        timeout_s: float | None,
        resume_s: float,
        gateways: int,
        first: int,
        metadata: _Metadata,
    ) -> None:
        # Its own: other streams of the client may have gone on to another gateway.
        self.gateway = first
        self._gateways = gateways
        self._metadata = metadata
        self._request = generation.to_proto()
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._resume_s = resume_s
        self._untried = gateways - 1
        self._started: Started | None = None
        self._position = 0
        self._characters = 0
        self._broken: grpc.RpcError | None = None
        self._broken_at = 0.0

    def call(self, stub: gateway_pb2_grpc.GatewayServiceStub) -> Any:
        """The next call: the generation's own, or one that goes on behind what has been told."""
        timeout = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if self._started is None:
            return stub.Generate(self._request, timeout=timeout, metadata=self._metadata)
        rest = gateway_pb2.ResumeRequest(
            session_id=self._started.session_id, position=self._position, characters=self._characters
        )
        return stub.Resume(rest, timeout=timeout, metadata=self._metadata)

    def take(self, response: gateway_pb2.GenerateResponse) -> Event | None:
        """The event in a response; None where a resumed stream says again that it has started."""
        event = _event(response)
        if isinstance(event, Started):
            again, self._started = self._started is not None, event
            return None if again else event
        self._broken = None
        if isinstance(event, Chunk):
            self._position = event.position + len(event.token_ids)
            self._characters += len(event.text)
        return event

    def fails_with(self, error: grpc.RpcError) -> grpc.RpcError | None:
        """What is the matter, or None where it is worth to go on, at the next gateway."""
        self.gateway = (self.gateway + 1) % self._gateways
        now, code = time.monotonic(), _code(error)
        if self._deadline is not None and now >= self._deadline:
            return error
        if self._started is None:
            # Nothing has been told: it is asked anew, of every gateway once.
            self._untried -= 1
            return None if self._untried >= 0 and code in _BROKEN else error
        if self._broken is None:
            self._broken, self._broken_at = error, now
        if code not in _BROKEN:
            # Why the stream broke says more than that this gateway cannot resume it.
            return self._broken if code in _CANNOT_RESUME else error
        return None if now - self._broken_at < self._resume_s else error


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
        stream = _Stream(
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
                    raise _error(self.address, failure) from failure
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
            raise _error(self.address, error) from error
        return finish_reason_from_proto(response.reason)

    async def fleet(self) -> gateway_pb2.FleetResponse:
        """The fleet as the gateway sees it."""
        try:
            request = gateway_pb2.FleetRequest()
            fleet: gateway_pb2.FleetResponse = await self._stubs[self._gateway].Fleet(
                request, timeout=_UNARY_TIMEOUT_S, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise _error(self.address, error) from error
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
        stream = _Stream(
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
                    raise _error(self.address, failure) from failure
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
            raise _error(self.address, error) from error
        return finish_reason_from_proto(response.reason)

    def fleet(self) -> gateway_pb2.FleetResponse:
        """The fleet as the gateway sees it."""
        try:
            request = gateway_pb2.FleetRequest()
            fleet: gateway_pb2.FleetResponse = self._stubs[self._gateway].Fleet(
                request, timeout=_UNARY_TIMEOUT_S, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise _error(self.address, error) from error
        return fleet


_Metadata = tuple[tuple[str, str], ...]


def _metadata(api_key: str | None) -> _Metadata:
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def _addresses(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


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
_NOT_TRUSTED = ("handshake failed", "verification check failed")


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    code: grpc.StatusCode = error.code()
    return code


def _is_unreachable(error: grpc.RpcError) -> bool:
    words = (error.details() or "").lower()
    return _code(error) is grpc.StatusCode.UNAVAILABLE and any(each in words for each in _NOT_CONNECTED)


def _error(address: str, error: grpc.RpcError) -> GatewayError:
    code = _code(error)
    details = error.details() or code.name
    if _is_unreachable(error) and any(words in details.lower() for words in _NOT_TRUSTED):
        return GatewayError(code, f"no TLS with {address}, or no trust in its certificate: {details}")
    if _is_unreachable(error):
        return GatewayUnreachable(code, f"no gateway answers at {address}")
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
