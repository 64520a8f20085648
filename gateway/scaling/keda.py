"""KEDA's external scaler protocol: recommended numbers of pods for the ScaledObjects that ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias, TypeVar

import grpc

from gateway.scaling.autoscaler import Autoscaler, TooManyPoolsError, UnknownLoadError
from gateway.scaling.observation import Tier
from gateway.scaling.recommend import Recommendation
from paceline.keda import externalscaler_pb2 as pb
from paceline.keda import externalscaler_pb2_grpc
from paceline.net.rpc import RefusedError, refusals
from paceline.pools import DEFAULT_POOL, PoolNameError, parse_pool

SERVICE = "externalscaler.ExternalScaler"
# The HPA wants ceil(value / target) pods, so with this target it wants as many as are recommended.
METRIC, TARGET = "paceline-recommended-replicas", 1

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
T = TypeVar("T")


class KedaScaler(externalscaler_pb2_grpc.ExternalScalerServicer):
    """Answers with what the autoscaler recommends. While that is unknown it answers UNAVAILABLE, and KEDA
    leaves the pods as they are."""

    def __init__(self, autoscaler: Autoscaler) -> None:
        self._autoscaler = autoscaler

    @refusals
    async def IsActive(self, request: pb.ScaledObjectRef, context: Context) -> pb.IsActiveResponse:
        """Whether any pod is recommended."""
        return pb.IsActiveResponse(result=self._recommended(request).replicas > 0)

    @refusals
    async def StreamIsActive(
        self, request: pb.ScaledObjectRef, context: Context
    ) -> AsyncIterator[pb.IsActiveResponse]:
        """Whether any pod is recommended, now and after each change."""
        tier, pool = _asked(request.scalerMetadata)
        _told(lambda: self._autoscaler.recommendation(tier, pool))
        said: bool | None = None
        async with aclosing(self._autoscaler.recommendations(tier, pool)) as recommendations:
            async for recommended in recommendations:
                active = recommended.replicas > 0
                if active is not said:
                    said = active
                    yield pb.IsActiveResponse(result=active)

    @refusals
    async def GetMetricSpec(self, request: pb.ScaledObjectRef, context: Context) -> pb.GetMetricSpecResponse:
        """One metric, of which each pod stands for one."""
        _asked(request.scalerMetadata)
        return pb.GetMetricSpecResponse(
            metricSpecs=[pb.MetricSpec(metricName=METRIC, targetSize=TARGET, targetSizeFloat=TARGET)]
        )

    @refusals
    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Context) -> pb.GetMetricsResponse:
        """The recommended number of pods."""
        if request.metricName not in ("", METRIC):
            raise RefusedError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"there is no metric {request.metricName[:80]!r}; ask for {METRIC}, as GetMetricSpec says",
                field="metricName",
            )
        replicas = self._recommended(request.scaledObjectRef).replicas
        return pb.GetMetricsResponse(
            metricValues=[
                pb.MetricValue(
                    metricName=METRIC, metricValue=replicas * TARGET, metricValueFloat=replicas * TARGET
                )
            ]
        )

    def _recommended(self, request: pb.ScaledObjectRef) -> Recommendation:
        tier, pool = _asked(request.scalerMetadata)
        return _told(lambda: self._autoscaler.recommendation(tier, pool))


def _asked(metadata: Mapping[str, str]) -> tuple[Tier, str]:
    """The pool that a trigger's metadata names. Raises `RefusedError`. Other keys are KEDA's own."""
    given = metadata.get("tier", "")
    if given not in list(Tier):
        raise RefusedError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"the trigger's metadata has {f'tier: {given[:80]!r}' if given else 'no tier'}; "
            f"set it to {' or '.join(Tier)}",
            field="scalerMetadata.tier",
        )
    try:
        return Tier(given), parse_pool(metadata.get("pool", DEFAULT_POOL))
    except PoolNameError as error:
        raise RefusedError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"the trigger's metadata, pool: {error}; set it to the --pool of the pods that are to be scaled",
            field="scalerMetadata.pool",
        ) from error


def _told(ask: Callable[[], T]) -> T:
    """What the autoscaler says. Raises `RefusedError` where it says nothing."""
    try:
        return ask()
    except UnknownLoadError as error:
        raise RefusedError(grpc.StatusCode.UNAVAILABLE, f"{error}; ask again later") from error
    except TooManyPoolsError as error:
        raise RefusedError(
            grpc.StatusCode.RESOURCE_EXHAUSTED, f"{error}; check the pools that ScaledObjects name"
        ) from error
