"""The verifiers and drafters of this gateway: pods come and go, and each is polled for its status."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Any

import grpc

from gateway.discovery import Discovery, Endpoint, Endpoints
from gateway.pod import Pod
from gateway.routing.benefit import Benefits
from gateway.routing.views import DrafterView, VerifierView
from paceline import __version__
from paceline.net.handshake import PROTOCOL_VERSION, Served
from paceline.net.roles import Role
from paceline.net.tls import Identity
from paceline.service import telemetry
from paceline.service.tasks import cancel_and_wait
from paceline.v1 import (
    drafter_pb2,
    drafter_pb2_grpc,
    gateway_pb2,
    verifier_pb2,
    verifier_pb2_grpc,
)

log = telemetry.logger(__name__)

# A pod that has not answered for as long as this many polls take is unhealthy.
_MISSED_POLLS = 3
_STUBS: dict[Role, Any] = {
    Role.VERIFIER: verifier_pb2_grpc.VerifierServiceStub,
    Role.DRAFTER: drafter_pb2_grpc.DrafterServiceStub,
}


class Fleet:
    """All pods this gateway knows of, by address; each is asked for its status in the background.

    A removed pod gets no new session. Sessions that run there go on while it serves them; its channel is
    closed when the last one has left.
    """

    def __init__(
        self,
        poll_seconds: float,
        identity: Identity | None = None,
        *,
        served: Served | None = None,
        use_http_proxy: bool = False,
    ) -> None:
        """There are no pods before `update`, or before `start` finds some.

        `identity`: what this gateway shows the pods; None speaks plaintext.
        `served`: what the verifiers must serve to get sessions; None takes any.
        """
        self.verifiers: dict[str, Pod] = {}
        self.drafters: dict[str, Pod] = {}
        # Shared by all sessions under which verifiers have died: see `suspicion`.
        self.turns = asyncio.Lock()
        # What drafters have brought the sessions of this gateway.
        self.benefits = Benefits()
        self._served = served
        self._poll_seconds = poll_seconds
        self._identity = identity
        self._use_http_proxy = use_http_proxy
        self._started = False
        # The polls of pods whose channel is open, and the tasks of the fleet as a whole.
        self._polls: dict[Pod, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._changed: Callable[[], None] = lambda: None
        self._waiting: Callable[[], int] = lambda: 0
        # Tells this gateway from the others.
        self._gateway_id = secrets.token_urlsafe(12)

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each poll of a pod, and after each `update`."""
        self._changed = changed

    def say_waiting(self, waiting: Callable[[], int]) -> None:
        """Tell verifiers, at each poll, how many requests wait here for a place at one."""
        self._waiting = waiting

    @property
    def waiting(self) -> int:
        """Requests that wait for a place at a verifier, here and, as verifiers say, at other gateways."""
        elsewhere = [
            pod.status.waiting_elsewhere
            for pod in self.verifiers.values()
            if pod.healthy and pod.status is not None
        ]
        return self._waiting() + max(elsewhere, default=0)

    def update(self, endpoints: Endpoints) -> None:
        """Replace the set of pods. A pod that was removed and comes back is a new one."""
        self._update(self.verifiers, endpoints.verifiers, Role.VERIFIER)
        self._update(self.drafters, endpoints.drafters, Role.DRAFTER)
        self._changed()

    def _update(self, pods: dict[str, Pod], endpoints: Iterable[Endpoint], role: Role) -> None:
        wanted = {endpoint.address: endpoint for endpoint in endpoints}
        for address, pod in list(pods.items()):
            # Another pod may have the address of one that has ended.
            if address not in wanted or wanted[address].pod != pod.endpoint.pod:
                log.info("pod is removed", address=address, pod=pod.endpoint.pod)
                pods.pop(address).remove()
        for address, endpoint in wanted.items():
            if address in pods:
                pods[address].found(endpoint)
                continue
            log.info("pod is found", address=address, pod=endpoint.pod, pool=endpoint.pool)
            pods[address] = Pod(endpoint, role, self._identity, use_http_proxy=self._use_http_proxy)
            if self._started:
                self._begin_polling(pods[address], role)

    def start(self, discovery: Discovery) -> None:
        """Follow `discovery`, and poll the pods there are, until `close`."""
        self._started = True
        for role, pods in ((Role.VERIFIER, self.verifiers), (Role.DRAFTER, self.drafters)):
            for pod in pods.values():
                self._begin_polling(pod, role)
        self._tasks.append(asyncio.create_task(self._follow(discovery)))
        if self._identity is not None:
            self._tasks.append(asyncio.create_task(self._identity.keep_up()))

    async def close(self) -> None:
        """Stop polling and close all channels."""
        await cancel_and_wait(*self._tasks, *self._polls.values())
        for pod in (*self.verifiers.values(), *self.drafters.values()):
            await pod.close()

    async def _follow(self, discovery: Discovery) -> None:
        async with aclosing(discovery.endpoints()) as found:
            async for endpoints in found:
                self.update(endpoints)

    def _begin_polling(self, pod: Pod, role: Role) -> None:
        task = self._polls[pod] = asyncio.create_task(self._poll(pod, role))
        task.add_done_callback(lambda _: self._polls.pop(pod))

    async def _poll(self, pod: Pod, role: Role) -> None:
        """Poll a pod until it is removed and has no session of ours; then close its channel."""
        stub = _STUBS[role]
        try:
            while not pod.done_with:
                pod.asking()
                try:
                    status = await stub(pod.channel).Status(
                        self._request(role), timeout=max(self._poll_seconds, 1.0)
                    )
                    self._compare(pod, status)
                    pod.heard(status)
                except grpc.aio.AioRpcError:
                    pod.missed(_MISSED_POLLS * self._poll_seconds)
                self._changed()
                if role is Role.VERIFIER and pod.healthy:
                    await self._ask_texts(pod)
                await pod.due(self._poll_seconds)
        finally:
            await pod.close()

    async def _ask_texts(self, pod: Pod) -> None:
        """Learn which texts a verifier holds. One of an earlier release does not say."""
        stub, texts, more = verifier_pb2_grpc.VerifierServiceStub(pod.channel), pod.texts, True
        while more:
            request = verifier_pb2.PrefixesRequest(instance=texts.instance, cursor=texts.cursor)
            try:
                news = await stub.Prefixes(request, timeout=max(self._poll_seconds, 1.0))
            except grpc.aio.AioRpcError as error:
                log.debug("texts not told", verifier=pod.address, code=error.code().name)
                return
            texts.hear(news)
            more = news.more

    def _request(self, role: Role) -> Any:
        if role is Role.DRAFTER:
            return drafter_pb2.DrafterStatusRequest()
        return verifier_pb2.VerifierStatusRequest(gateway_id=self._gateway_id, waiting=self._waiting())

    def _compare(self, pod: Pod, status: Any) -> None:
        if self._served is None or not isinstance(status, verifier_pb2.VerifierStatusResponse):
            return
        misfit = self._served.misfit(Served(status.model_id, status.vocab_fingerprint))
        if misfit and misfit != pod.misfit:
            log.error("verifier gets no sessions", address=pod.address, why=misfit)
        pod.misfit = misfit

    def not_ready(self) -> str:
        """Why no verifier can take a session; empty if one can. Names no address, as anybody may read it."""
        able = [pod for pod in self.verifier_views() if pod.healthy and not pod.draining]
        if not able:
            return "no verifier is up"
        misfits = [pod.misfit for pod in able]
        return "" if "" in misfits else misfits[0]

    def verifier_views(self) -> list[VerifierView]:
        """The verifiers that have answered at least once, as routing sees them."""
        return [_verifier_view(pod) for pod in self.verifiers.values() if pod.status is not None]

    def drafter_views(self) -> list[DrafterView]:
        """The drafters that have answered at least once, as routing sees them."""
        return [
            DrafterView(
                address=pod.address,
                healthy=pod.healthy,
                draining=pod.draining,
                sessions=pod.sessions,
                max_sessions=pod.status.max_sessions,
                benefit=self.benefits.of(pod.address),
            )
            for pod in self.drafters.values()
            if pod.status is not None
        ]

    def to_proto(self, sessions: int) -> gateway_pb2.FleetResponse:
        """The fleet as the status RPC shows it; `sessions`: those that this gateway follows."""
        return gateway_pb2.FleetResponse(
            verifiers=[
                gateway_pb2.VerifierPod(
                    address=pod.address, healthy=pod.healthy, status=pod.status, misfit=pod.misfit
                )
                for pod in self.verifiers.values()
            ],
            drafters=[
                gateway_pb2.DrafterPod(address=pod.address, healthy=pod.healthy, status=pod.status)
                for pod in self.drafters.values()
            ],
            sessions=sessions,
            version=__version__,
            protocol_version=PROTOCOL_VERSION,
            clock_seconds=time.time(),
            model_id=self._served.model_id if self._served else "",
            vocab_fingerprint=self._served.vocab_fingerprint if self._served else "",
        )


def _verifier_view(pod: Pod) -> VerifierView:
    status = pod.status
    # Sessions that have come since it answered.
    more = max(0, pod.sessions - status.sessions)
    return VerifierView(
        address=pod.address,
        healthy=pod.healthy,
        draining=pod.draining,
        model_id=status.model_id,
        vocab_size=status.vocab_size,
        max_context=status.max_context,
        sessions=pod.sessions,
        max_sessions=status.max_sessions,
        misfit=pod.misfit,
        kv_free=max(0, status.kv_total - status.kv_used - pod.backlog.sent_tokens),
        waiting_tokens=pod.backlog.tokens,
        prompt_token_seconds=status.prompt_token_seconds,
        step_seconds=status.step_seconds + more * status.session_seconds,
        session_seconds=status.session_seconds,
        texts=pod.texts,
    )
