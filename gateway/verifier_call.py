"""One session's call to one verifier: how it is opened and read, and how it can fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import TypeAlias

import grpc

from gateway.errors import INTERNAL, RequestError, invalid
from gateway.pod import Pod
from paceline.logprobs import LogprobsWanted
from paceline.net import rpc, wire
from paceline.service import telemetry
from paceline.session import NO_LIMITS, SpeculationLimits
from paceline.store import FencedError, SessionRecord
from paceline.v1 import verifier_pb2, verifier_pb2_grpc

log = telemetry.logger(__name__)

# Statuses after which another verifier, or the same one later, may serve the session.
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
    """A verifier has been silent for too long."""


# How a call fails. `FencedError`: another stream has the session now.
CallError: TypeAlias = grpc.aio.AioRpcError | SilentError | FencedError


def open_session(
    verifier: Pod,
    record: SessionRecord,
    trace: Sequence[tuple[str, str]],
    deadline: float | None,
    *,
    logprobs: LogprobsWanted,
    plain: bool = False,
    cache_salt: str = "",
    limits: SpeculationLimits = NO_LIMITS,
) -> Call:
    """Start a call that lets `verifier` run a session until `deadline` (on the monotonic clock).

    `logprobs`: those of the record that are still to come. `plain`: no drafter will be attached.
    `cache_salt`: of the sessions that it shares KV with. `limits`: of its drafts.
    """
    stub = verifier_pb2_grpc.VerifierServiceStub(verifier.channel)
    call: Call = stub.Open(
        verifier_pb2.OpenRequest(
            key=wire.key_to_proto(record.key),
            prompt_ids=record.prompt_ids,
            committed_ids=record.committed_ids,
            sampling=wire.sampling_to_proto(record.sampling),
            model_id=record.model_id,
            reply=record.reply,
            plain=plain,
            logprobs=wire.logprobs_to_proto(logprobs),
            committed_logprobs=record.committed_logprobs,
            cache_salt=cache_salt,
            speculation=wire.limits_to_proto(limits),
        ),
        metadata=tuple(trace),
        timeout=None if deadline is None else max(0.0, deadline - time.monotonic()),
    )
    return call


async def heard(call: AsyncIterable[Response], silence_seconds: float) -> AsyncIterator[Response]:
    """The call's responses. Raises `SilentError` if none comes for `silence_seconds`."""
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
    """Whether the verifier refused the session because it is full."""
    return (
        isinstance(error, grpc.aio.AioRpcError)
        and error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        and rpc.is_refusal(error)
    )


def is_fenced(error: CallError) -> bool:
    """Whether the session has a later owner, or was cancelled."""
    return isinstance(error, FencedError) or _code(error) is grpc.StatusCode.ABORTED


def is_death(error: CallError) -> bool:
    """Whether the verifier or its engine died, as opposed to refusing the session."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return False
    return error.code() == grpc.StatusCode.INTERNAL or not rpc.is_refusal(error)


def is_gone(error: CallError) -> bool:
    """Whether the verifier should get no sessions until it answers again."""
    return isinstance(error, SilentError) or _code(error) is grpc.StatusCode.UNAVAILABLE


def refusal(error: CallError) -> RequestError | None:
    """The client's error if no verifier would serve the session; None if one may."""
    if not isinstance(error, grpc.aio.AioRpcError) or error.code() in _MOVABLE:
        return None
    of_constraint = (error.details() or "").startswith("sampling.constraint:")
    if error.code() is grpc.StatusCode.OUT_OF_RANGE or of_constraint:
        return RequestError(invalid("invalid_value"), error.details() or "")
    log.error("verifier refused a session", code=error.code().name, details=error.details())
    return RequestError(INTERNAL, f"the verifier refused the session: {error.details()}")


def why(error: CallError) -> str:
    """The failure in a word, for the log."""
    code = _code(error)
    return "silent" if code is None else str(code.name)


def _code(error: CallError) -> grpc.StatusCode | None:
    return error.code() if isinstance(error, grpc.aio.AioRpcError) else None
