"""What Prometheus is served: the same names in both forms, exemplars in OpenMetrics."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from paceline.local.plan import choose_addresses
from paceline.service import scrapes

# As Prometheus 2.42 and 3.5 ask.
ASKS = {
    "2": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "3": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("accept", ["", "text/plain", *ASKS.values()], ids=["none", "text", *ASKS])
def test_names_are_the_same_whoever_asks(host: str, accept: str) -> None:
    registry = CollectorRegistry()
    seconds = Histogram("paceline:some_seconds", "Some", registry=registry, buckets=(1.0,))
    seconds.observe(0.5, {"trace_id": "0af7651916cd43dd8448eb211c80319c"})
    port = choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=0, host=host).http_port
    scrapes.serve(host, port, registry)
    where = f"[{host}]" if ":" in host else host
    text = httpx.get(f"http://{where}:{port}/metrics", headers={"accept": accept}).text
    names = {line.partition("{")[0] for line in text.splitlines() if "_bucket{" in line}
    assert names == {"paceline:some_seconds_bucket"}
    assert ("trace_id" in text) == (accept in ASKS.values())
    if accept in ASKS.values():
        (family,) = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        exemplars = [sample.exemplar for sample in family.samples if sample.exemplar is not None]
        assert [exemplar.labels for exemplar in exemplars] == [
            {"trace_id": "0af7651916cd43dd8448eb211c80319c"}
        ]
