"""Bad input over the wire: each has its own clear error and harms nobody else."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2

from paceline import wire
from paceline.client import ChatMessage, GatewayClient, Generation
from paceline.handshake import PROTOCOL_VERSION
from paceline.rpc import channel
from paceline.session import SamplingParams, SessionKey
from paceline.store import RedisStore, SessionRecord
from paceline.v1 import (
    gateway_pb2,
    gateway_pb2_grpc,
    session_pb2,
    tree_pb2,
    verifier_pb2,
    verifier_pb2_grpc,
)
from tests.pods import MODEL, Pods
from tests.tiny import CONTEXT
from tests.waiting import wait_until

VOCAB = 512
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
TOO_LONG = [5] * (CONTEXT + 1)


@pytest.fixture(autouse=True)
def _it_still_serves_afterwards(fleet: Pods) -> Any:
    yield
    answer = httpx.post(f"{fleet.http}/v1/completions", json=TEXT, timeout=30)
    assert answer.status_code == 200


# HTTP.


def refused(fleet: Pods, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{fleet.http}/v1/{path}", content=content, timeout=30)
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize(
    ("changes", "status", "code", "param", "why"),
    [
        ({"model": "gpt-9"}, 404, "model_not_found", "model", "'gpt-9' does not exist"),
        ({"model": ""}, 400, None, "model", "at least 1 character"),
        ({"prompt": ""}, 400, None, "prompt", "the prompt is empty"),
        ({"prompt": []}, 400, None, "prompt", "at least 1 item"),
        ({"prompt": [VOCAB]}, 400, None, "prompt", "token 512 is not in the vocabulary of 512"),
        ({"prompt": 5}, 400, None, "prompt", "valid"),
        (
            {"prompt": TOO_LONG},
            400,
            "context_length_exceeded",
            "prompt",
            f"{CONTEXT + 1} tokens, the model's context {CONTEXT}",
        ),
        (
            {"prompt": TOO_LONG[:CONTEXT]},
            400,
            "context_length_exceeded",
            "prompt",
            "at least one must be left",
        ),
        (
            {"prompt": [5], "max_tokens": CONTEXT},
            400,
            "context_length_exceeded",
            "max_tokens",
            f"at most {CONTEXT - 1}",
        ),
        ({"max_tokens": 0}, 400, None, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "4"}, 400, None, "max_tokens", "valid integer"),
        ({"temperature": -1}, 400, None, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, 400, None, "temperature", "valid number"),
        ({"top_p": 0}, 400, None, "top_p", "greater than 0"),
        ({"top_k": VOCAB + 1}, 400, None, "top_k", "vocabulary's 512"),
        ({"min_p": 2}, 400, None, "min_p", "less than or equal to 1"),
        ({"seed": -1}, 400, None, "seed", "greater than or equal to 0"),
        ({"stop": ["a"] * 5}, 400, None, "stop", "at most 4"),
        ({"stream": "yes"}, 400, None, "stream", "valid boolean"),
        ({"stream_options": {"include_usage": True}}, 400, None, "stream_options", "only taken with stream"),
        ({"logprobs": 3}, 400, "unsupported_parameter", "logprobs", "not supported yet"),
        ({"n": 2}, 400, "unsupported_parameter", "n", "not supported yet"),
        ({"temprature": 1}, 400, "unknown_parameter", "temprature", "unrecognized request argument"),
    ],
)
def test_a_bad_completion(
    fleet: Pods, changes: dict[str, Any], status: int, code: str | None, param: str, why: str
) -> None:
    for stream in ({}, {"stream": True}) if "stream" not in " ".join(changes) else ({},):
        got, error = refused(fleet, "completions", {**TEXT, **changes, **stream})
        assert (got, error["code"], error["param"].split(".")[0]) == (status, code, param)
        assert why in error["message"]
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x" * 3 * CONTEXT}]}, "messages"),
        ({"max_tokens": CONTEXT}, "max_tokens"),
        ({"max_tokens": None, "max_completion_tokens": CONTEXT}, "max_completion_tokens"),
        ({"tools": [{"type": "function"}]}, "tools"),
    ],
)
def test_a_bad_chat(fleet: Pods, changes: dict[str, Any], param: str) -> None:
    status, error = refused(fleet, "chat/completions", {**CHAT, **changes})
    assert (status, error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b'{"model": "tiny", "prompt": "\xff\xfe"}', 400, "not UTF-8"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', 400, "surrogate"),
        (b'{"model": "\\ud800", "prompt": "x"}', 400, "surrogate"),
        (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', 400, "not a JSON number"),
        (b'{"model": "tiny", "prompt": "' + b"x" * 70_000 + b'"}', 413, "larger than 65536 bytes"),
        (b"[" * 60_000, 400, "not JSON"),
    ],
    ids=["empty", "torn", "list", "bytes", "surrogate", "surrogate model", "nan", "large", "deep"],
)
def test_a_bad_body(fleet: Pods, body: bytes, status: int, why: str) -> None:
    for path in ("completions", "chat/completions"):
        got, error = refused(fleet, path, body)
        assert got == status
        assert why in error["message"]


def test_a_body_without_an_announced_length_is_bounded_too(fleet: Pods) -> None:
    answer = httpx.post(f"{fleet.http}/v1/completions", content=iter([b"x" * 10_000] * 10), timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_wrong_route_and_a_wrong_method(fleet: Pods) -> None:
    assert httpx.post(f"{fleet.http}/v1/embeddings").json()["error"]["code"] == "unknown_url"
    answer = httpx.get(f"{fleet.http}/v1/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_supported")


# gRPC.

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def violations(error: grpc.aio.AioRpcError) -> list[str]:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            bad = error_details_pb2.BadRequest()
            assert status_pb2.Status.FromString(value).details[0].Unpack(bad)
            return [each.field for each in bad.field_violations]
    return []


def request(**fields: Any) -> gateway_pb2.GenerateRequest:
    if not {"text", "chat", "tokens"} & fields.keys():
        fields["text"] = "hello"
    return gateway_pb2.GenerateRequest(**{"max_tokens": 4, **fields})


@pytest.mark.parametrize(
    ("asked", "code", "field"),
    [
        (request(model="gpt-9"), grpc.StatusCode.NOT_FOUND, "model"),
        (gateway_pb2.GenerateRequest(max_tokens=4), INVALID, "prompt"),
        (request(text=""), INVALID, "text"),
        (request(tokens=gateway_pb2.TokenPrompt()), INVALID, "tokens"),
        (request(tokens=gateway_pb2.TokenPrompt(ids=[VOCAB])), INVALID, "tokens"),
        (request(tokens=gateway_pb2.TokenPrompt(ids=TOO_LONG)), INVALID, "tokens"),
        (request(chat=gateway_pb2.ChatPrompt()), INVALID, "chat.messages"),
        (
            request(chat=gateway_pb2.ChatPrompt(messages=[gateway_pb2.ChatMessage(role="wizard")])),
            INVALID,
            "chat.messages[0].role",
        ),
        (request(max_tokens=0), INVALID, "max_tokens"),
        (request(max_tokens=CONTEXT), INVALID, "max_tokens"),
        (request(temperature=-1), INVALID, "temperature"),
        (request(temperature=float("nan")), INVALID, "temperature"),
        (request(top_p=0), INVALID, "top_p"),
        (request(top_k=VOCAB + 1), INVALID, "top_k"),
        (request(min_p=1.5), INVALID, "min_p"),
        (request(seed=2**63), INVALID, "seed"),
        (request(stop=["a"] * 5), INVALID, "stop"),
        (request(stop=[""]), INVALID, "stop"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bad_generate(
    fleet: Pods, asked: gateway_pb2.GenerateRequest, code: grpc.StatusCode, field: str
) -> None:
    async with channel(fleet.grpc) as made:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway_pb2_grpc.GatewayServiceStub(made).Generate(asked, timeout=10).read()
    assert (caught.value.code(), violations(caught.value)) == (code, [field])


def opening(**changes: Any) -> verifier_pb2.OpenRequest:
    fields: dict[str, Any] = {
        "key": session_pb2.SessionKey(session_id="bad-input", epoch=1),
        "prompt_ids": [5, 6],
        "sampling": session_pb2.SamplingParams(top_p=1, max_tokens=4),
    }
    return verifier_pb2.OpenRequest(**{**fields, **changes})


@pytest.mark.parametrize(
    ("asked", "code", "fields"),
    [
        (opening(key=session_pb2.SessionKey(epoch=1)), INVALID, ["key.session_id"]),
        (opening(key=session_pb2.SessionKey(session_id="a")), INVALID, ["key.epoch"]),
        (opening(prompt_ids=[]), INVALID, ["prompt_ids"]),
        (opening(prompt_ids=[VOCAB]), INVALID, ["prompt_ids"]),
        (opening(prompt_ids=TOO_LONG), INVALID, ["prompt_ids"]),
        (opening(committed_ids=[VOCAB]), INVALID, ["committed_ids"]),
        (opening(committed_ids=[1, 2, 3, 4]), INVALID, ["committed_ids"]),
        (opening(sampling=session_pb2.SamplingParams(max_tokens=4)), INVALID, ["sampling.top_p"]),
        (opening(sampling=session_pb2.SamplingParams(top_p=1)), INVALID, ["sampling.max_tokens"]),
        (
            opening(sampling=session_pb2.SamplingParams(top_p=1, max_tokens=CONTEXT)),
            INVALID,
            ["sampling.max_tokens"],
        ),
        (
            opening(sampling=session_pb2.SamplingParams(top_p=1, max_tokens=4, temperature=-1)),
            INVALID,
            ["sampling.temperature"],
        ),
        (opening(model_id="other"), grpc.StatusCode.FAILED_PRECONDITION, []),
    ],
)
async def test_a_bad_open(
    fleet: Pods, asked: verifier_pb2.OpenRequest, code: grpc.StatusCode, fields: list[str]
) -> None:
    async with channel(fleet.verifier) as made:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await verifier_pb2_grpc.VerifierServiceStub(made).Open(asked, timeout=10).read()
    assert (caught.value.code(), violations(caught.value)) == (code, fields)
    assert fleet.verifier_status().sessions == 0


# A hostile drafter.

VICTIM = session_pb2.SessionKey(session_id="victim", epoch=3)
JOIN = verifier_pb2.Join(key=VICTIM, known_length=2)
HELLO = verifier_pb2.Hello(protocol_version=PROTOCOL_VERSION, drafter_id="hostile")


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (verifier_pb2.DraftRequest(leaves=["x"]), INVALID),
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

    def __init__(self, call: Any, victim: Victim, following: asyncio.Task[list[int]]) -> None:
        self.victim = victim
        self.following = following
        self.call = call

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
        call = verifier_pb2_grpc.VerifierServiceStub(made).Draft(timeout=120)
        await call.write(verifier_pb2.DraftRequest(hello=HELLO))
        assert (await call.read()).welcome.vocab_size == VOCAB
        made_attack = Attack(call, victim, following)
        if join:
            await made_attack.send(joins=[JOIN])
        yield made_attack
        call.cancel()
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
) -> tree_pb2.TokenTree:
    return tree_pb2.TokenTree(
        key=session_pb2.SessionKey(session_id=session_id, epoch=epoch),
        base_length=base,
        token=token,
        parent=parent,
        log_prob=[-0.5] * len(token) if log_prob is None else log_prob,
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

            async def listen() -> None:
                while True:
                    codes.update(error.code for error in await errors_of(attacking.call))

            listening = asyncio.create_task(listen())
            finishing = {attacking.following, bystander}
            while not all(task.done() for task in finishing):
                await attacking.send(trees=barrage)
                await asyncio.wait(finishing, timeout=0.05)
            assert await attacking.following == untouched
            assert await bystander == undisturbed
            listening.cancel()
            await asyncio.wait({listening})
            assert len(codes) >= 9


async def test_a_sound_tree_of_nonsense_changes_no_text(fleet: Pods) -> None:
    untouched = await alone(fleet)
    before = fleet.verifier_status().drafted_tokens
    async with attack(fleet) as attacking:
        finished = False
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


def test_none_of_this_left_an_error_in_a_log(fleet: Pods) -> None:
    for pod in fleet.pods.values():
        text = pod.log.read_text()
        assert "Traceback" not in text
        assert "[error" not in text
