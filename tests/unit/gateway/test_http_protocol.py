"""The HTTP server's door, over real sockets: raw bytes as clients of all kinds send them."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from gateway.http import protocol
from gateway.http.protocol import MAX_HEAD_BYTES, MAX_HEADERS
from gateway.http.server import HttpServer

# As Java's java.net.http.HttpClient writes its first request.
JAVA = (
    b"POST /v1/completions HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 15\r\n"
    b"Host: x\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n"
    b"User-Agent: Java-http-client/17.0.15\r\n"
    b"Content-Type: application/json\r\n\r\n"
)
BODY = b'{"model":"tiny"}'[:15]
GET = b"GET /one HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the request as it is seen here; on /early before its body has come, on /endless never."""
    if scope["path"] == "/endless":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    body = b""
    while scope["path"] != "/early":
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    names = [name.decode() for name, _ in scope["headers"]]
    seen = {"method": scope["method"], "path": scope["path"], "headers": names, "body": body.decode()}
    content = json.dumps(seen).encode()
    headers = [(b"content-length", b"%d" % len(content)), (b"x-nodelay", nodelay(scope))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def nodelay(scope: Scope) -> bytes:
    """Whether the connection that the request came by sends small writes at once."""
    for connection in _servers[-1].server_state.connections:
        if connection.client is not None and tuple(connection.client) == tuple(scope["client"]):
            accepted = connection.transport.get_extra_info("socket")
            return b"%d" % bool(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    return b"unknown"


_servers: list[Any] = []


@asynccontextmanager
async def serving(*, keep_alive_seconds: float = 60) -> AsyncIterator[int]:
    """A server on the port that this gives."""
    server = HttpServer(echo, None, keep_alive_seconds=keep_alive_seconds, grace_seconds=1)
    listener = socket.create_server(("127.0.0.1", 0))
    _servers.append(server)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    yield listener.getsockname()[1]
    server.should_exit = True
    await running
    _servers.remove(server)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with serving() as chosen:
        yield chosen


class Raw:
    """A client that sends bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of the next answer."""
        async with asyncio.timeout(20):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            body = await self._reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, json.loads(body)

    async def read(self) -> int:
        """Status of an answer of which only the head has come."""
        async with asyncio.timeout(20):
            return int((await self._reader.readuntil(b"\r\n\r\n")).split()[1])

    async def ended(self) -> bool:
        """Whether nothing more comes."""
        async with asyncio.timeout(20):
            return await self._reader.read() == b""

    def close(self) -> None:
        self._writer.close()


@pytest.fixture
async def raw(port: int) -> AsyncIterator[Raw]:
    client = Raw(*await asyncio.open_connection("127.0.0.1", port))
    yield client
    client.close()


async def test_small_answers_leave_at_once(raw: Raw) -> None:
    await raw.send(GET)
    _, headers, _ = await raw.answer()
    assert headers["x-nodelay"] == "1"


@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_the_body_of_a_request_that_offers_h2c_is_read(raw: Raw, pieces: int) -> None:
    whole = JAVA + BODY
    size = -(-len(whole) // pieces)
    for at in range(0, len(whole), size):
        await raw.send(whole[at : at + size])
        await asyncio.sleep(0)
    status, _, seen = await raw.answer()
    assert (status, seen["method"], seen["path"]) == (200, "POST", "/v1/completions")
    assert seen["body"] == BODY.decode()
    assert "content-type" in seen["headers"]
    assert "upgrade" not in seen["headers"]


async def test_requests_that_offer_an_upgrade_may_follow_one_another(raw: Raw) -> None:
    chunked = JAVA.replace(b"Content-Length: 15", b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n"
    await raw.send(GET + JAVA + BODY + chunked + GET.replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\n\r\n") + GET)
    answers = [await raw.answer() for _ in range(5)]
    assert [seen["body"] for _, _, seen in answers] == ["", BODY.decode(), "hello", "", ""]
    await raw.send(JAVA + BODY)
    assert (await raw.answer())[2]["body"] == BODY.decode()


async def test_a_websocket_is_a_request_like_others(raw: Raw) -> None:
    await raw.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n") + GET)
    assert [(await raw.answer())[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"POST /one HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
        (b"GET /one HTTP/1.1\r\n" + b"x: y\r\n" * (MAX_HEADERS + 2), 431),
        (b"GET /one HTTP/1.1\r\n" + b"x: y\r\n" * 10_000 + b"\r\n", 431),
        (b"GET /one HTTP/1.1\r\nx: " + b"y" * 2 * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (b"GET /one HTTP/1.1\r\nx: " + b"y" * (1 << 20), 431),
        (b"GET /one HTTP/1.1\r\n" + b"y" * (1 << 20), 431),
        (b"GET /" + b"y" * (1 << 20), 431),
        (b"POST /one HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx: " + b"y" * (1 << 20), 431),
        (b"POST /one HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 10_000, 431),
        (b"POST /one HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"y" * (1 << 20), 431),
        (b"POST /one HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nno size", 400),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_ends(
    raw: Raw, sent: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    await raw.send(sent)
    got, headers, body = await raw.answer()
    assert (got, headers["connection"]) == (status, "close")
    assert body["error"]["type"] == "invalid_request_error"
    assert await raw.ended()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_heads_within_the_bounds_are_served_however_many(raw: Raw) -> None:
    head = (
        b"GET /one HTTP/1.1\r\n" + b"x: y\r\n" * (MAX_HEADERS - 1) + b"long: " + b"y" * 60_000 + b"\r\n\r\n"
    )
    for _ in range(4):
        await raw.send(head)
        assert (await raw.answer())[0] == 200
    await raw.send(GET * 3000)
    assert {(await raw.answer())[0] for _ in range(3000)} == {200}


async def test_a_large_body_is_no_head(raw: Raw) -> None:
    size = 20 * MAX_HEAD_BYTES
    await raw.send(b"POST /one HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + b"y" * size + GET)
    assert len((await raw.answer())[2]["body"]) == size
    assert (await raw.answer())[0] == 200


async def test_a_trailer_is_not_a_header(raw: Raw) -> None:
    chunked = (
        b"POST /one HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nauthorization: x\r\n\r\n"
    )
    await raw.send(chunked)
    seen = (await raw.answer())[2]
    assert (seen["body"], seen["headers"]) == ("hi", ["transfer-encoding"])


async def test_a_head_that_does_not_come_is_waited_for_no_longer(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    client = Raw(*await asyncio.open_connection("127.0.0.1", port))
    await client.send(b"GET /one HT")
    status, _, body = await client.answer()
    assert (status, body["error"]["code"]) == (408, "request_timeout")
    assert await client.ended()
    client.close()


@pytest.mark.parametrize("asks", [True, False], ids=["after-a-request", "from-the-beginning"])
async def test_a_connection_without_a_request_is_closed_after_the_set_time(asks: bool) -> None:
    clock = asyncio.get_running_loop().time
    async with serving(keep_alive_seconds=0.3) as port:
        began = clock()
        client = Raw(*await asyncio.open_connection("127.0.0.1", port))
        if asks:
            await client.send(GET)
            assert (await client.answer())[0] == 200
        assert await client.ended()
        assert clock() - began >= 0.3
        client.close()


async def test_nothing_is_written_amid_anothers_answer(raw: Raw) -> None:
    await raw.send(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await raw.read() == 200
    await raw.send(b"garbage\r\n\r\n")
    assert await raw.ended()


async def test_a_body_behind_its_answer_is_thrown_away_and_the_connection_goes_on(raw: Raw) -> None:
    await raw.send(b"POST /early HTTP/1.1\r\nContent-Length: 300000\r\n\r\n" + b"y" * 100_000)
    assert (await raw.answer())[0] == 200
    await raw.send(b"y" * 200_000 + GET)
    assert (await raw.answer())[2]["path"] == "/one"


async def test_a_body_that_goes_on_and_on_behind_its_answer_ends_the_connection(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_LINGER_SECONDS", 0.1)
    client = Raw(*await asyncio.open_connection("127.0.0.1", port))
    await client.send(b"POST /early HTTP/1.1\r\nContent-Length: 300000\r\n\r\n")
    assert (await client.answer())[0] == 200
    assert await client.ended()
    client.close()


_JAVA_CLIENT = """
import java.net.URI; import java.net.http.*;
public class Client { public static void main(String[] a) throws Exception {
  var client = HttpClient.newHttpClient();
  for (int i = 0; i < 2; i++) {
    var body = HttpRequest.BodyPublishers.ofString("hello");
    var asked = HttpRequest.newBuilder(URI.create(a[0])).POST(body).build();
    System.out.println(client.send(asked, HttpResponse.BodyHandlers.ofString()).body());
  } } }
"""


@pytest.mark.skipif(not shutil.which("javac"), reason="no Java here")
async def test_javas_default_client_is_served(port: int, tmp_path: Path) -> None:
    source = tmp_path / "Client.java"
    source.write_text(_JAVA_CLIENT)
    command = ["java", str(source), f"http://127.0.0.1:{port}/one"]
    ran = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert [json.loads(line)["body"] for line in ran.stdout.splitlines()] == ["hello", "hello"]
