"""What a drafter may do with hidden states at its worst: it changes nothing but its own speed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from paceline.features import MAX_WINDOW_BYTES, MIN_WINDOW_BYTES, NO_FEATURES
from paceline.net import wire
from paceline.net.rpc import channel
from paceline.v1 import tree_pb2, verifier_pb2, verifier_pb2_grpc
from tests.pace import Pace
from tests.pods import Pods
from tests.sessions import OpenSession, opened
from tests.state_taker import StateTaker, taking
from tests.tiny import VOCAB, make_tiny_model
from tests.usage import samples, usage
from tests.waiting import wait_until

PROMPT = list(range(5, 205))
TOKENS = 3000
# Of the tiny model in float32.
POSITION_BYTES = 2 * 64 * 4
SOURCES = ("text", "draft", "eagle")
# What a process may grow by beside whom a drafter takes nothing in.
MAY_GROW_MB = 24.0
# Of three layers of a wide model in float32: a prompt has 24 MB.
WIDE, WIDE_PROMPT = 1024, 2000
WIDE_BYTES = 3 * WIDE * 4


@pytest.fixture(scope="module")
def pace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pace]:
    made = Pace(tmp_path_factory.mktemp("pace") / "seconds")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.variables.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def pods(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str, pace: Pace
) -> Iterator[Pods]:
    flags = ("--keep-states", "0,2")
    folder = tmp_path_factory.mktemp("states")
    with Pods(folder, tiny_model, redis_url, drafters=0, verifier_flags=flags, metrics=True) as made:
        made.verifier_module = "tests.paced_verifier"
        yield made.start()
        log = made.pods[made.verifier].log.read_text()
        assert "Traceback" not in log
        assert "[error" not in log


@pytest.fixture(scope="module")
def text(pods: Pods) -> list[int]:
    """The victim's text when nobody bothers it."""

    async def alone() -> list[int]:
        session = OpenSession(PROMPT, TOKENS)
        async with opened(pods, session):
            await wait_until(lambda: session.finished, "it ends", 120)
        return session.ids

    return asyncio.run(alone())


@asynccontextmanager
async def victim(pods: Pods, text: Sequence[int]) -> AsyncIterator[OpenSession]:
    """A session that something is done to in the block; it ends with its text all the same."""
    session = OpenSession(PROMPT, TOKENS)
    async with opened(pods, session):
        yield session
        await wait_until(lambda: session.finished, "it ends", 120)
    assert session.ids == list(text)


async def counted(pods: Pods, name: str) -> float:
    return (await asyncio.to_thread(samples, pods, pods.verifier)).get(name, 0.0)


async def gone_on(session: OpenSession, tokens: int = 200) -> None:
    """The session goes on, whatever the drafter does."""
    length = len(session.ids)
    await wait_until(lambda: session.finished or len(session.ids) >= length + tokens, "it goes on")


def hello(*, sources: Sequence[str] = (), **changes: Any) -> verifier_pb2.DraftRequest:
    fields: dict[str, Any] = {"layers": [0, 2], "window_bytes": MIN_WINDOW_BYTES, **changes}
    request = verifier_pb2.FeatureRequest(**fields)
    return verifier_pb2.DraftRequest(
        hello=verifier_pb2.Hello(protocol_version=2, drafter_id="x", features=[request], sources=sources)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_bytes": MAX_WINDOW_BYTES + 1}, "window_bytes must be 65536 to 67108864, got 67108865"),
        ({"window_bytes": 2**32 - 1}, "window_bytes must be"),
        ({"layers": []}, "must name 1 to 8 layers"),
        ({"layers": range(50_000)}, "must name 1 to 8 layers"),
        ({"layers": [2, 0]}, "must ascend"),
        ({"layers": [0, 3]}, "asks for layer 3; the target's last one is 2"),
        ({"weights_fingerprint": "mine"}, "empty or 32 hex digits"),
        ({"sources": [f"s{number}" for number in range(17)]}, "more than 16 names"),
        ({"sources": ["text", ""]}, "source 1 must have 1 to 32 characters"),
        ({"sources": ['text"} 1\n']}, "source 0 must have 1 to 32 characters"),
        ({"sources": ["text", "text"]}, "a name twice"),
    ],
    ids=[
        "window",
        "largest window",
        "no layer",
        "many layers",
        "order",
        "beyond the model",
        "weights",
        "many sources",
        "source without a name",
        "source's characters",
        "source twice",
    ],
)
async def test_a_request_that_breaks_a_bound_is_refused_and_told_why(
    pods: Pods, changes: dict[str, Any], message: str
) -> None:
    async with channel(pods.verifier) as made:
        call = verifier_pb2_grpc.VerifierServiceStub(made).Draft(timeout=10)
        await call.write(hello(**changes))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert message in (caught.value.details() or "")


@pytest.mark.parametrize(
    "asked",
    [
        {"layers": (0, 1)},
        {"layers": (0, 2), "weights": "0" * 32},
        {"layers": (0, 2), "version": 1},
    ],
    ids=["a layer that is not kept", "other weights", "version 1"],
)
async def test_who_is_granted_nothing_is_sent_nothing_and_may_draft(
    pods: Pods, text: list[int], asked: dict[str, Any]
) -> None:
    before = await counted(pods, "paceline:state_bytes_total")
    async with victim(pods, text) as session, taking(pods.verifier, **asked) as taker:
        assert not taker.welcome.HasField("features")
        assert taker.welcome.vocab_size
        taken = await taker.join(session.key, len(PROMPT), 7)
        await wait_until(lambda: taken.told > len(PROMPT) + 50, "it has verdicts")
    assert await counted(pods, "paceline:state_bytes_total") == before
    assert not taker.errors


async def test_more_than_the_window_is_never_under_way(pods: Pods, text: list[int]) -> None:
    async with (
        victim(pods, text) as session,
        taking(pods.verifier, (0, 2), acknowledges=False) as taker,
    ):
        taken = await taker.join(session.key, len(PROMPT))
        full = MIN_WINDOW_BYTES // POSITION_BYTES
        await wait_until(lambda: taken.count == full, "the window is full")
        await gone_on(session)
        assert taken.count == full
        await taker.say(features_taken=10 * POSITION_BYTES)
        await wait_until(lambda: taken.count == full + 10, "it opens by what was taken in")
        await gone_on(session)
        assert taken.count == full + 10


@pytest.mark.parametrize("said", [2**64 - 1, MIN_WINDOW_BYTES + 1, 1], ids=["all", "one more", "less"])
async def test_a_false_acknowledgement_opens_nothing_and_is_counted(
    pods: Pods, text: list[int], said: int
) -> None:
    before = await counted(pods, "paceline:false_acknowledgements_total")
    async with (
        victim(pods, text) as session,
        taking(pods.verifier, (0, 2), acknowledges=False) as taker,
    ):
        taken = await taker.join(session.key, len(PROMPT))
        full = MIN_WINDOW_BYTES // POSITION_BYTES
        await wait_until(lambda: taken.count == full, "the window is full")
        await taker.say(features_taken=2 * POSITION_BYTES)
        await wait_until(lambda: taken.count == full + 2, "it opens by what was taken in")
        more = said + 2 * POSITION_BYTES if said > 1 else said
        await taker.say(features_taken=min(more, 2**64 - 1))
        await gone_on(session)
        assert taken.count == full + 2
    assert await counted(pods, "paceline:false_acknowledgements_total") == before + 1


async def test_who_does_nothing_but_acknowledge_falsely_is_put_aside(pods: Pods, text: list[int]) -> None:
    async with (
        victim(pods, text) as session,
        taking(pods.verifier, (0, 2), acknowledges=False) as taker,
    ):
        await taker.join(session.key, len(PROMPT))
        while taker.code is None:
            try:
                await taker.say(features_taken=2**63)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                break
        await wait_until(lambda: taker.code is not None, "it is sent away")
        # Its own gRPC may say INTERNAL: it was writing when the stream was closed.
        await wait_until(lambda: bool(pods.verifier_status(pods.verifier).drafters_aside), "it is aside")


@pytest.fixture
def wide(tmp_path: Path, redis_url: str) -> Iterator[Pods]:
    """A verifier with wide states, which uses the same memory again for the next sessions."""
    flags = ("--keep-states", "0,1,2", "--prefix-cache", "false", "--kv-tokens", "24576")
    model = make_tiny_model(tmp_path / "wide", width=WIDE)
    with Pods(tmp_path, model, redis_url, drafters=0, verifier_flags=flags, metrics=True) as made:
        yield made.start()


async def test_who_takes_nothing_in_costs_no_memory(wide: Pods) -> None:
    """With the largest window, it reads nothing of long texts until they have ended."""
    whole = 8 * WIDE_PROMPT * WIDE_BYTES
    texts, sent = await _long_texts(wide, reads=True)
    assert sent >= whole
    before = usage(wide)["verifier 1"].memory_mb
    again, sent = await _long_texts(wide, reads=False)
    assert again == texts
    # What the connection itself holds; the rest stayed where it is kept, and was nobody's when a text ended.
    assert sent < whole / 8
    assert usage(wide)["verifier 1"].memory_mb - before < MAY_GROW_MB


async def _long_texts(pods: Pods, *, reads: bool) -> tuple[list[list[int]], float]:
    """Eight texts that a drafter has joined, and the bytes of states that were sent meanwhile."""
    before = await counted(pods, "paceline:state_bytes_total")
    prompts = [Random(number).choices(range(10, 250), k=WIDE_PROMPT) for number in range(8)]
    sessions = [OpenSession(prompt, 600) for prompt in prompts]
    async with (
        opened(pods, *sessions),
        taking(pods.verifier, (0, 1, 2), window=MAX_WINDOW_BYTES, reads=reads) as taker,
    ):
        for each in sessions:
            await taker.join(each.key, len(each.prompt))
        await wait_until(lambda: all(each.finished for each in sessions), "all end", 120)
    return [each.ids for each in sessions], await counted(pods, "paceline:state_bytes_total") - before


async def test_who_takes_a_little_at_a_time_is_sent_as_much(pods: Pods, text: list[int]) -> None:
    """It acknowledges one position after the other; another drafter is served beside it."""
    other = OpenSession([*PROMPT, 9], TOKENS)
    async with (
        victim(pods, text) as session,
        opened(pods, other),
        taking(pods.verifier, (0, 2), acknowledges=False) as loris,
        taking(pods.verifier, (0, 2)) as honest,
    ):
        slow = await loris.join(session.key, len(PROMPT))
        quick = await honest.join(other.key, len(other.prompt))
        full = MIN_WINDOW_BYTES // POSITION_BYTES
        await wait_until(lambda: slow.count == full, "the window is full")
        for count in range(1, 20):
            before = quick.count
            await loris.say(features_taken=count * POSITION_BYTES)
            await wait_until(lambda count=count: slow.count == full + count, "it has one more")
            await wait_until(
                lambda before=before: other.finished or quick.count > before, "the other one is served"
            )
        await gone_on(session)
        assert slow.count == full + 19


async def test_a_place_past_the_text_is_refused_for_its_session_alone(pods: Pods, text: list[int]) -> None:
    async with victim(pods, text) as session, taking(pods.verifier, (0, 2)) as taker:
        await taker.join(session.key, len(PROMPT), 100_000)
        await wait_until(lambda: bool(taker.errors), "it is told so")
        (error,) = taker.errors
        assert error.code == verifier_pb2.SESSION_ERROR_CODE_BAD_BASE
        assert "features_from 100000 lies past what is committed" in error.message
        taken = await taker.join(session.key, len(PROMPT), 150)
        await wait_until(lambda: taken.count > 50, "it may join all the same")


async def test_who_wants_none_of_a_session_is_sent_none(pods: Pods, text: list[int]) -> None:
    async with victim(pods, text) as session, taking(pods.verifier, (0, 2)) as taker:
        taken = await taker.join(session.key, len(PROMPT), NO_FEATURES)
        await wait_until(lambda: taken.told > len(PROMPT) + 50, "it has verdicts")
        assert taken.count == 0


async def test_random_trees_of_all_sources_change_no_text(pods: Pods, text: list[int], pace: Pace) -> None:
    name = "paceline:source_draft_tokens_total"
    before = verified = await counted(pods, name)
    random = Random(5)
    async with (
        victim(pods, text) as session,
        taking(pods.verifier, (0, 2), sources=SOURCES) as taker,
    ):
        taken = await taker.join(session.key, len(PROMPT))
        told = 0
        # A step of the tiny model is over before a tree comes; that steps are slow now takes time to learn.
        # Who never helps is put aside in the end.
        with pace.steps_take(0.1), suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while verified < before + 10 and not session.finished and taker.code is None:
                await wait_until(
                    lambda told=told: taken.told > told or session.finished or taker.code is not None,
                    "it is asked for a tree",
                )
                told = taken.told
                await taker.say(trees=[random_tree(random, session, told, source) for source in range(3)])
                verified = await counted(pods, name)
    assert verified > before


def random_tree(random: Random, session: OpenSession, base: int, source: int) -> tree_pb2.TokenTree:
    """A sound tree that has nothing to do with the text, each node from `source` or from any."""
    tokens = random.sample(range(VOCAB), random.randint(1, 20))
    mixed = random.random() < 0.5
    # Some boast.
    least = random.choice((-0.1, -9.0))
    return tree_pb2.TokenTree(
        key=wire.key_to_proto(session.key),
        base_length=base,
        token=tokens,
        parent=[random.randint(-1, number - 1) for number in range(len(tokens))],
        log_prob=[least * random.random() for _ in tokens],
        source=[random.randrange(len(SOURCES)) if mixed else source for _ in tokens],
    )


@pytest.mark.parametrize("source", [3, 2**32 - 1], ids=["one more", "largest"])
async def test_a_source_that_was_not_named_costs_its_tree_and_no_states(
    pods: Pods, text: list[int], source: int
) -> None:
    async with (
        victim(pods, text) as session,
        taking(pods.verifier, (0, 2), sources=SOURCES) as taker,
    ):
        taken = await taker.join(session.key, len(PROMPT))
        bad = tree_pb2.TokenTree(
            key=wire.key_to_proto(session.key),
            base_length=len(session.ids),
            token=[5],
            parent=[-1],
            log_prob=[-0.5],
            source=[source],
        )
        await taker.say(trees=[bad])
        await wait_until(lambda: bool(taker.errors), "it is told so")
        (error,) = taker.errors
        assert error.code == verifier_pb2.SESSION_ERROR_CODE_MALFORMED
        count = taken.count
        await wait_until(lambda: taken.count > count, "states come all the same")


async def test_states_that_are_wanted_over_and_over_hold_nobody_up(pods: Pods, text: list[int]) -> None:
    """One drafter joins again and again from the first position on; another one is served beside it."""
    other = OpenSession([*PROMPT, 9], 10_000)
    async with (
        victim(pods, text) as session,
        opened(pods, other),
        taking(pods.verifier, (0, 2), window=MAX_WINDOW_BYTES) as honest,
    ):
        taken = await honest.join(other.key, len(other.prompt))
        again = asyncio.create_task(_over_and_over(pods, session))
        count = 0
        while not session.finished:
            await wait_until(lambda count=count: session.finished or taken.count > count + 50, "it is served")
            count = taken.count
        assert await again > 3


async def _over_and_over(pods: Pods, session: OpenSession) -> int:
    """Take the first hundred positions of a session, until it has ended; returns how often."""
    times = 0
    async with channel(pods.verifier) as made:
        while not session.finished:
            async with taking(pods.verifier, (0, 2), window=MAX_WINDOW_BYTES, connection=made) as taker:
                taken = await taker.join(session.key, len(PROMPT))
                await wait_until(lambda taken=taken: session.finished or taken.count >= 100, "it is served")
                times += 1
    return times


async def test_all_at_once_change_no_text(pods: Pods, text: list[int]) -> None:
    """Whoever joined last is served, and the session goes on."""

    async def bother(session: OpenSession, **asked: Any) -> StateTaker:
        async with taking(pods.verifier, **asked) as taker:
            for start in (0, 3, 150, NO_FEATURES, 199):
                await taker.join(session.key, len(PROMPT), start)
                await taker.say(features_taken=start)
                await taker.leave(session.key)
                await gone_on(session, 20)
        return taker

    async with victim(pods, text) as session:
        await asyncio.gather(
            bother(session, layers=(0, 2), reads=False),
            bother(session, layers=(0,), window=MAX_WINDOW_BYTES, reads=False),
            bother(session, layers=(2,), acknowledges=False, reads=False),
            bother(session, layers=(1,), reads=False),
        )
