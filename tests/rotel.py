"""rotel, an OpenTelemetry collector that is not ours, between the services and whoever takes their spans."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from paceline.local.plan import HOST, choose_addresses
from tests.pods import Pod


@contextmanager
def rotel(folder: Path, exports_to: str) -> Iterator[str]:
    """A collector that takes OTLP over gRPC at the address given and sends it on to `exports_to`."""
    where = choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=0)
    package = find_spec("rotel")
    assert package is not None, "rotel is not installed: make setup"
    assert package.origin is not None
    pod = Pod(
        "rotel",
        [
            *(str(Path(package.origin).with_name("rotel-agent")), "start", "--debug-log", "traces"),
            *("--otlp-grpc-endpoint", where.grpc, "--otlp-http-endpoint", f"{HOST}:{where.http_port}"),
            *("--exporter", "otlp", "--otlp-exporter-protocol", "grpc"),
            *("--otlp-exporter-endpoint", f"http://{exports_to}", "--batch-timeout", "200ms"),
        ],
        folder,
    )
    try:
        pod.until(lambda: _listens(where.grpc))
        yield where.grpc
    finally:
        # It sends on what it still has.
        pod.stop()


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
