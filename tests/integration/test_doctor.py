"""`paceline doctor` as a user runs it, against real pods and a real Redis with real faults."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.pods import MODEL, Pods
from tests.redis_servers import RedisServer, redis_cluster, watched_redis
from tests.secure_pods import SecurePods


async def doctor(*flags: str, **variables: str) -> tuple[int, dict[str, Any]]:
    """Its exit status and its JSON."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PACELINE_", "REDIS_"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "paceline.cli", "doctor", "--json", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**own, **variables},
    )
    out, err = await process.communicate()
    assert out, err.decode()
    return process.returncode or 0, json.loads(out)


def bad(told: dict[str, Any], *levels: str) -> list[dict[str, str]]:
    return [each for each in told["findings"] if each["level"] in (levels or ("error", "warning"))]


async def test_a_fleet_that_is_well_is_healthy(fleet: Pods) -> None:
    status, told = await doctor("--gateway", fleet.grpc, "--redis-url", fleet.redis_url)
    assert bad(told) == []
    assert (status, told["healthy"]) == (0, True)
    looked_at = {(each["check"], each["subject"]) for each in told["findings"]}
    for check in ("reachability", "versions", "clock"):
        for subject in (f"gateway {fleet.grpc}", f"verifier {fleet.verifier}", f"drafter {fleet.drafter}"):
            assert (check, subject) in looked_at
    assert ("vocabulary", f"verifier {fleet.verifier}") in looked_at
    assert ("device", f"verifier {fleet.verifier}") in looked_at


async def test_it_runs_by_a_gateways_settings_without_torch(fleet: Pods) -> None:
    """As in a gateway's image: only what that has may be imported."""
    code = (
        "import sys\nfor name in ('torch', 'accelerate', 'numba', 'gguf'):\n    sys.modules[name] = None\n"
        "from paceline.cli.main import main\n"
        f"sys.argv = ['paceline', 'doctor', '--gateway', {fleet.grpc!r}]\nmain()\n"
    )
    settings = {
        "PACELINE_GATEWAY_MODEL": str(fleet.model),
        "PACELINE_GATEWAY_VERIFIERS": fleet.verifier,
        "PACELINE_GATEWAY_REDIS_URL": fleet.redis_url,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "NO_COLOR": "1", **settings},
    )
    out, _ = await process.communicate()
    said = out.decode()
    assert process.returncode == 0, said
    assert "gateway: its settings in the environment are sound" in said
    assert "redis" in said
    assert said.splitlines()[-1].startswith("healthy")


async def test_pods_that_are_gone_or_hang_are_named(tmp_path: Path, tiny_model: Path, redis_url: str) -> None:
    with Pods(tmp_path, tiny_model, redis_url, verifiers=1, drafters=2) as pods:
        pods.start()
        gone, hung = pods.drafters
        pods.pods[gone].kill()
        pods.pods[hung].pause()
        status, told = await doctor("--gateway", pods.grpc, "--redis-url", redis_url)
        pods.pods[hung].resume()
    said = {each["subject"]: each["what"] for each in bad(told, "error")}
    assert status == 1
    assert set(said) == {f"drafter {gone}", f"drafter {hung}"}
    of_gone = {each["what"] for each in bad(told, "error") if each["subject"] == f"drafter {gone}"}
    assert any("nothing listens there" in what for what in of_gone)


async def test_a_verifier_of_another_name_and_a_key_that_is_missing_are_told(
    tmp_path: Path, tiny_model: Path, redis_url: str
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('{"keys": []}')
    with Pods(tmp_path, tiny_model, redis_url, drafters=0, verifier_flags=("--model-name", "other")) as pods:
        for name in (pods.verifier, "gateway"):
            pods.launch(name)
        pods.pods[pods.verifier].until(lambda: pods.serving(pods.verifier))
        pods.pods["gateway"].until(lambda: any(each.misfit for each in _verifiers(pods)))
        status, told = await doctor("--gateway", pods.grpc)
        (misfit,) = bad(told, "error")
        assert (status, misfit["check"]) == (1, "vocabulary")
        assert f"serves 'other' and this gateway '{MODEL}'" in misfit["what"]
        assert misfit["do"] == "give both the same --model-name"
        locked = pods.add_gateway("locked", "--api-keys-file", str(keys))
        pods.pods["locked"].until(lambda: _listens(locked.grpc))
        status, told = await doctor("--gateway", locked.grpc)
    (refused,) = bad(told, "error")
    assert "PACELINE_API_KEY" in refused["do"]


def _verifiers(pods: Pods) -> Any:
    try:
        return pods.gateways["gateway"].fleet().verifiers
    except Exception:  # it is not up yet
        return []


def _listens(address: str) -> bool:
    import socket

    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


async def test_a_fleet_with_tls_is_asked_with_a_services_certificate(
    tmp_path: Path, tiny_model: Path, redis_url: str
) -> None:
    with SecurePods(tmp_path, tiny_model, redis_url) as pods:
        pods.start()
        ca = tmp_path / "public.pem"
        ca.write_bytes(pods.public_authority.pem)
        at = ("--gateway", pods.grpc, "--ca", str(ca), "--redis-url", redis_url)
        from paceline.net.roles import Role

        flags = pods.secrets[Role.GATEWAY].flags()
        status, told = await doctor(*at, *flags)
        # The certificate of a day is in its last tenth of three.
        assert [each for each in bad(told) if "ends soon" not in each["what"]] == []
        assert status == 0
        status, told = await doctor(*at)
        assert status == 1
        assert {each["what"] for each in bad(told, "error")} == {"speaks TLS, and was spoken to in plaintext"}
        status, told = await doctor("--gateway", pods.grpc, "--redis-url", redis_url, *flags)
        assert [each["subject"] for each in bad(told, "error")] == [f"gateway {pods.grpc}"]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer("ill", tmp_path_factory.mktemp("ill"), ["--appendonly", "yes"]) as server:
        yield server


async def of_redis(url: str) -> list[dict[str, str]]:
    _, told = await doctor("--no-direct", "--redis-url", url)
    return [
        each for each in told["findings"] if each["check"] in ("redis", "clock") and each["level"] != "ok"
    ]


async def test_a_redis_that_is_well_has_no_findings(redis: RedisServer) -> None:
    assert await of_redis(redis.url) == []


@pytest.mark.parametrize(
    ("settings", "level", "words"),
    [
        ({"maxmemory-policy": "allkeys-lru"}, "warning", "drops sessions that run"),
        ({"appendonly": "no"}, "warning", "a restart loses"),
        ({"maxmemory": "1"}, "error", "give it more memory"),
        ({"requirepass": "secret"}, "error", "put the user and password into the URL"),
    ],
)
async def test_a_redis_that_is_set_badly_is_told(
    redis: RedisServer, settings: dict[str, str], level: str, words: str
) -> None:
    before = {name: str(redis.asked.config_get(name)[name]) for name in settings}
    try:
        for name, value in settings.items():
            redis.asked.config_set(name, value)
        (finding,) = await of_redis(redis.url)
    finally:
        for name, value in before.items():
            redis.asked.config_set(name, value)
    assert finding["level"] == level
    assert words in finding["what"] + finding["do"]


async def test_a_user_that_may_do_too_little_is_told_what_is_missing(redis: RedisServer) -> None:
    redis.asked.acl_setuser("poor", enabled=True, passwords=["+p"], commands=["+ping"], keys=["*"])
    redis.asked.acl_setuser(
        "plain", enabled=True, passwords=["+p"], commands=["+ping", "+eval", "+evalsha", "+set"], keys=["*"]
    )
    address = redis.url.partition("://")[2]
    (poor,) = await of_redis(f"redis://poor:p@{address}")
    (plain,) = await of_redis(f"redis://plain:p@{address}")
    (wrong,) = await of_redis(f"redis://plain:wrong@{address}")
    assert (poor["level"], plain["level"], wrong["level"]) == ("error", "note", "error")
    assert "let the user run EVAL" in poor["do"]
    assert "may not run INFO" in plain["what"]
    assert "correct the user or password" in wrong["do"]
    assert "wrong" not in wrong["subject"]


async def test_a_replica_and_a_redis_that_is_gone_are_told(tmp_path: Path) -> None:
    with ExitStack() as stack:
        watched = stack.enter_context(watched_redis(tmp_path))
        assert [each["level"] for each in await of_redis(watched.url)] == ["note"]
        (replica,) = await of_redis(watched.replica.url)
        assert "name the primary" in replica["do"]
        watched.primary.pod.kill()
        (gone,) = await of_redis(watched.primary.url)
    assert gone["level"] == "error"
    assert "start it" in gone["do"]


async def test_a_cluster_without_one_of_its_primaries_is_told(tmp_path: Path) -> None:
    with redis_cluster(tmp_path, node_timeout_ms=500) as cluster:
        for server in cluster.primaries:
            server.asked.config_set("appendonly", "yes")
        assert await of_redis(cluster.url) == []
        cluster.primaries[2].pod.kill()
        cluster.primaries[0].until(
            lambda: (
                cluster.primaries[0].asked.cluster("info")["cluster_state"] != "ok"
                or cluster.primaries[0].asked.cluster("info")["cluster_slots_fail"] != "0"
            )
        )
        assert any(each["level"] == "error" for each in await of_redis(cluster.url))
