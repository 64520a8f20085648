"""Pods that the Kubernetes API tells of: EndpointSlices, listed and watched."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Iterable

from gateway.discovery.base import Endpoints
from gateway.discovery.thread import told_by
from gateway.kubernetes.cluster import Cluster, Object
from gateway.kubernetes.reflector import Reflector
from gateway.kubernetes.slices import SELECTOR, endpoints_of


class KubernetesDiscovery:
    """The ready endpoints of one namespace's Services of verifiers and drafters."""

    def __init__(self, cluster: Cluster, model_name: str, selector: str = "") -> None:
        """`selector`: labels that the Services have beside those of a component, as in `kubectl -l`."""
        self._cluster = cluster
        self._model_name = model_name
        self._selector = ",".join(filter(None, (SELECTOR, selector)))

    def endpoints(self) -> AsyncGenerator[Endpoints, None]:
        """See `Discovery`. A list that came is believed, even an empty one; a failed one changes nothing."""
        return told_by(self._search)

    def _search(self, tell: Callable[[Endpoints], None], stop: threading.Event) -> None:
        Reflector(self, lambda slices: tell(endpoints_of(slices, self._model_name))).run(stop)

    def objects(self) -> tuple[list[Object], str]:
        """See `Source`."""
        return self._cluster.endpoint_slices(self._selector)

    def events(self, version: str, seconds: int) -> Iterable[Object]:
        """See `Source`."""
        return self._cluster.endpoint_slice_events(self._selector, version, seconds)
