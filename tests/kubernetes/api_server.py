"""An API server of Kubernetes in this process, over real HTTP, for a few kinds of objects.

As a real one: resource versions, 409 for stale updates, list with pages, watch with bookmarks and initial
events, 410 after compaction, selectors, merge patches, graceful deletion of pods, bodies held against
Kubernetes' own schemas, roles by bearer token. It has no controllers, no kubelet and no server-side apply.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from paceline.local.plan import HOST, choose_addresses
from tests.kubernetes.objects import Objects
from tests.kubernetes.patches import patched
from tests.kubernetes.requests import Request, documents
from tests.kubernetes.resources import ApiError, Object, Resource
from tests.kubernetes.selectors import selector
from tests.kubernetes.watching import Watch

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
# What one who holds a token may do, as the rules of a Role have it.
Rules = Sequence[Mapping[str, Sequence[str]]]


@dataclass(slots=True)
class Faults:
    """What is wrong with the server now."""

    # Each answer is late by so much.
    delay_seconds: float = 0.0
    # Every request is answered with this status.
    status: int = 0
    # Connections are taken, and nothing is ever answered.
    silent: bool = False


class ApiServer:
    """Use as a context manager. What it keeps outlives `stop` and `start`, as etcd does."""

    def __init__(
        self, *, host: str = HOST, tls: ssl.SSLContext | None = None, bookmark_seconds: float = 60.0
    ) -> None:
        """`host`: an address of this machine to listen on. `tls`: None speaks plain HTTP."""
        self.host = host
        self.tls = tls
        self.objects = Objects()
        self.faults = Faults()
        self.bookmark_seconds = bookmark_seconds
        # Rules by bearer token; whoever comes without one may do everything.
        self.rules: dict[str, Rules] = {}
        # (verb, resource) of every request.
        self.asked: list[tuple[str, str]] = []
        # Requests that `faults` has turned away.
        self.refusals = 0
        self.port = choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=0, host=host).http_port
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, at the same port each time."""
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close everything at once, as a process that is killed."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.drop()
            self._server = None

    def drop_connections(self) -> None:
        """Reset all connections, watches too."""
        assert self._server is not None
        self._server.drop()

    def count(self, verb: str, resource: str) -> int:
        """How often that was asked."""
        return self.asked.count((verb, resource))

    def kubeconfig(self, path: Path, namespace: str = "default", token: str = "") -> Path:
        """Write the file by which kubectl and gateways find this server."""
        user = {"token": token} if token else {}
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": {"server": self.url}}],
                    "users": [{"name": "test", "user": user}],
                    "contexts": [
                        {
                            "name": "test",
                            "context": {"cluster": "test", "user": "test", "namespace": namespace},
                        }
                    ],
                    "current-context": "test",
                }
            )
        )
        return path


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, api: ApiServer) -> None:
        self.api = api
        self.connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__((api.host, api.port), _Handler)
        if api.tls is not None:
            # A client that is slow in the handshake holds up its own thread alone.
            self.socket = api.tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are part of the tests."""

    def drop(self) -> None:
        with self._lock:
            dropped, self.connections = self.connections, set()
        for connection in dropped:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _go(self) -> None:
        api = self.server.api
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if api.faults.silent:
            while api.faults.silent:
                time.sleep(0.05)
            self.close_connection = True
            return
        time.sleep(api.faults.delay_seconds)
        try:
            if api.faults.status:
                api.refusals += 1
                raise ApiError(api.faults.status, "InternalError", "as the test wants it")
            self._answer(body)
        except ApiError as error:
            self._send(error.status(), error.code)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _go

    def _send(self, answer: Object, code: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, body: bytes) -> None:
        url = urlsplit(self.path)
        document = documents().get(url.path.rstrip("/"))
        if document is not None:
            self._send(document)
            return
        request = Request.of(url.path, url.query)
        verb = _VERBS.get(self.command) or ("get" if request.name else "list")
        if verb == "list" and request.flag("watch"):
            verb = "watch"
        self._allow(verb, request.resource)
        if verb == "watch":
            self._watch(request)
            return
        try:
            told = json.loads(body) if body else {}
        except ValueError as error:
            raise ApiError(400, "BadRequest", "the body is no JSON") from error
        self._send(self._object(verb, request, told), 201 if verb == "create" else 200)

    def _allow(self, verb: str, resource: Resource) -> None:
        """Raises `ApiError` for what the roles of the token do not have."""
        api = self.server.api
        api.asked.append((verb, resource.plural))
        # The client writes the scheme's name in small letters in a pod, and with a capital outside.
        _, _, token = (self.headers.get("Authorization") or "").partition(" ")
        if not token:
            return
        if token not in api.rules:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        if not any(
            verb in rule["verbs"]
            and resource.plural in rule["resources"]
            and resource.group in rule["apiGroups"]
            for rule in api.rules[token]
        ):
            raise ApiError(
                403, "Forbidden", f"{resource.plural}.{resource.group} is forbidden: cannot {verb} resource"
            )

    def _object(self, verb: str, request: Request, body: Any) -> Object:
        objects, resource, query = self.server.api.objects, request.resource, request.query
        place = (resource, request.namespace, request.name)
        if verb == "get":
            return objects.get(*place)
        if verb == "create":
            return objects.create(resource, request.namespace, body)
        if verb == "update":
            return objects.update(*place, lambda old: body, status=request.status)
        if verb == "patch":
            kind = (self.headers.get("Content-Type") or "").partition(";")[0]
            return objects.update(*place, lambda old: patched(old, body, kind), status=request.status)
        if verb == "delete":
            grace = query.get("gracePeriodSeconds", body.get("gracePeriodSeconds"))
            return objects.delete(*place, None if grace is None else int(grace))
        if int(query.get("resourceVersion") or 0) > objects.version:
            raise ApiError(504, "Timeout", f"Too large resource version: {query['resourceVersion']}")
        takes = selector(query.get("labelSelector", ""), query.get("fieldSelector", ""))
        items, version, more = objects.find(
            resource, request.namespace, takes, int(query.get("limit") or 0), query.get("continue", "")
        )
        metadata = {"resourceVersion": str(version), **({"continue": more} if more else {})}
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.group_version,
            "metadata": metadata,
            "items": items,
        }

    def _watch(self, request: Request) -> None:
        takes = selector(request.query.get("labelSelector", ""), request.query.get("fieldSelector", ""))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            watch = Watch(self.server.api.objects, request, takes, self.server.api.bookmark_seconds)
            for event in watch.events():
                self._chunk(json.dumps(event).encode() + b"\n")
        except ApiError as error:
            self._chunk(json.dumps({"type": "ERROR", "object": error.status()}).encode() + b"\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()
