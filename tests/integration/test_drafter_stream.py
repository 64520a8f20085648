"""A drafter process' whole inside against a scripted verifier over real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from bench import tables
from drafter_svc import methods
from drafter_svc.config import DrafterSettings
from drafter_svc.factory import factories
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.links import Links
from drafter_svc.methods.base import Ask, Method, MethodFactory, Needs, Target
from drafter_svc.service import Drafter
from paceline.net import rpc
from paceline.net.handshake import PROTOCOL_VERSION
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.training.texts import Writing
from paceline.tree import TokenTree
from paceline.v1 import drafter_pb2, drafter_pb2_grpc, session_pb2
from tests.scripted import TEXT, TOP_K, VOCAB, Play, ScriptedVerifier, verifier
from tests.waiting import wait_until

Stub = drafter_pb2_grpc.DrafterServiceStub


@asynccontextmanager
async def drafter(
    factory: MethodFactory | None = None, **changed: object
) -> AsyncIterator[tuple[Stub, Links]]:
    settings = DrafterSettings(port=0, drafter_id="d", grace_seconds=0, **changed)  # type: ignore[arg-type]
    made = [factory] if factory else factories(settings)
    async with Drafter.running(settings, made) as running, rpc.channel(running.address) as channel:
        yield drafter_pb2_grpc.DrafterServiceStub(channel), running.links


def attach(
    address: str, known: list[int], session_id: str = "s", epoch: int = 1, tenant: str = ""
) -> drafter_pb2.AttachRequest:
    return drafter_pb2.AttachRequest(
        key=session_pb2.SessionKey(session_id=session_id, epoch=epoch),
        verifier_address=address,
        known_ids=known,
        sampling=session_pb2.SamplingParams(top_p=1.0, max_tokens=500),
        tenant=tenant,
    )


async def status(stub: Stub) -> drafter_pb2.DrafterStatusResponse:
    told: drafter_pb2.DrafterStatusResponse = await stub.Status(drafter_pb2.DrafterStatusRequest())
    return told


async def test_a_session_is_drafted_to_its_end_and_forgotten() -> None:
    script = ScriptedVerifier({"s": Play(TEXT, known=10)})
    async with verifier(script) as server, drafter() as (stub, links):
        await stub.Attach(attach(server.address, TEXT[:8]))
        play = script.plays["s"]
        await wait_until(lambda: play.known == len(TEXT), "the text is committed")
        await wait_until(lambda: not links.sessions, "the session is forgotten")
        told = await status(stub)
    assert script.hellos[0].protocol_version == PROTOCOL_VERSION
    assert script.hellos[0].feedback_top_k == TOP_K
    assert play.accepted > play.steps
    assert told.verifiers == [server.address]
    assert told.accepted_tokens == play.accepted
    assert told.trees > 0


@pytest.mark.parametrize("known", [False, True])
async def test_tables_are_known_from_the_first_token(tmp_path: Path, known: bool) -> None:
    # Nothing in it repeats, and no token follows as the scripted feedback says.
    text = [(i * 27) % 61 + 1 for i in range(60)]
    if known:
        method = methods.create("lookup+recycling", VOCAB)
        top_ids = [(token, *range(1, TOP_K)) for token in text[2:]]
        tables.learn(method, 0, Writing(tuple(text[:2]), SamplingParams(max_tokens=58), text[2:], top_ids))
        methods.tables.save(method, tmp_path, "f")
    script = ScriptedVerifier({"s": Play(text, known=2)})
    async with verifier(script) as server, drafter(tables=tmp_path) as (stub, _):
        await stub.Attach(attach(server.address, text[:2]))
        await wait_until(lambda: script.plays["s"].known == len(text), "the text is committed")
    assert (script.plays["s"].accepted > 20) == known


async def test_an_attach_that_is_cancelled_leaves_no_session_unjoined() -> None:
    """Its gateway may have died in the middle of it, and will not say Detach."""
    plays = {"s": Play(TEXT, known=5, paused=True), "t": Play(TEXT, known=5)}
    script = ScriptedVerifier(plays)
    async with verifier(script) as server, drafter() as (stub, links):
        await stub.Attach(attach(server.address, TEXT[:5], "s"))
        await wait_until(lambda: plays["s"].joined, "the stream is up")
        hypothesis = Hypothesis(SessionKey("t", 1), SamplingParams(max_tokens=500), TEXT[:5])
        attaching = asyncio.create_task(links.attach(server.address, hypothesis))
        await asyncio.sleep(0)
        assert links.sessions == 2
        attaching.cancel()
        await wait_until(lambda: plays["t"].known == len(TEXT), "the session is drafted for")
    assert script.streams == 1


async def test_many_sessions_share_one_stream() -> None:
    plays = {f"s{i}": Play(TEXT[i:], known=5) for i in range(12)}
    script = ScriptedVerifier(plays)
    async with verifier(script) as server, drafter() as (stub, _):
        await asyncio.gather(
            *(stub.Attach(attach(server.address, play.text[:5], name)) for name, play in plays.items())
        )
        await wait_until(
            lambda: all(p.known == len(p.text) for p in plays.values()), "all texts are committed"
        )
    assert script.streams == 1


async def test_a_verifier_that_comes_back_is_joined_again() -> None:
    play = Play(TEXT, known=5, paused=True)
    script = ScriptedVerifier({"s": play})
    async with drafter() as (stub, _):
        async with verifier(script) as server:
            await stub.Attach(attach(server.address, TEXT[:5]))
            await wait_until(lambda: play.joined, "the session is joined")
            port, address = server.port, server.address
        play.joined, play.paused = False, False
        async with verifier(script, port):
            await wait_until(lambda: play.known == len(TEXT), "the text is committed after the return")
            assert (await status(stub)).verifiers == [address]
    assert script.streams == 2


async def test_sessions_of_a_verifier_that_stays_away_are_dropped() -> None:
    script = ScriptedVerifier({"s": Play(TEXT, known=5, paused=True)})
    async with drafter(rejoin_seconds=0.2) as (stub, links):
        async with verifier(script) as server:
            await stub.Attach(attach(server.address, TEXT[:5]))
            await wait_until(lambda: script.plays["s"].joined, "the session is joined")
        await wait_until(lambda: not links.sessions, "the session is forgotten")


async def test_a_session_the_verifier_does_not_know_is_forgotten() -> None:
    script = ScriptedVerifier({"t": Play(TEXT, known=5)})
    async with verifier(script) as server, drafter() as (stub, links):
        await stub.Attach(attach(server.address, [1], "gone"))
        await stub.Attach(attach(server.address, TEXT[:5], "t"))
        await wait_until(lambda: script.plays["t"].known == len(TEXT), "the other session is not hurt")
        await wait_until(lambda: not links.sessions, "the session is forgotten")


async def test_detach_leaves_and_a_later_epoch_replaces() -> None:
    play = Play(TEXT, known=5, paused=True)
    script = ScriptedVerifier({"s": play})
    async with verifier(script) as server, drafter() as (stub, _):
        await stub.Attach(attach(server.address, TEXT[:5]))
        await stub.Attach(attach(server.address, TEXT[:5], epoch=3))
        await wait_until(lambda: play.epoch == 3, "the later epoch is joined")
        await stub.Detach(drafter_pb2.DetachRequest(session_id="s"))
        await stub.Detach(drafter_pb2.DetachRequest(session_id="never seen"))
        await wait_until(lambda: "s" in script.leaves, "the verifier is told")
        assert (await status(stub)).sessions == 0


async def test_another_verifier_moves_the_session() -> None:
    old = ScriptedVerifier({"s": Play(TEXT, known=5, paused=True)})
    new = ScriptedVerifier({"s": Play(TEXT, known=5)})
    async with verifier(old) as first, verifier(new) as second, drafter() as (stub, _):
        await stub.Attach(attach(first.address, TEXT[:5]))
        await wait_until(lambda: old.plays["s"].joined, "the first verifier is joined")
        await stub.Attach(attach(second.address, TEXT[:5], epoch=2))
        await wait_until(lambda: new.plays["s"].known == len(TEXT), "the second one is drafted for")
        await wait_until(lambda: "s" in old.leaves, "the first one is left")


async def test_a_method_that_needs_no_feedback_asks_for_none() -> None:
    script = ScriptedVerifier({"s": Play(TEXT, known=10)})
    async with verifier(script) as server, drafter(method="lookup") as (stub, _):
        await stub.Attach(attach(server.address, TEXT[:8]))
        await wait_until(lambda: script.plays["s"].known == len(TEXT), "the text is committed")
    assert script.hellos[0].feedback_top_k == 0


class SlowMethod(Method):
    """Computes a chain of the scripted text's ids, once the test lets it."""

    name = "slow"

    def __init__(self) -> None:
        self.go = threading.Event()
        self.batches: list[list[tuple[str, int]]] = []

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        self.batches.append([(ask.session.key.session_id, ask.length) for ask in asks])
        assert self.go.wait(30)
        return [self._chain(ask) for ask in asks]

    def _chain(self, ask: Ask) -> TokenTree:
        if ask.session.key.session_id == "bad":
            raise ValueError("a session that cannot be drafted for")
        ids = TEXT[ask.length : ask.length + min(4, ask.nodes)]
        return TokenTree(tuple(ids), tuple(range(-1, len(ids) - 1)), (-0.1,) * len(ids))

    def forget(self, session_id: str) -> None: ...


class SlowFactory(MethodFactory):
    name = "slow"
    needs = Needs(feedback_top_k=3)
    computes = True
    weights = ()

    def __init__(self) -> None:
        self.method = SlowMethod()
        self.targets: list[Target] = []

    def create(self, target: Target) -> Method:
        self.targets.append(target)
        return self.method


async def test_a_method_that_computes_holds_nothing_up() -> None:
    """While it computes verdicts are taken in and calls answered; then one batch drafts for all who wait."""
    plays = {"s": Play(TEXT, known=5, paused=True), "t": Play(TEXT, known=5, paused=True)}
    script, factory = ScriptedVerifier(plays), SlowFactory()
    method = factory.method
    async with verifier(script) as server, drafter(factory) as (stub, links):
        await stub.Attach(attach(server.address, TEXT[:5], "s"))
        await wait_until(lambda: method.batches == [[("s", 5)]], "it computes")
        await stub.Attach(attach(server.address, TEXT[:5], "t"))
        held = {session_id: hypothesis(links, session_id) for session_id in plays}
        for play in plays.values():
            play.paused = False
        await wait_until(lambda: all(len(known.ids) > 20 for known in held.values()), "verdicts come in")
        for play in plays.values():
            play.paused = True
        told = await status(stub)
        assert (told.sessions, told.trees) == (2, 0)
        assert len(method.batches) == 1
        assert not any(play.accepted for play in plays.values())
        method.go.set()
        for play in plays.values():
            play.paused = False
        await wait_until(lambda: all(p.known == len(p.text) for p in plays.values()), "texts are committed")
    assert {name for name, _ in method.batches[1]} == {"s", "t"}
    assert all(length > 20 for _, length in method.batches[1])
    assert all(play.accepted for play in plays.values())
    assert script.hellos[0].feedback_top_k == 3
    assert factory.targets == [Target("m", "f", VOCAB, "w" * 32)]


def hypothesis(links: Links, session_id: str) -> Hypothesis:
    [link] = [link for link, _ in links._links.values()]
    return link.rounds._seats[session_id].hypothesis


async def test_a_session_that_the_method_fails_for_is_left_and_others_go_on() -> None:
    plays = {"bad": Play(TEXT, known=5), "t": Play(TEXT, known=5)}
    script, factory = ScriptedVerifier(plays), SlowFactory()
    factory.method.go.set()
    async with verifier(script) as server, drafter(factory) as (stub, links):
        for session_id in plays:
            await stub.Attach(attach(server.address, TEXT[:5], session_id))
        await wait_until(lambda: "bad" in script.leaves, "the verifier is told")
        await wait_until(lambda: plays["t"].known == len(TEXT), "the other is drafted for")
        await wait_until(lambda: not links.sessions, "both are forgotten")
    assert plays["t"].accepted
    assert script.streams == 1


async def test_a_refused_handshake_drops_the_sessions() -> None:
    script = ScriptedVerifier({"s": Play(TEXT, known=5)}, refuse="another protocol")
    async with verifier(script) as server, drafter() as (stub, links):
        await stub.Attach(attach(server.address, TEXT[:5]))
        await wait_until(lambda: bool(script.hellos), "the handshake is tried")
        await wait_until(lambda: not links.sessions, "the session is forgotten")


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        (drafter_pb2.AttachRequest(), "verifier_address"),
        (attach("no port", [1]), "verifier_address"),
        (attach("127.0.0.1:99999", [1]), "verifier_address"),
        (attach("127.0.0.1:1", []), "known_ids"),
        (attach("127.0.0.1:1", [1], "bad id!"), "session_id"),
        (attach("127.0.0.1:1", [1], epoch=0), "epoch"),
        (attach("127.0.0.1:1", [1], tenant="a b"), "tenant"),
        (attach("127.0.0.1:1", [1], tenant="t" * 129), "tenant"),
    ],
)
async def test_a_bad_attach_is_refused_by_name(request_: drafter_pb2.AttachRequest, part: str) -> None:
    async with drafter() as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Attach(request_)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert part in (refused.value.details() or "")


async def test_sessions_are_bounded() -> None:
    script = ScriptedVerifier({"a": Play(TEXT, known=5, paused=True), "b": Play(TEXT, known=5, paused=True)})
    async with verifier(script) as server, drafter(max_sessions=1) as (stub, _):
        await stub.Attach(attach(server.address, TEXT[:5], "a"))
        await stub.Attach(attach(server.address, TEXT[:5], "a"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Attach(attach(server.address, TEXT[:5], "b"))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
