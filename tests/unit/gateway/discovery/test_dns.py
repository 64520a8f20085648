"""Pods behind names: what DNS answers, fails to answer, and answers in another order."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from gateway.discovery import Endpoints
from gateway.discovery.dns import DnsDiscovery
from tests.waiting import wait_until

V4, V6 = socket.AF_INET, socket.AF_INET6


class Dns:
    """Answers as `socket.getaddrinfo` does, by what its test says."""

    def __init__(self) -> None:
        self.hosts: dict[str, list[str] | int] = {}
        self.asked = 0

    def __call__(self, host: str, port: int, **hints: Any) -> list[tuple[Any, ...]]:
        answer = self.hosts[host]
        self.asked += 1
        if isinstance(answer, int):
            raise socket.gaierror(answer, "as told")
        return [
            (V6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (V4, socket.SOCK_STREAM, 6, "", (address, port))
            for address in answer
        ]


class Found:
    """What a discovery has told so far."""

    def __init__(self, dns: Dns, told: AsyncIterator[Endpoints]) -> None:
        self._dns = dns
        self._told = told

    async def next(self) -> tuple[list[str], list[str]]:
        found = await anext(self._told)
        return [pod.address for pod in found.verifiers], [pod.address for pod in found.drafters]

    async def after_more_answers(self, count: int = 4) -> None:
        """Return when so many rounds have been asked."""
        enough = self._dns.asked + 2 * count
        await wait_until(lambda: self._dns.asked >= enough, "DNS has been asked")


@pytest.fixture
def dns() -> Dns:
    made = Dns()
    made.hosts = {"verifiers": ["10.0.0.1", "10.0.0.2"], "drafters": ["10.0.1.1"]}
    return made


@pytest.fixture
async def found(dns: Dns) -> AsyncIterator[Found]:
    discovery = DnsDiscovery(["verifiers:9000"], ["drafters:9100"], 0.005, dns)
    async with aclosing(discovery.endpoints()) as told:
        yield Found(dns, told)


BOTH = ["10.0.0.1:9000", "10.0.0.2:9000"]


async def test_every_address_is_a_pod_and_changes_are_told(found: Found, dns: Dns) -> None:
    assert await found.next() == (BOTH, ["10.0.1.1:9100"])
    dns.hosts["drafters"] = ["10.0.1.1", "10.0.1.2"]
    assert await found.next() == (BOTH, ["10.0.1.1:9100", "10.0.1.2:9100"])


async def test_another_order_is_no_change(found: Found, dns: Dns) -> None:
    await found.next()
    dns.hosts["verifiers"] = ["10.0.0.2", "10.0.0.1"]
    await found.after_more_answers()
    dns.hosts["verifiers"] = ["10.0.0.3"]
    assert await found.next() == (["10.0.0.3:9000"], ["10.0.1.1:9100"])


@pytest.mark.parametrize("failure", [socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_SYSTEM])
async def test_while_dns_fails_the_last_answer_stays(found: Found, dns: Dns, failure: int) -> None:
    await found.next()
    dns.hosts["verifiers"] = failure
    dns.hosts["drafters"] = ["10.0.1.2"]
    assert await found.next() == (BOTH, ["10.0.1.2:9100"])
    await found.after_more_answers(9)
    dns.hosts["verifiers"] = ["10.0.0.1"]
    assert await found.next() == (["10.0.0.1:9000"], ["10.0.1.2:9100"])


async def test_a_name_that_has_nobody_any_more_is_believed(found: Found, dns: Dns) -> None:
    await found.next()
    dns.hosts["drafters"] = socket.EAI_NONAME
    assert await found.next() == (BOTH, [])
    dns.hosts["drafters"] = ["10.0.1.7"]
    assert await found.next() == (BOTH, ["10.0.1.7:9100"])


async def test_a_single_answer_that_nobody_is_there_is_not_believed(dns: Dns) -> None:
    answers: Iterator[list[str] | int] = iter(
        [["10.0.0.1"], socket.EAI_NONAME, ["10.0.0.1"], ["10.0.0.1", "10.0.0.2"]]
    )

    def one_by_one(host: str, port: int, **hints: Any) -> list[tuple[Any, ...]]:
        dns.hosts["verifiers"] = next(answers, ["10.0.0.1", "10.0.0.2"])
        return dns(host, port)

    async with aclosing(DnsDiscovery(["verifiers:9000"], [], 0.005, one_by_one).endpoints()) as told:
        heard = [await anext(told) for _ in range(2)]
    assert [len(found.verifiers) for found in heard] == [1, 2]


async def test_before_anybody_is_there_the_fleet_is_empty(found: Found, dns: Dns) -> None:
    dns.hosts = {"verifiers": socket.EAI_AGAIN, "drafters": socket.EAI_NONAME}
    assert await found.next() == ([], [])
    dns.hosts["verifiers"] = ["10.0.0.1"]
    assert await found.next() == (["10.0.0.1:9000"], [])


async def test_a_pod_with_an_address_of_each_family_counts_once(found: Found, dns: Dns) -> None:
    dns.hosts["verifiers"] = ["fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2"]
    assert await found.next() == (["[fd00::1]:9000", "[fd00::2]:9000"], ["10.0.1.1:9100"])
    dns.hosts["verifiers"] = ["10.0.0.2", "fd00::1", "fd00::2", "10.0.0.1"]
    assert await found.next() == (BOTH, ["10.0.1.1:9100"])


async def test_the_machine_s_own_names_are_found() -> None:
    async with aclosing(DnsDiscovery(["localhost:9000"], [], 5).endpoints()) as told:
        (pod,) = (await anext(told)).verifiers
    assert pod.address in ("127.0.0.1:9000", "[::1]:9000")
