"""What discovery makes of an API server that is well, dies, forgets, is slow or refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from gateway.discovery import Endpoints
from gateway.discovery.kubernetes import KubernetesDiscovery
from gateway.kubernetes import cluster as cluster_module
from gateway.kubernetes import reflector as reflector_module
from gateway.kubernetes.cluster import Cluster
from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.controllers import NAMESPACE, Controllers
from tests.waiting import wait_until

ONE, OTHER, THIRD = "10.0.0.1:9001", "10.0.0.1:9002", "10.0.0.1:9003"
# What the role of a gateway must allow, and nothing else.
RULES = [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(bookmark_seconds=0.1) as made:
        made.rules["gateway"] = RULES
        yield made


@pytest.fixture
def controllers(server: ApiServer) -> Controllers:
    return Controllers(server)


class Heard:
    """What a discovery has told, read in the background."""

    def __init__(self, told: AsyncGenerator[Endpoints, None]) -> None:
        self.all: list[Endpoints] = []
        self.task = asyncio.create_task(self._read(told))

    async def _read(self, told: AsyncGenerator[Endpoints, None]) -> None:
        async with aclosing(told):
            async for found in told:
                self.all.append(found)

    @property
    def verifiers(self) -> list[str]:
        return [pod.address for pod in self.all[-1].verifiers] if self.all else ["nothing is told yet"]

    async def are(self, *addresses: str) -> None:
        """Return when these are the verifiers."""
        await wait_until(lambda: self.verifiers == list(addresses), f"{addresses} are found", 20)


@asynccontextmanager
async def hearing(server: ApiServer, folder: Path, *selector: str) -> AsyncIterator[Heard]:
    kubeconfig = server.kubeconfig(folder / "config", NAMESPACE, token="gateway")
    made = Heard(KubernetesDiscovery(Cluster(kubeconfig), "m", *selector).endpoints())
    try:
        yield made
    finally:
        made.task.cancel()
        await asyncio.wait({made.task})


@pytest.fixture
async def heard(server: ApiServer, controllers: Controllers, tmp_path: Path) -> AsyncIterator[Heard]:
    async with hearing(server, tmp_path) as made:
        await made.are()
        yield made


async def more_are_asked(server: ApiServer, verb: str, count: int = 2) -> None:
    """Return when so many more requests have come."""
    enough = server.count(verb, "endpointslices") + count
    await wait_until(lambda: server.count(verb, "endpointslices") >= enough, f"{verb} is tried again", 20)


async def test_pods_come_become_ready_and_go(heard: Heard, controllers: Controllers) -> None:
    controllers.add("verifier", OTHER, pool="big")
    await heard.are(OTHER)
    (pod,) = heard.all[-1].verifiers
    assert (pod.pool, pod.pod, pod.going) == ("big", "verifier-9002", False)
    controllers.add("verifier", ONE)
    controllers.add("drafter", THIRD)
    await heard.are(ONE, OTHER)
    controllers.says("verifier", ONE, ready=False, serving=False, terminating=False)
    await heard.are(OTHER)
    controllers.says("verifier", ONE, ready=True)
    await heard.are(ONE, OTHER)
    controllers.stops("verifier", ONE)
    await wait_until(lambda: heard.all[-1].verifiers[0].going, "it is told as going")
    controllers.remove("verifier", ONE)
    await heard.are(OTHER)
    assert [pod.address for pod in heard.all[-1].drafters] == [THIRD]


async def test_while_the_server_is_away_what_is_known_stays(
    heard: Heard, controllers: Controllers, server: ApiServer
) -> None:
    controllers.add("verifier", ONE)
    await heard.are(ONE)
    before = len(heard.all)
    server.stop()
    await asyncio.sleep(1)
    server.faults.status = 500
    server.start()
    # It answers, and yet nobody has said that the list is empty.
    await wait_until(lambda: server.refusals > 1, "it is asked", 20)
    assert len(heard.all) == before
    server.faults.status = 0
    controllers.add("verifier", OTHER)
    await heard.are(ONE, OTHER)


async def test_a_list_that_came_is_believed_even_if_it_is_empty(
    heard: Heard, controllers: Controllers, server: ApiServer
) -> None:
    controllers.add("verifier", ONE)
    await heard.are(ONE)
    server.faults.status = 503
    server.drop_connections()
    await wait_until(lambda: server.refusals > 1, "it is asked", 20)
    assert heard.verifiers == [ONE]
    server.faults.status = 0
    controllers.remove("verifier", ONE)
    await heard.are()


async def test_a_server_that_forgot_is_asked_for_everything(
    heard: Heard, controllers: Controllers, server: ApiServer
) -> None:
    controllers.add("verifier", ONE)
    await heard.are(ONE)
    server.stop()
    server.start()
    controllers.remove("verifier", ONE)
    controllers.add("verifier", OTHER)
    server.objects.compact()
    await heard.are(OTHER)


async def test_a_watch_that_is_told_to_be_too_old_begins_anew(
    heard: Heard, controllers: Controllers, server: ApiServer
) -> None:
    controllers.add("verifier", ONE)
    await heard.are(ONE)
    lists = server.count("list", "endpointslices")
    with server.objects.changed:
        # The running watch has not seen this when it is forgotten: its next look is a 410.
        server.objects.version += 7
        server.objects.compact()
        server.objects.changed.notify_all()
    await wait_until(lambda: server.count("list", "endpointslices") > lists, "everything is asked for", 20)
    controllers.add("verifier", OTHER)
    await heard.are(ONE, OTHER)


async def test_watches_that_are_reset_lose_nothing(
    heard: Heard, controllers: Controllers, server: ApiServer
) -> None:
    for address in (ONE, OTHER, THIRD):
        server.drop_connections()
        controllers.add("verifier", address)
    await heard.are(ONE, OTHER, THIRD)
    for address in (ONE, OTHER):
        controllers.remove("verifier", address)
        server.drop_connections()
    await heard.are(THIRD)


async def test_slow_answers_are_waited_for(heard: Heard, controllers: Controllers, server: ApiServer) -> None:
    controllers.add("verifier", ONE)
    await heard.are(ONE)
    before = len(heard.all)
    server.faults.delay_seconds = 1.5
    server.drop_connections()
    controllers.add("verifier", OTHER)
    await heard.are(ONE, OTHER)
    assert len(heard.all) == before + 1


async def test_a_server_that_falls_silent_is_left_and_asked_again(
    server: ApiServer, controllers: Controllers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector_module, "_WATCH_SECONDS", 1)
    monkeypatch.setattr(cluster_module, "_SILENT_SECONDS", 0.5)
    monkeypatch.setattr(cluster_module, "_ANSWER_SECONDS", 0.5)
    async with hearing(server, tmp_path) as heard:
        controllers.add("verifier", ONE)
        await heard.are(ONE)
        server.faults.silent = True
        await asyncio.sleep(3)
        assert heard.verifiers == [ONE]
        server.faults.silent = False
        controllers.add("verifier", OTHER)
        await heard.are(ONE, OTHER)


async def test_a_full_list_is_asked_for_now_and_then(
    server: ApiServer, controllers: Controllers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector_module, "_WATCH_SECONDS", 1)
    monkeypatch.setattr(reflector_module, "_RESYNC_SECONDS", 0.5)
    monkeypatch.setattr(cluster_module, "_PAGE", 2)
    addresses = [f"10.0.0.1:{9001 + number}" for number in range(5)]
    for address in addresses:
        controllers.add("verifier", address)
    async with hearing(server, tmp_path) as heard:
        await heard.are(*addresses)
        await more_are_asked(server, "list", 6)
        assert len(heard.all) == 1


async def test_one_that_may_not_ask_says_so_and_goes_on_once_it_may(
    server: ApiServer, controllers: Controllers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.rules["gateway"] = []
    controllers.add("verifier", ONE)
    async with hearing(server, tmp_path) as heard:
        await more_are_asked(server, "list", 3)
        said = capsys.readouterr()
        assert "endpointslices.discovery.k8s.io is forbidden" in said.out + said.err
        server.rules["gateway"] = RULES
        await heard.are(ONE)


async def test_a_selector_leaves_other_fleets_out(
    server: ApiServer, controllers: Controllers, tmp_path: Path
) -> None:
    controllers.add("verifier", ONE, **{"app.kubernetes.io/instance": "ours"})
    controllers.add("verifier", OTHER, **{"app.kubernetes.io/instance": "theirs"})
    controllers.add("verifier", THIRD, **{"app.kubernetes.io/instance": "ours", "paceline.dev/model": "n"})
    async with hearing(server, tmp_path, "app.kubernetes.io/instance=ours") as heard:
        await heard.are(ONE)
