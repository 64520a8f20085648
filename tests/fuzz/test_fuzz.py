"""Whatever is said to any service, it answers as documented, others read on, and nothing is left behind.

All inputs are tried in several rounds, so that what grows can be told from what was only never used
before. `make fuzz` tries 10,000 and more.
"""

from __future__ import annotations

import random
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import strategies as st

from tests.fuzz import calls, http
from tests.fuzz.bystanders import Bystanders
from tests.fuzz.calls import Call
from tests.fuzz.explore import Loop, Tally, explore
from tests.pods import Pods
from tests.tiny import make_tiny_model
from tests.usage import Usage, redis_keys, usage
from tests.waiting import wait_until

pytestmark = pytest.mark.long(reason="sends 400 hostile inputs in four rounds, to tell what grows")

ROUNDS = 4
# Kinds of input, and which part of all cases each gets.
KINDS = {
    "HTTP by its document": 0.2,
    "HTTP bodies": 0.2,
    "HTTP on a socket": 0.15,
    "GatewayService": 0.15,
    "VerifierService": 0.15,
    "DrafterService": 0.1,
    "many calls at once": 0.05,
}
# From the second round on. Memory that is freed may stay with a process for a while.
MAY_GROW = {"memory_mb": 24.0, "file_descriptors": 4, "threads": 4, "tasks": 4}
TTL_SECONDS = 2


class Fuzzed:
    """A fleet, connections to it, and who is served beside."""

    def __init__(self, pods: Pods, loop: Loop, tally: Tally) -> None:
        self.pods = pods
        self.tally = tally
        self.bystanders = Bystanders(pods)
        self.usages: list[dict[str, Usage]] = []
        self._loop = loop
        self._plausible = calls.plausible(pods)
        self._http = httpx.AsyncClient(base_url=pods.http, timeout=http.ANSWER_SECONDS)
        self._by_document = http.by_the_document(pods.http)
        addresses = {
            "GatewayService": pods.grpc,
            "VerifierService": pods.verifier,
            "DrafterService": pods.drafter,
        }
        self._services = {service.name: service for service in calls.SERVICES}
        self._channels = {name: grpc.insecure_channel(address) for name, address in addresses.items()}
        self.keys_before = redis_keys(pods.redis_url)

    def run(self, work: Any, seconds: float = 300.0) -> Any:
        return self._loop.run(work, seconds)

    def explore(self, kind: str, cases: int, seeded: int) -> None:
        search: dict[str, tuple[st.SearchStrategy[Any], Any]] = {
            "HTTP by its document": (self._by_document, lambda case: self.run(http.send(self._http, case))),
            "HTTP bodies": (http.posts(), lambda case: self.run(http.send(self._http, case))),
            "HTTP on a socket": (http.conversations(), self._converse),
            "many calls at once": (st.lists(self._any_call(), min_size=2, max_size=12), self._at_once),
            **{
                name: (calls.calls(service, self._plausible), self._send)
                for name, service in self._services.items()
            },
        }
        strategy, send = search[kind]

        def answered(case: Any) -> str:
            answer = send(case)
            self.run(_called(self.bystanders.check))
            return str(answer)

        explore(strategy, answered, cases=cases, seeded=seeded, tally=self.tally, name=kind)

    async def quiet(self) -> None:
        """Return when every session has ended and every record has expired."""
        await wait_until(lambda: not self.pods.verifier_status().sessions, "the verifier has no session")
        await wait_until(lambda: not self.pods.drafter_status().sessions, "the drafter has no session")
        await wait_until(
            lambda: redis_keys(self.pods.redis_url) <= self.keys_before, "all records have expired"
        )

    async def close(self) -> None:
        await self.bystanders.close()
        await self._http.aclose()
        for made in self._channels.values():
            made.close()

    def _any_call(self) -> st.SearchStrategy[Call]:
        return st.one_of([calls.calls(service, self._plausible) for service in self._services.values()])

    def _converse(self, conversation: http.Conversation) -> str:
        where = urllib.parse.urlsplit(self.pods.http)
        assert where.hostname
        assert where.port
        return str(self.run(http.converse(where.hostname, where.port, conversation)))

    def _send(self, call: Call) -> str:
        service = call.method.split("/")[1].rpartition(".")[2]
        if not call.method.endswith("/Draft"):
            return calls.send(self._channels[service], call, self.bystanders.victim)
        # By its connection a drafter is known, and one that sends garbage is put aside.
        with grpc.insecure_channel(self.pods.verifier, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            return calls.send(channel, call, self.bystanders.victim)

    def _at_once(self, several: list[Call]) -> str:
        with ThreadPoolExecutor(len(several)) as threads:
            *others, last = threads.map(self._send, several)
        self.tally.update(("many calls at once", answer) for answer in others)
        return last


async def _called(action: Any) -> None:
    action()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, redis_url: str, tally: Tally) -> Iterator[Fuzzed]:
    expiring = ("--session-ttl-seconds", str(TTL_SECONDS))
    pods = Pods(
        tmp_path_factory.mktemp("fuzzed"),
        # Who asks for no number of tokens gets all there is room for, and is waited for.
        make_tiny_model(tmp_path_factory.mktemp("model"), context=1024),
        redis_url,
        # A prefix cache fills all KV by and by.
        verifier_flags=(*expiring, "--kv-tokens", "16384", "--keep-states", "0,1,2"),
        gateway_flags=expiring,
        # Hostile gateways name verifiers that never come.
        drafter_flags=("--rejoin-seconds", "1", "--idle-seconds", "2"),
        metrics=True,
    )
    loop = Loop()
    with pods:
        made = Fuzzed(pods.start(), loop, tally)
        try:
            made.run(made.bystanders.undisturbed())
            yield made
        finally:
            made.run(made.close())
    loop.close()


@pytest.fixture(scope="module", params=range(ROUNDS), ids=lambda number: f"round {number}")
def number(request: pytest.FixtureRequest, fuzzed: Fuzzed) -> int:
    fuzzed.run(_called(fuzzed.bystanders.start))
    return int(request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_is_answered(fuzzed: Fuzzed, number: int, kind: str, pytestconfig: pytest.Config) -> None:
    cases = round(pytestconfig.getoption("--fuzz-cases") * KINDS[kind] / ROUNDS) + 1
    seeded = random.Random(f"{pytestconfig.getoption('--fuzz-seed')} {number} {kind}").getrandbits(32)
    fuzzed.explore(kind, cases, seeded)


def test_the_others_read_what_they_should(fuzzed: Fuzzed, number: int) -> None:
    fuzzed.run(fuzzed.bystanders.stop())


def test_nothing_is_left_behind(fuzzed: Fuzzed, number: int) -> None:
    fuzzed.run(fuzzed.quiet())
    fuzzed.usages.append(usage(fuzzed.pods))
    if number < 2:
        return
    for name, now in _as_numbers(fuzzed.usages[-1]).items():
        before = _as_numbers(fuzzed.usages[1])[name]
        grown = {what: now[what] - before[what] for what in now if now[what] - before[what] > MAY_GROW[what]}
        assert not grown, f"{name}: {before} -> {now}"


def test_nothing_unexpected_is_in_a_log(fuzzed: Fuzzed, number: int) -> None:
    for pod in fuzzed.pods.pods.values():
        lines = pod.log.read_text(errors="replace").splitlines()
        for at, line in enumerate(lines):
            told = "\n".join(lines[max(at - 1, 0) : at + 80])
            assert "Traceback" not in line, told
            assert "unexpected" not in line, told


def _as_numbers(usages: dict[str, Usage]) -> dict[str, dict[str, float]]:
    return {name: asdict(each) for name, each in usages.items()}
