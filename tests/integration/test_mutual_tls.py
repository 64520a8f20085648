"""A fleet over TLS: who gets in, who does not, what each may do, and certificates that change under load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import grpc
import httpx
import openai
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.client import Chunk, Finished, GatewayClient, GatewayError, GatewayUnreachableError, Generation
from paceline.net.handshake import PROTOCOL_VERSION
from paceline.net.roles import Role
from paceline.v1 import drafter_pb2, drafter_pb2_grpc, verifier_pb2, verifier_pb2_grpc
from tests.certificates import LOCAL, Authority, Issued
from tests.flooder import Flooder
from tests.pods import MODEL, Pods
from tests.secure_pods import SecurePods, dial
from tests.waiting import wait_until

ASKED = Generation(text="the quick brown fox", max_tokens=64, temperature=0.8, seed=5)


@pytest.fixture(scope="module")
def secure(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str
) -> Iterator[SecurePods]:
    with SecurePods(tmp_path_factory.mktemp("secure"), tiny_model, redis_url) as pods:
        yield pods.start()


async def generated(client: GatewayClient, asked: Generation = ASKED) -> tuple[str, Finished]:
    text, finished = "", None
    async for event in client.generate(asked, timeout_s=120):
        if isinstance(event, Chunk):
            text += event.text
        elif isinstance(event, Finished):
            finished = event
    assert finished is not None
    return text, finished


async def test_the_text_is_that_of_a_plaintext_fleet_and_drafters_help(
    secure: SecurePods, fleet: Pods
) -> None:
    async with GatewayClient(fleet.grpc) as plain:
        expected, _ = await generated(plain)
    async with GatewayClient(secure.grpc, secure.gateway.credentials) as client:
        text, finished = await generated(client)
        assert text == expected
        assert finished.receipt.drafted_tokens > 0
    over_http = openai.DefaultAsyncHttpxClient(verify=secure.gateway.https)
    async with openai.AsyncOpenAI(
        base_url=f"{secure.gateway.http}/v1", api_key="none", http_client=over_http
    ) as ai:
        answer = await ai.completions.create(
            model=MODEL, prompt="the quick brown fox", max_tokens=64, temperature=0.8, seed=5
        )
    assert answer.choices[0].text == expected


async def test_clients_that_do_not_trust_the_gateway_say_so(secure: SecurePods) -> None:
    other = grpc.ssl_channel_credentials(Authority().pem)
    async with GatewayClient(secure.grpc, other) as client:
        with pytest.raises(GatewayError, match=r"no TLS with .*, or no trust in its certificate"):
            await client.fleet()
    async with GatewayClient(secure.grpc) as client:
        with pytest.raises(GatewayUnreachableError):
            await client.fleet()
    async with httpx.AsyncClient() as http:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await http.get(f"{secure.gateway.http}/healthz")
        with pytest.raises(httpx.TransportError):
            await http.get(f"{secure.gateway.http.replace('https', 'http')}/healthz")


def status_of(channel: grpc.Channel) -> None:
    verifier_pb2_grpc.VerifierServiceStub(channel).Status(verifier_pb2.VerifierStatusRequest(), timeout=5)


@pytest.mark.parametrize("fault", ["plaintext", "no certificate", "another CA", "clients' CA", "expired"])
def test_nobody_without_a_certificate_of_the_services_ca_gets_in(secure: SecurePods, fault: str) -> None:
    gateway = Role.GATEWAY.dns_name
    if fault == "no certificate":
        credentials = grpc.ssl_channel_credentials(secure.authority.pem)
        options = [("grpc.ssl_target_name_override", Role.VERIFIER.dns_name)]
        channel = grpc.secure_channel(secure.verifier, credentials, options=options)
    else:
        shown = {
            "plaintext": None,
            "another CA": Authority().issue(gateway),
            "clients' CA": secure.public_authority.issue(gateway),
            "expired": secure.authority.issue(gateway, ends_in=timedelta(seconds=-1)),
        }[fault]
        channel = dial(secure.verifier, shown, Role.VERIFIER, trusted=secure.authority.pem)
    with channel, pytest.raises(grpc.RpcError) as caught:
        status_of(channel)
    assert code_of(caught.value) is grpc.StatusCode.UNAVAILABLE


def test_the_same_call_with_a_good_certificate_gets_in(secure: SecurePods) -> None:
    with dial(secure.verifier, secure.issue(Role.GATEWAY), Role.VERIFIER) as channel:
        status_of(channel)


def open_session(channel: grpc.Channel) -> None:
    next(verifier_pb2_grpc.VerifierServiceStub(channel).Open(verifier_pb2.OpenRequest(), timeout=5))


def draft(channel: grpc.Channel) -> None:
    requests = iter([verifier_pb2.DraftRequest()])
    next(verifier_pb2_grpc.VerifierServiceStub(channel).Draft(requests, timeout=5))


def attach(channel: grpc.Channel) -> None:
    drafter_pb2_grpc.DrafterServiceStub(channel).Attach(drafter_pb2.AttachRequest(), timeout=5)


def detach(channel: grpc.Channel) -> None:
    drafter_pb2_grpc.DrafterServiceStub(channel).Detach(drafter_pb2.DetachRequest(), timeout=5)


def drafter_channel(secure: SecurePods, shown: Issued) -> grpc.aio.Channel:
    """A new connection to the verifier."""
    return grpc.aio.secure_channel(
        secure.verifier,
        grpc.ssl_channel_credentials(shown.ca, shown.key, shown.cert),
        options=[
            ("grpc.ssl_target_name_override", Role.VERIFIER.dns_name),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


async def welcomed(secure: SecurePods, shown: Issued, name: str) -> bool:
    """Whether the verifier listens to a drafter of that certificate and name."""
    hello = verifier_pb2.Hello(protocol_version=PROTOCOL_VERSION, drafter_id=name)
    async with drafter_channel(secure, shown) as channel:
        call = verifier_pb2_grpc.VerifierServiceStub(channel).Draft(timeout=10)
        try:
            await call.write(verifier_pb2.DraftRequest(hello=hello))
            return bool((await call.read()).HasField("welcome"))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            assert "put aside" in (await call.details())
            return False


async def test_a_drafter_is_known_by_its_certificate_and_not_by_its_name(secure: SecurePods) -> None:
    async with GatewayClient(secure.grpc, secure.gateway.credentials) as client:
        await generated(client)
    (name,) = secure.verifier_status().drafters
    hostile, other = secure.issue(Role.DRAFTER), secure.issue(Role.DRAFTER)
    flooder = Flooder(lambda: drafter_channel(secure, hostile), name)
    flooding = asyncio.create_task(flooder.run())
    await wait_until(lambda: bool(flooder.ended), "it is sent away")
    flooding.cancel()
    await asyncio.wait({flooding})
    assert not await welcomed(secure, hostile, name)
    assert not await welcomed(secure, hostile, "another name")
    assert await welcomed(secure, other, name)
    assert list(secure.verifier_status().drafters) == [name]
    (aside,) = secure.verifier_status().drafters_aside
    assert "key" in aside


CALLS = {
    "Open": (open_session, Role.VERIFIER, Role.GATEWAY),
    "Draft": (draft, Role.VERIFIER, Role.DRAFTER),
    "Attach": (attach, Role.DRAFTER, Role.GATEWAY),
    "Detach": (detach, Role.DRAFTER, Role.GATEWAY),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("caller", [*Role, None])
def test_each_role_may_make_its_own_calls_and_no_others(
    secure: SecurePods, name: str, caller: Role | None
) -> None:
    call, server, allowed = CALLS[name]
    address = secure.verifier if server is Role.VERIFIER else secure.drafter
    shown = secure.issue(caller) if caller else secure.authority.issue("db.example")
    with dial(address, shown, server) as channel:
        try:
            call(channel)
            code, details = grpc.StatusCode.OK, ""
        except grpc.RpcError as error:
            code, details = code_of(error), str(error.details())
    if caller is allowed:
        # An empty request gets as far as the method.
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
        return
    assert code is grpc.StatusCode.PERMISSION_DENIED
    held = f"of role {caller}" if caller else "for db.example, which is no role of Paceline,"
    assert details.startswith(f"a certificate {held} may not call /paceline.v1.")
    assert details.endswith(f"/{name}; allowed: {allowed}")


def test_a_certificate_without_a_role_may_not_even_ask_for_health(secure: SecurePods) -> None:
    with dial(secure.verifier, secure.authority.issue("db.example"), Role.VERIFIER) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert code_of(caught.value) is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("poses_as", [Role.VERIFIER, Role.DRAFTER])
def test_a_drafter_cannot_pose_as_a_verifier_nor_a_verifier_as_a_drafter(
    secure: SecurePods, poses_as: Role
) -> None:
    address = secure.drafter if poses_as is Role.VERIFIER else secure.verifier
    with (
        dial(address, secure.issue(Role.GATEWAY), poses_as) as channel,
        pytest.raises(grpc.RpcError, match="Hostname Verification Check failed"),
    ):
        status_of(channel)


def test_a_service_with_another_roles_certificate_does_not_start(secure: SecurePods) -> None:
    flags = secure.secrets[Role.GATEWAY].flags()
    Pods._start(secure, "impostor", "drafter_svc", "--port", "0", *flags)
    pod = secure.pods["impostor"]
    with pytest.raises(AssertionError):
        pod.until(lambda: False)
    assert pod.exit_code == 2
    assert "--tls-cert" in pod.log.read_text()
    assert "issue one with the DNS name paceline-role-drafter" in pod.log.read_text()


def number_of(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


async def number_at(address: str, shown: Issued | None = None) -> int:
    """The serial number of the certificate that a server shows."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return x509.load_der_x509_certificate(der).serial_number


async def test_certificates_of_all_services_change_under_load_and_no_client_notices(
    tmp_path: Path, tiny_model: Path, redis_url: str
) -> None:
    asked = Generation(text="the quick brown fox", max_tokens=200, temperature=0.8, seed=5)
    with SecurePods(tmp_path / "fleet", tiny_model, redis_url) as pods:
        pods.start()
        faces = {pods.verifier: Role.VERIFIER, pods.drafter: Role.DRAFTER}
        async with GatewayClient(pods.grpc, pods.gateway.credentials) as client:
            expected, _ = await generated(client, asked)
            stopping = asyncio.Event()

            async def load() -> int:
                rounds = 0
                while not stopping.is_set():
                    text, _ = await generated(client, asked)
                    assert text == expected
                    rounds += 1
                return rounds

            loads = [asyncio.create_task(load()) for _ in range(4)]
            for _ in range(2):
                fresh = {role: pods.issue(role) for role in Role}
                public = pods.public_authority.issue(*LOCAL)
                for role, issued in fresh.items():
                    pods.secrets[role].put(issued)
                pods.public.put(public)
                for address, role in faces.items():
                    await shows(address, fresh[role])
                await shows(pods.grpc, public)
                await shows(pods.gateway.http.removeprefix("https://"), public)
            stopping.set()
            assert all(rounds > 0 for rounds in await asyncio.gather(*loads))
            assert all(pod.running for pod in pods.pods.values())


async def shows(address: str, issued: Issued) -> None:
    """Return once a server shows a certificate."""
    wanted, seen = number_of(issued.cert), 0
    for _ in range(200):
        seen = await number_at(address)
        if seen == wanted:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{address} shows {seen}, not {wanted}")


async def test_a_fleet_moves_to_a_new_ca_and_reconnects_with_it(
    tmp_path: Path, tiny_model: Path, redis_url: str
) -> None:
    with SecurePods(tmp_path / "fleet", tiny_model, redis_url) as pods:
        pods.start()
        old, pods.authority = pods.authority, Authority()
        both = old.pem + pods.authority.pem
        # First everybody trusts both, then shows the new one.
        for role in Role:
            issued = old.issue(role.dns_name)
            pods.secrets[role].put_bytes(issued.cert, issued.key, both)
        for address, role in ((pods.verifier, Role.VERIFIER), (pods.drafter, Role.DRAFTER)):
            await admits(address, role, pods.issue(Role.GATEWAY), old.pem)
        for role in Role:
            pods.secrets[role].put(pods.issue(role))
        for address, role in ((pods.verifier, Role.VERIFIER), (pods.drafter, Role.DRAFTER)):
            await admits(address, role, pods.issue(Role.GATEWAY), pods.authority.pem)
        # Every connection made before is gone with the verifier's process.
        pods.pods[pods.verifier].kill()
        pods.start_verifier(pods.verifier)
        pods.until_all_are_seen()
        async with GatewayClient(pods.grpc, pods.gateway.credentials) as client:
            _, finished = await generated(client)
        assert finished.receipt.drafted_tokens > 0


async def admits(address: str, server: Role, shown: Issued, trusted: bytes) -> None:
    """Return once a server takes a client's certificate and shows one of a trusted CA."""

    def answered() -> bool:
        with dial(address, shown, server, trusted=trusted) as channel, suppress(grpc.RpcError):
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
            return True
        return False

    await wait_until(answered, f"{address} takes the new CA")


async def test_a_broken_certificate_leaves_the_one_before_in_force(secure: SecurePods) -> None:
    secret, pod = secure.secrets[Role.VERIFIER], secure.pods[secure.verifier]
    before = await number_at(secure.verifier)
    good = secure.issue(Role.VERIFIER)
    secret.put_bytes(good.cert, b"half a ke", good.ca)
    await wait_until(lambda: "stays in force" in pod.log.read_text(), "the verifier has seen it")
    assert await number_at(secure.verifier) == before
    secret.put(good)
    await shows(secure.verifier, good)


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    return error.code()
