"""Plays the parity matrix against a fleet of two verifiers, and counts what is the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.parity.matrix import Case, outcome
from tests.pods import MODEL, Pods
from tests.waiting import wait_until

_AT_ONCE = 16
# How requests are played, in this order.
ALONE, TOGETHER, KILLED = "alone", "16 at once", "16 at once, verifiers killed"
WAYS = (ALONE, TOGETHER, KILLED)


@dataclass(slots=True)
class Tally:
    """By feature and way of playing: requests, and those whose outcome was not the reference's."""

    played: Counter[tuple[str, str]] = field(default_factory=Counter)
    differing: list[tuple[Case, str, Any, Any]] = field(default_factory=list)
    # Verifiers that were killed while they had sessions.
    kills: int = 0
    accepted_tokens: int = 0

    def add(self, case: Case, way: str, reply: Mapping[str, Any], expected: Any) -> None:
        self.played[case.feature, way] += 1
        got = outcome(reply)
        if got != expected:
            self.differing.append((case, way, got, expected))
        self.accepted_tokens += sum(each["accepted_tokens"] for each in _receipts(reply))


def _receipts(reply: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = reply["paceline"]
    return list(told["choices"]) if "choices" in told else [told]


class Matrix:
    """One play of all cases."""

    def __init__(self, pods: Pods, model: str = MODEL) -> None:
        self.pods = pods
        self.tally = Tally()
        self.references: dict[Case, dict[str, Any]] = {}
        self._model = model

    async def play(self, cases: Sequence[Case]) -> Tally:
        """Alone first, then many at once, then many at once while verifiers are killed."""
        async with httpx.AsyncClient(base_url=self.pods.http, timeout=300) as client:
            for case in cases:
                if case.reference not in self.references:
                    self.references[case.reference] = await self._ask(client, case.reference)
                self._add(case, ALONE, await self._ask(client, case))
            await self._all(client, cases, TOGETHER)
            async with self._killing():
                await self._all(client, cases, KILLED)
        return self.tally

    async def _all(self, client: httpx.AsyncClient, cases: Sequence[Case], way: str) -> None:
        turns = asyncio.Semaphore(_AT_ONCE)

        async def play(case: Case) -> None:
            async with turns:
                self._add(case, way, await self._ask(client, case))

        async with asyncio.TaskGroup() as group:
            for case in cases:
                group.create_task(play(case))

    def _add(self, case: Case, way: str, reply: Mapping[str, Any]) -> None:
        self.tally.add(case, way, reply, outcome(self.references[case.reference]))

    async def _ask(self, client: httpx.AsyncClient, case: Case) -> dict[str, Any]:
        answer = await client.post("/v1/completions", json={"model": self._model, **case.body})
        assert answer.status_code == 200, (case, answer.text)
        reply: dict[str, Any] = answer.json()
        return reply

    @asynccontextmanager
    async def _killing(self) -> AsyncIterator[None]:
        """Kill one verifier after the other, each as soon as it has sessions, while the block runs."""
        killing = asyncio.create_task(self._kill())
        try:
            yield
        finally:
            killing.cancel()
            await asyncio.wait({killing})

    async def _kill(self) -> None:
        while True:
            for address in self.pods.verifiers:
                await wait_until(lambda address=address: self._sessions(address) > 0, "it has sessions")
                self.pods.pods[address].kill()
                self.tally.kills += 1
                await asyncio.to_thread(self.pods.start_verifier, address)

    def _sessions(self, address: str) -> int:
        return self.pods.verifier_status(address).sessions
