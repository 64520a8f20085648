"""Tell variables of Kubernetes' service links apart from settings that a person wrote.

For a Service named `paceline-gateway`, every container of its namespace gets `PACELINE_GATEWAY_PORT` =
`tcp://10.0.0.1:8001` and some more, which look like settings and are not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address

# A service's name may be anything, so the part after it decides.
_PORT_URL = re.compile(r"(?P<service>.+)_PORT(_(?P<port>\d+)_(?P<protocol>TCP|UDP|SCTP))?")
_PORT_PART = re.compile(r".+_PORT_(?P<port>\d+)_(?P<protocol>TCP|UDP|SCTP)_(?P<part>PROTO|PORT|ADDR)")
_SERVICE = re.compile(r"(?P<service>.+)_SERVICE_(?P<part>HOST|PORT(_.+)?)")
_URL = re.compile(r"(?P<protocol>tcp|udp|sctp)://(\[(?P<v6>[^\]]+)\]|(?P<v4>[^:]+)):(?P<port>\d+)")


def is_service_link(name: str, environment: Mapping[str, str]) -> bool:
    """Whether a variable has the name and the value that only a service link gives it."""
    value = environment[name]
    if part := _PORT_PART.fullmatch(name):
        return {
            "PROTO": value == part["protocol"].lower(),
            "PORT": value == part["port"],
            "ADDR": _is_ip(value),
        }[part["part"]]
    if service := _SERVICE.fullmatch(name):
        if service["part"] == "HOST":
            return _is_ip(value)
        return value.isdecimal() and _is_ip(environment.get(f"{service['service']}_SERVICE_HOST", ""))
    if link := _PORT_URL.fullmatch(name):
        url = _URL.fullmatch(value)
        return (
            url is not None
            and _is_ip(url["v6"] or url["v4"])
            and link["port"] in (None, url["port"])
            and link["protocol"] in (None, url["protocol"].upper())
        )
    return False


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
