"""Log-probabilities by a real verifier, against transformers' own, with and without drafts, after a crash."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from paceline.logprobs import LogprobsWanted, TokenLogprobs, unpack
from paceline.net import wire
from paceline.net.rpc import channel
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.store import RedisStore
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from tests.pods import Pods

PROMPT = [5, 6, 7, 8] * 40
WANTED = LogprobsWanted(top=3, prompt_top=2)


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    with Pods(tmp_path_factory.mktemp("logprobs"), tiny_model, redis_url) as made:
        yield made.start()


async def responses(
    pods: Pods, name: str, wanted: LogprobsWanted, committed: list[int], packed: bytes
) -> AsyncIterator[verifier_pb2.CommittedTokens]:
    async with channel(pods.verifier) as made:
        asked = verifier_pb2.OpenRequest(
            key=wire.key_to_proto(SessionKey(name, 1)),
            prompt_ids=PROMPT,
            committed_ids=committed,
            sampling=wire.sampling_to_proto(SamplingParams(max_tokens=24, temperature=0.9, seed=4)),
            logprobs=wire.logprobs_to_proto(wanted),
            committed_logprobs=packed,
        )
        async for response in verifier_pb2_grpc.VerifierServiceStub(made).Open(asked, timeout=120):
            if response.HasField("tokens"):
                yield response.tokens


async def generated(
    pods: Pods,
    name: str,
    wanted: LogprobsWanted = WANTED,
    committed: list[int] | None = None,
    packed: bytes = b"",
) -> tuple[list[int], bytes, bytes]:
    """Ids, their packed log-probabilities, and the prompt's."""
    ids, scores, of_prompt = list(committed or ()), packed, b""
    async for tokens in responses(pods, name, wanted, ids.copy(), packed):
        ids += tokens.token_ids
        scores += tokens.logprobs
        of_prompt += tokens.prompt_logprobs
    return ids, scores, of_prompt


def own_logprobs(model: Path, ids: list[int]) -> torch.Tensor:
    """Transformers' [positions, vocab]: row i is of the token at i + 1."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = loaded(torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits.double(), -1)


def check(scores: list[TokenLogprobs], expected: torch.Tensor, tokens: list[int]) -> None:
    for each, row, token in zip(scores, expected, tokens, strict=True):
        assert each.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert each.top_logprobs == pytest.approx(row.topk(len(each.top_ids)).values.tolist(), abs=1e-4)
        # Equals, but for the last bits, may change places.
        assert row[list(each.top_ids)].tolist() == pytest.approx(list(each.top_logprobs), abs=1e-4)


async def test_they_are_the_models_own(pods: Pods, tiny_model: Path) -> None:
    ids, scores, of_prompt = await generated(pods, "own")
    assert len(ids) == 24
    expected = own_logprobs(tiny_model, [*PROMPT, *ids])
    check(unpack(scores, 3), expected[len(PROMPT) - 1 : -1], ids)
    check(unpack(of_prompt, 2), expected[: len(PROMPT) - 1], PROMPT[1:])
    # Kept KV of the prompt is there now, and changes no bit.
    assert await generated(pods, "again") == (ids, scores, of_prompt)
    assert (await generated(pods, "none", LogprobsWanted()))[1:] == (b"", b"")


async def test_a_session_that_moves_goes_on_with_them(pods: Pods) -> None:
    ids, scores, of_prompt = await generated(pods, "whole")
    told = 10 * WANTED.width
    moved = await generated(pods, "moved", WANTED, ids[:10], scores[:told])
    assert moved == (ids, scores, of_prompt)
    later = await generated(pods, "later", LogprobsWanted(top=3), ids[:10], scores[:told])
    assert later == (ids, scores, b"")
    store = RedisStore(pods.redis_url, ttl_seconds=60)
    record = await store.get("moved")
    await store.close()
    assert record is not None
    assert record.committed_logprobs == scores
