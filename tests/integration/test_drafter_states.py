"""Hidden states from a scripted verifier to a method that drafts from nothing else; trees of two sources."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from drafter_svc.config import DrafterSettings
from drafter_svc.factory import factories
from drafter_svc.links import Links
from drafter_svc.service import Drafter
from paceline.features import NO_FEATURES, FeatureGrant
from paceline.net import rpc
from paceline.v1 import drafter_pb2, drafter_pb2_grpc, session_pb2, verifier_pb2
from tests.echo_method import LAYER, WEIGHTS, EchoFactory
from tests.scripted import VOCAB, Play, ScriptedVerifier, verifier
from tests.waiting import wait_until

Stub = drafter_pb2_grpc.DrafterServiceStub
GRANT = FeatureGrant((1, LAYER), 5, "float32")
# Number of the source behind those of every drafter of text.
ECHO = 2
# Nothing in it repeats for long: the text itself cannot be drafted from.
TEXT = random.Random(5).choices(range(1, VOCAB), k=400)


def scripted(plays: dict[str, Play], **changed: object) -> ScriptedVerifier:
    given = {"grant": GRANT, "weights": WEIGHTS, "step_seconds": 0.01, **changed}
    return ScriptedVerifier(plays, **given)  # type: ignore[arg-type]


@asynccontextmanager
async def pod(method: str = "lookup", **settings: object) -> AsyncIterator[tuple[Stub, Links, EchoFactory]]:
    """A drafter with the text's method and the echo; without the first where `method` is empty."""
    echo = EchoFactory()
    configured = DrafterSettings(
        port=0,
        drafter_id="d",
        grace_seconds=0,
        method=method or "lookup",
        **settings,  # type: ignore[arg-type]
    )
    made = [*(factories(configured) if method else ()), echo]
    async with Drafter.running(configured, made) as running, rpc.channel(running.address) as channel:
        yield drafter_pb2_grpc.DrafterServiceStub(channel), running.links, echo


async def attach(stub: Stub, address: str, name: str, play: Play) -> None:
    await stub.Attach(
        drafter_pb2.AttachRequest(
            key=session_pb2.SessionKey(session_id=name, epoch=1),
            verifier_address=address,
            known_ids=play.text[: play.known],
            sampling=session_pb2.SamplingParams(top_p=1.0, max_tokens=500),
        )
    )


@pytest.mark.parametrize("method", ["lookup", ""])
async def test_a_method_drafts_from_what_travels(method: str) -> None:
    """With the text's method beside it, or alone. The prompt takes several chunks."""
    play = Play(TEXT, known=100)
    script = scripted({"s": play})
    async with verifier(script) as server, pod(method) as (stub, links, _):
        await attach(stub, server.address, "s", play)
        await wait_until(lambda: play.known == len(TEXT), "the text is committed")
        await wait_until(lambda: not links.sessions, "the session is forgotten")
    sources = list(script.hellos[0].sources)
    assert sources == (["text", "prediction", "echo"] if method else ["echo"])
    assert [(list(each.layers), each.weights_fingerprint) for each in script.hellos[0].features] == [
        ([LAYER], WEIGHTS)
    ]
    echo = sources.index("echo")
    assert play.by_source[echo] > (len(TEXT) - 100) / 3
    assert all(play.by_source[echo] > 2 * count for source, count in play.by_source.items() if source != echo)
    assert play.joins == [0]
    assert 0 < script.taken_bytes <= script.sent_bytes


async def test_batches_are_of_all_sessions_that_wait_at_two_verifiers() -> None:
    plays = {f"s{number}": Play(TEXT, known=50) for number in range(8)}
    first, second = (scripted(dict(list(plays.items())[half : half + 4])) for half in (0, 4))
    async with verifier(first) as one, verifier(second) as two, pod() as (stub, _, echo):
        for number, (name, play) in enumerate(plays.items()):
            play.paused = True
            await attach(stub, (one if number < 4 else two).address, name, play)
        await wait_until(lambda: len(echo.methods) == 1, "both verifiers have one method")
        [method] = echo.methods
        await wait_until(lambda: {name for batch in method.batches for name in batch} == set(plays), "asked")
        method.go.clear()
        for play in plays.values():
            play.paused = False
        await wait_until(lambda: all(play.known > 80 for play in plays.values()), "verdicts come in")
        for play in plays.values():
            play.paused = True
        done = len(method.batches)
        method.go.set()
        await wait_until(lambda: any(len(batch) == 8 for batch in method.batches[done:]), "one batch has all")
        for play in plays.values():
            play.paused = False
        await wait_until(lambda: all(p.known == len(TEXT) for p in plays.values()), "texts are committed")
    assert all(play.by_source.get(ECHO, 0) > 50 for play in plays.values())


async def test_states_that_a_method_lost_are_asked_for_anew() -> None:
    play = Play(TEXT, known=50)
    script = scripted({"s": play}, step_seconds=0.02)
    async with verifier(script) as server, pod() as (stub, _, echo):
        await attach(stub, server.address, "s", play)
        await wait_until(lambda: play.by_source.get(ECHO, 0) > 10, "it drafts")
        echo.methods[0].lose("s")
        await wait_until(lambda: len(play.joins) == 2, "the session is joined again")
        drafted = play.by_source[ECHO]
        await wait_until(lambda: play.by_source[ECHO] > drafted + 20, "it drafts again")
        await wait_until(lambda: play.known == len(TEXT), "the text is committed")
    assert play.joins == [0, 0]
    assert script.streams == 1


async def test_a_method_without_room_is_sent_nothing_until_it_has_room() -> None:
    play = Play(TEXT, known=50)
    script = scripted({"s": play}, step_seconds=0.02)
    async with verifier(script) as server, pod() as (stub, _, echo):
        await attach(stub, server.address, "s", play)
        await wait_until(lambda: play.by_source.get(ECHO, 0) > 10, "it drafts")
        echo.methods[0].room = False
        await wait_until(lambda: play.joins[1:] == [NO_FEATURES], "it says so")
        sent = script.sent_bytes
        known = play.known
        await wait_until(lambda: play.known > known + 5, "the text goes on")
        assert script.sent_bytes == sent
        echo.methods[0].room = True
        echo.methods[0].lose("s")
        await wait_until(lambda: play.joins[2:] == [0], "it asks again")
        await wait_until(lambda: play.known == len(TEXT), "the text is committed")


async def test_a_verifier_that_comes_back_sends_what_is_still_lacking() -> None:
    play = Play(TEXT, known=100, paused=True)
    script = scripted({"s": play})
    async with pod() as (stub, _, echo):
        async with verifier(script) as server:
            await attach(stub, server.address, "s", play)
            await wait_until(lambda: bool(echo.methods and echo.methods[0].batches), "it has the states")
            port = server.port
        play.joined, play.paused = False, False
        async with verifier(script, port):
            await wait_until(lambda: play.known == len(TEXT), "the text is committed after the return")
    assert play.joins == [0, 99]
    assert len(echo.methods) == 1
    assert play.by_source[ECHO] > 100


BAD_CHUNKS = {
    "size": verifier_pb2.FeatureChunk(
        key=session_pb2.SessionKey(session_id="s", epoch=1), position=3, count=2, states=b"1234"
    ),
    "nothing": verifier_pb2.FeatureChunk(key=session_pb2.SessionKey(session_id="s", epoch=1)),
    "key": verifier_pb2.FeatureChunk(count=1, states=bytes(GRANT.position_bytes)),
}


@pytest.mark.parametrize("chunk", BAD_CHUNKS)
async def test_an_ill_formed_chunk_costs_the_stream_and_no_more(
    chunk: str, capsys: pytest.CaptureFixture[str]
) -> None:
    play = Play(TEXT, known=50)
    script = scripted({"s": play})
    async with verifier(script) as server, pod() as (stub, _, _):
        await attach(stub, server.address, "s", play)
        await wait_until(lambda: play.by_source.get(ECHO, 0) > 10, "it drafts")
        script.bad_chunks.append(BAD_CHUNKS[chunk])
        await wait_until(lambda: script.streams == 2, "there is a stream again")
        await wait_until(lambda: play.known == len(TEXT), "the text is committed")
    assert "verifier lost" in capsys.readouterr().out
    assert play.by_source[ECHO] > 100


async def test_states_of_sessions_that_are_not_here_are_passed_over() -> None:
    play = Play(TEXT, known=50)
    script = scripted({"s": play})
    stray = verifier_pb2.FeatureChunk(
        key=session_pb2.SessionKey(session_id="gone", epoch=1),
        position=3,
        count=1,
        states=bytes(GRANT.position_bytes),
    )
    async with verifier(script) as server, pod() as (stub, _, _):
        await attach(stub, server.address, "s", play)
        await wait_until(lambda: play.by_source.get(ECHO, 0) > 10, "it drafts")
        # What is said of bytes taken in counts it, and the script has not sent it as far as it knows.
        script.sent_bytes += len(stray.states)
        script.bad_chunks.append(stray)
        await wait_until(lambda: play.known == len(TEXT), "the text is committed")
    assert script.streams == 1


async def test_for_a_model_that_it_does_not_know_the_text_alone_is_drafted_from() -> None:
    play = Play(TEXT, known=50)
    script = scripted({"s": play}, weights="0" * 32)
    async with verifier(script) as server, pod() as (stub, links, echo):
        await attach(stub, server.address, "s", play)
        await wait_until(lambda: play.known == len(TEXT), "the text is committed")
        await wait_until(lambda: not links.sessions, "the session is forgotten")
    assert set(play.bases) == {0}
    assert not echo.methods


async def test_a_pod_whose_only_method_does_not_fit_gives_the_verifier_up() -> None:
    play = Play(TEXT, known=50)
    script = scripted({"s": play}, grant=None)
    async with verifier(script) as server, pod("") as (stub, links, _):
        await attach(stub, server.address, "s", play)
        await wait_until(lambda: bool(script.hellos), "the handshake is tried")
        await wait_until(lambda: not links.sessions, "the session is forgotten")
    assert not play.joined


async def test_a_verifier_of_version_1_is_drafted_for_from_the_text() -> None:
    play = Play(TEXT[:40] * 3, known=50)
    script = scripted({"s": play}, version=1, grant=None, weights="")
    async with verifier(script) as server, pod() as (stub, _, echo):
        await attach(stub, server.address, "s", play)
        await wait_until(lambda: play.known == len(play.text), "the text is committed")
    assert [hello.protocol_version for hello in script.hellos] == [2, 1]
    assert not script.hellos[1].sources
    assert not script.hellos[1].features
    assert play.accepted > play.steps
    assert not echo.methods


async def test_a_pod_without_a_method_of_text_is_no_use_to_a_verifier_of_version_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    play = Play(TEXT, known=50)
    script = scripted({"s": play}, version=1, grant=None)
    async with verifier(script) as server, pod("") as (stub, links, _):
        await attach(stub, server.address, "s", play)
        await wait_until(lambda: bool(script.hellos), "the handshake is tried")
        await wait_until(lambda: not links.sessions, "the session is forgotten")
    assert "upgrade it" in capsys.readouterr().out
    assert len(script.hellos) == 1


@pytest.mark.parametrize("ahead", [False, True])
async def test_a_larger_tree_follows_the_first_where_drafting_ahead_is_on(ahead: bool) -> None:
    text = TEXT[:40] * 8
    play = Play(text, known=50)
    # Long enough between two verdicts on any machine.
    script = scripted({"s": play}, step_seconds=0.1)
    async with verifier(script) as server, pod(draft_ahead=ahead, tree_depth=3) as (stub, _, _):
        await attach(stub, server.address, "s", play)
        await wait_until(lambda: play.known == len(text), "the text is committed", 60)
    counts = [play.bases[0].count(base) for base in set(play.bases[0]) - {0, 50}]
    assert max(counts) == (2 if ahead else 1)
    # Levels below those of the first tree are there when the next step begins.
    assert (play.accepted / play.steps > 3.5) == ahead
