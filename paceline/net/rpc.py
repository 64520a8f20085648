"""gRPC servers and channels: health, reflection, message bounds, error mapping, graceful stop."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from paceline.addresses import is_loopback, join_address, listen, why_not
from paceline.net.decoding import Decoding
from paceline.net.handshake import HandshakeError
from paceline.net.roles import Role
from paceline.net.tls import Identity
from paceline.net.wire import WireError
from paceline.service import garbage
from paceline.service.metrics import TASKS
from paceline.service.settings import SettingsError
from paceline.service.telemetry import logger

log = logger(__name__)

MAX_MESSAGE_BYTES = 16 << 20
# Trailing metadata key under which gRPC carries google.rpc.Status.
_DETAILS_KEY = "grpc-status-details-bin"
# Trailing metadata key that tells our own status from one that gRPC makes.
_REFUSAL_KEY = "paceline-refusal"
CONNECTION_OPTIONS: list[tuple[str, int]] = [
    # A silent peer is given up after 8 seconds at most.
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 3000),
    # Otherwise gRPC's core waits a minute for the answer to a ping, whatever the line above says.
    ("grpc.http2.ping_timeout_ms", 3000),
    # A stream's reader sends nothing, and what it measures bandwidth by uses up the pings that it is allowed
    # without data.
    ("grpc.http2.max_pings_without_data", 0),
    # A peer that comes back is reached at once, not after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Every channel its own connection: a stalled stream must not hold up another one's.
    ("grpc.use_local_subchannel_pool", 1),
]
_CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    *CONNECTION_OPTIONS,
    ("grpc.keepalive_permit_without_calls", 1),
]
# Most calls of one connection at a time; more wait inside the client's library.
MAX_STREAMS = 1024
_SERVER_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.ping_timeout_ms", 5000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    # A second process on the same port is an error, not a silent half of the traffic.
    ("grpc.so_reuseport", 0),
]

# Seconds after a stop's grace for the clean-up of cut calls: a gateway tells drafters that sessions ended.
CLEAN_UP_SECONDS = 5.0
# Seconds that a call may go on after its channel's certificate has changed; then it is cut.
_RETIREMENT_SECONDS = 3600.0

F = TypeVar("F", bound=Callable[..., Any])


def proxy_options(use_http_proxy: bool) -> list[tuple[str, int | str]]:
    """Channel options: whether to use `https_proxy` or `http_proxy`, as gRPC does by default."""
    return [("grpc.enable_http_proxy", int(use_http_proxy))]


class RefusedError(Exception):
    """A call that is answered with a status of our choosing.

    `field` names the culprit if one is; `retry_after`, in seconds, says when to call again.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after


def _as_refused(error: Exception) -> RefusedError:
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, WireError):
        return RefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error), field=error.field)
    if isinstance(error, HandshakeError):
        return RefusedError(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    log.error("unexpected error in a call", exc_info=error)
    return RefusedError(grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")


async def abort(context: grpc.aio.ServicerContext[Any, Any], refused: RefusedError) -> None:
    """End the call with the refusal's status, and google.rpc's BadRequest and RetryInfo as its details."""
    details: list[Message] = []
    if refused.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=refused.field, description=refused.message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if refused.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(math.ceil(refused.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    trailing: tuple[tuple[str, str | bytes], ...] = ((_REFUSAL_KEY, "1"),)
    if details:
        status = status_pb2.Status(code=refused.code.value[0], message=refused.message)
        for detail in details:
            status.details.add().Pack(detail)
        trailing += ((_DETAILS_KEY, status.SerializeToString()),)
    await context.abort(refused.code, refused.message, trailing)


def is_refusal(error: grpc.RpcError) -> bool:
    """Whether the called service chose the status. gRPC chooses one itself where nobody answers."""
    return any(key == _REFUSAL_KEY for key, _ in error.trailing_metadata() or ())


async def write(context: Any, response: Any) -> None:
    """Send one message of a stream. Raises `asyncio.CancelledError` where its call has ended."""
    try:
        await context.write(response)
    except grpc.aio.InternalError as error:
        # gRPC fails like this when the call has ended on the client's side and we were not told yet.
        raise asyncio.CancelledError from error


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """False for a unary call whose client had gone when gRPC sent the answer (see `write` for streams)."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, grpc.aio.InternalError) and "raised in core" in record.getMessage())


def refusing(refused: RefusedError) -> grpc.RpcMethodHandler:
    """A handler that refuses a call before any of its messages is received or decoded."""

    async def refuse(_requests: Any, context: Any) -> None:
        await abort(context, refused)

    # gRPC reads no message by itself for this kind of handler only; callers see no difference.
    return grpc.stream_stream_rpc_method_handler(refuse)


def refusals(method: F) -> F:
    """Turn an exception of a servicer's method into its gRPC status; callers see nothing else of it."""
    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        async def streaming(self: Any, request: Any, context: Any) -> None:
            # Written rather than yielded on: gRPC leaves a generator whose call is cancelled to the
            # garbage collector, which would close `method` late and in another context.
            try:
                async with aclosing(method(self, request, context)) as responses:
                    async for response in responses:
                        await write(context, response)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:
                await abort(context, _as_refused(error))

        return streaming  # type: ignore[return-value]

    @functools.wraps(method)
    async def unary(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            return await abort(context, _as_refused(error))

    return unary  # type: ignore[return-value]


class _Calls(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Tracks the calls that a server runs, because gRPC's own stop does not wait for calls that it cuts."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The method's handler; gRPC runs it in the task that this is called in."""
        call = asyncio.current_task()
        assert call is not None
        self._running.add(call)
        call.add_done_callback(self._running.discard)
        return await continuation(handler_call_details)

    async def end(self, seconds: float) -> None:
        """Return when no call runs, or after so many seconds."""
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)


class RunningServer:
    """A started gRPC server with standard health and reflection."""

    def __init__(
        self,
        server: grpc.aio.Server,
        calls: _Calls,
        health_servicer: health.aio.HealthServicer,
        host: str,
        port: int,
        identity: Identity | None,
    ) -> None:
        self.port = port
        self.address = join_address(host, port)
        self.health = health_servicer
        self._server = server
        self._calls = calls
        self._keeping_up = asyncio.create_task(identity.keep_up()) if identity else None

    async def not_serving(self) -> None:
        """Answer NOT_SERVING to health checks from now on; calls still work."""
        await self.health.enter_graceful_shutdown()

    async def stop(self, grace: float | None) -> None:
        """Fail health checks, take no new calls, give running ones `grace` seconds.

        When it returns, cut calls have ended too, clean-up included.
        """
        await self.not_serving()
        await self._server.stop(grace)
        await self._calls.end(CLEAN_UP_SECONDS)
        if self._keeping_up:
            self._keeping_up.cancel()


async def start_server(
    add: Callable[[grpc.aio.Server], None],
    *,
    services: Sequence[str],
    host: str,
    port: int,
    max_receive_bytes: int = MAX_MESSAGE_BYTES,
    max_streams: int = MAX_STREAMS,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    identity: Identity | None = None,
    setting: str = "--port",
) -> RunningServer:
    """Start a server with `add`'s servicers, health and reflection. Port 0 takes a free one.

    `max_receive_bytes` bounds a message, `max_streams` the calls of one connection at a time. `interceptors`
    see a call before any message of it is received.
    With an `identity` it speaks TLS, and keeps the identity up with its files as long as it runs.
    `host`: as `parse_host` gives it. Raises `SettingsError` when it cannot listen there; `setting`: what gave
    the port.
    """
    options = [
        *_SERVER_OPTIONS,
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.max_concurrent_streams", max_streams),
    ]
    if identity is None and not is_loopback(host):
        log.warning("no TLS: whoever reaches this port can listen and call", host=host, port=port)
    calls = _Calls()
    checks = [calls, *(identity.interceptors if identity else ()), *interceptors, Decoding()]
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_logging)
    server = grpc.aio.server(interceptors=checks, options=options)
    add(server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    for name in ("", *services):
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    check_free(host, port, setting)
    address = join_address(host, port)
    try:
        if identity is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, identity.server_credentials())
    except RuntimeError as error:
        raise SettingsError(f"cannot listen on {address}: {error}") from error
    await server.start()
    return RunningServer(server, calls, health_servicer, host, bound, identity)


def check_free(host: str, port: int, setting: str = "--port") -> None:
    """Raise `SettingsError` with the reason where a port cannot be listened on; gRPC does not say it."""
    try:
        for listener in listen(host, port):
            listener.close()
    except OSError as error:
        raise SettingsError(why_not(error, host, port, setting)) from error


def channel(
    address: str,
    server: Role | None = None,
    identity: Identity | None = None,
    *,
    use_http_proxy: bool = False,
) -> grpc.aio.Channel:
    """A channel to host:port with keepalive, message bounds and a quick reconnect.

    With an `identity` it speaks TLS and takes only a server whose certificate gives the role `server`.
    `use_http_proxy`: go through the proxy of the environment, where there is one.
    """
    options = [*_CHANNEL_OPTIONS, *proxy_options(use_http_proxy)]
    if identity is None:
        return grpc.aio.insecure_channel(address, options=options)
    if server is not None:
        options.append(("grpc.ssl_target_name_override", server.dns_name))
    return grpc.aio.secure_channel(address, identity.channel_credentials(), options=options)


class Connection:
    """A lasting connection to one server. A new channel replaces the old one when the certificate changes.

    A call stays on the channel that it began on; a replaced channel closes when its calls have ended.
    """

    def __init__(
        self, address: str, server: Role, identity: Identity | None = None, *, use_http_proxy: bool = False
    ) -> None:
        """See `channel`."""
        self._address = address
        self._use_http_proxy = use_http_proxy
        self._server = server
        self._identity = identity
        self._retiring: set[asyncio.Task[None]] = set()
        self._make()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel for a call that begins now."""
        if self._identity is not None and self._identity.current is not self._shown:
            retiring = asyncio.create_task(self._channel.close(grace=_RETIREMENT_SECONDS))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
            self._make()
        return self._channel

    async def close(self) -> None:
        """End all calls."""
        for retiring in self._retiring:
            retiring.cancel()
        await self._channel.close()

    def _make(self) -> None:
        self._shown = self._identity.current if self._identity else None
        self._channel = channel(
            self._address, self._server, self._identity, use_http_proxy=self._use_http_proxy
        )


def run_service(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run `main` until it returns; SIGTERM and SIGINT set the event it gets, a second one exits at once."""
    garbage.spare()
    garbage.give_back()

    async def guarded() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if stop.is_set():
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.raise_signal(signal.SIGTERM)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
        await main(stop)

    asyncio.run(guarded())
