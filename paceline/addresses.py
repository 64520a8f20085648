"""host:port in every form that people write (names, IPv4, IPv6), and sockets that listen there."""

from __future__ import annotations

import errno
import os
import re
import socket
from contextlib import ExitStack
from ipaddress import IPv6Address, ip_address

# With underscores, which names of containers have.
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_.])?")
_ADDRESS = re.compile(r"(\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:]*)):(?P<port>[0-9]{1,5})")
_ALL_V4, _ALL = "0.0.0.0", "::"


class AddressError(ValueError):
    """What was given is no address; the message says what one looks like."""


def parse_host(text: str) -> str:
    """A name or an IP address, IPv6 with brackets or without; given back without. Raises `AddressError`."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        parsed = ip_address(bare)
    except ValueError:
        parsed = None
    if parsed is None and (bare is not text or not _NAME.fullmatch(bare)):
        raise AddressError(f"{text[:100]!r} is neither an IP address nor a host name, which has no port")
    if parsed is not None and bare is not text and not isinstance(parsed, IPv6Address):
        raise AddressError(f"{text[:100]!r}: only IPv6 addresses stand in brackets")
    return bare


def parse_address(text: str) -> tuple[str, int]:
    """Host, without brackets, and port of `host:port`. Raises `AddressError`."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        hint = "an IPv6 address in brackets: [::1]:9000" if text.count(":") > 1 else "such as 10.0.0.1:9000"
        raise AddressError(f"{text[:100]!r} is not host:port; {hint}")
    port = int(match["port"])
    if not 0 < port < 65536:
        raise AddressError(f"{text[:100]!r}: a port is 1 to 65535")
    return parse_host(match["host"] if match["v6"] is None else f"[{match['v6']}]"), port


def parse_addresses(text: str) -> tuple[str, ...]:
    """Those of a list separated by commas, as `join_address` writes them. Raises `AddressError`."""
    return tuple(join_address(*parse_address(part.strip())) for part in text.split(",") if part.strip())


def join_address(host: str, port: int) -> str:
    """`host:port`; an IPv6 address gets its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    """Where a server that listens on `host` is reached from this machine."""
    return {_ALL_V4: "127.0.0.1", _ALL: "::1" if socket.has_dualstack_ipv6() else "127.0.0.1"}.get(host, host)


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of `host`, all on one port; 0 takes a free one.

    `::` is all interfaces, with IPv4 where the machine has both, and without IPv6 where it has none.
    Raises `OSError`.
    """
    if host == _ALL and not socket.has_dualstack_ipv6():
        host = _ALL_V4
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with ExitStack() as opened:
        sockets: list[socket.socket] = []
        for family, _, _, _, where in dict.fromkeys(found):
            bound = sockets[0].getsockname()[1] if sockets and not port else port
            # The scope of a link-local address stands behind the port.
            listener = socket.create_server(
                (where[0], bound, *where[2:]),
                family=family,
                backlog=1024,
                dualstack_ipv6=host == _ALL,
            )
            sockets.append(opened.enter_context(listener))
        opened.pop_all()
    return sockets


def why_not(error: OSError, host: str, port: int, flag: str) -> str:
    """One line for whoever set `host` and, by `flag`, `port`, where `listen` has failed."""
    where = f"cannot listen on {join_address(host, port)}"
    if isinstance(error, socket.gaierror):
        return f"{where}: {error.strerror}; --host must be an address of this machine"
    # Not its own words, which repeat the address.
    where += f": {os.strerror(error.errno)}" if error.errno else f": {error}"
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return f"{where}; --host must be an address of this machine"
    if error.errno == errno.EACCES:
        return f"{where}; choose a port from 1024 up with {flag}"
    return f"{where}; choose another port with {flag}, or stop what listens there"
