"""host:port as people write it, and sockets that listen where it says."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_settings import SettingsConfigDict

from gateway.config import GatewaySettings
from paceline.addresses import (
    AddressError,
    is_loopback,
    join_address,
    listen,
    parse_address,
    parse_addresses,
    parse_host,
    reachable,
)
from paceline.service.settings import ServiceSettings, SettingsError, load_settings


class OvenSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="PACELINE_OVEN_")


HOSTS = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{1,10}){0,3}", fullmatch=True),
)


@given(host=HOSTS, port=st.integers(1, 65535))
def test_what_is_joined_is_parsed_again(host: str, port: int) -> None:
    assert parse_address(join_address(host, port)) == (host, port)
    assert parse_host(host) == host


@given(address=st.ip_addresses(v=6), port=st.integers(1, 65535))
def test_ipv6_without_brackets_is_no_address(address: IPv6Address, port: int) -> None:
    with pytest.raises(AddressError, match=r"brackets: \[::1\]:9000"):
        parse_address(f"{address}:{port}")
    assert parse_host(f"[{address}]") == str(address)


@given(text=st.text(max_size=40))
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    with suppress(AddressError):
        host, port = parse_address(text)
        assert 0 < port < 65536
        assert parse_address(join_address(host, port)) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", ":9000", "oven", "oven:", "oven:0", "oven:65536", "oven:http", "http://oven:9000", "[::1]",
     "[oven]:9000", "[10.0.0.1]:9000", "::1:9000", "[::1:9000", "o ven:9000", "dns:///oven:9000",
     "10.0.0.1:9000:1", "[]:9000"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


def test_a_list_of_addresses() -> None:
    listed = " oven:9000, [::1]:50051,[0:0::1]:2 ,,10.0.0.1:3"
    assert parse_addresses(listed) == ("oven:9000", "[::1]:50051", "[0:0::1]:2", "10.0.0.1:3")


@pytest.mark.parametrize(
    "host", ["::1", "[::1]", "::", "[::]", "0.0.0.0", "127.0.0.1", "localhost", "oven_1"]
)
def test_every_form_of_a_host_is_a_setting(host: str) -> None:
    assert load_settings(OvenSettings, host=host).host == host.strip("[]")


@pytest.mark.parametrize("host", ["", "127.0.0.1:80", "[::1]:80", "[oven]", "http://oven", ":::"])
def test_what_is_no_host_is_named(host: str) -> None:
    with pytest.raises(SettingsError, match=r"--host .*is neither an IP address nor a host name"):
        load_settings(OvenSettings, host=host)


def test_pods_are_told_by_any_form() -> None:
    settings = load_settings(GatewaySettings, model="m", verifiers="[::1]:50051,oven:1", drafters="")
    assert settings.verifier_addresses == ("[::1]:50051", "oven:1")
    with pytest.raises(SettingsError, match=r"--verifiers .*'::1:50051' is not host:port"):
        load_settings(GatewaySettings, model="m", verifiers="::1:50051")


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::1", ["::1"]),
        ("::", ["::1", "127.0.0.1"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("localhost", ["localhost"]),
    ],
)
def test_sockets_listen_on_all_of_a_host(host: str, reached: list[str]) -> None:
    with ExitStack() as opened:
        sockets = [opened.enter_context(each) for each in listen(host, 0)]
        (port,) = {each.getsockname()[1] for each in sockets}
        for each in (*reached, reachable(host)):
            socket.create_connection((each, port), timeout=5).close()
        with pytest.raises(OSError, match="Address already in use"):
            listen(host, port)


def test_only_this_machine_reaches_loopback() -> None:
    hosts = ["127.0.0.1", "127.1.2.3", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "oven"]
    assert [is_loopback(host) for host in hosts] == [True] * 4 + [False] * 4
