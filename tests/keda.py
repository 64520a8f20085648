"""KEDA's operator and an HPA as a gateway meets them: what they ask, and the sums that they do."""

from __future__ import annotations

import math

import grpc

from paceline.keda import externalscaler_pb2 as pb
from paceline.keda import externalscaler_pb2_grpc

# The HPA leaves a number of pods as it is where another one differs by less.
_TOLERANCE = 0.1


class Keda:
    """Asks a gateway by a client that is generated from the proto. `metadata`: beside the tier."""

    def __init__(self, channel: grpc.aio.Channel, **metadata: str) -> None:
        self._stub = externalscaler_pb2_grpc.ExternalScalerStub(channel)
        self._metadata = metadata

    async def active(self, tier: str) -> bool:
        """Whether there should be any pod."""
        return bool((await self._stub.IsActive(self._asks(tier), wait_for_ready=True)).result)

    def pushes(self, tier: str) -> grpc.aio.UnaryStreamCall[pb.ScaledObjectRef, pb.IsActiveResponse]:
        """The same now, and whenever it changes."""
        return self._stub.StreamIsActive(self._asks(tier), wait_for_ready=True)

    async def replicas(self, tier: str) -> float:
        """The metric over its target."""
        (spec,) = (await self._stub.GetMetricSpec(self._asks(tier))).metricSpecs
        request = pb.GetMetricsRequest(scaledObjectRef=self._asks(tier), metricName=spec.metricName)
        (metric,) = (await self._stub.GetMetrics(request)).metricValues
        return float(metric.metricValueFloat / spec.targetSizeFloat)

    async def desired(self, tier: str, current: int, *, least: int, most: int) -> int:
        """Pods that a ScaledObject comes to, from `current` on.

        Zero and from it KEDA decides, the rest an HPA with an AverageValue.
        """
        if not await self.active(tier):
            return least
        if not current:
            return max(1, least)
        wanted = await self.replicas(tier)
        if abs(wanted / current - 1) > _TOLERANCE:
            current = math.ceil(wanted)
        return min(max(current, least, 1), most)

    def _asks(self, tier: str) -> pb.ScaledObjectRef:
        metadata = {"scalerAddress": "gateway:8002", "tier": tier, **self._metadata}
        return pb.ScaledObjectRef(name=f"{tier}s", namespace="fleet", scalerMetadata=metadata)
