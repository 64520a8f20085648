"""One session's stay at one verifier: its call there, and its drafter while the call is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection

from gateway import verifier_call
from gateway.errors import INTERNAL, RequestError
from gateway.fleet import Fleet
from gateway.followed import Followed
from gateway.places import Seat
from gateway.pod import Pod
from gateway.speculation import Speculation
from gateway.transcript import Told
from paceline.net import wire
from paceline.service import spans
from paceline.service.tasks import cancel_and_wait
from paceline.v1 import verifier_pb2

Heard = Told | verifier_pb2.Opened


class StoppingError(Exception):
    """The session's verifier is being stopped, and another one has a place for it."""


async def stay(
    session: Followed,
    verifier: Pod,
    fleet: Fleet,
    seat: Seat,
    avoid: Collection[str],
    *,
    silence_seconds: float,
    check_seconds: float,
) -> AsyncGenerator[Heard, None]:
    """What the client is to hear while the session is at `verifier`, with `Opened` when it has begun there.

    Its place at the verifier is free afterwards. `avoid`: see `Seat.verifier`. `silence_seconds`: after which
    the verifier is taken for hung. `check_seconds`: how often the drafter is checked. Raises a `CallError` if
    the call fails, and `StoppingError` if the session has a better place.
    """
    call = verifier_call.open_session(
        verifier,
        session.owned.record(),
        spans.inject(session.stages.parent),
        session.deadline,
        logprobs=session.transcript.logprobs_to_come,
        plain=not session.wanted.speculation,
        cache_salt=session.wanted.cache_salt,
        limits=session.wanted.limits,
    )
    speculation = Speculation(
        fleet,
        session.owned.key,
        session.wanted,
        session.caller.tenant_for(session.wanted.cache_salt),
        verifier.address,
        session.transcript.ids,
        check_seconds,
        session.stages.parent,
    )
    speculating: asyncio.Task[None] | None = None
    try:
        async for response in verifier_call.heard(call, silence_seconds):
            kind = response.WhichOneof("event")
            if kind == "opened":
                if session.wanted.speculation:
                    speculating = asyncio.create_task(speculation.run())
                yield response.opened
            elif kind == "drafter_aside":
                speculation.put_aside(response.drafter_aside.seconds)
            else:
                told = await _told(session, verifier, response)
                if kind == "tokens":
                    speculation.stepped(response.tokens.accepted)
                for event in told:
                    yield event
            if session.transcript.ended:
                return
            if verifier.draining and seat.has_another(session.text, avoid):
                raise StoppingError
        raise RequestError(INTERNAL, "the verifier ended the session without saying why")
    finally:
        call.cancel()
        seat.leave_verifier()
        if speculating is not None:
            await cancel_and_wait(speculating)


async def _told(session: Followed, verifier: Pod, response: verifier_pb2.OpenResponse) -> list[Told]:
    """What the client is to hear of a response: recorded, and remembered for routing."""
    told: list[Told] = []
    kind = response.WhichOneof("event")
    if kind == "tokens":
        tokens = response.tokens
        await session.owned.heard(tokens.position, tokens.token_ids, logprobs=tokens.logprobs)
        told = session.take(tokens)
    elif kind == "finished":
        reason = wire.finish_reason_from_proto(response.finished.reason)
        await session.owned.heard(session.transcript.position, (), reason)
        told = session.transcript.end(reason)
    if session.transcript.ended:
        # Before the client hears of the text's end: a chat's next turn begins with all of it.
        session.text.grown(session.transcript.ids())
        verifier.texts.send(session.text)
    return told
