"""What `paceline up` tells its services of how to draft."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.local.plan import Drafting, choose_addresses, plan_fleet
from paceline.models.store import LocalModel

MODEL = LocalModel("tiny", Path("/models/tiny"), "a folder")


def told(drafting: Drafting) -> dict[str, str]:
    """The command of each service that has to do with drafting."""
    addresses = choose_addresses(http_port=0, grpc_port=0, verifiers=1, drafters=2)
    [wave] = plan_fleet(MODEL, addresses, redis_url="redis://r", redis=None, drafting=drafting)
    return {service.name: " ".join(service.command) for service in wave if service.name != "gateway"}


@pytest.mark.parametrize(
    ("drafting", "drafter", "verifier"),
    [
        (Drafting("lookup"), "--method lookup --model /models/tiny --threads 1", ""),
        (
            Drafting("draft", "small"),
            "--method draft --model /models/tiny --threads 1 --draft-model small",
            "",
        ),
        (Drafting("lookup+eagle"), "--method lookup+eagle --model /models/tiny --threads 1", "eagle"),
    ],
)
def test_every_drafter_drafts_as_asked_and_verifiers_keep_what_it_takes(
    drafting: Drafting, drafter: str, verifier: str
) -> None:
    commands = told(drafting)
    assert commands["drafter-1"].endswith(f" {drafter}")
    assert commands["drafter-2"].endswith(f" {drafter}")
    assert commands["verifier-1"].partition(" --keep-states ")[2] == verifier


def test_by_itself_a_service_drafts_and_keeps_by_its_own_default() -> None:
    for command in told(Drafting()).values():
        assert "--method" not in command
        assert "--keep-states" not in command
