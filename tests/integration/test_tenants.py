"""What drafters learn from one API key's sessions: its own by default, everybody's by a setting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from paceline.api_keys import api_key_hash, new_api_key
from paceline.client import Finished, GatewayClient, Generation
from tests.pods import Gateway, Pods

# What was learned shows in trees that come in time, and not beside other tests.
pytestmark = pytest.mark.serial

# More than a few of each: whether a tree comes in time is chance.
FIRST, SECOND = "abcdefgh", "ijklmnop"
ALICE, BOB, CAROL, DAVE, ERIN, WATCHER = (new_api_key() for _ in range(6))
ENTRIES = [
    *(
        {"id": name, "sha256": [api_key_hash(key)]}
        for name, key in (("a", ALICE), ("b", BOB), ("c", CAROL), ("d", DAVE), ("e", ERIN))
    ),
    {"id": "watcher", "sha256": [api_key_hash(WATCHER)], "scopes": ["status"]},
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    """One drafter for two gateways: the first keeps keys apart, `sharing` does not."""
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    keys.write_text(json.dumps({"keys": ENTRIES}))
    with Pods(
        tmp_path_factory.mktemp("tenants"),
        tiny_model,
        redis_url,
        gateway_flags=("--api-keys-file", str(keys)),
        api_key=WATCHER,
        verifier_threads=2,
    ) as pods:
        yield pods.start()


@pytest.fixture(scope="module")
def sharing(fleet: Pods) -> Gateway:
    return fleet.start_gateway("sharing", "--share-learning", "true")


async def accepted(gateway: str, key: str, prompts: Sequence[str]) -> int:
    """Drafted tokens that came true, of one sampled answer to each prompt."""
    total = 0
    async with GatewayClient(gateway, api_key=key) as client:
        for prompt in prompts:
            wanted = Generation(text=prompt, max_tokens=64, temperature=1.0, seed=7)
            last = [event async for event in client.generate(wanted, timeout_s=60)][-1]
            assert isinstance(last, Finished)
            total += last.receipt.accepted_tokens
    return total


async def test_a_receipt_does_not_tell_what_another_key_has_asked(fleet: Pods) -> None:
    """The tiny model's sampled text follows no pattern: only who has seen it can guess it."""
    theirs = [f"the secret of {name}" for name in FIRST]
    nobodys = [f"the secret of {name}" for name in SECOND]
    for _ in range(2):
        await accepted(fleet.grpc, ALICE, theirs)
    asked_by_another = await accepted(fleet.grpc, BOB, theirs)
    # A key's first questions, as Bob's were: whoever has asked before is drafted for better.
    asked_by_nobody = await accepted(fleet.grpc, DAVE, nobodys)
    asked_by_itself = await accepted(fleet.grpc, BOB, theirs)
    assert asked_by_itself > 2 * max(asked_by_another, asked_by_nobody)


async def test_keys_learn_from_one_another_where_that_is_asked_for(fleet: Pods, sharing: Gateway) -> None:
    prompts = [f"what everybody asks about {name}" for name in FIRST]
    first = await accepted(sharing.grpc, ALICE, prompts)
    shared = await accepted(sharing.grpc, CAROL, prompts)
    apart = await accepted(fleet.grpc, ERIN, prompts)
    assert shared > 2 * max(first, apart)
