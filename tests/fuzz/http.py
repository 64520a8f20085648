"""HTTP requests: by the gateway's own OpenAPI document, with damaged bodies, and as bytes on a socket."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import httpx
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tests.fuzz.messages import damaged
from tests.pods import MODEL

ANSWER_SECONDS = 60.0
_SILENCE_SECONDS = 0.2
_DOCUMENTED = {200, 400, 404, 405, 408, 413, 415, 429, 431}
_STATUS_LINES = re.compile(rb"^HTTP/1\.1 (\d{3})", re.MULTILINE)
_PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60)


@dataclass(frozen=True)
class Request:
    """What httpx can send: a sound request line, and a body that may be anything."""

    method: str
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...]


async def send(client: httpx.AsyncClient, request: Request) -> str:
    """Send it; gives the answer's status. Fails where that is none that bad input may get."""
    answer = await client.request(
        request.method, request.path, content=request.body, headers=list(request.headers)
    )
    return _checked(answer.status_code, answer.content, answer.headers.get("content-type", ""))


def by_the_document(url: str) -> st.SearchStrategy[Request]:
    """Requests that fit /openapi.json, and requests that just do not, for all its operations."""
    document = httpx.get(f"{url}/openapi.json").raise_for_status().json()
    strategies = []
    for result in schemathesis.openapi.from_dict(_narrowed(document)).get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]
        strategies.append(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
        if operation.body:
            strategies.append(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
            strategies.append(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    return st.one_of(strategies).map(_as_request)


def _as_request(case: Any) -> Request:
    made = requests.Request(**case.as_transport_kwargs(base_url="http://gateway")).prepare()
    body = made.body.encode() if isinstance(made.body, str) else made.body
    assert body is None or isinstance(body, bytes)
    headers = {**case.headers, "content-type": made.headers.get("content-type", "")}
    return Request(str(made.method), made.path_url, body or b"", tuple(headers.items()))


def _narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The document of this very gateway: of one model, and of short answers."""
    made = deepcopy(document)
    for schema in made["components"]["schemas"].values():
        properties = schema.get("properties", {})
        if "model" in properties:
            properties["model"] = {"const": MODEL}
        for name in properties.keys() & {"max_tokens", "max_completion_tokens"}:
            properties[name] = {"type": "integer", "minimum": 1, "maximum": 8}
            schema["required"] = sorted({*schema.get("required", ()), name})
    return made


def posts() -> st.SearchStrategy[Request]:
    """Requests for completions whose bodies are damaged or no JSON at all."""
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )
    sound: dict[str, dict[str, Any]] = {
        "/v1/completions": {"model": MODEL, "prompt": "hello", "max_tokens": 4, "temperature": 0.5},
        "/v1/chat/completions": {
            "model": MODEL,
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 4,
            "stream": True,
            "stream_options": {"include_usage": True},
            "speculation": {"enabled": False},
        },
    }

    @st.composite
    def made(draw: st.DrawFn) -> Request:
        path, fields = draw(st.sampled_from(sorted(sound.items())))
        fields = dict(fields)
        for _ in range(draw(st.integers(0, 2))):
            name = draw(
                st.one_of(st.sampled_from([*fields, "stop", "seed", "top_k", "user", "n"]), st.text())
            )
            fields[name] = draw(values)
        whole = st.just(json.dumps(fields, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"))
        repeated = st.builds(
            lambda part, times: part * times, st.sampled_from([b"[", b"\x00", b'{"a":']), _LARGE
        )
        body = draw(st.one_of(whole, damaged(whole), damaged(whole), st.binary(max_size=64), repeated))
        names = st.sampled_from(
            ["content-type", "content-encoding", "accept", "authorization", "traceparent", "last-event-id"]
        )
        odd = st.sampled_from(["application/json", "text/plain; charset=utf-16", "gzip", "*/*"]) | _PRINTABLE
        return Request("POST", path, body, tuple(draw(st.lists(st.tuples(names, odd), max_size=3))))

    return made()


_LARGE = st.sampled_from([1, 1000, 20_000, 80_000])


def _checked(status: int, body: bytes, content_type: str) -> str:
    assert status in _DOCUMENTED, f"{status}: {body[:500]!r}"
    if status >= 400:
        error = json.loads(body)["error"]
        assert error["message"]
        assert error["type"]
        assert error.keys() == {"message", "type", "param", "code"}
    elif content_type.startswith("text/event-stream"):
        assert body.endswith(b"data: [DONE]\n\n")
        assert b'data: {"error"' not in body
    return str(status)


@dataclass(frozen=True)
class Conversation:
    """What a client writes on a socket, in parts, and how it leaves."""

    parts: tuple[bytes, ...]
    ending: str


_BODY = b'{"model": "tiny", "prompt": "hello", "max_tokens": 4}'
_REQUESTS = (
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nX-Request-Id: 1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY),
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%x\r\n%s\r\n0\r\n\r\n" % (len(_BODY), _BODY),
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n{}",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/models HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)


def conversations() -> st.SearchStrategy[Conversation]:
    """Requests sound, damaged, cut short, one behind the other without waiting, and plain noise."""
    request = st.sampled_from(_REQUESTS)
    lines = st.builds(
        lambda method, path, name, value: (
            b"%s %s HTTP/1.1\r\nHost: x\r\n%s: %s\r\n\r\n"
            % (method.encode(), path.encode(), name.encode(), value)
        ),
        st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "TRACE", "CONNECT"]) | _PRINTABLE,
        st.sampled_from(["/", "/v1/completions", "/v1/models/%00", "/../etc/passwd", "http://x/v1/models"])
        | _PRINTABLE,
        _PRINTABLE,
        st.binary(max_size=40),
    )
    part = st.one_of(request, request, damaged(request), damaged(request), lines, st.binary(max_size=200))
    return st.builds(
        Conversation,
        st.lists(part, min_size=1, max_size=5).map(tuple),
        st.sampled_from(["listen", "listen", "finish", "leave", "reset"]),
    )


async def _heard(reader: asyncio.StreamReader, seconds: float) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(1 << 16), seconds)
    except TimeoutError:
        return b""


async def converse(host: str, port: int, conversation: Conversation) -> str:
    """Write it, and leave; gives the last status there was.

    Who has finished writing must soon be told the end.
    """
    reader, writer = await asyncio.open_connection(host, port)
    answers = b""
    try:
        for part in conversation.parts:
            writer.write(part)
            await writer.drain()
        if conversation.ending == "listen":
            # It may be the server that waits for more.
            while answer := await _heard(reader, _SILENCE_SECONDS):
                answers += answer
        elif conversation.ending == "finish":
            # It may have hung up by now; what it said before is there.
            with suppress(OSError):
                writer.write_eof()
            answers = await asyncio.wait_for(reader.read(), ANSWER_SECONDS)
        elif conversation.ending == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    except (ConnectionError, BrokenPipeError):
        return "hung up"
    finally:
        writer.close()
    statuses = [int(status) for status in _STATUS_LINES.findall(answers)]
    assert set(statuses) <= {100, *_DOCUMENTED}, answers[:500]
    return str(statuses[-1]) if statuses else "nothing"
