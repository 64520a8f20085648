"""What a drafter may send to a verifier at its worst: each has its own error, and no text changes."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from paceline.client import ChatMessage, GatewayClient, Generation
from paceline.net import wire
from paceline.net.handshake import PROTOCOL_VERSION
from paceline.net.rpc import channel
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.store import RedisStore, SessionRecord
from paceline.v1 import session_pb2, tree_pb2, verifier_pb2, verifier_pb2_grpc
from tests.bad_input import opening
from tests.pods import MODEL, Pods
from tests.tiny import VOCAB
from tests.waiting import wait_until

VICTIM = session_pb2.SessionKey(session_id="victim", epoch=3)
JOIN = verifier_pb2.Join(key=VICTIM, known_length=2)


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (verifier_pb2.DraftRequest(leaves=["x"]), grpc.StatusCode.INVALID_ARGUMENT),
        (
            verifier_pb2.DraftRequest(hello=verifier_pb2.Hello(protocol_version=99, drafter_id="x")),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (
            verifier_pb2.DraftRequest(hello=verifier_pb2.Hello(protocol_version=PROTOCOL_VERSION)),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (
            verifier_pb2.DraftRequest(
                hello=verifier_pb2.Hello(
                    protocol_version=PROTOCOL_VERSION, drafter_id="x", vocab_fingerprint="another"
                )
            ),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (
            verifier_pb2.DraftRequest(
                hello=verifier_pb2.Hello(protocol_version=PROTOCOL_VERSION, drafter_id="x", feedback_top_k=33)
            ),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
    ],
    ids=["no hello", "version", "no id", "vocabulary", "feedback"],
)
async def test_a_drafter_that_does_not_fit_is_told_so(
    fleet: Pods, first: verifier_pb2.DraftRequest, code: grpc.StatusCode
) -> None:
    async with channel(fleet.verifier) as made:
        call = verifier_pb2_grpc.VerifierServiceStub(made).Draft(timeout=10)
        await call.write(first)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is code


class Victim:
    """A session held open at the verifier, at a known epoch, for a drafter to abuse."""

    SAMPLING = SamplingParams(max_tokens=1000)

    def __init__(self, fleet: Pods, made: grpc.aio.Channel) -> None:
        self.key = SessionKey(f"victim-{secrets.token_hex(8)}", 3)
        self.ids: list[int] = []
        self._fleet = fleet
        self._stub = verifier_pb2_grpc.VerifierServiceStub(made)

    async def follow(self) -> list[int]:
        store = RedisStore(self._fleet.redis_url, ttl_seconds=60)
        await store.create(SessionRecord(self.key, MODEL, (5, 6), self.SAMPLING))
        await store.close()
        asked = opening(key=wire.key_to_proto(self.key), sampling=wire.sampling_to_proto(self.SAMPLING))
        async for response in self._stub.Open(asked, timeout=120):
            self.ids += response.tokens.token_ids
        return self.ids

    def own(self, message: Any) -> Any:
        """A tree or join for the victim, with its real id."""
        made = type(message).FromString(message.SerializeToString())
        if made.key.session_id == "victim":
            made.key.session_id = self.key.session_id
        return made


class Attack:
    """A drafter's stream, and the victim whose text is on its way."""

    call: Any
    _channel: grpc.aio.Channel | None = None

    def __init__(self, address: str, victim: Victim, following: asyncio.Task[list[int]]) -> None:
        self.victim = victim
        self.following = following
        self._address = address

    async def begin(self, *, join: bool = True) -> None:
        """Open a stream on a new connection: an old one may have been put aside."""
        await self.end()
        self._channel = channel(self._address)
        hello = verifier_pb2.Hello(protocol_version=PROTOCOL_VERSION, drafter_id="hostile")
        self.call = verifier_pb2_grpc.VerifierServiceStub(self._channel).Draft(timeout=120)
        await self.call.write(verifier_pb2.DraftRequest(hello=hello))
        assert (await self.call.read()).welcome.vocab_size == VOCAB
        if join:
            await self.send(joins=[JOIN])

    async def end(self) -> None:
        """Hang up."""
        if self._channel is not None:
            await self._channel.close()

    async def send(
        self, *, joins: Sequence[Any] = (), trees: Sequence[Any] = (), leave: bool = False
    ) -> None:
        await self.call.write(
            verifier_pb2.DraftRequest(
                joins=map(self.victim.own, joins),
                trees=map(self.victim.own, trees),
                leaves=[self.victim.key.session_id] if leave else [],
            )
        )


@asynccontextmanager
async def attack(fleet: Pods, *, join: bool = True) -> AsyncIterator[Attack]:
    """A drafter that fits, and has joined the victim or not."""
    async with channel(fleet.verifier) as made:
        victim = Victim(fleet, made)
        following = asyncio.create_task(victim.follow())
        await wait_until(lambda: following.done() or len(victim.ids) > 2, "the victim runs")
        attacking = Attack(fleet.verifier, victim, following)
        await attacking.begin(join=join)
        yield attacking
        await attacking.end()
        following.cancel()
        await asyncio.wait({following})
    await wait_until(lambda: fleet.verifier_status().sessions == 0, "the victim is gone")


async def alone(fleet: Pods) -> list[int]:
    """The victim's text when nobody bothers it."""
    async with channel(fleet.verifier) as made:
        return await Victim(fleet, made).follow()


async def errors_of(call: Any) -> list[verifier_pb2.SessionError]:
    """The next answer's errors, verdicts passed over."""
    while True:
        answer = await asyncio.wait_for(call.read(), 20)
        assert answer is not grpc.aio.EOF
        if answer.errors:
            return list(answer.errors)


def tree(
    token: list[int],
    parent: list[int],
    *,
    log_prob: list[float] | None = None,
    base: int = 2,
    session_id: str = "victim",
    epoch: int = 3,
    source: Sequence[int] = (),
) -> tree_pb2.TokenTree:
    return tree_pb2.TokenTree(
        key=session_pb2.SessionKey(session_id=session_id, epoch=epoch),
        base_length=base,
        token=token,
        parent=parent,
        log_prob=[-0.5] * len(token) if log_prob is None else log_prob,
        source=source,
    )


HOSTILE = {
    "bad parent": (tree([5, 6], [-1, 7]), "BAD_PARENT"),
    "parent below the root": (tree([5], [-2]), "BAD_PARENT"),
    "own parent": (tree([5], [0]), "BAD_PARENT"),
    "cycle": (tree([5, 6, 7], [2, 0, 1]), "BAD_PARENT"),
    "duplicate siblings": (tree([5, 6, 6], [-1, 0, 0]), "DUPLICATE_SIBLING"),
    "token out of range": (tree([5, VOCAB], [-1, 0]), "TOKEN_OUT_OF_RANGE"),
    "largest token": (tree([2**32 - 1], [-1]), "TOKEN_OUT_OF_RANGE"),
    "too many nodes": (tree(list(range(65)), [-1] * 65), "TOO_MANY_NODES"),
    "far too many nodes": (tree([1] * 100_000, [-1] * 100_000), "TOO_MANY_NODES"),
    "too deep": (tree([5] * 33, list(range(-1, 32))), "TOO_DEEP"),
    "unequal arrays": (tree([5, 6], [-1]), "MALFORMED"),
    "positive log-probability": (tree([5], [-1], log_prob=[0.5]), "MALFORMED"),
    "log-probability that is no number": (tree([5], [-1], log_prob=[float("nan")]), "MALFORMED"),
    "log-probability of never": (tree([5, 6], [-1, 0], log_prob=[-0.5, -math.inf]), "MALFORMED"),
    "source that was not named": (tree([5, 6], [-1, 0], source=[0, 1]), "MALFORMED"),
    "largest source": (tree([5], [-1], source=[2**32 - 1]), "MALFORMED"),
    "sources of some nodes": (tree([5, 6], [-1, 0], source=[0]), "MALFORMED"),
    "epoch zero": (tree([5], [-1], epoch=0), "MALFORMED"),
    "no session id": (tree([5], [-1], session_id=""), "MALFORMED"),
    "stale epoch": (tree([5], [-1], epoch=2), "STALE_EPOCH"),
    "epoch to come": (tree([5], [-1], epoch=4), "STALE_EPOCH"),
    "unknown session": (tree([5], [-1], session_id="nobody"), "NOT_FOUND"),
    "base inside the prompt": (tree([5], [-1], base=1), "BAD_BASE"),
    "base past what is committed": (tree([5], [-1], base=2000), "BAD_BASE"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_malformed_tree_has_its_own_error_and_the_session_goes_on(fleet: Pods, name: str) -> None:
    bad, code = HOSTILE[name]
    async with attack(fleet) as attacking:
        await attacking.send(trees=[bad])
        (error,) = await errors_of(attacking.call)
        assert verifier_pb2.SessionErrorCode.Name(error.code) == f"SESSION_ERROR_CODE_{code}"
        assert error.session_id == attacking.victim.own(bad).key.session_id
        assert error.message
        assert not attacking.following.done()


async def test_the_least_of_all_finite_confidences_changes_nothing(fleet: Pods) -> None:
    least = tree([5, 6, 7], [-1, 0, 1], log_prob=[-3.4028234663852886e38] * 3)
    expected = await alone(fleet)
    async with attack(fleet) as attacking:
        # As often as it is asked: more would be a flood.
        while not attacking.following.done():
            answer = await asyncio.wait_for(attacking.call.read(), 20)
            for verdict in answer.verdicts:
                least.base_length = verdict.base_length + len(verdict.committed)
                if not verdict.finished:
                    await attacking.send(trees=[least])
            if any(verdict.finished for verdict in answer.verdicts):
                break
        assert await attacking.following == expected


async def test_a_tree_for_a_session_not_joined(fleet: Pods) -> None:
    sound = tree([5], [-1])
    async with attack(fleet, join=False) as attacking:
        await attacking.send(trees=[sound])
        (error,) = await errors_of(attacking.call)
        assert error.code == verifier_pb2.SESSION_ERROR_CODE_NOT_JOINED
        await attacking.send(joins=[JOIN])
        await attacking.send(leave=True)
        await attacking.send(trees=[sound])
        (error,) = await errors_of(attacking.call)
        assert error.code == verifier_pb2.SESSION_ERROR_CODE_NOT_JOINED
        assert not attacking.following.done()


@pytest.mark.parametrize(
    ("join", "code"),
    [
        (verifier_pb2.Join(key=VICTIM, known_length=1), "BAD_BASE"),
        (verifier_pb2.Join(key=VICTIM, known_length=2000), "BAD_BASE"),
        (
            verifier_pb2.Join(key=session_pb2.SessionKey(session_id="nobody", epoch=1), known_length=2),
            "NOT_FOUND",
        ),
        (
            verifier_pb2.Join(key=session_pb2.SessionKey(session_id="victim", epoch=2), known_length=2),
            "STALE_EPOCH",
        ),
        (verifier_pb2.Join(known_length=2), "MALFORMED"),
    ],
    ids=["in the prompt", "past the end", "unknown", "stale", "no key"],
)
async def test_a_bad_join_has_its_own_error(fleet: Pods, join: verifier_pb2.Join, code: str) -> None:
    async with attack(fleet, join=False) as attacking:
        await attacking.send(joins=[join])
        (error,) = await errors_of(attacking.call)
        assert verifier_pb2.SessionErrorCode.Name(error.code) == f"SESSION_ERROR_CODE_{code}"
        assert not attacking.following.done()


@pytest.mark.parametrize("what", ["joins", "trees", "leaves"])
async def test_a_message_that_names_more_sessions_than_there_can_be(fleet: Pods, what: str) -> None:
    empty: Any = {"joins": verifier_pb2.Join(), "trees": tree_pb2.TokenTree(), "leaves": ""}[what]
    named: dict[str, Any] = {what: [empty] * 200_000}
    async with channel(fleet.verifier) as made:
        call = verifier_pb2_grpc.VerifierServiceStub(made).Draft(timeout=20)
        hello = verifier_pb2.Hello(protocol_version=PROTOCOL_VERSION, drafter_id="talkative")
        await call.write(verifier_pb2.DraftRequest(hello=hello))
        await call.read()
        await call.write(verifier_pb2.DraftRequest(**named))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_barrage_changes_no_text(fleet: Pods) -> None:
    """All of it at once, over and over, while its victim and a bystander finish with the right texts."""
    asked = Generation(
        chat=[ChatMessage("user", "the quick brown fox")], max_tokens=300, temperature=0.8, seed=11
    )
    barrage = [bad for name, (bad, _) in HOSTILE.items() if name != "far too many nodes"]
    async with GatewayClient(fleet.grpc) as client:

        async def text() -> str:
            events = [event async for event in client.generate(asked)]
            return "".join(getattr(event, "text", "") for event in events)

        undisturbed, untouched = await text(), await alone(fleet)
        async with attack(fleet) as attacking:
            bystander = asyncio.create_task(text())
            codes: set[int] = set()

            finishing = {attacking.following, bystander}
            while not all(task.done() for task in finishing):
                # Only the first few have a cause, and are looked at.
                barrage = barrage[3:] + barrage[:3]
                await attacking.send(trees=barrage)
                codes.update(error.code for error in await errors_of(attacking.call))
                await attacking.begin()
                await asyncio.wait(finishing, timeout=0.05)
            assert await attacking.following == untouched
            assert await bystander == undisturbed
            assert len(codes) >= 9


async def test_a_sound_tree_of_nonsense_changes_no_text(fleet: Pods) -> None:
    untouched = await alone(fleet)
    before = fleet.verifier_status().drafted_tokens
    async with attack(fleet) as attacking:
        finished = False
        # Who never helps is put aside before the end.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while not finished:
                answer = await asyncio.wait_for(attacking.call.read(), 20)
                for verdict in answer.verdicts:
                    known = verdict.base_length + len(verdict.committed)
                    nonsense = [(known * 7 + at) % VOCAB for at in range(8)]
                    finished = verdict.finished
                    if not finished:
                        await attacking.send(trees=[tree(nonsense, [-1, -1, 0, 1, 2, 3, 4, 5], base=known)])
        assert await attacking.following == untouched
    assert fleet.verifier_status().drafted_tokens > before
