from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis.asyncio

from paceline.local import redis_server
from paceline.local.fleet import LocalFleet, RestartPolicy
from paceline.local.process import Service
from tests.waiting import wait_until


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = redis_server.data_folder()
    yield folder
    shutil.rmtree(folder)


async def test_a_private_server_keeps_its_data_when_it_is_killed(folder: Path, tmp_path: Path) -> None:
    server = redis_server.private_server(redis_server.find_server(), folder)
    assert not await redis_server.answers(server.url)

    async def ready() -> bool:
        return await redis_server.answers(server.url)

    restarted: list[str] = []
    fleet = LocalFleet(
        [[Service("redis", server.command, ready)]],
        tmp_path,
        lambda name, state, detail="": restarted.append(state.value),
        policy=RestartPolicy(first_delay_s=0.01),
    )
    await fleet.start()
    keeping = asyncio.ensure_future(fleet.keep())
    try:
        async with redis.asyncio.from_url(server.url) as client:
            await client.set("kept", "yes")
            assert (await client.config_get("appendonly")) == {"appendonly": "yes"}
            assert (folder / "redis.sock").stat().st_mode & 0o077 == 0
        fleet.kill()
        await wait_until(lambda: restarted.count("ready") == 2, "the server is back")
        async with redis.asyncio.from_url(server.url) as client:
            assert await client.get("kept") == b"yes"
    finally:
        keeping.cancel()
        await fleet.stop()
    assert not await redis_server.answers(server.url)


async def test_a_url_where_nothing_listens_does_not_answer() -> None:
    assert not await redis_server.answers("redis://127.0.0.1:1/0", timeout_s=0.5)


async def test_a_malformed_url_is_an_error() -> None:
    with pytest.raises(ValueError, match="Redis URL"):
        await redis_server.answers("http://127.0.0.1:1")


def test_a_server_on_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = redis_server.find_server()
    (tmp_path / "redis-server").symlink_to(ours)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_server.find_server() == tmp_path / "redis-server"


def test_a_long_temporary_folder_still_gives_a_usable_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 80)))
    folder = redis_server.data_folder()
    try:
        assert len(redis_server.private_server(Path("redis"), folder).url) < 100
    finally:
        shutil.rmtree(folder)
