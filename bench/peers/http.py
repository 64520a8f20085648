"""An arm for servers with OpenAI's completions API: sends a prompt's ids, reads server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from bench.arms import TIMEOUT_S, Sample
from bench.system import BenchError

_DATA = "data:"


class HttpArm:
    """Streams greedy completions. All such arms get the same ids for the same prompt."""

    def __init__(self, client: httpx.AsyncClient, model: str, ids: Mapping[str, Sequence[int]]) -> None:
        """`ids`: those of every prompt that will be asked, special tokens included."""
        self._client = client
        self._model = model
        self._ids = ids

    async def answer(self, prompt: str, max_tokens: int) -> Sample:
        """Decode one prompt greedily. Raises `BenchError`."""
        request = {
            "model": self._model,
            "prompt": list(self._ids[prompt]),
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        texts: list[str] = []
        counted: int | None = None
        begin = first = last = time.perf_counter()
        try:
            async with self._client.stream("POST", "/v1/completions", json=request) as response:
                if response.status_code != httpx.codes.OK:
                    raise BenchError(f"{self._client.base_url}: {(await response.aread()).decode()}")
                async for event in _events(response):
                    if event.get("usage"):
                        counted = event["usage"]["completion_tokens"]
                    if event.get("choices") and (text := event["choices"][0]["text"]):
                        last = time.perf_counter()
                        first = last if not texts else first
                        texts.append(text)
        except httpx.HTTPError as error:
            raise BenchError(f"{self._client.base_url}: {type(error).__name__}: {error}") from error
        if counted is None:
            raise BenchError(f"{self._client.base_url} ended a stream without saying how many tokens it had")
        return Sample("".join(texts), (), first - begin, last - begin, counted=counted)


@asynccontextmanager
async def http_arm(url: str, model: str, ids: Mapping[str, Sequence[int]]) -> AsyncIterator[HttpArm]:
    """An arm for the server at `url`."""
    # A server that was asleep may close a connection in the very moment in which it is used again.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits, trust_env=False) as client:
        yield HttpArm(client, model, ids)


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        data = line.removeprefix(_DATA).strip()
        if line.startswith(_DATA) and data != "[DONE]":
            yield json.loads(data)
