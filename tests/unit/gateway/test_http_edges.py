"""Edges of the HTTP API that need no fleet: probes, slashes, CORS, deadlines, the log."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from starlette.requests import Request
from structlog.testing import capture_logs

from gateway.core import Gateway
from gateway.http import headers
from gateway.http.app import build_app
from gateway.kept import MemoryKept
from paceline.service import telemetry
from paceline.store import MemoryStore, StoreUnavailableError

PAGE = "https://page.example"


class Away:
    """A store that does not answer."""

    async def ping(self) -> None:
        raise StoreUnavailableError("the session store does not answer: redis://10.1.2.3:6379 refused")


@pytest.fixture
def fleet() -> SimpleNamespace:
    """One that is not ready while it has a `problem`."""
    made = SimpleNamespace(problem="")
    made.not_ready = lambda: made.problem
    return made


@pytest.fixture(params=[""])
async def client(request: pytest.FixtureRequest, fleet: SimpleNamespace) -> AsyncIterator[httpx.AsyncClient]:
    sessions = SimpleNamespace(
        fleet=fleet,
        store=Away() if request.param == "away" else MemoryStore(),
        policy=SimpleNamespace(strict=True),
    )
    gateway = Gateway(
        cast("Any", None),
        cast("Any", sessions),
        None,
        MemoryKept(ttl_seconds=60),
        model_name="tiny",
        max_body_bytes=1024,
        request_seconds=0,
        client_stall_seconds=60,
        cors_origins=[PAGE] if request.param == "cors" else [],
    )
    transport = httpx.ASGITransport(build_app(gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as made:
        yield made


@pytest.mark.parametrize("path", ["/health", "/healthz", "/readyz", "/v1/models", "/v1/models/tiny"])
async def test_what_can_be_got_can_be_asked_for_its_head(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 200
    head = await client.head(path)
    assert head.status_code == 200


@pytest.mark.parametrize("path", ["/health/", "/v1/models/", "/v1/models/tiny/"])
async def test_a_slash_at_the_end_changes_nothing(client: httpx.AsyncClient, path: str) -> None:
    with_slash, without = await client.get(path), await client.get(path.rstrip("/"))
    assert (with_slash.status_code, with_slash.json()) == (200, without.json())


@pytest.mark.parametrize("client", ["away"], indirect=True)
@pytest.mark.parametrize("path", ["/readyz", "/health"])
async def test_where_the_store_is_is_told_to_the_log_alone(client: httpx.AsyncClient, path: str) -> None:
    with capture_logs() as lines:
        answer = await client.get(path)
    assert (answer.status_code, answer.json()) == (503, {"status": "the session store does not answer"})
    assert any("10.1.2.3" in str(line) for line in lines)


@pytest.mark.parametrize("client", ["", "cors"], indirect=True)
async def test_pages_of_other_origins_get_in_by_the_setting_alone(
    client: httpx.AsyncClient, request: pytest.FixtureRequest
) -> None:
    allowed = request.node.callspec.params["client"] == "cors"
    asked = {"origin": PAGE, "access-control-request-method": "POST"}
    preflight = await client.options("/v1/chat/completions", headers=asked)
    plain = await client.get("/v1/models", headers={"origin": PAGE})
    for answer in (preflight, plain):
        assert answer.headers.get("access-control-allow-origin") == (PAGE if allowed else None)
    other = await client.get("/v1/models", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


async def test_a_probe_that_is_served_is_no_line_of_the_log(client: httpx.AsyncClient) -> None:
    with capture_logs() as lines:
        await client.get("/healthz")
        await client.get("/v1/models")
    levels = {line["path"]: line["log_level"] for line in lines}
    assert levels == {"/healthz": "debug", "/v1/models": "info"}


async def test_readiness_is_a_line_of_the_log_where_it_changes(
    client: httpx.AsyncClient, fleet: SimpleNamespace
) -> None:
    told = []
    with capture_logs() as lines:
        for fleet.problem in ("no verifier is up", "no verifier is up", "", "", "no verifier is up"):
            told += [(await client.get(path)).status_code for path in ("/readyz", "/health")]
    assert told == [503] * 4 + [200] * 4 + [503] * 2
    assert [(line["event"], line.get("why")) for line in lines if line["log_level"] != "debug"] == [
        ("not ready", "no verifier is up"),
        ("ready for requests", None),
        ("not ready", "no verifier is up"),
    ]


async def test_a_body_that_announces_too_much_is_not_waited_for(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/completions", content=b"x" * 2000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("seconds", ["9e9", "1e300", "inf", "99999999999999999999"])
def test_a_deadline_beyond_all_time_is_none(seconds: str) -> None:
    request = Request({"type": "http", "headers": [(b"x-request-timeout", seconds.encode())]})
    assert headers.deadline(request, 0) is None
    bounded = headers.deadline(request, 60)
    assert bounded is not None
    assert math.isfinite(bounded)


def test_control_characters_reach_no_terminal() -> None:
    line = {"event": "request", "path": "/\x1b]0;x\x07\n\x9b31m\u202e", "exception": "a\n\tb\x1b[0m", "n": 1}
    made = telemetry.printable(None, "info", dict(line))
    assert made["path"] == "/\\x1b]0;x\\x07\\n\\x9b31m\\u202e"
    assert made["exception"] == "a\n\tb\\x1b[0m"
    assert made["n"] == 1


def test_names_of_ignored_fields_make_no_header_of_their_own() -> None:
    told = headers.of_ignored(
        ["a[0].b", "x: y\r\nset-cookie: z", "\N{SNOWMAN}", "long" * 99, *map(str, range(99))]
    )
    (value,) = told.values()
    assert value.startswith("a[0].b,x%3A%20y%0D%0Aset-cookie%3A%20z,%E2%98%83,longlong")
    assert value.isascii()
    assert value.isprintable()
    assert len(value.split(",")) == 32
    assert headers.of_ignored([]) == {}


async def test_a_response_says_how_long_it_took_to_begin(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/models")
    assert int(answer.headers["openai-processing-ms"]) >= 0
    assert answer.headers["x-request-id"]
