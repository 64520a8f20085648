"""Redis with a user of its own, behind TLS: what works, what is refused, and no password in sight."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis.asyncio
from redis.exceptions import ResponseError

from gateway.limits.base import Account, Ask, Outcome, Settlement, UsageLimits
from gateway.limits.redis import RedisLedger
from paceline.local import redis_server
from paceline.sampling import SamplingParams
from paceline.session import FinishReason, SessionKey
from paceline.store import Append, RedisStore, SessionRecord, StoreUnavailableError
from tests.certificates import LOCAL, Authority, Secret
from tests.pods import Pod
from tests.tls_proxy import tls_before

USER, PASSWORD = "paceline", "open-sesame"
ROOT = Path(__file__).parents[2]
# As docs/operations.md has them.
RULES = re.findall(r"ACL SETUSER paceline on >PASSWORD (.*)", (ROOT / "docs/operations.md").read_text())[
    0
].split()
# What a connection needs before and beside scripts.
CONNECTION = {"hello", "auth", "ping", "select", "client|setinfo", "client|setname"}
RECORD = SessionRecord(SessionKey("s", 1), "tiny", (1, 2, 3), SamplingParams(max_tokens=9), ())


@dataclass(frozen=True)
class Guarded:
    socket: Path
    secret: Secret
    authority: Authority

    def url(self, port: int, password: str = PASSWORD, ca: Path | None = None) -> str:
        return f"rediss://{USER}:{password}@localhost:{port}?ssl_ca_certs={ca or self.secret.ca}"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A server that knows one user, who may touch Paceline's keys only."""
    folder = redis_server.data_folder()
    server = redis_server.private_server(redis_server.find_server(), folder)
    users = ["--user", "default", "off", "--user", USER, "on", f">{PASSWORD}", *RULES]
    pod = Pod("redis", [*server.command, *users], tmp_path_factory.mktemp("redis"))
    url = server.url.replace("unix://", f"unix://{USER}:{PASSWORD}@")
    pod.until(lambda: asyncio.run(redis_server.answers(url)))
    authority = Authority()
    secret = Secret(tmp_path_factory.mktemp("tls") / "redis", authority.issue(*LOCAL))
    yield Guarded(folder / "redis.sock", secret, authority)
    pod.stop()
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_store_needs_no_more_than_the_users_rights(guarded: Guarded) -> None:
    async with tls_before(guarded.socket, guarded.secret) as port:
        store = RedisStore(guarded.url(port), ttl_seconds=60)
        await store.ping()
        await store.create(RECORD)
        assert await store.append([Append(RECORD.key, 3, (7, 8), FinishReason.STOP)]) == [None]
        taken = await store.claim(SessionKey("s", 2))
        assert taken.committed_ids == (7, 8)
        await store.restore(taken)
        assert await store.get("s") == taken
        await store.close()
        ledger = RedisLedger(guarded.url(port))
        account = Account("key:k", UsageLimits(1, 1, 1000))
        for outcome in (Outcome.ADMITTED, Outcome.QUEUED):
            assert (await ledger.admit(Ask(outcome, (account,), 10))).outcome is outcome
        await ledger.settle([Settlement(account, ended=(Outcome.ADMITTED, Outcome.QUEUED))])
        await ledger.close()


def test_the_documented_user_may_call_what_scripts_call_and_no_more() -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "paceline/lua").glob("*.lua"))
    called = {command.lower() for command in re.findall(r"redis\.p?call\(\s*'(\w+)'", scripts)}
    allowed = {rule[1:] for rule in RULES if rule.startswith("+")}
    assert allowed == called | CONNECTION | {"eval", "evalsha"}


FORBIDDEN = [
    ("GET", "another:key"),
    ("EVAL", "return redis.call('GET', KEYS[1])", 1, "another:key"),
    ("EVAL", "return redis.call('GET', 'another:key')", 0),
    ("EVAL", "return redis.call('KEYS', '*')", 0),
    ("FLUSHALL",),
    ("KEYS", "*"),
    ("SCAN", 0),
    ("RANDOMKEY",),
    ("CONFIG", "GET", "*"),
    ("SCRIPT", "FLUSH"),
    ("SCRIPT", "KILL"),
    ("FUNCTION", "LIST"),
    ("FUNCTION", "FLUSH"),
    ("FUNCTION", "LOAD", "#!lua name=x\nredis.register_function('f', function() return 1 end)"),
    ("FCALL", "f", 0),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "ID", 1),
    ("CLIENT", "PAUSE", 1),
    ("ACL", "LIST"),
    ("PUBLISH", "channel", "x"),
    ("SHUTDOWN",),
]


async def test_the_user_reaches_nothing_else(guarded: Guarded) -> None:
    async with tls_before(guarded.socket, guarded.secret) as port:
        client = redis.asyncio.from_url(guarded.url(port))
        for command in FORBIDDEN:
            with pytest.raises(ResponseError, match=r"(?i)permission"):
                await client.execute_command(*command)
        await client.aclose()


@pytest.mark.parametrize("fault", ["password", "another CA", "plaintext"])
async def test_a_store_that_may_not_in_says_why_without_the_password(
    guarded: Guarded, tmp_path: Path, fault: str
) -> None:
    async with tls_before(guarded.socket, guarded.secret) as port:
        other = tmp_path / "ca.crt"
        other.write_bytes(Authority().pem)
        url = {
            "password": guarded.url(port, password="wrong-sesame"),
            "another CA": guarded.url(port, ca=other),
            "plaintext": guarded.url(port).partition("?")[0].replace("rediss", "redis"),
        }[fault]
        store = RedisStore(url, ttl_seconds=60)
        with pytest.raises(StoreUnavailableError) as caught:
            await store.ping()
        await store.close()
    reason = {"password": "invalid username-password", "another CA": "CERTIFICATE_VERIFY_FAILED"}
    assert reason.get(fault, "does not answer") in str(caught.value)
    assert "sesame" not in repr(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"rediss://{USER}:{PASSWORD}@127.0.0.1:1?ssl_ca_certs=/nowhere/ca.crt",
        f"redis://{USER}:{PASSWORD}@127.0.0.1:1",
        f"redis://{USER}:{PASSWORD}/@127.0.0.1:6379",
        f"http://{USER}:{PASSWORD}@127.0.0.1:1",
    ],
)
def test_no_log_line_of_a_gateway_shows_the_password(url: str, tiny_model: Path) -> None:
    command = [sys.executable, "-m", "gateway", "--verifiers", "127.0.0.1:1", "--model", str(tiny_model)]
    command += ["--port", "0", "--http-port", "0", "--log-level", "debug", "--redis-url", url]
    command += ["--grace-seconds", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "ready" in line:
                process.terminate()
    assert lines
    assert PASSWORD not in "".join(lines)
