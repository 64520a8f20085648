"""Bodies at the door: who may send them, and JSON whose cost is bounded before it is paid."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.requests import Request

from gateway.errors import RequestError
from gateway.http.body import MAX_VALUES, check_media_type, fields_of
from gateway.http.schema import ChatRequest, CompletionRequest, parse

SIZE = 4 << 20


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","prompt":[' + b'"x",' * (SIZE // 4) + b"1]}",
        b'{"model":"m","prompt":[' + b"{}," * (SIZE // 3) + b"1]}",
        b'{"model":"m","prompt":[' + b"[]," * (SIZE // 3) + b"1]}",
        b'{"model":"m","messages":[' + b"1," * (SIZE // 2) + b"1]}",
        b'{"model":"m","messages":[{' + b'"a":1,' * (SIZE // 6) + b'"b":1}]}',
        b'{"model":"m","messages":[{"role":"user","content":[' + b"1," * (MAX_VALUES - 9) + b"1]}]}",
        b'{"model":"m","prompt":"x","stop":[' + b"1," * (MAX_VALUES - 9) + b"1]}",
        b"{" + b'"a":1,' * (SIZE // 6) + b'"b":1}',
        b'{"a":' * (SIZE // 5),
        b"[" * SIZE,
        b'{"model":"m","prompt":"x","seed":' + b"9" * SIZE + b"}",
    ],
    ids=lambda body: body[:60].decode(),
)
@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
@pytest.mark.timeout(20)
def test_a_body_of_wrong_items_is_refused_at_the_first(body: bytes, kind: type[Any]) -> None:
    with pytest.raises(RequestError) as caught:
        parse(body, kind)
    assert caught.value.kind.status == 400
    assert len(caught.value.message) < 500


def test_signs_in_strings_are_text() -> None:
    text = '{[:,"\\' * (SIZE // 12)
    body = json.dumps({"model": "m", "prompt": text}).encode()
    assert fields_of(body)["prompt"] == text


def test_a_prompt_of_very_many_ids_is_taken() -> None:
    ids = list(range(MAX_VALUES - 2))
    assert parse(json.dumps({"model": "m", "prompt": ids}).encode(), CompletionRequest).prompt == ids


def test_of_a_name_that_stands_twice_the_last_counts() -> None:
    assert fields_of(b'{"model": "a", "model": "b"}') == {"model": "b"}


@pytest.mark.parametrize(
    ("headers", "taken"),
    [
        ({"content-type": "application/json"}, True),
        ({"content-type": "Application/JSON; charset=utf-8"}, True),
        ({"content-type": "application/vnd.api+json"}, True),
        ({}, True),
        ({"origin": "https://elsewhere.example"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"content-type": "text/plain"}, False),
        ({"content-type": "text/plain; application/json"}, False),
        ({"content-type": "application/x-www-form-urlencoded"}, False),
        ({"content-type": "multipart/form-data; boundary=x"}, False),
    ],
)
def test_what_a_foreign_page_can_send_without_asking_is_refused(headers: dict[str, str], taken: bool) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    request = Request({"type": "http", "headers": raw})
    if taken:
        check_media_type(request)
        return
    with pytest.raises(RequestError, match="must be application/json") as caught:
        check_media_type(request)
    assert caught.value.kind.status == 415
