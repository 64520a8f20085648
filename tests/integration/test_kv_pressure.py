"""More sessions than KV: all finish, each with the text it has alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from paceline.client import Chunk, Finished, GatewayClient, Generation
from tests.pods import Pods

pytestmark = pytest.mark.long(reason="decodes 64 texts alone and then together")

SESSIONS = 64
# Two blocks each, so that the pool holds sixteen.
ASKED = [
    Generation(
        text=f"session {number % 16} says the quick brown fox " * 2,
        max_tokens=120,
        temperature=0.0 if number % 2 else 0.9,
        seed=number,
    )
    for number in range(SESSIONS)
]
KV_TOKENS = 16 * 2 * 128


async def _ids(client: GatewayClient, asked: Generation) -> list[int]:
    ids: list[int] = []
    finished = None
    async for event in client.generate(asked, timeout_s=300):
        if isinstance(event, Chunk):
            ids += event.token_ids
        elif isinstance(event, Finished):
            finished = event
    assert finished is not None
    return ids


async def test_all_sessions_finish_on_a_quarter_of_their_kv(
    tmp_path: Path, tiny_model: Path, redis_url: str
) -> None:
    flags = ("--kv-tokens", str(KV_TOKENS), "--max-sessions", str(SESSIONS))
    with Pods(tmp_path, tiny_model, redis_url, verifier_flags=flags) as pods:
        pods.start()
        async with GatewayClient(pods.grpc) as client:
            alone = [await _ids(client, replace(asked, speculation=False)) for asked in ASKED]
            together = await asyncio.gather(*(_ids(client, asked) for asked in ASKED))
        assert list(together) == alone
        assert max(len(ids) for ids in alone) == 120
        status = pods.verifier_status()
        assert (status.sessions, status.kv_used) == (0, 0)
