"""One pod that drafts with models for many sessions of two verifiers: in batches, killed, started again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from paceline.client import Generation
from paceline.engine.fingerprint import weights_fingerprint
from paceline.heads import store
from paceline.heads.eagle import EagleConfig, EagleHead
from tests.pods import Pods
from tests.streams import Stream
from tests.tiny import VOCAB
from tests.waiting import wait_until

SESSIONS = 32


@pytest.fixture
def pods(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    # A head of the target that has learned nothing: its trees are there to be counted.
    config = EagleConfig((0, 1), 64, 128, heads=4, kv_heads=2, head_dim=16, draft_vocab=100, vocab=VOCAB)
    head = EagleHead(config)
    head.tokens.copy_(torch.arange(100) + 10)
    heads = tmp_path / "heads"
    fingerprint = weights_fingerprint(tiny_model)
    store.save(head, heads / "tiny.safetensors", weights_fingerprint=fingerprint, card={})
    # The draft model is the target: all that it drafts is right.
    flags = ("--method", "lookup+recycling+draft+eagle", "--draft-model", str(tiny_model), "--device", "cpu")
    with Pods(
        tmp_path,
        tiny_model,
        redis_url,
        verifiers=2,
        verifier_flags=("--keep-states", "0,1"),
        drafter_flags=(*flags, "--heads", str(heads), "--model", str(tiny_model)),
        metrics=True,
    ) as made:
        yield made.start()


def asked(number: int, *, tokens: int) -> Generation:
    ids = random.Random(number).choices(range(10, 250), k=20 + number)
    temperature = 0.0 if number % 2 else 0.9
    return Generation(ids=ids, max_tokens=tokens, ignore_eos=True, temperature=temperature, seed=number)


def counted(pods: Pods, name: str, **labels: str) -> float:
    """A sample of the drafter's metrics; 0 where there is none."""
    page = httpx.get(f"http://127.0.0.1:{pods.metrics_ports[pods.drafter]}/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def test_32_sessions_of_two_verifiers_are_drafted_for_in_batches(pods: Pods) -> None:
    asks = [asked(number, tokens=300) for number in range(SESSIONS)]
    plain = [Stream(pods, replace(each, speculation=False)) for each in asks]
    expected = [await stream.whole() for stream in plain]

    first = Stream(pods, asked(99, tokens=2000))
    await wait_until(
        lambda: counted(pods, "paceline:drafter_trees_total", source="draft") > 0, "the models are loaded", 60
    )
    streams = [Stream(pods, each) for each in asks]
    assert [await stream.whole() for stream in streams] == expected

    # A tiny target's steps are over before most trees come, so nothing is said of how many were accepted.
    for source in ("draft", "eagle"):
        batches = counted(pods, "paceline:drafter_batch_sessions_count", source=source)
        small = counted(pods, "paceline:drafter_batch_sessions_bucket", source=source, le="8.0")
        assert batches > small
        assert counted(pods, "paceline:drafter_trees_total", source=source) > SESSIONS
    await first.whole()


async def test_a_pod_that_was_killed_drafts_again_for_the_sessions_that_go_on(pods: Pods) -> None:
    streams = [Stream(pods, asked(number, tokens=4000)) for number in range(2)]
    for stream in streams:
        await stream.comes_to(100)
    pods.pods[pods.drafter].kill()
    for stream in streams:
        await stream.comes_to(len(stream.token_ids) + 20)
    pods.launch_drafter(pods.drafter)

    def drafts() -> bool:
        trees = (counted(pods, "paceline:drafter_trees_total", source=each) for each in ("draft", "eagle"))
        return min(trees) > 20

    await wait_until(lambda: pods.serving(pods.drafter) and drafts(), "it drafts again, from states too", 60)
    # Two layers of 64 numbers in float32, of every position of two texts.
    assert counted(pods, "paceline:drafter_state_bytes_total") > 2 * 120 * 2 * 64 * 4
    again = [Stream(pods, replace(stream.asked, speculation=False)) for stream in streams]
    assert [await stream.whole() for stream in streams] == [await stream.whole() for stream in again]
