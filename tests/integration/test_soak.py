"""`make soak`, in short: clients of all kinds are served as they should, and nothing is left of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.run import fleet, soak

pytestmark = [
    pytest.mark.long(reason="serves clients of all kinds for 12 seconds and watches what is left"),
    pytest.mark.serial,
]


async def test_nothing_is_left_of_clients_of_all_kinds(
    tmp_path: Path, tiny_model: Path, redis_url: str
) -> None:
    with fleet(tmp_path, tiny_model, redis_url) as pods:
        report = await soak(pods.start(), minutes=0.2, concurrency=16, seed=1)
    assert not report.wrong
    assert not report.left
    assert len(report.served) == 8
