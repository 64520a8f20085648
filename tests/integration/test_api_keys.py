"""API keys over the real wire, HTTP and gRPC: who gets in, who does not, what a change of the file does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.api_keys import api_key_hash, new_api_key
from paceline.client import Finished, GatewayClient, GatewayError, Generation, SyncGatewayClient
from tests.pods import MODEL, Pods
from tests.waiting import wait_until

ASKED: dict[str, Any] = {"model": MODEL, "prompt": "the quick brown fox", "max_tokens": 4, "temperature": 0}
GENERATION = Generation(text="the quick brown fox", max_tokens=4, temperature=0)

WRITER, OTHER, WATCHER, EXPIRED = (new_api_key() for _ in range(4))
ENTRIES: list[dict[str, Any]] = [
    {"id": "writer", "sha256": [api_key_hash(WRITER)]},
    {"id": "other", "sha256": [api_key_hash(OTHER)]},
    {"id": "watcher", "sha256": [api_key_hash(WATCHER)], "scopes": ["status"]},
    {
        "id": "expired",
        "sha256": [api_key_hash(EXPIRED)],
        "expires": (datetime.now(UTC) - timedelta(seconds=1)).isoformat(),
    },
]


class KeyFile:
    """The file that a gateway reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write(ENTRIES)

    def write(self, entries: list[dict[str, Any]]) -> None:
        fresh = self.path.with_suffix(".fresh")
        fresh.write_text(json.dumps({"keys": entries}))
        os.replace(fresh, self.path)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    return KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str, key_file: KeyFile
) -> Iterator[Pods]:
    with Pods(
        tmp_path_factory.mktemp("guarded"),
        tiny_model,
        redis_url,
        gateway_flags=("--api-keys-file", str(key_file.path)),
        api_key=WATCHER,
    ) as pods:
        yield pods.start()


def post(pods: Pods, key: str | None) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.post(f"{pods.http}/v1/completions", json=ASKED, headers=headers, timeout=30)


def session_statuses(pods: Pods, session: str, key: str) -> list[int]:
    """Of reading a session's events, and of cancelling it."""
    headers, url = {"authorization": f"Bearer {key}"}, f"{pods.http}/v1/sessions/{session}"
    return [
        httpx.get(f"{url}/events", headers=headers).status_code,
        httpx.delete(url, headers=headers).status_code,
    ]


async def generated(pods: Pods, key: str | None) -> list[Any]:
    async with GatewayClient(pods.grpc, api_key=key) as client:
        return [event async for event in client.generate(GENERATION, timeout_s=30)]


async def refusal(pods: Pods, key: str | None) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await generated(pods, key)
    return caught.value


async def test_a_key_lets_its_holder_in(guarded: Pods) -> None:
    assert post(guarded, WRITER).status_code == 200
    assert isinstance((await generated(guarded, WRITER))[-1], Finished)
    async with openai.AsyncOpenAI(base_url=f"{guarded.http}/v1", api_key=WRITER) as client:
        assert [model.id async for model in client.models.list()] == [MODEL]


@pytest.mark.parametrize(
    "key",
    [None, "pk-wrong", EXPIRED, WRITER[:-1], api_key_hash(WRITER)],
    ids=["none", "wrong", "expired", "cut", "its hash"],
)
async def test_nobody_else_gets_in(guarded: Pods, key: str | None) -> None:
    answer = post(guarded, key)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert (await refusal(guarded, key)).code is grpc.StatusCode.UNAUTHENTICATED


async def test_the_official_client_knows_the_errors(guarded: Pods) -> None:
    async with openai.AsyncOpenAI(base_url=f"{guarded.http}/v1", api_key="pk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as unknown:
            await client.completions.create(**ASKED)
    async with openai.AsyncOpenAI(base_url=f"{guarded.http}/v1", api_key=WATCHER) as client:
        with pytest.raises(openai.PermissionDeniedError) as forbidden:
            await client.completions.create(**ASKED)
    assert unknown.value.code == "invalid_api_key"
    assert forbidden.value.code == "insufficient_permissions"


async def test_a_key_does_only_what_its_scopes_allow(guarded: Pods) -> None:
    assert post(guarded, WATCHER).status_code == 403
    assert (await refusal(guarded, WATCHER)).code is grpc.StatusCode.PERMISSION_DENIED
    async with GatewayClient(guarded.grpc, api_key=WATCHER) as client:
        assert (await client.fleet()).verifiers
    async with GatewayClient(guarded.grpc, api_key=WRITER) as client:
        with pytest.raises(GatewayError) as caught:
            await client.fleet()
    assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", f"/v1/models/{MODEL}"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/sessions/x/events"),
        ("DELETE", "/v1/sessions/x"),
    ],
)
def test_every_route_under_v1_demands_a_key(guarded: Pods, method: str, path: str) -> None:
    assert httpx.request(method, guarded.http + path).status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json"])
def test_probes_and_the_schema_need_none(guarded: Pods, path: str) -> None:
    assert httpx.get(guarded.http + path).status_code == 200


def test_a_health_check_needs_none(guarded: Pods) -> None:
    with grpc.insecure_channel(guarded.grpc) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_body_is_not_read_of_who_has_no_key(guarded: Pods) -> None:
    # Larger than --max-body-bytes, and no JSON.
    answer = httpx.post(f"{guarded.http}/v1/completions", content=b"x" * 100_000)
    assert answer.status_code == 401


async def test_a_session_is_its_keys_alone(guarded: Pods) -> None:
    session = post(guarded, WRITER).json()["paceline"]["session_id"]
    assert session_statuses(guarded, session, OTHER) == [404, 404]
    assert session_statuses(guarded, session, WRITER) == [200, 200]
    for key, found in ((OTHER, False), (WRITER, True)):
        async with GatewayClient(guarded.grpc, api_key=key) as client:
            if found:
                await client.cancel(session)
            else:
                with pytest.raises(GatewayError) as caught:
                    await client.cancel(session)
                assert caught.value.code is grpc.StatusCode.NOT_FOUND


async def test_a_key_is_rotated_and_revoked_without_a_restart(guarded: Pods, key_file: KeyFile) -> None:
    new = new_api_key()
    both = {"id": "writer", "sha256": [api_key_hash(WRITER), api_key_hash(new)]}
    assert post(guarded, new).status_code == 401
    try:
        key_file.write([both, *ENTRIES[1:]])
        await wait_until(lambda: post(guarded, new).status_code == 200, "the new key is known", 5)
        assert post(guarded, WRITER).status_code == 200
        # A session goes on, whichever of its holder's keys asks for it.
        session = post(guarded, WRITER).json()["paceline"]["session_id"]
        key_file.write([{**both, "sha256": [api_key_hash(new)]}, *ENTRIES[1:]])
        await wait_until(lambda: post(guarded, WRITER).status_code == 401, "the old key is revoked", 5)
        assert (await refusal(guarded, WRITER)).code is grpc.StatusCode.UNAUTHENTICATED
        assert isinstance((await generated(guarded, new))[-1], Finished)
        assert session_statuses(guarded, session, new) == [200, 200]
    finally:
        key_file.write(ENTRIES)
        await wait_until(lambda: post(guarded, WRITER).status_code == 200, "the first key is back", 5)


async def test_a_broken_key_file_locks_nobody_out_and_is_logged(guarded: Pods, key_file: KeyFile) -> None:
    key_file.path.write_text("{")
    log = guarded.pods["gateway"].log
    try:
        await wait_until(
            lambda: post(guarded, WRITER).status_code == 200 and "key file cannot be used" in log.read_text(),
            "it is logged",
            5,
        )
        assert post(guarded, "pk-wrong").status_code == 401
    finally:
        key_file.write(ENTRIES)


def test_no_log_has_a_key_or_a_hash(guarded: Pods) -> None:
    text = "".join(pod.log.read_text() for pod in guarded.pods.values())
    assert "request" in text
    for key in (WRITER, OTHER, WATCHER, EXPIRED):
        assert key not in text
        assert api_key_hash(key) not in text
    assert "Traceback" not in text


def test_a_large_message_is_not_received_of_who_has_no_key(guarded: Pods) -> None:
    large = Generation(text="x" * (6 << 20))
    codes = []
    for key in ("", WATCHER, WRITER):
        with SyncGatewayClient(guarded.grpc, api_key=key) as client, pytest.raises(GatewayError) as caught:
            list(client.generate(large))
        codes.append(caught.value.code)
    assert codes == [
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ]
