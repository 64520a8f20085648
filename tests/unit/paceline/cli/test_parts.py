"""The pure parts of the command line: what is measured and which ports are taken."""

from __future__ import annotations

import json
import shlex
import socket
from dataclasses import replace

import pytest

from gateway.http.schema import ChatRequest, CompletionRequest, parse
from paceline.cli.console import DRAFTED, OWN
from paceline.cli.demo import Comparison, curl
from paceline.cli.receipt import Measured, Recorder
from paceline.client import Chunk, Finished, Started
from paceline.local.plan import NotOurHostError, PortTakenError, choose_addresses
from paceline.session import FinishReason, Receipt, SourceTokens

STARTED = Started("s", "tiny", 3, 0)


def measured(*token_ids: int, text: str = "", seconds: float = 2.0) -> Measured:
    return Measured(STARTED, text, token_ids, FinishReason.LENGTH, Receipt(), seconds)


@pytest.mark.parametrize(
    ("one", "other", "identical", "difference"),
    [
        (measured(1, 2, 3), measured(1, 2, 3), True, 3),
        (measured(1, 2, 3), measured(1, 5, 3), False, 1),
        (measured(1, 2, 3), measured(1, 2), False, 2),
        (measured(1, text="a"), measured(1, text="b"), False, 1),
    ],
)
def test_texts_are_really_compared(one: Measured, other: Measured, identical: bool, difference: int) -> None:
    comparison = Comparison(one, other)
    assert comparison.identical is identical
    assert comparison.first_difference() == difference


def test_speed_up_is_a_ratio_of_times() -> None:
    assert Comparison(measured(1, seconds=2.0), measured(1, seconds=5.0)).speed_up == 2.5
    assert measured(1, 2, 3, seconds=1.5).tokens_per_second == 2.0


def test_what_sources_brought_is_told_where_there_are_several() -> None:
    text, eagle = SourceTokens("text", 20, 3), SourceTokens("eagle", 10, 5)
    told = replace(measured(1, 2), receipt=Receipt(accepted_tokens=6, sources=(eagle, text)))
    assert "6 of 2 tokens drafted (eagle 5, text 3)" in told.summary()
    assert told.to_json()["sources"] == {
        "eagle": {"drafted_tokens": 10, "accepted_tokens": 5},
        "text": {"drafted_tokens": 20, "accepted_tokens": 3},
    }
    lone = replace(measured(1), receipt=Receipt(accepted_tokens=6, sources=(SourceTokens("", 20, 3),)))
    assert "tokens drafted |" in lone.summary()
    assert lone.to_json()["sources"] == {"unnamed": {"drafted_tokens": 20, "accepted_tokens": 3}}


def test_a_recorder_shows_each_piece_with_its_origin() -> None:
    shown: list[tuple[str, str]] = []
    recorder = Recorder(lambda text, style: shown.append((text, style)))
    recorder.add(STARTED)
    recorder.add(Chunk("ab", 3, (1, 2), 2))
    recorder.add(Chunk("", 5, (3,), 0))
    recorder.add(Chunk("é", 6, (4,), 0))
    assert recorder.measured() is None
    recorder.add(Finished(FinishReason.STOP, Receipt(steps=2, committed_tokens=4)))
    whole = recorder.measured()
    assert whole is not None
    assert (whole.text, whole.token_ids) == ("abé", (1, 2, 3, 4))
    assert shown == [("ab", DRAFTED), ("é", OWN)]


def test_every_address_has_a_port_of_its_own() -> None:
    addresses = choose_addresses(http_port=0, grpc_port=0, verifiers=3, drafters=2)
    everything = [addresses.url, addresses.grpc, *addresses.verifiers, *addresses.drafters]
    ports = [address.rpartition(":")[2] for address in everything]
    assert len(set(ports)) == 7
    assert "0" not in ports


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://[::1]:8000"])
def test_the_curl_that_is_shown_asks_for_the_likeliest_text(url: str, chat: bool) -> None:
    words = shlex.split(curl(url, "tiny", chat=chat).replace("\\\n", " "))
    assert words[:2] == ["curl", f"{url}/v1/{'chat/' if chat else ''}completions"]
    asked = json.loads(words[words.index("-d") + 1])
    assert (asked["model"], asked["temperature"]) == ("tiny", 0)
    # A request that the gateway takes.
    body = json.dumps(asked).encode()
    assert (parse(body, ChatRequest) if chat else parse(body, CompletionRequest)).max_tokens == 64


@pytest.mark.parametrize(
    ("host", "url", "pod"),
    [
        ("127.0.0.1", "http://127.0.0.1:", "127.0.0.1:"),
        ("::1", "http://[::1]:", "[::1]:"),
        ("::", "http://[::1]:", "127.0.0.1:"),
        ("0.0.0.0", "http://127.0.0.1:", "127.0.0.1:"),
    ],
)
def test_a_fleet_is_reached_where_its_gateway_listens(host: str, url: str, pod: str) -> None:
    addresses = choose_addresses(http_port=0, grpc_port=0, verifiers=1, drafters=0, host=host)
    assert addresses.url.startswith(url)
    assert addresses.verifiers[0].startswith(pod)


def test_a_host_of_another_machine_is_named() -> None:
    with pytest.raises(NotOurHostError, match=r"192\.0\.2\.1 is no address of this machine"):
        choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=0, host="192.0.2.1")


def test_a_taken_port_is_named() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {port} is taken"):
            choose_addresses(http_port=0, grpc_port=port, verifiers=1, drafters=0)
