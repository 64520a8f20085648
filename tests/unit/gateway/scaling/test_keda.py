"""KEDA's protocol, spoken to a real server by a client generated from the proto."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from gateway.scaling.keda import METRIC, SERVICE, KedaScaler
from paceline.keda import externalscaler_pb2 as pb
from paceline.keda import externalscaler_pb2_grpc
from paceline.net.roles import Role
from paceline.net.rpc import channel, start_server
from paceline.net.tls import Identity, PemFiles
from tests.certificates import Authority, Secret
from tests.unit.gateway.scaling.fleets import FakeDrafter
from tests.unit.gateway.scaling.test_autoscaler import World, drafting, idle

Stub = externalscaler_pb2_grpc.ExternalScalerStub


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def stub(world: World) -> AsyncIterator[Stub]:
    server = await start_server(
        lambda server: externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server(
            KedaScaler(world.scaler), server
        ),
        services=[SERVICE],
        host="127.0.0.1",
        port=0,
    )
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield Stub(channel)
    await server.stop(0)


def asks(**metadata: str) -> pb.ScaledObjectRef:
    # KEDA passes on all that the trigger's metadata has.
    return pb.ScaledObjectRef(
        name="drafters", namespace="ns", scalerMetadata={"scalerAddress": "gateway:8002", **metadata}
    )


DRAFTERS = asks(tier="drafter")


async def value(stub: Stub, asked: pb.ScaledObjectRef) -> float:
    (spec,) = (await stub.GetMetricSpec(asked)).metricSpecs
    request = pb.GetMetricsRequest(scaledObjectRef=asked, metricName=spec.metricName)
    (metric,) = (await stub.GetMetrics(request)).metricValues
    assert metric.metricName == METRIC
    assert metric.metricValue == metric.metricValueFloat
    # As the HPA does it.
    return float(metric.metricValueFloat / spec.targetSizeFloat)


async def test_the_hpa_wants_what_is_recommended(world: World, stub: Stub) -> None:
    world.runs(1, lambda: idle(world))
    assert not (await stub.IsActive(DRAFTERS)).result
    assert await value(stub, DRAFTERS) == 0
    assert (await stub.IsActive(asks(tier="verifier", pool="default"))).result
    assert await value(stub, asks(tier="verifier")) == 1
    world.runs(1, lambda: drafting(world))
    assert (await stub.IsActive(DRAFTERS)).result
    assert await value(stub, DRAFTERS) == 1


def working_hard(world: World) -> None:
    drafting(world)
    for pod in world.fleet.drafters.values():
        assert isinstance(pod, FakeDrafter)
        pod.goes_on(9.0, busy=1.0, sessions=4)


async def test_a_stream_pushes_each_change_once(world: World, stub: Stub) -> None:
    world.runs(1, lambda: idle(world))
    call = stub.StreamIsActive(DRAFTERS)
    assert not (await call.read()).result
    world.runs(3, lambda: drafting(world))
    assert (await call.read()).result
    # More verifiers are wanted meanwhile: that changes nothing for drafters.
    world.queued = 200
    world.runs(10, lambda: drafting(world))
    world.queued = 0
    # More drafters are, too: their number is told by the metric, and is no news for the stream.
    world.fleet.drafters["d"] = FakeDrafter()
    world.runs(10, lambda: working_hard(world))
    assert await value(stub, DRAFTERS) > 1
    world.runs(60, lambda: idle(world))
    assert not (await call.read()).result
    call.cancel()


async def test_while_nothing_is_known_keda_keeps_what_there_is(stub: Stub) -> None:
    for answer in (stub.IsActive(DRAFTERS), stub.StreamIsActive(DRAFTERS).read()):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    # The metric's name and target are always the same.
    assert (await stub.GetMetricSpec(DRAFTERS)).metricSpecs[0].targetSize == 1


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({}, "the trigger's metadata has no tier; set it to verifier or drafter"),
        ({"tier": "gateway"}, "the trigger's metadata has tier: 'gateway'; set it to verifier or drafter"),
        ({"tier": "drafter", "pool": "GPU 1"}, "set it to the --pool of the pods that are to be scaled"),
    ],
    ids=["no tier", "no such tier", "no name of a pool"],
)
async def test_wrong_metadata_is_refused_with_what_to_do(
    world: World, stub: Stub, metadata: dict[str, str], says: str
) -> None:
    world.runs(1, lambda: idle(world))
    asked = asks(**metadata)
    calls = (
        stub.IsActive(asked),
        stub.StreamIsActive(asked).read(),
        stub.GetMetricSpec(asked),
        stub.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=asked)),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert says in str(caught.value.details())


async def test_another_metric_is_refused(world: World, stub: Stub) -> None:
    world.runs(1, lambda: idle(world))
    with pytest.raises(grpc.aio.AioRpcError, match="there is no metric 'queue'; ask for paceline-"):
        await stub.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=DRAFTERS, metricName="queue"))


@pytest.mark.parametrize("caller", Role)
async def test_with_tls_a_certificate_of_its_role_opens_the_scaler_alone(
    world: World, tmp_path: Path, caller: Role
) -> None:
    authority = Authority()

    def identity(role: Role, of: str) -> Identity:
        secret = Secret(tmp_path / of, authority.issue(role.dns_name))
        return Identity(PemFiles(secret.cert, secret.key, secret.ca, "tls"), role)

    world.runs(1, lambda: idle(world))
    server = await start_server(
        lambda server: externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server(
            KedaScaler(world.scaler), server
        ),
        services=[SERVICE],
        host="127.0.0.1",
        port=0,
        identity=identity(Role.GATEWAY, "server"),
    )
    async with channel(server.address, Role.GATEWAY, identity(caller, "caller")) as made:
        if caller is Role.AUTOSCALER:
            assert await value(Stub(made), DRAFTERS) == 0
        else:
            with pytest.raises(grpc.aio.AioRpcError, match="allowed: autoscaler") as caught:
                await Stub(made).IsActive(DRAFTERS)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await server.stop(0)


def test_names_numbers_and_types_are_kedas() -> None:
    """What KEDA's operator sends and reads, written down apart from the proto."""
    service = pb.DESCRIPTOR.services_by_name["ExternalScaler"]
    assert service.full_name == "externalscaler.ExternalScaler"
    assert {method.name: method.server_streaming for method in service.methods} == {
        "IsActive": False,
        "StreamIsActive": True,
        "GetMetricSpec": False,
        "GetMetrics": False,
    }
    assert DRAFTERS.SerializeToString(deterministic=True) == (
        b"\x0a\x08drafters\x12\x02ns"
        b"\x1a\x1d\x0a\x0dscalerAddress\x12\x0cgateway:8002"
        b"\x1a\x0f\x0a\x04tier\x12\x07drafter"
    )
    assert pb.IsActiveResponse(result=True).SerializeToString() == b"\x08\x01"
    spec = pb.MetricSpec(metricName="m", targetSize=1, targetSizeFloat=1.0)
    assert pb.GetMetricSpecResponse(metricSpecs=[spec]).SerializeToString() == (
        b"\x0a\x0e\x0a\x01m\x10\x01\x19" + b"\x00" * 6 + b"\xf0\x3f"
    )
    asked = pb.GetMetricsRequest(scaledObjectRef=pb.ScaledObjectRef(name="n"), metricName="m")
    assert asked.SerializeToString() == b"\x0a\x03\x0a\x01n\x12\x01m"
    value = pb.MetricValue(metricName="m", metricValue=3, metricValueFloat=3.0)
    assert pb.GetMetricsResponse(metricValues=[value]).SerializeToString() == (
        b"\x0a\x0e\x0a\x01m\x10\x03\x19" + b"\x00" * 6 + b"\x08\x40"
    )
