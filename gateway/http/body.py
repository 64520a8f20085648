"""A request's body: its media type, its reading and its JSON, with bounds checked before any work."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from fastapi import Request
from pydantic_core import from_json

from gateway.errors import INVALID, MEDIA_TYPE, SLOW_BODY, TOO_LARGE, RequestError, invalid

# Longest time for a request's body to come.
_BODY_SECONDS = 30.0
# Bounds of a body's JSON. A prompt of ids is the longest list that is served; all else is far smaller.
MAX_VALUES = 1 << 18
MAX_CONTAINERS = 1 << 14
MAX_KEYS = 1 << 15
# Most items of any field except a text in ids.
MAX_ITEMS = 4096
_TEXTS = frozenset({"prompt", "tokens"})
# Smaller bodies cannot exceed these bounds: some milliseconds of work at most.
_SMALL_BYTES = 1 << 14


def check_media_type(request: Request) -> None:
    """Refuse with 415 what another origin's form or script can send without a CORS preflight.

    Browsers send a preflight before JSON with its media type. Clients that are no browsers may leave the type
    out.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given == "application/json" or (given.startswith("application/") and given.endswith("+json")):
        return
    if not given and {"origin", "sec-fetch-site"}.isdisjoint(request.headers):
        return
    was = f", not {given[:100]!r}" if given else ""
    raise RequestError(MEDIA_TYPE, f"content-type must be application/json{was}", "Content-Type")


async def read(request: Request, most_bytes: int) -> bytes:
    """The request's body. Raises `RequestError` as soon as it is too large or too slow."""
    too_large = RequestError(TOO_LARGE, f"the body is larger than {most_bytes} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most_bytes:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise RequestError(SLOW_BODY, f"the body has not come within {_BODY_SECONDS:g} seconds") from None
    return b"".join(parts)


def fields_of(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises `RequestError`.

    Of duplicate names the last one counts, as with OpenAI.
    """
    _bound(body)
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(INVALID, f"the body is not JSON: {_why(body, error)}") from None
    if not isinstance(fields, dict):
        raise RequestError(INVALID, "the body must be a JSON object")
    for name, value in fields.items():
        if name not in _TEXTS and isinstance(value, list | dict) and len(value) > MAX_ITEMS:
            raise RequestError(
                invalid("array_above_max_length"), f"{name[:100]}: more than {MAX_ITEMS} items", name[:100]
            )
    return fields


def _why(body: bytes, error: ValueError) -> str:
    try:
        body.decode()
    except UnicodeDecodeError as wrong:
        return f"it is not UTF-8: {wrong.reason} at byte {wrong.start}"
    said = str(error)
    return f"half a surrogate pair is no text ({said})" if "hex escape" in said else said


def _bound(body: bytes) -> None:
    """Refuse more values, keys or containers than any request has, by counting punctuation."""
    if len(body) <= _SMALL_BYTES:
        return
    signs = (body.count(b","), body.count(b":"), body.count(b"[") + body.count(b"{"))
    if not _beyond(*signs):
        return
    # They may be in strings; count again without these.
    flat = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    inside = np.bitwise_xor.accumulate((flat == ord('"')).view(np.uint8))
    count = np.bincount(flat[inside == 0], minlength=256)
    if what := _beyond(int(count[ord(",")]), int(count[ord(":")]), int(count[ord("[")] + count[ord("{")])):
        raise RequestError(INVALID, f"the body holds more than {what}")


def _beyond(values: int, keys: int, containers: int) -> str:
    if values > MAX_VALUES:
        return f"{MAX_VALUES} values"
    if keys > MAX_KEYS:
        return f"{MAX_KEYS} keys"
    return f"{MAX_CONTAINERS} lists and objects" if containers > MAX_CONTAINERS else ""
