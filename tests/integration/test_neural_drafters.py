"""One pod that drafts with models for sessions of two verifiers: in batches, killed, paused, back again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from paceline.client import Generation
from tests.neural import KEPT, POSITION_BYTES, SOURCES, neural_flags
from tests.pace import Pace
from tests.pods import Pods
from tests.streams import Stream
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.serial,
    pytest.mark.long(reason="steps are slow, and a connection to a paused pod is lost late"),
]

SESSIONS = 32
# Time enough for the trees of all sessions, also on a machine that has other work.
STEP_SECONDS = 0.25
# Seconds between two looks at the pod's metrics.
_EVERY = 0.2


class Fleet:
    """Two verifiers that can be made slow, and a pod with both kinds of models."""

    def __init__(self, pods: Pods, pace: Pace) -> None:
        self.pods = pods
        self._pace = pace

    def paced(self) -> AbstractContextManager[None]:
        """Steps take their time in the block."""
        return self._pace.steps_take(STEP_SECONDS)

    async def plain(self, asks: list[Generation]) -> list[list[int]]:
        """What they are told without speculation."""
        streams = [Stream(self.pods, replace(each, speculation=False)) for each in asks]
        return [await stream.whole() for stream in streams]

    def samples(self, name: str, **labels: str) -> list[Sample]:
        """What the pod tells of a metric, by the name that its samples begin with."""
        return _samples(self.pods.metrics_ports[self.pods.drafter], name, labels)

    def of_verifiers(self, name: str, **labels: str) -> list[Sample]:
        """What the verifiers tell of a metric."""
        ports = [self.pods.metrics_ports[address] for address in self.pods.verifiers]
        return [sample for port in ports for sample in _samples(port, name, labels)]

    def batches(self, source: str) -> tuple[float, float]:
        """Batches that a source has drafted, and their sessions."""
        found = self.samples("paceline:drafter_batch_sessions", source=source)
        return _sum(found, "_count"), _sum(found, "_sum")

    def trees(self) -> float:
        """Trees that the pod has sent, of the source of which there are fewest."""
        found = self.samples("paceline:drafter_trees_total")
        return min(_sum([each for each in found if each.labels["source"] == source]) for source in SOURCES)

    async def drafts(self, trees: int) -> None:
        """Return when so many trees more of each source have been sent."""
        before = self.trees()
        await wait_until(
            lambda: self.trees() >= before + trees, f"{trees} trees of each model", 60, every=_EVERY
        )

    async def has_all_states(self, times: int) -> None:
        """Return when it has come to have all states of sessions so many times."""
        await wait_until(
            lambda: self.caught_up()[0] >= times, f"it has all states {times} times", 60, every=_EVERY
        )

    def caught_up(self) -> tuple[float, float]:
        """How often the pod came to have all states of a session; and how often within two steps."""
        found = self.samples("paceline:drafter_state_steps")
        within = [sample for sample in found if sample.labels.get("le") == "2.0"]
        return _sum(found, "_count"), _sum(within)


@pytest.fixture
def fleet(
    tmp_path: Path, tiny_model: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fleet]:
    pace = Pace(tmp_path / "pace")
    for name, value in pace.variables.items():
        monkeypatch.setenv(name, value)
    with Pods(
        tmp_path,
        tiny_model,
        redis_url,
        verifiers=2,
        # Steps may wait for trees as long as that can pay.
        verifier_flags=("--keep-states", KEPT, "--max-draft-wait-ms", "200"),
        drafter_flags=neural_flags(tiny_model, tmp_path / "heads"),
        metrics=True,
    ) as pods:
        pods.verifier_module = "tests.paced_verifier"
        yield Fleet(pods.start(), pace)


def asked(number: int, *, tokens: int) -> Generation:
    ids = random.Random(number).choices(range(10, 250), k=20 + number)
    temperature = 0.0 if number % 2 else 0.9
    return Generation(ids=ids, max_tokens=tokens, ignore_eos=True, temperature=temperature, seed=number)


async def test_32_sessions_of_two_verifiers_are_drafted_for_in_batches(fleet: Fleet) -> None:
    pods = fleet.pods
    asks = [asked(number, tokens=200) for number in range(SESSIONS)]
    expected = await fleet.plain(asks)
    with fleet.paced():
        first = Stream(pods, asked(99, tokens=200))
        await fleet.drafts(1)
        await first.whole()
        before = {each: fleet.batches(each) for each in SOURCES}
        streams = [Stream(pods, each) for each in asks]
        assert [await stream.whole() for stream in streams] == expected
    assert all(pods.verifier_status(address).committed_tokens > 1000 for address in pods.verifiers)
    for source in SOURCES:
        batches, sessions = (
            now - then for now, then in zip(fleet.batches(source), before[source], strict=True)
        )
        assert sessions / batches >= 8, (source, batches, sessions)
    # What the right one of the models drafts comes in time now and then, however busy the machine is.
    assert _sum(fleet.of_verifiers("paceline:source_accepted_tokens_total", source="draft")) > 2 * SESSIONS
    assert fleet.caught_up()[0] >= SESSIONS


async def test_a_pod_that_was_killed_or_paused_has_its_states_again_within_two_steps(fleet: Fleet) -> None:
    pods = fleet.pods
    asks = [asked(number, tokens=1500) for number in range(8)]
    expected = await fleet.plain(asks)
    with fleet.paced():
        streams = [Stream(pods, each) for each in asks]
        await fleet.drafts(5)
        for stream in streams:
            await stream.comes_to(20)

        # kill -9, and another one in its place.
        pods.pods[pods.drafter].kill()
        known = [len(stream.token_ids) for stream in streams]
        for stream, length in zip(streams, known, strict=True):
            await stream.comes_to(length + 5)
        pods.launch_drafter(pods.drafter)
        await wait_until(lambda: pods.serving(pods.drafter), "it is there again")
        await fleet.has_all_states(len(streams))
        assert fleet.caught_up() == (len(streams), len(streams))
        positions = sum(len(each.ids or ()) for each in asks) + sum(known)
        assert _sum(fleet.samples("paceline:drafter_state_bytes_total")) >= positions * POSITION_BYTES
        await fleet.drafts(50)

        # For a moment: nobody need have noticed.
        pods.pods[pods.drafter].pause()
        await _go_on(streams, 5)
        pods.pods[pods.drafter].resume()
        await fleet.drafts(50)

        # For so long that the verifiers let it go.
        pods.pods[pods.drafter].pause()
        await wait_until(
            lambda: not any(pods.verifier_status(each).drafters for each in pods.verifiers), "it is gone", 60
        )
        await _go_on(streams, 1)
        pods.pods[pods.drafter].resume()
        await fleet.has_all_states(2 * len(streams))
        again = fleet.caught_up()
        assert again[0] == again[1]
        await fleet.drafts(50)
        assert all(len(stream.token_ids) < 1500 for stream in streams)
    assert [await stream.whole() for stream in streams] == expected


async def _go_on(streams: list[Stream], tokens: int) -> None:
    lengths = [len(stream.token_ids) for stream in streams]
    for stream, length in zip(streams, lengths, strict=True):
        await stream.comes_to(length + tokens)


def _samples(port: int, name: str, labels: Mapping[str, str]) -> list[Sample]:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        page = answer.read().decode()
    return [
        sample
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith(name) and labels.items() <= sample.labels.items()
    ]


def _sum(samples: list[Sample], ending: str = "") -> float:
    return sum(sample.value for sample in samples if sample.name.endswith(ending))
