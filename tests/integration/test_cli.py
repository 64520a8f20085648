"""The command line as a user runs it: a process, its output, its exit status."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from paceline import __version__
from paceline.net.rpc import RefusedError
from tests.scripted_gateway import scripted_gateway


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


async def paceline(*args: str, stdin: bytes = b"", **env: str) -> Ran:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "paceline.cli", *args),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **env},
    )
    out, err = await process.communicate(stdin)
    return Ran(process.returncode or 0, out.decode(), err.decode())


async def test_version() -> None:
    assert await paceline("--version") == Ran(0, f"paceline {__version__}\n", "")


@pytest.mark.parametrize(
    "command", [[], ["up"], ["generate"], ["status"], ["doctor"], ["model"], ["model", "fetch"]]
)
async def test_help_reads_well(command: list[str]) -> None:
    ran = await paceline(*command, "--help")
    assert ran.status == 0
    assert "Usage: " in ran.out
    assert ran.err == ""


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        ([], {"torch", "transformers", "numpy", "grpc", "redis"}),
        (["verifier"], {"torch", "transformers", "numpy", "redis"}),
        (["gateway"], {"torch", "transformers", "numpy"}),
        (["drafter"], {"torch", "transformers", "numpy", "grpc", "redis"}),
    ],
    ids=["paceline", "verifier", "gateway", "drafter"],
)
async def test_help_imports_nothing_heavy(command: list[str], heavy: set[str]) -> None:
    code = (
        f"import sys\nfrom paceline.cli.main import main\nsys.argv = {['paceline', *command, '--help']}\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', sorted({heavy} & set(sys.modules)))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out.decode().splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize(
    ("script", "imported"),
    [
        (["paceline", "status"], "paceline.cli.app"),
        (["paceline", "drafter"], "drafter_svc.service"),
        (["drafter_svc"], "drafter_svc.service"),
        (["gateway", "--model", "m", "--verifiers", "localhost:1"], "gateway.service"),
        (["verifier_svc", "--model", "m"], "verifier_svc.service"),
    ],
    ids=["paceline", "paceline drafter", "drafter", "gateway", "verifier"],
)
async def test_an_interrupt_during_imports_ends_it_without_a_traceback(
    script: list[str], imported: str
) -> None:
    """SIGINT comes when a process is about to import what serves."""
    code = f"""
import os, runpy, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {imported!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv = {script}
runpy.run_module({script[0].replace("paceline", "paceline.cli")!r}, run_name="__main__", alter_sys=True)
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    # A shell calls this 130.
    assert (process.returncode, out, err) == (-signal.SIGINT, b"", b"")


@pytest.mark.parametrize("command", [["generate", "hello"], ["status"], ["status", "--json"]])
async def test_no_gateway_is_one_line_that_says_what_to_do(command: list[str]) -> None:
    ran = await paceline(*command, "--gateway", "127.0.0.1:1")
    assert ran.status == 1
    assert ran.out == ""
    assert re.fullmatch(r"error: no gateway answers at 127\.0\.0\.1:1: start .*`paceline up`.*\n", ran.err)


async def test_generate_streams_text_to_stdout_and_the_receipt_to_stderr() -> None:
    async with scripted_gateway() as (gateway, address):
        ran = await paceline("generate", "hello", "--gateway", address, "--seed", "5")
        assert (ran.status, ran.out) == (0, "Hi th\x1bere\n")
        assert "3 tokens in" in ran.err
        assert "acceptance length 1.50 | 2 of 3 tokens drafted | finish: stop" in ran.err
        request = gateway.requests[0]
        assert request.chat.messages[0].content == "hello"
        assert (request.seed, request.temperature, request.speculation) == (5, 0.0, True)


async def test_generate_colours_by_origin_and_lets_no_control_character_through() -> None:
    async with scripted_gateway() as (_, address):
        ran = await paceline(
            "generate", "hello", "--gateway", address, FORCE_COLOR="1", NO_COLOR="", TERM="xterm"
        )
        assert "\x1b[32mHi\x1b[0m th\N{REPLACEMENT CHARACTER}ere" in ran.out


async def test_generate_reads_stdin_raw_and_prints_json() -> None:
    async with scripted_gateway() as (gateway, address):
        ran = await paceline(
            *("generate", "-", "--raw", "--json", "--no-speculation", "--gateway", address),
            stdin="東京\n".encode(),
        )
        assert (ran.status, ran.err) == (0, "")
        result = json.loads(ran.out)
        assert result["text"] == "Hi th\x1bere"
        assert result["token_ids"] == [7, 8, 9]
        assert (result["seed"], result["accepted_tokens"], result["finish_reason"]) == (2**63, 2, "stop")
        assert gateway.requests[0].text == "東京\n"
        assert not gateway.requests[0].speculation


async def test_generate_says_what_is_wrong() -> None:
    async with scripted_gateway() as (gateway, address):
        assert (await paceline("generate", " ", "--gateway", address)).err == "error: the prompt is empty\n"
        bad = await paceline("generate", "-", "--gateway", address, stdin=b"\xff")
        assert bad.status == 1
        assert bad.err.startswith("error: standard input is not UTF-8 text")
        gateway.refusal = RefusedError(grpc.StatusCode.NOT_FOUND, "no model x")
        ran = await paceline("generate", "hello", "--gateway", address)
        assert (ran.status, ran.err) == (1, "error: no model x (NOT_FOUND)\n")
        gateway.refusal, gateway.finishes = None, False
        ran = await paceline("generate", "hello", "--gateway", address)
        assert ran.status == 1
        assert "error: the gateway ended the stream before" in ran.err


async def test_status_as_table_and_as_json() -> None:
    async with scripted_gateway() as (_, address):
        ran = await paceline("status", "--gateway", address)
        assert ran.status == 0
        rows = [line.split() for line in ran.out.splitlines()]
        assert ["v:1", "ok", "tiny", "on", "cpu", "bfloat16", "1/64", "25%", "2.50", "5", "0"] in rows
        assert ["d:1", "draining", "lookup+recycling", "0/0", "10", "5", "(50%)", "0"] in rows
        assert ["d:2", "down", "?", "0/0", "0", "0", "0"] in rows
        fleet = json.loads((await paceline("status", "--json", "--gateway", address)).out)
        assert fleet["verifiers"][0]["status"]["committed_tokens"] == "5"
        assert fleet["drafters"][1]["healthy"] is False


@pytest.mark.parametrize("command", ["gateway", "verifier", "drafter", "bench", "up", "generate", "model"])
async def test_every_command_takes_h(command: str) -> None:
    ran = await paceline(command, "-h")
    assert (ran.status, ran.err.count("Traceback")) == (0, 0), ran.err
    assert "Usage: " in ran.out


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        (["up"], ["SmolLM2-135M-Instruct, fetched once", "port + 1", "a private server is started", "8000"]),
        (["generate"], ["127.0.0.1:8001", "256", "env var: PACELINE_GATEWAY"]),
        (["key", "create"], ["generate"]),
    ],
)
async def test_help_shows_the_defaults(command: list[str], defaults: list[str]) -> None:
    ran = await paceline(*command, "--help")
    for default in defaults:
        assert re.search(rf"\[[^]]*{re.escape(default)}\)?\]", ran.out), default


async def test_the_environment_names_the_gateway() -> None:
    async with scripted_gateway() as (_, address):
        ran = await paceline("status", PACELINE_GATEWAY=address)
        assert ran.status == 0, ran.err
        # Behind a proxy, too.
        ran = await paceline("status", PACELINE_GATEWAY=address, http_proxy="http://127.0.0.1:1", no_proxy="")
        assert ran.status == 0, ran.err
    ran = await paceline("status", PACELINE_GATEWAY="::1:8001")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("error: --gateway (PACELINE_GATEWAY): '::1:8001' is not host:port; ")


async def test_up_is_told_where_to_listen_and_what_to_leave_out(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    ran = await paceline("up", "--model", str(tmp_path), "--host", "192.0.2.1")
    assert ran.err == "error: --host: 192.0.2.1 is no address of this machine\n"
    ran = await paceline("up", "--model", str(tmp_path), "--once", "--no-demo")
    assert (ran.status, ran.out) == (1, "")
    assert "give one of them" in ran.err


async def test_no_place_for_models_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = await paceline("model", "list", HOME=str(tmp_path / "file"), XDG_CACHE_HOME="", PACELINE_CACHE="")
    assert ran.status == 1
    assert re.fullmatch(
        r"error: cannot make .*: Not a directory; set PACELINE_CACHE to a folder .*\n", ran.err
    )


@pytest.mark.parametrize("service", ["gateway", "verifier", "up"])
async def test_a_folder_that_is_not_there_is_called_one(service: str, tmp_path: Path) -> None:
    more = ("--verifiers", "127.0.0.1:1") if service == "gateway" else ()
    ran = await paceline(service, "--model", str(tmp_path / "missing"), *more)
    assert ran.status != 0
    assert f"the folder {tmp_path / 'missing'} does not exist" in ran.err
    assert "Traceback" not in ran.err


async def test_a_taken_port_names_the_flag(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        ran = await paceline("up", "--model", str(tmp_path), "--port", str(port), "--grpc-port", "0")
        assert (ran.status, ran.out) == (1, "")
        taken = f"port {port} is taken by another program"
        assert ran.err == f"error: {taken}: choose another with --port, or 0 for any free one\n"
        ran = await paceline("up", "--model", str(tmp_path), "--port", "0", "--grpc-port", str(port))
        assert "choose another with --grpc-port" in ran.err


async def test_a_redis_that_does_not_answer_is_said_before_anything_starts(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    up = ["up", "--model", str(tmp_path), "--port", "0"]
    ran = await paceline(*up, REDIS_URL="redis://127.0.0.1:1/0")
    assert ran.status == 1
    assert "error: the Redis that REDIS_URL or --redis-url names does not answer" in ran.err
    ran = await paceline(*up, "--redis-url", "http://127.0.0.1")
    assert ran.status == 1
    assert "error: --redis-url is not a Redis URL" in ran.err


async def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    ran = await paceline("up", "--model", str(tmp_path / "missing"))
    assert ran.status == 1
    assert ran.err.startswith("error: the folder ")
    assert "Traceback" not in ran.err


async def test_models_are_listed(tmp_path: Path) -> None:
    ran = await paceline("model", "list", "--json", PACELINE_CACHE=str(tmp_path))
    (default,) = json.loads(ran.out)
    assert (default["name"], default["ready"]) == ("SmolLM2-135M-Instruct", False)
    assert default["folder"].startswith(str(tmp_path))
