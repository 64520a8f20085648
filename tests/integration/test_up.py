"""`paceline up` for real: every service as a process, a demonstration, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from paceline.client import Finished, GatewayClient, Generation
from tests.tiny import make_tiny_model
from tests.waiting import wait_until

PODS = {"redis", "verifier-1", "drafter-1", "gateway"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_model(folder)
    return folder


@dataclass
class Up:
    """A running `paceline up`, what it has said so far, and which processes are of its making."""

    process: asyncio.subprocess.Process
    scratch: Path
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)

    @property
    def mark(self) -> str:
        """What only this run's processes carry."""
        return self.scratch.name

    def processes(self) -> dict[int, str]:
        """Command line of every process that carries this run's mark."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_text().replace("\0", " ") if entry.name.isdigit() else ""
                # Redis writes its title over its environment; the title names its folder.
                if command and (
                    self.mark in command or self.mark.encode() in (entry / "environ").read_bytes()
                ):
                    found[int(entry.name)] = command
            except OSError:  # it has ended meanwhile, or is another user's
                continue
        return found

    def pid_of(self, words: str) -> int:
        (pid,) = (pid for pid, command in self.processes().items() if words in command)
        return pid

    def said(self, pattern: str) -> str | None:
        found = re.search(pattern, "".join(self.out + self.err))
        return found[1] if found else None

    def none_left(self) -> bool:
        return not self.processes()


@asynccontextmanager
async def up(model: Path, cache: Path, *args: str) -> AsyncIterator[Up]:
    # Short: it holds a Unix socket.
    scratch = Path("/tmp") / secrets.token_hex(8)
    scratch.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "paceline.cli", "up"),
        *("--model", str(model), "--port", "0", "--grpc-port", "0", *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**environment, "PACELINE_CACHE": str(cache), "TMPDIR": str(scratch), "COLUMNS": "120"},
    )
    running = Up(process, scratch)
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [
        asyncio.ensure_future(_collect(process.stdout, running.out)),
        asyncio.ensure_future(_collect(process.stderr, running.err)),
    ]
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await asyncio.gather(*readers)
        await wait_until(running.none_left, "no process of this run is left")
        shutil.rmtree(scratch)


async def _collect(stream: asyncio.StreamReader, lines: list[str]) -> None:
    while line := await stream.readline():
        lines.append(line.decode())


async def test_once_shows_the_demonstration_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    async with up(model, tmp_path, "--once") as run:
        status = await run.process.wait()
        await wait_until(lambda: "stopped\n" in run.err, "it says that it stopped")
        assert status == 0, "".join(run.out + run.err)
        assert run.none_left()
        out = "".join(run.out)
        for words in ("with speculation", "plain decoding", "speed-up", "acceptance length"):
            assert re.search(rf"^{words} +\d+\.\d", out, re.MULTILINE), out
        assert "text identical: yes" in out
        for pod in PODS:
            assert f"  {pod} ready" in "".join(run.err)
        assert not list(run.scratch.glob("paceline-*"))
        logs = Path(run.said(r"logs in (\S+)") or "")
        assert {name.removesuffix(".log") for name in os.listdir(logs)} == PODS


async def test_it_serves_heals_and_stops_on_a_signal(model: Path, tmp_path: Path) -> None:
    async with up(model, tmp_path, "--verifiers", "1", "--drafters", "1") as run:
        await wait_until(lambda: run.said(r"serving on (\S+)") is not None, "it serves", 180)
        url, grpc = run.said(r"serving on (\S+)"), run.said(r"and (\S+) \(gRPC\)")
        assert url is not None
        assert grpc is not None
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"{url}/readyz")).status_code == 200
        for name, words in [
            ("verifier-1", "-m verifier_svc"),
            ("drafter-1", "-m drafter_svc"),
            ("gateway", "-m gateway"),
        ]:
            os.kill(run.pid_of(words), signal.SIGKILL)
            await wait_until(lambda: run.said(f"{name} (restarting)") is not None, f"{name} is missed")  # noqa: B023
            await wait_until(lambda: "".join(run.err).count(f"{name} ready") == 2, f"{name} is back", 60)  # noqa: B023
        async with GatewayClient(grpc) as client:
            generation = Generation(text="again and again and", max_tokens=8, temperature=0)
            events = [event async for event in client.generate(generation, timeout_s=60)]
            assert isinstance(events[-1], Finished)
        run.process.send_signal(signal.SIGINT)
        assert await run.process.wait() == 0
        assert run.none_left()


async def test_a_killed_up_takes_everything_with_it(model: Path, tmp_path: Path) -> None:
    async with up(model, tmp_path) as run:
        await wait_until(lambda: len(run.processes()) == 5, "every service is started", 60)
        run.process.kill()
        await wait_until(run.none_left, "nothing is left")


async def test_ctrl_c_while_it_starts_is_no_success(model: Path, tmp_path: Path) -> None:
    async with up(model, tmp_path, "--no-demo") as run:
        await wait_until(lambda: len(run.processes()) > 2, "services are starting", 60)
        run.process.send_signal(signal.SIGINT)
        assert await run.process.wait() == 128 + signal.SIGINT
        assert run.none_left()
        await wait_until(lambda: "interrupted before it served\n" in run.err, "it says so")


async def test_sigterm_while_it_starts_stops_what_has_started(model: Path, tmp_path: Path) -> None:
    async with up(model, tmp_path) as run:
        await wait_until(lambda: len(run.processes()) > 2, "services are starting", 60)
        run.process.send_signal(signal.SIGTERM)
        assert await run.process.wait() == 128 + signal.SIGTERM
        assert run.none_left()


async def test_a_model_that_no_verifier_can_load_is_explained(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (broken / name).write_text("{}")
    async with up(broken, tmp_path) as run:
        assert await run.process.wait() == 1
        await wait_until(lambda: "stopped\n" in run.err, "it says that it stopped")
        assert run.said(r"error: (\S+) ended with status") in {"verifier-1", "gateway"}
        assert run.none_left()
