"""One session's call to one verifier: opened, read with a watch on its silence, and how it can fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import TypeAlias

import grpc

from gateway.errors import INTERNAL, RequestError
from gateway.pod import Pod
from paceline.net import rpc, wire
from paceline.service import telemetry
from paceline.store import FencedError, SessionRecord
from paceline.v1 import verifier_pb2, verifier_pb2_grpc

log = telemetry.logger(__name__)

# A verifier that ends a call so may serve the session later, or another one may.
_MOVABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}

Response: TypeAlias = verifier_pb2.OpenResponse
Call: TypeAlias = "grpc.aio.UnaryStreamCall[verifier_pb2.OpenRequest, Response]"


class SilentError(Exception):
    """A verifier neither serves its session nor says why."""


# What a call ends with, if not with the session: `FencedError` where another stream has the session now.
CallError: TypeAlias = grpc.aio.AioRpcError | SilentError | FencedError


def open_session(
    verifier: Pod, record: SessionRecord, trace: Sequence[tuple[str, str]], deadline: float | None
) -> Call:
    """The call that has `verifier` go on with a session, until `deadline` (on the monotonic clock)."""
    stub = verifier_pb2_grpc.VerifierServiceStub(verifier.channel)
    call: Call = stub.Open(
        verifier_pb2.OpenRequest(
            key=wire.key_to_proto(record.key),
            prompt_ids=record.prompt_ids,
            committed_ids=record.committed_ids,
            sampling=wire.sampling_to_proto(record.sampling),
            model_id=record.model_id,
            reply=record.reply,
        ),
        metadata=tuple(trace),
        timeout=None if deadline is None else max(0.0, deadline - time.monotonic()),
    )
    return call


async def heard(call: AsyncIterable[Response], silence_seconds: float) -> AsyncIterator[Response]:
    """What the verifier says. Raises `SilentError` when it says nothing for `silence_seconds`."""
    responses = aiter(call)
    while True:
        try:
            async with asyncio.timeout(silence_seconds):
                response = await anext(responses)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise SilentError from error
        yield response


def is_full(error: CallError) -> bool:
    """Whether the verifier has said that it has no place for one more session."""
    return (
        isinstance(error, grpc.aio.AioRpcError)
        and error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        and rpc.is_refusal(error)
    )


def is_fenced(error: CallError) -> bool:
    """Whether the session has a later owner, or has been ended."""
    return isinstance(error, FencedError) or _code(error) is grpc.StatusCode.ABORTED


def is_death(error: CallError) -> bool:
    """Whether the verifier or its engine has ended, rather than said why it does not serve the session."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return False
    return error.code() == grpc.StatusCode.INTERNAL or not rpc.is_refusal(error)


def is_gone(error: CallError) -> bool:
    """Whether the verifier is to get no sessions until it answers again."""
    return isinstance(error, SilentError) or _code(error) is grpc.StatusCode.UNAVAILABLE


def refusal(error: CallError) -> RequestError | None:
    """What the client is told where no verifier would serve the session; None where one may."""
    if not isinstance(error, grpc.aio.AioRpcError) or error.code() in _MOVABLE:
        return None
    log.error("verifier refused a session", code=error.code().name, details=error.details())
    return RequestError(INTERNAL, f"the verifier refused the session: {error.details()}")


def why(error: CallError) -> str:
    """For the log."""
    code = _code(error)
    return "silent" if code is None else str(code.name)


def _code(error: CallError) -> grpc.StatusCode | None:
    return error.code() if isinstance(error, grpc.aio.AioRpcError) else None
